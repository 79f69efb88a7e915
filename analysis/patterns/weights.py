"""The weights of a model as sparsity patterns see them: constant operands of sums of products."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from ..facts import Operand
from ..graph import Node
from ..groups import analyze
from ..model import Model
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
    readers: int
    origin: Origin | None
    reason: str = ""

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

    def is_constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the model's inputs."""
        return self.origins.is_constant(name)


def survey(model: Model, storage: Storage) -> Survey:
    """Find the weights of a model: operands of sums of products that do not depend on its inputs.

    Raises:
        ModelError: the graph is malformed.
    """
    analysis = analyze(model)
    walk = analysis.walk
    macs = _macs(walk)
    origins = Origins(analysis.model.proto, walk, storage)
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
            sizes, work = _laid_out(fact), macs[fact.node.index]
            found.append(
                Weight(fact.node, fact.input, sizes, fact.order, fact.kernel, work, 1, origin, reason)
            )
    weights = tuple(replace(weight, readers=origins.readers[weight.name]) for weight in found)
    return Survey(weights, walk, origins)


def _origin(origins: Origins, fact: Operand) -> Origin | None:
    """Where an operand is stored, with the steps that lay it out as a mask."""
    name = fact.node.inputs[fact.input]
    origin = origins.find(name)
    if origin is None:
        return None
    zero = origins.value(fact.node.inputs[fact.zero]) if fact.zero and fact.node.has(fact.zero) else None
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


def _macs(walk: Walk) -> Counter[int]:
    """Multiply-accumulates by the index of the node."""
    found: Counter[int] = Counter()
    for work in walk.work:
        found[work.node.index] += work.scale * prod(axis.size for axis in work.axes)
    return found


def _laid_out(fact: Operand) -> Sizes:
    groups, outputs, positions, inputs = (fact.sizes[k] for k in fact.order)
    return groups, outputs, positions, inputs
