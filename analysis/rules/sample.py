"""Pooling, resampling and pixel shuffles: channels pass, spatial axes stay."""

from __future__ import annotations

from ..axes import Axis, factor, fix, pin, prod, unify
from ..facts import SizesBaked
from ..graph import Node
from ..shapes import window
from ..walk import Walk
from .conv import SPATIAL, pin_all, sizes_of
from .norm import normalise
from .registry import Outputs, Unsupported, rule


@rule("MaxPool", "AveragePool", "LpPool")
def pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    pin_all(x[2:], SPATIAL)
    if len(node.outputs) > 1 and node.outputs[1]:
        pin_all(x, "the flat indices of a MaxPool depend on it")
    sizes = window(node.attrs, sizes_of(x[2:]), node.attrs["kernel_shape"])
    return [[*x[:2], *(fix(size, SPATIAL) for size in sizes)]] * len(node.outputs)


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    pin_all(x[2:], SPATIAL)
    return [[*x[:2], *(fix(1, SPATIAL) for _ in x[2:])]]


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
            pin(axis, SPATIAL)
            out.append(fix(size, SPATIAL))
    if (
        node.has(1)
        and node.op == "Resize"
        and node.attrs.get("coordinate_transformation_mode") == b"tf_crop_and_resize"
    ):
        pin_all(x, "a crop resizes every axis")
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
    pin_all([shuffled, *x[2:]], "a pixel shuffle needs every position of its block")
    return [[x[0], channel, *(fix(axis.size * block, SPATIAL) for axis in x[2:])]]


@rule("SpaceToDepth")
def space_to_depth(walk: Walk, node: Node) -> Outputs:
    x, block = walk.axes(node, 0), node.attrs["blocksize"]
    pin_all(x[2:], SPATIAL)
    channel = prod([fix(block**2, "a pixel shuffle needs every position of its block"), x[1]])
    return [[x[0], channel, *(fix(axis.size // block, SPATIAL) for axis in x[2:])]]


@rule("GridSample")
def grid_sample(walk: Walk, node: Node) -> Outputs:
    x, grid = walk.axes(node, 0), walk.axes(node, 1)
    pin_all([*x[2:], grid[-1]], SPATIAL)
    unify(x[0], grid[0])
    return [[x[0], x[1], *grid[1:-1]]]


@rule("RoiAlign")
def roi_align(walk: Walk, node: Node) -> Outputs:
    x, boxes = walk.axes(node, 0), walk.axes(node, 1)
    pin_all([x[0], *x[2:], *boxes, *walk.axes(node, 2)], SPATIAL)
    sizes = (node.attrs.get("output_height", 1), node.attrs.get("output_width", 1))
    return [[boxes[0], x[1], *(fix(size, SPATIAL) for size in sizes)]]


@rule("LRN")
def local_response(walk: Walk, node: Node) -> Outputs:
    """It normalises over neighbouring channels: over the neighbours that are kept."""
    x = walk.axes(node, 0)
    normalise(walk, node, [1])
    return [x]
