"""How the sizes a graph reads from its tensors grow with the batch: each is c·n^d, or is not followed.

The walk folds shape arithmetic with one stand-in for the size of the batch. What comes out of Shape and goes
through the few operators here is known for every size; anything else made from it is not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from .axes import Axis, atoms, flatten
from .graph import Node, read_node, walk_graphs
from .shapes import EVALUATE
from .walk import Axes, Walk

# Input 0 is laid out anew, the others say how.
_MOVES = frozenset("Identity Gather Slice Reshape Transpose Unsqueeze Squeeze".split())
_COMPUTED = frozenset("Concat Where Mul Div Equal ReduceProd".split())


class NotFollowed(Exception):
    """The result is not c·n^d, or not the same for all n."""


@dataclass(frozen=True, eq=False, slots=True)
class Multiple:
    """``factor`` · n^``degree``, for every size n of the batch from 1 on."""

    factor: int
    degree: int

    def __mul__(self, other: Multiple) -> Multiple:
        return Multiple(self.factor * other.factor, self.degree + other.degree)

    def __truediv__(self, other: Multiple) -> Multiple:
        degree = self.degree - other.degree
        if degree < 0 or not other.factor or self.factor % other.factor:
            raise NotFollowed
        return Multiple(self.factor // other.factor, degree)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Multiple):
            return NotImplemented
        if self.degree == other.degree or not self.factor or not other.factor:
            return self.factor == other.factor
        if (self.factor > 0) == (other.factor > 0):
            raise NotFollowed  # equal for one n, different for others
        return False

    __hash__ = None  # type: ignore[assignment]


Multiples = NDArray[np.object_]


def multiple(axis: Axis, batch: Axis, size: int) -> Multiple | None:
    """The size of ``axis`` where the free axis ``batch`` has ``size`` positions; None if not followed."""
    factors = flatten([axis], "prod")
    degree = sum(factor is batch for factor in factors)
    if any(factor is not batch and any(unit is batch for unit in atoms(factor)) for factor in factors):
        return None
    return Multiple(axis.size // size**degree, degree)


def scaled(proto: onnx.ModelProto, walk: Walk, batch: Axis, size: int) -> dict[str, Multiples | None]:
    """Constants of ``walk`` that depend on the size of the batch, by name; None where one is not followed."""
    found: dict[str, Multiples | None] = {}
    for graph in walk_graphs(proto.graph):
        for raw in graph.node:
            node = read_node(0, raw)
            if node.op == "Constant" or not node.outputs or node.outputs[0] not in walk.constants:
                continue
            if node.op in ("Shape", "Size"):
                if found.get(node.inputs[0]) is not None:
                    continue  # what is followed has the same shape for all n
                value = None if node.inputs[0] in found else _sizes(walk, node, batch, size)
            elif any(name in found for name in node.inputs):
                value = _follow(walk, node, found)
            else:
                continue
            if value is None or any(entry.degree for entry in value.reshape(-1)):
                found[node.outputs[0]] = value
    return found


def _sizes(walk: Walk, node: Node, batch: Axis, size: int) -> Multiples | None:
    name = node.inputs[0]
    if name in walk.constants:
        return _of(np.array(walk.constants[name].shape, np.int64))
    types: Axes = walk.axes_of.get(name) or []
    if node.op == "Shape":
        types = types[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
    entries = [multiple(axis, batch, size) for axis in types]
    if any(entry is None for entry in entries):
        return None
    if node.op == "Size":
        return np.array(math.prod(filter(None, entries), start=Multiple(1, 0)), object)
    sizes = np.empty(len(entries), object)
    sizes[:] = entries
    return sizes


def _of(value: NDArray[Any]) -> Multiples:
    """Integers as multiples of n⁰."""
    if value.dtype.kind not in "iu":
        raise NotFollowed
    made = np.empty(value.size, object)
    made[:] = [Multiple(int(entry), 0) for entry in value.reshape(-1)]
    return made.reshape(value.shape)


def _follow(walk: Walk, node: Node, found: dict[str, Multiples | None]) -> Multiples | None:
    """What ``node`` makes of sizes; None if it is not followed."""
    inputs: list[NDArray[Any]] = []
    for name in node.inputs:
        value = found[name] if name in found else walk.constants[name].value
        if value is None:
            return None
        inputs.append(value)
    try:
        if node.op == "Cast":
            kind = helper.tensor_dtype_to_np_dtype(node.attrs["to"]).kind
            return inputs[0] if kind in "iu" else None
        if node.op in _COMPUTED:
            inputs = [x if x.dtype.kind in "bO" else _of(x) for x in inputs]
        elif node.op not in _MOVES or any(x.dtype.kind == "O" for x in inputs[1:]):
            return None
        result = np.asarray(EVALUATE[node.op](node.attrs, *inputs))
    except (NotFollowed, TypeError):
        return None
    return np.empty(0, object) if result.dtype.kind != "O" else result
