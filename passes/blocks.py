"""Remove residual branches whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from ..analysis.blocks import Block
from ..analysis.errors import PlanError
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from .edit import Edit


@dataclass(frozen=True)
class DropBlocks:
    """Let the skip path stand for the sum it is part of, and remove the branch.

    Attributes:
        blocks: ids of blocks, see `analysis.blocks.Block`.

    Raises (when called):
        PlanError: the model has no such block.
    """

    blocks: tuple[str, ...]

    def __call__(self, model: Model) -> Model:
        if not self.blocks:
            return model
        analysis = analyze(model)
        edit = Edit(analysis.model.proto)
        for block in _named(analysis, self.blocks):
            node = edit.nodes[block.id]
            node.op_type = "Identity"
            del node.input[:]
            node.input.append(block.skip)
        return Model(edit.finish(removable=lambda node: True), model.path)


def silenced(analysis: Analysis, blocks: Sequence[str]) -> onnx.ModelProto:
    """The whole model, in which each of ``blocks`` adds zeros to its skip path.

    Raises:
        PlanError: the model has no such block.
    """
    edit = Edit(analysis.model.proto)
    for block in _named(analysis, blocks):
        node = edit.nodes[block.id]
        zeros = edit.insert_before(block.id, "Sub", [block.branch, block.branch], f"{block.id}.zeros")
        edit.set_input(node, list(node.input).index(block.branch), zeros)
    return edit.finish()


def _named(analysis: Analysis, names: Sequence[str]) -> list[Block]:
    known = {block.id: block for block in analysis.blocks}
    missing = [name for name in names if name not in known]
    if missing:
        raise PlanError(f"the model has no residual block '{missing[0]}' that can be removed")
    return [known[name] for name in names]
