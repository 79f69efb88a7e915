"""Convolutions: channels couple, spatial axes stay."""

from __future__ import annotations

import math

from ..axes import Axis, atom, cuts, factor, find, fix, pin, prod, ragged, unify
from ..facts import Alone, Contraction, CountBaked, Linear, Operand, SameCount, Work
from ..graph import Node
from ..shapes import window
from ..walk import Walk
from .norm import normalise
from .registry import Axes, Outputs, Unsupported, rule

SPATIAL = "a spatial axis"


def pin_all(axes: Axes, why: str) -> None:
    for axis in axes:
        pin(axis, why)


def sizes_of(axes: Axes) -> list[int]:
    return [axis.size for axis in axes]


@rule("Conv")
def conv(walk: Walk, node: Node) -> Outputs:
    out = convolution(walk, node, 0, 1, 2)
    walk.linear(Linear(node, "window", 0, 1, 2))
    return [out]


def convolution(
    walk: Walk, node: Node, data: int, weight: int, bias: int | None, zero: int | None = None
) -> Axes:
    """The convolution of input ``data`` with input ``weight``, plus input ``bias`` where it is there.

    ``zero`` is the input with the weight's zero point.
    """
    x, w = walk.axes(node, data), walk.axes(node, weight)
    groups = node.attrs.get("group", 1)
    spatial = _slide(walk, node, x, w)
    out = w[0]
    per_group = w[1]
    if groups == 1:
        unify(x[1], w[1])
        walk.contractions.append(Contraction(node, ((data, 1), (weight, 1))))
    elif w[1].size == 1:
        channel, multiplier = factor(w[0], w[0].size // groups)
        pin(multiplier, "the multiplier of a depthwise convolution")
        unify(channel, x[1])
        walk.baked.append(CountBaked(node, "group", x[1]))
    else:
        inputs, _ = _blocks(walk, node, x[1], w[0], groups)
        walk.contractions.append(Contraction(node, ((data, 1), (weight, 1))))
        _differ_by_block(walk, node, weight, inputs)
        per_group = inputs[0]
    if bias is not None and node.has(bias):
        unify(walk.axes(node, bias)[0], out)
    kernel = tuple(sizes_of(w[2:]))
    layout = groups, w[0].size // groups, w[1].size, math.prod(kernel)
    walk.operands.append(Operand(node, weight, layout, (0, 1, 3, 2), data, kernel, zero))
    walk.alone += [Alone(x), Alone(w)]
    walk.work.append(Work(node, 1, (x[0], out, per_group, *w[2:], *spatial)))
    return [x[0], out, *spatial]


def _differ_by_block(walk: Walk, node: Node, weight: int, blocks: list[Axis]) -> None:
    """Axis 1 of a grouped weight is another one for each block of its rows.

    A computed weight has no such axis, and zeros cannot be written into a quantised one: there it is the same
    for all blocks.
    """
    if walk.is_constant(node, weight) and walk.dtype(node, weight).kind in "fV":
        walk.retype(node, weight, 1, ragged(blocks))
    else:
        for block in blocks:
            unify(walk.axes(node, weight)[1], block)


def _slide(walk: Walk, node: Node, x: Axes, w: Axes) -> Axes:
    """The axes a window has slid over.

    A window over channels, one result for each (efficient channel attention), slides over the kept ones.
    """
    pin_all(w[2:], SPATIAL)
    sizes = window(node.attrs, sizes_of(x[2:]), sizes_of(w[2:]))
    steps = node.attrs.get("strides", [1] * len(sizes))
    out: list[Axis] = []
    over = []
    for k, (size, step) in enumerate(zip(sizes, steps, strict=True), start=2):
        if size == x[k].size and step == 1:
            out.append(x[k])
            if w[k].size > 1 and find(x[k]).kind != "fix":
                over.append(k)
        else:
            pin(x[k], SPATIAL)
            out.append(fix(size, SPATIAL))
    normalise(walk, node, over)
    return out


def _blocks(
    walk: Walk, node: Node, channels: Axis, filters: Axis, groups: int
) -> tuple[list[Axis], list[Axis]]:
    """Each group keeps as many channels as the others, not the same ones."""
    per_in, per_out = channels.size // groups, filters.size // groups
    inputs, outputs = cuts(channels, [per_in] * groups), cuts(filters, [per_out] * groups)
    because = f"{node.name} needs as many channels in each of its {groups} groups"
    walk.same_counts += [SameCount(tuple(inputs), because), SameCount(tuple(outputs), because)]
    return inputs, outputs


@rule("ConvTranspose")
def conv_transpose(walk: Walk, node: Node) -> Outputs:
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    groups = node.attrs.get("group", 1)
    pin_all(x[2:] + w[2:], SPATIAL)
    unify(x[1], w[0])
    out = w[1]
    walk.contractions.append(Contraction(node, ((0, 1), (1, 0))))
    if groups == x[1].size > 1:
        out = prod([x[1], w[1]])
        walk.baked.append(CountBaked(node, "group", x[1]))
    elif groups > 1:
        filters = atom(groups * w[1].size)
        outputs = _blocks(walk, node, x[1], filters, groups)[1]
        _differ_by_block(walk, node, 1, outputs)
        out = filters
    if node.has(2):
        unify(walk.axes(node, 2)[0], out)
    sizes = walk.output_sizes(node)[0]
    if sizes is None:
        raise Unsupported("its output shape is not known")
    walk.linear(Linear(node, "spread", 0, 1, 2))
    kernel = tuple(sizes_of(w[2:]))
    layout = groups, w[0].size // groups, w[1].size, math.prod(kernel)
    walk.operands.append(Operand(node, 1, layout, (0, 2, 3, 1), 0, kernel))
    walk.alone += [Alone(x), Alone(w)]
    walk.work.append(Work(node, 1, (*x, w[1], *w[2:])))
    return [[x[0], out, *(fix(size, SPATIAL) for size in sizes[2:])]]
