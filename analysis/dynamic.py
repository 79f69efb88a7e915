"""Sizes known only at run time: stand-ins for them, and what depends on them.

The graph is walked twice with different stand-ins. A value that both walks find the same holds for every
size; one that differs is left for the graph to compute.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from .axes import Axis, flatten
from .facts import Work

RUN_TIME = "its size is known only at run time"

# Steps of stand-ins, tried in turn until every operator fits: what strides and poolings divide, what
# windows of 7 divide as well, and small ones for tables with few positions.
_STEPS = (32, 224, 4)


def symbol_of(info: onnx.ValueInfoProto, k: int) -> str | None:
    """The name of axis ``k`` of a model input when its size is known only at run time."""
    dim = info.type.tensor_type.shape.dim[k]
    return None if dim.HasField("dim_value") else dim.dim_param or f"{info.name}.{k}"


def symbols(graph: onnx.GraphProto) -> list[str]:
    """Every size of the inputs that is known only at run time, in the order they are met."""
    weights = {tensor.name for tensor in graph.initializer}
    found: dict[str, None] = {}
    for info in graph.input:
        if info.name not in weights:
            for k in range(len(info.type.tensor_type.shape.dim)):
                symbol = symbol_of(info, k)
                if symbol is not None:
                    found[symbol] = None
    return list(found)


def stand_ins(names: list[str]) -> Iterator[tuple[Mapping[str, int], Mapping[str, int]]]:
    """Pairs of sizes to walk the graph with: all different, in which no symbol has the same size twice."""
    for step in _STEPS:
        first = {name: step * (k + 2) for k, name in enumerate(names)}
        yield first, {name: size + step for name, size in first.items()}


def once(work: Work, other: Work) -> Work:
    """``work`` with one position for each size known only at run time: one that ``other`` has different."""
    return Work(work.node, work.scale, static_axes(work.axes, other.axes))


def static_axes(axes: Sequence[Axis], others: Sequence[Axis]) -> tuple[Axis, ...]:
    """The factors of ``axes`` that have the same size among ``others``, of a walk with other stand-ins."""
    found: list[Axis] = []
    for mine, theirs in zip(axes, others, strict=True):
        left, right = flatten([mine], "prod"), flatten([theirs], "prod")
        if len(left) != len(right):
            left, right = [mine], [theirs]
        found += [a for a, b in zip(left, right, strict=True) if a.size == b.size]
    return tuple(found)
