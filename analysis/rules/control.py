"""Control flow."""

from __future__ import annotations

from ..axes import unify
from ..graph import Node
from ..walk import Walk
from .registry import Outputs, Unsupported, rule


@rule("If")
def if_(walk: Walk, node: Node) -> Outputs:
    branches = [node.attrs["then_branch"], node.attrs["else_branch"]]
    for branch in branches:
        walk.graph(branch)
    outputs = []
    for names in zip(*([o.name for o in branch.output] for branch in branches), strict=True):
        then, other = (walk.axes_of.get(name) for name in names)
        if then is None or other is None:
            raise Unsupported("a branch gives a tensor of unknown shape or a constant")
        if len(then) != len(other):
            raise Unsupported("its branches give tensors of different rank")
        for a, b in zip(then, other, strict=True):
            unify(a, b)
        outputs.append(then)
    return outputs
