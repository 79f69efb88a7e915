"""Quantisation: scales and zero points go with the axis they belong to."""

from __future__ import annotations

from ..axes import ONE, factor, pin, unify
from ..facts import Normalisation
from ..graph import Node
from ..walk import Walk
from .conv import SPATIAL, convolution, pin_all, sizes_of
from .elementwise import broadcast
from .linear import general_product, product
from .norm import normalise, softmax
from .registry import Axes, Outputs, Unsupported, rule
from .sample import pool
from .select import joined

_MS = "com.microsoft::"


@rule("QuantizeLinear", "DequantizeLinear", _MS + "QuantizeLinear", _MS + "DequantizeLinear")
def quantise(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    for i in (1, 2):
        if node.has(i):
            _belongs(walk.axes(node, i), x, node)
    return [x]


def _belongs(scale: Axes, x: Axes, node: Node) -> None:
    """A scale is one for all, one for each position of an axis, or one for each block along it."""
    axis = node.attrs.get("axis", 1)
    if len(scale) == 1 and scale[0].size > 1:
        unify(scale[0], x[axis % len(x)])
    elif len(scale) > 1:
        along = axis % len(x)
        for k, (a, b) in enumerate(zip(scale, x, strict=True)):
            if k == along and a.size != b.size:
                size = node.attrs.get("block_size", 0)
                if not size or b.size % size:
                    raise Unsupported("its blocks do not fill the axis")
                b, inside = factor(b, size)
                pin(inside, f"{node.name} has one scale for a block of {size}")
            unify(a, b)


@rule("DynamicQuantizeLinear")
def dynamic_quantise(walk: Walk, node: Node) -> Outputs:
    """The scale comes from the largest and smallest value: of those that are kept."""
    x = walk.axes(node, 0)
    normalise(walk, node, range(len(x)))
    return [x, [], []]


def _by_column(walk: Walk, node: Node, inputs: tuple[int, ...], columns: Axes) -> None:
    """Scales and zero points of a weight, which has one for all or one for each of its columns."""
    for i in inputs:
        if node.has(i):
            broadcast([walk.axes(node, i)[-1:], columns])


@rule("MatMulInteger")
def matmul_integer(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 1)
    _by_column(walk, node, (3,), out[-1:])
    if node.has(2) and walk.axes(node, 2):
        broadcast([walk.axes(node, 2)[-1:], out[-2:-1]])
    return [out]


@rule("QLinearMatMul")
def qlinear_matmul(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 3)
    _by_column(walk, node, (4, 5), out[-1:])
    for i in (1, 2):
        if walk.axes(node, i):
            broadcast([walk.axes(node, i)[-1:], out[-2:-1]])
    return [out]


@rule(_MS + "QGemm")
def qgemm(walk: Walk, node: Node) -> Outputs:
    out = general_product(walk, node, 0, 3, 6)
    _by_column(walk, node, (4, 5), out[-1:])
    return [out]


@rule(_MS + "MatMulIntegerToFloat")
def matmul_integer_to_float(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 1)
    _by_column(walk, node, (3, 5, 6), out[-1:])
    return [out]


@rule(_MS + "DynamicQuantizeMatMul")
def dynamic_quantise_matmul(walk: Walk, node: Node) -> Outputs:
    """Its left operand is quantised by the largest and smallest value of those that are kept."""
    out = product(walk, node, 0, 1)
    walk.contractions.pop()
    x, y = walk.axes(node, 0), walk.axes(node, 1)
    walk.normalisations.append(Normalisation(node, ((0, len(x) - 1), (1, len(y) - 2)), ()))
    normalise(walk, node, range(len(x) - 1))
    _by_column(walk, node, (2, 3, 4), out[-1:])
    return [out]


@rule("ConvInteger")
def conv_integer(walk: Walk, node: Node) -> Outputs:
    out = convolution(walk, node, 0, 1, None)
    _by_column(walk, node, (3,), [out[1]])
    return [out]


@rule("QLinearConv")
def qlinear_conv(walk: Walk, node: Node) -> Outputs:
    if node.attrs.get("channels_last", 0):
        raise Unsupported("its channels are last")
    out = convolution(walk, node, 0, 3, 8)
    _by_column(walk, node, (4, 5), [out[1]])
    return [out]


@rule(_MS + "QLinearAdd", _MS + "QLinearMul")
def qlinear_pair(walk: Walk, node: Node) -> Outputs:
    return [broadcast([walk.axes(node, 0), walk.axes(node, 3)])]


@rule(_MS + "QLinearWhere")
def qlinear_where(walk: Walk, node: Node) -> Outputs:
    return [broadcast([walk.axes(node, i) for i in (0, 1, 4)])]


@rule(_MS + "QLinearConcat")
def qlinear_concat(walk: Walk, node: Node) -> Outputs:
    """After the scale and zero point of the result, each part has three inputs."""
    return [joined([walk.axes(node, i) for i in range(2, len(node.inputs), 3)], node.attrs["axis"])]


@rule(_MS + "QLinearSigmoid", _MS + "QLinearLeakyRelu")
def qlinear_unary(walk: Walk, node: Node) -> Outputs:
    return [walk.axes(node, 0)]


@rule(_MS + "QLinearSoftmax")
def qlinear_softmax(walk: Walk, node: Node) -> Outputs:
    return softmax(walk, node)


@rule(_MS + "QLinearAveragePool")
def qlinear_pool(walk: Walk, node: Node) -> Outputs:
    if node.attrs.get("channels_last", 0):
        raise Unsupported("its channels are last")
    return pool(walk, node)


@rule(_MS + "QLinearGlobalAveragePool")
def qlinear_global_pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    last = bool(node.attrs.get("channels_last", 0))
    spatial = x[1:-1] if last else x[2:]
    pin_all(spatial, SPATIAL)
    ones = [ONE] * len(sizes_of(spatial))
    return [[x[0], *ones, x[-1]] if last else [x[0], x[1], *ones]]


@rule(_MS + "QLinearReduceMean")
def qlinear_reduce_mean(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    over = {int(k) % len(x) for k in node.attrs["axes"]}
    walk.normalisations += [Normalisation(node, ((0, k),), ()) for k in sorted(over)]
    keep = node.attrs.get("keepdims", 1)
    return [[ONE if k in over else axis for k, axis in enumerate(x) if keep or k not in over]]
