"""Operators that join axes or pick positions of them."""

from __future__ import annotations

import numpy as np

from ..axes import Axis, cut, cuts, fix, pin, total, unify, view
from ..facts import BoundsBaked, SizesBaked
from ..graph import Node
from ..shapes import slices
from ..walk import Walk
from .registry import Axes, Outputs, Unsupported, rule


@rule("Concat")
def concat(walk: Walk, node: Node) -> Outputs:
    return [joined([walk.axes(node, i) for i in range(len(node.inputs))], node.attrs["axis"])]


def joined(parts: list[Axes], axis: int) -> Axes:
    """The concatenation of ``parts`` along ``axis``."""
    along = axis % len(parts[0])
    out = list(parts[0])
    for k, first in enumerate(out):
        if k != along:
            for part in parts[1:]:
                unify(first, part[k])
    out[along] = total([part[along] for part in parts])
    return out


@rule("Split")
def split(walk: Walk, node: Node) -> Outputs:
    x, count = walk.axes(node, 0), len(node.outputs)
    along = node.attrs.get("axis", 0) % len(x)
    given = walk.value(node, 1) if node.has(1) else node.attrs.get("split")
    if given is None:
        if node.has(1):
            raise Unsupported("its sizes are computed at run time")
        chunk = -(-x[along].size // count)
        given = [min(chunk, x[along].size - i * chunk) for i in range(count)]
    parts = cuts(x[along], [int(size) for size in given])
    attribute = "split" if walk.opset < 13 else None
    walk.baked.append(SizesBaked(node, 1, tuple(parts), attribute=attribute))
    return [[*x[:along], part, *x[along + 1 :]] for part in parts]


@rule("Slice")
def slice_(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    bounds = [walk.value(node, i) for i in range(1, len(node.inputs))]
    if any(b is None and node.has(i) for i, b in enumerate(bounds, 1)):
        raise Unsupported("its bounds are computed at run time")
    out, ranges = list(x), []
    at_run_time = _at_run_time(walk, node)
    for entry, (k, bound) in enumerate(slices(node.attrs, [a.size for a in x], bounds)):
        positions = range(*bound.indices(x[k].size))
        ranges.append((k, positions))
        if entry in at_run_time:
            why = f"{node.name} takes positions computed at run time"
            pin(x[k], why)
            out[k] = fix(len(positions), why)
        elif positions != range(x[k].size):
            out[k] = _positions(x[k], positions)
    walk.baked.append(BoundsBaked(node, tuple(x), tuple(out), tuple(ranges)))
    return [out]


def _at_run_time(walk: Walk, node: Node) -> set[int]:
    """The entries of a Slice whose start or end depends on a size known only at run time."""
    for i in (3, 4):
        if node.has(i) and walk.static(node, i) is not None:
            raise Unsupported("its axes or steps are computed at run time")
    found: set[int] = set()
    for i in (1, 2):
        static = walk.static(node, i)
        if static is not None:
            found.update(int(entry) for entry in np.flatnonzero(~static))
    return found


def _positions(axis: Axis, positions: range) -> Axis:
    if not len(positions):
        raise Unsupported("it takes no positions at all")
    if positions.step != 1:
        return view(axis, np.asarray(positions))
    if positions.stop < axis.size:
        axis, _ = cut(axis, positions.stop)
    if positions.start > 0:
        _, axis = cut(axis, positions.start)
    return axis
