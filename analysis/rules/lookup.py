"""Operators that read or write positions named by an index tensor."""

from __future__ import annotations

import numpy as np

from ..axes import ONE, Axis, cuts, fix, pin, unify, view
from ..facts import IndicesBaked
from ..graph import Node
from ..walk import Walk
from .registry import Outputs, Unsupported, rule
from .reshape import regroup


@rule("Gather")
def gather(walk: Walk, node: Node) -> Outputs:
    x, index = walk.axes(node, 0), walk.static_value(node, 1)
    along = node.attrs.get("axis", 0) % len(x)
    before, after = x[:along], x[along + 1 :]
    if index is None or not index.size:
        pin(x[along], f"{node.name} looks up positions computed at run time")
        return [[*before, *walk.axes(node, 1), *after]]
    positions = np.where(index < 0, index + x[along].size, index).reshape(-1).astype(np.int64)
    if index.size == 1:
        _stays(x[along], int(positions[0]), f"{node.name} reads single positions of it")
        picked: Axis = ONE
        axes = [ONE] * index.ndim
    else:
        picked = view(x[along], positions)
        axes = regroup([picked], index.shape)
    walk.baked.append(IndicesBaked(node, 1, x[along], picked, tuple(int(i) for i in positions), tuple(axes)))
    return [[*before, *axes, *after]]


def _stays(axis: Axis, position: int, why: str) -> None:
    """Pin one position of an axis."""
    pieces = cuts(axis, [position, 1, axis.size - position - 1])
    pin(pieces[1], why)


def _tie(a: Axis, b: Axis, why: str) -> Axis:
    """The axis both run along; one that runs along a part of the other only pins it."""
    if a.size == b.size:
        unify(a, b)
    else:
        pin(a, why)
        pin(b, why)
    return b


@rule("GatherElements")
def gather_elements(walk: Walk, node: Node) -> Outputs:
    x, index = walk.axes(node, 0), walk.axes(node, 1)
    along = node.attrs.get("axis", 0) % len(x)
    pin(x[along], f"{node.name} looks up positions of it")
    for k, (a, b) in enumerate(zip(x, index, strict=True)):
        if k != along:
            _tie(a, b, f"{node.name} reads a part of it")
    return [index]


@rule("GatherND")
def gather_nd(walk: Walk, node: Node) -> Outputs:
    x, index = walk.axes(node, 0), walk.axes(node, 1)
    batch, depth = node.attrs.get("batch_dims", 0), index[-1].size
    pin(index[-1], f"{node.name} looks up positions by it")
    for a, b in zip(x[:batch], index[:batch], strict=True):
        unify(a, b)
    for axis in x[batch : batch + depth]:
        pin(axis, f"{node.name} looks up positions of it")
    return [[*index[:-1], *x[batch + depth :]]]


@rule("ScatterND")
def scatter_nd(walk: Walk, node: Node) -> Outputs:
    x, index, updates = (walk.axes(node, i) for i in range(3))
    depth, rows = index[-1].size, len(index) - 1
    if len(updates) != rows + len(x) - depth:
        raise Unsupported("its updates do not fit its indices")
    for axis in (*x[:depth], *index, *updates[:rows]):
        pin(axis, f"{node.name} writes to positions of it")
    for a, b in zip(x[depth:], updates[rows:], strict=True):
        unify(a, b)
    return [x]


@rule("ScatterElements", "Scatter")
def scatter_elements(walk: Walk, node: Node) -> Outputs:
    x, index, updates = (walk.axes(node, i) for i in range(3))
    along = node.attrs.get("axis", 0) % len(x)
    for k, (a, b, c) in enumerate(zip(x, index, updates, strict=True)):
        unify(b, c)
        if k == along:
            pin(a, f"{node.name} writes to positions of it")
            pin(b, f"{node.name} writes to positions of it")
        else:
            _tie(a, b, f"{node.name} writes to a part of it")
    return [x]


@rule("OneHot")
def one_hot(walk: Walk, node: Node) -> Outputs:
    index, depth = walk.axes(node, 0), walk.value(node, 1)
    if depth is None:
        raise Unsupported("its depth is computed at run time")
    at = node.attrs.get("axis", -1) % (len(index) + 1)
    made = fix(int(depth.reshape(-1)[0]), f"{node.name} makes it")
    return [[*index[:at], made, *index[at:]]]
