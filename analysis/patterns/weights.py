"""The weights of a model as sparsity patterns see them: constant operands of sums of products."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..dtypes import dtypes
from ..facts import Operand
from ..graph import Node
from ..groups import analyze
from ..model import Model, load_structure
from ..storage import Storage
from ..walk import MALFORMED, Walk, malformed
from .grid import GROUPS, INPUTS, OUTPUTS, Cell, Mask, Sizes
from .origin import Opaque, Origin, Origins
from .steps import Dequantised, Index, Reshaped, Scale, Transposed


@dataclass(frozen=True)
class Weight:
    """A constant operand of a node.

    Attributes:
        node: that reads it, as input ``input``.
        sizes: (groups, outputs, positions of a kernel, inputs); each output of a group sums over the inputs.
        order: of the operand's axes that makes these sizes.
        kernel: its shape; () where the node is no convolution.
        macs: multiply-accumulates of the node in a run.
        first: whether no other sum of products is between it and the model's inputs.
        data: type of what it is multiplied by: where that is quantised, of those numbers. None if not known.
        readers: how often nodes read the stored tensor, or what is made of it: once for this one.
        origin: where it is stored; None when that cannot be told.
        reason: why not.
    """

    node: Node
    input: int
    sizes: Sizes
    order: tuple[int, int, int, int]
    kernel: tuple[int, ...]
    macs: int
    first: bool
    data: np.dtype[Any] | None
    origin: Origin | None
    reason: str = ""
    readers: int = 1

    @property
    def name(self) -> str:
        """The stored tensor, or else what the node reads."""
        return self.origin.constant.name if self.origin is not None else self.node.inputs[self.input]

    @property
    def channels(self) -> tuple[int, int]:
        """Input and output channels, those of all groups of a convolution together."""
        groups = int(self.node.attrs.get("group", 1))
        return self.sizes[INPUTS] * groups, self.sizes[OUTPUTS] * groups

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.node.attrs.get("strides", [1] * len(self.kernel)))

    @property
    def outputs_first(self) -> bool:
        """Whether outputs come before inputs among the axes of the operand."""
        return self.order[1] < self.order[3]

    @property
    def elements(self) -> int:
        return prod(self.sizes)

    @property
    def stacked(self) -> bool:
        """Whether it is several matrices, each for data of its own, and not the groups of a convolution."""
        return self.sizes[GROUPS] > 1 and not self.kernel

    @property
    def depthwise(self) -> bool:
        return self.sizes[GROUPS] > 1 and self.sizes[INPUTS] == 1

    def mask(self, storage: Storage) -> Mask:
        """What is not zero, (groups, outputs, positions, inputs).

        Raises:
            ModelError: the stored tensor cannot be read.
        """
        assert self.origin is not None
        return self.origin.nonzero(storage)

    def place(self, cell: Cell) -> Index:
        """Where an element of the mask is stored."""
        assert self.origin is not None
        return self.origin.place(cell)


@dataclass(frozen=True)
class Survey:
    """The weights of a model, in the order of its nodes, and the graph they are in."""

    weights: tuple[Weight, ...]
    walk: Walk
    origins: Origins


def opened(model: Model | str | Path) -> tuple[Model, Storage]:
    """A model, or that of a file, of which large weights are not read; and where its weights are.

    Raises:
        ModelError: the file cannot be read.
    """
    return load_structure(model) if isinstance(model, str | Path) else (model, Storage())


def survey(model: Model, storage: Storage) -> Survey:
    """Find the weights of a model: operands of sums of products that do not depend on its inputs.

    Raises:
        ModelError: the graph is malformed.
    """
    analysis = analyze(model)
    walk = analysis.walk
    macs = _macs(walk)
    origins = Origins(analysis.model.proto, walk, storage)
    after, data = _after_products(walk), _Data(walk)
    found: list[Weight] = []
    for fact in walk.operands:
        if origins.is_constant(fact.node.outputs[0]):
            continue  # it is computed once, whatever the inputs
        origin, reason = None, ""
        try:
            origin = _origin(origins, fact)
        except Opaque as error:
            reason = str(error)
        except MALFORMED as error:
            raise malformed(fact.node, error) from None
        if origin is not None or reason:
            node = fact.node
            found.append(
                Weight(
                    node,
                    fact.input,
                    _laid_out(fact),
                    fact.order,
                    fact.kernel,
                    macs[node.index],
                    not any(name in after for name in node.inputs),
                    None if fact.data is None else data.dtype(node.inputs[fact.data]),
                    origin,
                    reason,
                )
            )
    weights = tuple(replace(weight, readers=origins.readers[weight.name]) for weight in found)
    return Survey(weights, walk, origins)


def _origin(origins: Origins, fact: Operand) -> Origin | None:
    """Where an operand is stored, with the steps that lay it out as a mask."""
    name = fact.node.inputs[fact.input]
    origin = origins.find(name)
    if origin is None:
        return None
    zero = None
    if fact.zero is not None and fact.node.has(fact.zero):
        zero = origins.value(fact.node.inputs[fact.zero])
        if zero is None:
            raise Opaque(f"the zero point of {fact.node.name} is known at run time only")
    shape = origins.shape(name)
    steps = Reshaped(shape, fact.sizes), Transposed(fact.order)
    if zero is None or not zero.astype(np.float32).any():
        return origin.then(*steps)
    sizes = _laid_out(fact)
    if zero.size not in (1, sizes[OUTPUTS], sizes[GROUPS] * sizes[OUTPUTS]):
        raise Opaque(f"{fact.node.name} has zero points that are neither one nor one for each output")
    zero = np.broadcast_to(zero.reshape(-1, sizes[OUTPUTS] if zero.size > 1 else 1), sizes[:2])
    scale = Scale(
        np.ones((), np.float32), zero.reshape(*sizes[:2], 1, 1), 0, 0, np.dtype(np.float32), origin.dtype
    )
    return origin.then(*steps, Dequantised(scale))


def _after_products(walk: Walk) -> set[str]:
    """Tensors that some sum of products was computed for."""
    products = {fact.node.index for fact in walk.operands}
    found: set[str] = set()
    for node in walk.nodes:
        if node.index in products or any(name in found for name in node.inputs):
            found.update(node.outputs)
    return found


class _Data:
    """Types of the numbers in tensors, behind what makes quantised ones real."""

    def __init__(self, walk: Walk) -> None:
        self._makers = {name: node for node in walk.nodes for name in node.outputs}
        self._constants = walk.constants
        self._types = dtypes(walk)

    def dtype(self, name: str) -> np.dtype[Any] | None:
        maker = self._makers.get(name)
        if maker is not None and maker.op in ("DequantizeLinear", "com.microsoft::DequantizeLinear"):
            return self.dtype(maker.inputs[0])
        constant = self._constants.get(name)
        return constant.dtype if constant is not None else self._types.get(name)


def _macs(walk: Walk) -> Counter[int]:
    """Multiply-accumulates by the index of the node."""
    found: Counter[int] = Counter()
    for work in walk.work:
        found[work.node.index] += work.macs
    return found


def _laid_out(fact: Operand) -> Sizes:
    groups, outputs, positions, inputs = (fact.sizes[k] for k in fact.order)
    return groups, outputs, positions, inputs
