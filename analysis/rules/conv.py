"""Convolutions, pooling and resampling: channels couple, spatial axes stay."""

from __future__ import annotations

from ..axes import Axis, cuts, factor, fix, pin, prod, ragged, unify
from ..facts import Alone, Contraction, CountBaked, SameCount, SizesBaked, Work
from ..graph import Node
from ..shapes import window
from ..walk import Walk
from .registry import Axes, Outputs, Unsupported, rule

_SPATIAL = "a spatial axis"


def _pin_all(axes: Axes, why: str) -> None:
    for axis in axes:
        pin(axis, why)


def _sizes(axes: Axes) -> list[int]:
    return [axis.size for axis in axes]


@rule("Conv")
def conv(walk: Walk, node: Node) -> Outputs:
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    groups = node.attrs.get("group", 1)
    _pin_all(x[2:] + w[2:], _SPATIAL)
    out = w[0]
    per_group = w[1]
    if groups == 1:
        unify(x[1], w[1])
        walk.contractions.append(Contraction(node, ((0, 1), (1, 1))))
    elif w[1].size == 1:
        channel, multiplier = factor(w[0], w[0].size // groups)
        pin(multiplier, "the multiplier of a depthwise convolution")
        unify(channel, x[1])
        walk.baked.append(CountBaked(node, "group", x[1]))
    else:
        blocks = _grouped(walk, node, x[1], w[0], groups)
        per_group = blocks[0]
    if node.has(2):
        unify(walk.axes(node, 2)[0], out)
    walk.alone += [Alone(x), Alone(w)]
    spatial = [fix(size, _SPATIAL) for size in window(node.attrs, _sizes(x[2:]), _sizes(w[2:]))]
    walk.work.append(Work(node, 1, (x[0], out, per_group, *w[2:], *spatial)))
    return [[x[0], out, *spatial]]


def _grouped(walk: Walk, node: Node, channels: Axis, filters: Axis, groups: int) -> list[Axis]:
    """Each group keeps as many channels as the others, not the same ones."""
    per_in, per_out = channels.size // groups, filters.size // groups
    inputs, outputs = cuts(channels, [per_in] * groups), cuts(filters, [per_out] * groups)
    because = f"{node.name} needs as many channels in each of its {groups} groups"
    walk.same_counts += [SameCount(tuple(inputs), because), SameCount(tuple(outputs), because)]
    walk.contractions.append(Contraction(node, ((0, 1), (1, 1))))
    if walk.is_constant(node, 1):
        walk.retype(node, 1, 1, ragged(inputs))
    else:  # a computed weight has no axis that differs by block
        for block in inputs:
            unify(walk.axes(node, 1)[1], block)
    return inputs


@rule("ConvTranspose")
def conv_transpose(walk: Walk, node: Node) -> Outputs:
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    groups = node.attrs.get("group", 1)
    _pin_all(x[2:] + w[2:], _SPATIAL)
    unify(x[1], w[0])
    out = w[1]
    if groups == 1:
        walk.contractions.append(Contraction(node, ((0, 1), (1, 0))))
    else:
        pin(w[1], "the groups of a transposed convolution")
        if groups == x[1].size:
            walk.baked.append(CountBaked(node, "group", x[1]))
            out = prod([x[1], w[1]])
        else:
            pin(x[1], "the groups of a transposed convolution")
            out = fix(groups * w[1].size, "the groups of a transposed convolution")
    if node.has(2):
        unify(walk.axes(node, 2)[0], out)
    sizes = walk.output_sizes(node)[0]
    if sizes is None:
        raise Unsupported("its output shape is not known")
    walk.alone += [Alone(x), Alone(w)]
    walk.work.append(Work(node, 1, (*x, w[1], *w[2:])))
    return [[x[0], out, *(fix(size, _SPATIAL) for size in sizes[2:])]]


@rule("MaxPool", "AveragePool", "LpPool")
def pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    _pin_all(x[2:], _SPATIAL)
    if len(node.outputs) > 1 and node.outputs[1]:
        _pin_all(x, "the flat indices of a MaxPool depend on it")
    sizes = window(node.attrs, _sizes(x[2:]), node.attrs["kernel_shape"])
    return [[*x[:2], *(fix(size, _SPATIAL) for size in sizes)]] * len(node.outputs)


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    _pin_all(x[2:], _SPATIAL)
    return [[*x[:2], *(fix(1, _SPATIAL) for _ in x[2:])]]


@rule("Resize", "Upsample")
def resize(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    sizes = walk.output_sizes(node)[0]
    if sizes is None or len(sizes) != len(x):
        raise Unsupported("its output shape is not known")
    out: list[Axis] = []
    for axis, size in zip(x, sizes, strict=True):
        if axis.size == size:
            out.append(axis)
        else:
            pin(axis, _SPATIAL)
            out.append(fix(size, _SPATIAL))
    if (
        node.has(1)
        and node.op == "Resize"
        and node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    ):
        _pin_all(x, "a crop resizes every axis")
    if node.has(3) and "axes" not in node.attrs:
        walk.baked.append(SizesBaked(node, 3, tuple(out)))
    return [out]


@rule("DepthToSpace")
def depth_to_space(walk: Walk, node: Node) -> Outputs:
    x, block = walk.axes(node, 0), node.attrs["blocksize"]
    if node.attrs.get("mode", b"DCR") == b"DCR":
        shuffled, channel = factor(x[1], x[1].size // block**2)
    else:
        channel, shuffled = factor(x[1], block**2)
    _pin_all([shuffled, *x[2:]], "a pixel shuffle needs every position of its block")
    return [[x[0], channel, *(fix(axis.size * block, _SPATIAL) for axis in x[2:])]]


@rule("SpaceToDepth")
def space_to_depth(walk: Walk, node: Node) -> Outputs:
    x, block = walk.axes(node, 0), node.attrs["blocksize"]
    _pin_all(x[2:], _SPATIAL)
    channel = prod([fix(block**2, "a pixel shuffle needs every position of its block"), x[1]])
    return [[x[0], channel, *(fix(axis.size // block, _SPATIAL) for axis in x[2:])]]
