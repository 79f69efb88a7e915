"""Operators that lay the same numbers out anew."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..axes import ONE, Axis, atom, cuts, factor, fix, pin, prod, total
from ..facts import SizesBaked
from ..graph import Node
from ..shapes import reshape_target
from ..walk import Walk
from .registry import Axes, Outputs, Unsupported, rule


def regroup(axes: Axes, sizes: Sequence[int]) -> Axes:
    """Types of the axes of the same numbers, row-major, laid out in ``sizes``.

    Both sides are cut into the smallest runs of equal volume; within a run the axes are multiplied and
    the product factored from the right.
    """
    out: list[Axis] = [ONE] * len(sizes)
    left, right = list(range(len(axes))), list(range(len(sizes)))
    left = [i for i in left if axes[i].size != 1]
    right = [j for j in right if sizes[j] != 1]
    while left or right:
        run: Axes = []
        targets: list[int] = []
        volume = wanted = 1
        while volume != wanted or not run:
            if (volume <= wanted and left) or not right:
                if not left:
                    raise Unsupported(f"{[a.size for a in axes]} positions do not make {list(sizes)}")
                run.append(axes[left[0]])
                volume *= axes[left.pop(0)].size
            else:
                targets.append(right[0])
                wanted *= sizes[right.pop(0)]
        merged = prod(run)
        for j in reversed(targets[1:]):
            merged, out[j] = factor(merged, sizes[j])
        if targets:
            out[targets[0]] = merged
    return out


@rule("Reshape")
def reshape(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    target = walk.value(node, 1) if node.has(1) else node.attrs.get("shape")
    if target is None:
        raise Unsupported("its target shape is computed at run time")
    sizes = reshape_target(
        [a.size for a in x], [int(size) for size in target], bool(node.attrs.get("allowzero", 0))
    )
    if math.prod(sizes) != math.prod(a.size for a in x):
        raise Unsupported(f"{[a.size for a in x]} positions do not make {sizes}")
    out = regroup(x, sizes)
    walk.baked.append(SizesBaked(node, 1, tuple(out), before=tuple(x)))
    return [out]


@rule("Flatten")
def flatten(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    at = node.attrs.get("axis", 1)
    at = at + len(x) if at < 0 else at
    return [[prod(x[:at]), prod(x[at:])]]


@rule("Squeeze")
def squeeze(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    given = walk.value(node, 1) if node.has(1) else node.attrs.get("axes")
    if given is None:
        gone = {k for k, axis in enumerate(x) if axis.size == 1}
    else:
        gone = {int(k) % len(x) for k in given}
    return [[axis for k, axis in enumerate(x) if k not in gone]]


@rule("Unsqueeze")
def unsqueeze(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    given = walk.value(node, 1) if node.has(1) else node.attrs.get("axes")
    if given is None:
        raise Unsupported("its axes are computed at run time")
    rank = len(x) + len(given)
    new = {int(k) % rank for k in given}
    rest = iter(x)
    return [[ONE if k in new else next(rest) for k in range(rank)]]


@rule("Transpose")
def transpose(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    return [[x[k] for k in node.attrs.get("perm", range(len(x))[::-1])]]


@rule("Expand")
def expand(walk: Walk, node: Node) -> Outputs:
    x, target = walk.axes(node, 0), walk.value(node, 1)
    if target is None:
        raise Unsupported("its target shape is computed at run time")
    sizes = [int(size) for size in target]
    rank = max(len(sizes), len(x))
    sizes = [1] * (rank - len(sizes)) + sizes
    padded = [ONE] * (rank - len(x)) + x
    # One position copied to many: the copies are free to go one by one.
    out = [atom(size) if axis.size == 1 else axis for axis, size in zip(padded, sizes, strict=True)]
    walk.baked.append(SizesBaked(node, 1, tuple(out[rank - len(target) :])))
    return [out]


@rule("Tile")
def tile(walk: Walk, node: Node) -> Outputs:
    x, repeats = walk.axes(node, 0), walk.value(node, 1)
    if repeats is None:
        raise Unsupported("its repeats are computed at run time")
    why = "a tile makes copies that all stay"
    return [[prod([fix(int(r), why), axis]) for r, axis in zip(repeats, x, strict=True)]]


@rule("Pad")
def pad(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    pads = walk.value(node, 1) if node.has(1) else node.attrs.get("pads")
    given = walk.static_value(node, 3)
    if pads is None or (node.has(3) and given is None):
        raise Unsupported("its padding is computed at run time")
    axes = list(range(len(x))) if given is None else [int(k) % len(x) for k in given]
    fills = node.attrs.get("mode", b"constant") == b"constant"
    static = walk.static(node, 1) if node.has(1) else None
    out = list(x)
    for k, axis in enumerate(axes):
        entries = (k, k + len(axes))
        before, after = (int(pads[e]) for e in entries)
        if not before and not after:
            continue
        if not fills or (static is not None and not static[list(entries)].all()):
            why = f"{node.name} pads it with its own positions, or by a number known only at run time"
            pin(x[axis], why)
            out[axis] = fix(x[axis].size + before + after, why)
        else:
            cropped = [max(0, -before), max(0, -after)]
            head, kept, tail = cuts(x[axis], [cropped[0], x[axis].size - sum(cropped), cropped[1]])
            for piece in (head, tail):
                pin(piece, f"{node.name} crops it by a fixed number")
            out[axis] = total([fix(max(0, before), "padding"), kept, fix(max(0, after), "padding")])
    return [out]


@rule("ConstantOfShape")
def constant_of_shape(walk: Walk, node: Node) -> Outputs:
    target = walk.value(node, 0)
    if target is None:
        raise Unsupported("its shape is computed at run time")
    out = [atom(int(size)) for size in target]
    walk.baked.append(SizesBaked(node, 0, tuple(out)))
    return [out]
