"""Are the positions of a batch independent of each other, so that it can be run in pieces of any size?

The batch is walked as one axis that could shrink. If nothing pins it, reduces over it, or lays it out in
another order, then the rules say that every position of the outputs comes from the same position of the
inputs: removing the others leaves it as it is. What the graph computes from the size of the batch is followed
(`scaling`), and may only say how tensors are laid out.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from .axes import Axis, atoms, find, reason
from .errors import ModelError
from .facts import SizesBaked
from .graph import walk_graphs
from .model import Model
from .prepare import prepare
from .rules import all_rules
from .scaling import Multiple, Multiples, multiple, scaled
from .walk import Axes, Walk

# Primes, so that nothing else in the graph has such a size, and so large that no tensor with it is folded.
_STAND_INS = (4194319, 4194329)
# Inputs of which an operator takes nothing but the type.
_TYPE_ONLY = {("CastLike", 1)}


def batch_of(proto: onnx.ModelProto) -> str | None:
    """The symbol that is the first size of every input and no other size of any; None if there is none."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    shapes = [info.type.tensor_type.shape.dim for info in proto.graph.input if info.name not in weights]
    first = {shape[0].dim_param if len(shape) else "" for shape in shapes}
    others = {dim.dim_param for shape in shapes for dim in shape[1:]}
    symbol = first.pop() if len(first) == 1 else ""
    return symbol if symbol and symbol not in others else None


def entangled(model: Model, symbol: str, sizes: Mapping[str, int]) -> str | None:
    """Why a batch cannot be run in pieces; None when it is proven that it can.

    Args:
        symbol: the size that `batch_of` found.
        sizes: those of all other symbols.

    Returns:
        None when for every n and every i, position i of all outputs for n inputs is what the model makes of
        input i alone, and has the same shape.
    """
    try:
        proto = prepare(model).proto
        walked = [_Walked(proto, symbol, sizes, n) for n in _STAND_INS]
        for one in walked:
            one.check()
        shapes, others = (one.shapes() for one in walked)
        alone = Walk(proto, all_rules(), {**sizes, symbol: 1})
    except (_Entangled, ModelError) as error:
        return str(error)
    for name, shape in shapes.items():
        if shape != others.get(name):
            return f"the shape of '{name}' depends on the size of the batch in a way that is not followed"
        if _shape(alone, name) not in (None, [m.factor for m in shape if m is not None]):
            return f"'{name}' has another shape in a batch of one"
    return None


class _Entangled(Exception):
    """The positions of the batch depend on each other, or may do so."""


class _Walked:
    """The model with a batch of ``size`` free positions."""

    def __init__(self, proto: onnx.ModelProto, symbol: str, sizes: Mapping[str, int], size: int) -> None:
        axis = Axis("atom", size)
        self.proto = proto
        self.size = size
        self.walk = Walk(proto, all_rules(), {**sizes, symbol: size}, free={symbol: axis})
        self.batch = find(axis)

    def check(self) -> None:
        """Raises _Entangled."""
        if self.batch.kind != "atom":
            why = reason(self.batch)
            raise _Entangled(why or "its positions are told apart, or laid out in another order")
        self._check_outputs()
        self._check_nodes()
        self._check_sizes_read()

    def shapes(self) -> dict[str, list[Multiple | None]]:
        """How the sizes of all computed tensors grow with the batch, as far as it is known."""
        return {
            name: [multiple(axis, self.batch, self.size) for axis in types]
            for name, types in self.walk.axes_of.items()
            if types is not None
        }

    def _holds(self, types: Axes) -> int:
        return sum(unit is self.batch for axis in types for unit in atoms(axis))

    def _check_outputs(self) -> None:
        for name in self.walk.outputs:
            types = self.walk.axes_of.get(name)
            if not types or find(types[0]) is not self.batch:
                raise _Entangled(f"the first axis of '{name}' is not the batch")

    def _check_nodes(self) -> None:
        for name, types in self.walk.axes_of.items():
            if self._holds(types or []) > 1:
                raise _Entangled(f"'{name}' brings positions of the batch together")
        summed = [(fact.node, fact.places) for fact in self.walk.contractions]
        reduced = [(fact.node, fact.inputs) for fact in self.walk.normalisations]
        for node, places in summed + reduced:
            if any(self._holds([self.walk.axes(node, i)[k]]) for i, k in places):
                raise _Entangled(f"{node.name} runs over the batch")
        for node in self.walk.nodes:
            read = any(
                self._holds(self.walk.axes_of.get(name) or [])
                for i, name in enumerate(node.inputs)
                if (node.op, i) not in _TYPE_ONLY
            )
            made = [self.walk.axes_of.get(name) for name in node.outputs if name]
            if read and not all(types is None or self._holds(types) for types in made):
                raise _Entangled(f"{node.name} makes something without the batch of it")

    def _check_sizes_read(self) -> None:
        """What is computed from the size of the batch is only the size of axes that grow with it."""
        found = scaled(self.proto, self.walk, self.batch, self.size)
        laid_out = {
            (fact.node.index, fact.input): fact.axes
            for fact in self.walk.baked
            if isinstance(fact, SizesBaked) and fact.attribute is None
        }
        for node in self.walk.nodes:
            for i, name in enumerate(node.inputs):
                if name in found and not self._fits(found[name], laid_out.get((node.index, i))):
                    raise _Entangled(f"{node.name} reads the size of the batch")
        for graph in walk_graphs(self.proto.graph):
            for output in graph.output:
                if output.name in found:
                    raise _Entangled(f"'{output.name}' is computed from the size of the batch")

    def _fits(self, entries: Multiples | None, axes: tuple[Axis, ...] | None) -> bool:
        if entries is None or axes is None or entries.shape != (len(axes),):
            return False
        return all(
            not entry.degree or entry == multiple(axis, self.batch, self.size)
            for entry, axis in zip(entries, axes, strict=True)
        )


def _shape(walk: Walk, name: str) -> list[int] | None:
    """The shape of a tensor, where it is known and was not folded."""
    types = walk.axes_of.get(name)
    return None if types is None else [axis.size for axis in types]
