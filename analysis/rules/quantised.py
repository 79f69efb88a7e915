"""Quantisation: scales and zero points go with the axis they belong to."""

from __future__ import annotations

from collections.abc import Iterable

from ..axes import ONE, Axis, factor, pin, unify
from ..facts import Alone, Contraction, CountBaked, Normalisation, Work
from ..graph import Node
from ..walk import Walk
from .conv import SPATIAL, convolution, pin_all
from .elementwise import broadcast
from .linear import general_product, operand, product
from .norm import normalise
from .recurrent import gates
from .registry import Axes, Outputs, Unsupported, rule
from .sample import pool
from .select import joined

_MS = "com.microsoft::"


# ---------------------------------------------------------------------- scales and zero points


def _along(walk: Walk, node: Node, inputs: Iterable[int], operand: Axes, axis: int) -> None:
    """Scales and zero points of ``operand``: one for all, or one for each position of its ``axis``."""
    for i in inputs:
        given = walk.axes(node, i) if node.has(i) else []
        if all(a.size == 1 for a in given):
            continue
        if len(operand) < 2:
            raise Unsupported("it has several scales for a vector")
        if len(given) == 1:
            unify(given[0], operand[axis])
        else:  # the rank of the operand, with ones beside the axis
            broadcast([given, operand])


def _one_for_all(walk: Walk, node: Node, inputs: Iterable[int]) -> None:
    for i in inputs:
        if node.has(i) and any(axis.size != 1 for axis in walk.axes(node, i)):
            raise Unsupported("it has several scales for a tensor that ONNX Runtime wants one for")


def is_zero(walk: Walk, node: Node, i: int) -> bool:
    """Whether input ``i``, a zero point, is missing or known to be zero."""
    if not node.has(i):
        return True
    value = walk.static_value(node, i)
    return value is not None and not value.any()


@rule("QuantizeLinear", "DequantizeLinear", _MS + "QuantizeLinear", _MS + "DequantizeLinear")
def quantise(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    for i in (1, 2):
        if node.has(i):
            _belongs(walk.axes(node, i), x, node)
    return [x]


def _belongs(scale: Axes, x: Axes, node: Node) -> None:
    """A scale is one for all, one for each position of an axis, or one for each block along it."""
    block = node.attrs.get("block_size", 0)
    if all(a.size == 1 for a in scale) and (not block or len(scale) != len(x)):
        return
    along = node.attrs.get("axis", 1) % len(x)
    if len(scale) == 1 and not block:
        unify(scale[0], x[along])
        return
    if not block or len(scale) != len(x):
        raise Unsupported("its scale has neither one axis nor those of the tensor")
    for k, (a, b) in enumerate(zip(scale, x, strict=True)):
        if k != along:
            unify(a, b)
        elif b.size % block:
            for c in (a, b):
                pin(c, f"{node.name} has a scale for each {block} of it, and the last for fewer")
        else:
            blocks, inside = factor(b, block)
            pin(inside, f"{node.name} has one scale for a block of {block}")
            unify(a, blocks)


@rule("DynamicQuantizeLinear")
def dynamic_quantise(walk: Walk, node: Node) -> Outputs:
    """The scale comes from the largest and smallest value: of those that are kept."""
    x = walk.axes(node, 0)
    normalise(walk, node, range(len(x)))
    return [x, [], []]


# ---------------------------------------------------------------------- products and convolutions


@rule("MatMulInteger")
def matmul_integer(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 1, (2, 3))
    _along(walk, node, (2,), walk.axes(node, 0), -2)
    _along(walk, node, (3,), walk.axes(node, 1), -1)
    return [out]


@rule("QLinearMatMul")
def qlinear_matmul(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 3, (2, 5))
    _along(walk, node, (1, 2), walk.axes(node, 0), -2)
    _along(walk, node, (4, 5), walk.axes(node, 3), -1)
    _one_for_all(walk, node, (6, 7))
    return [out]


@rule(_MS + "QGemm")
def qgemm(walk: Walk, node: Node) -> Outputs:
    out = general_product(walk, node, 0, 3, 6, 5)
    _one_for_all(walk, node, (1, 2, 7, 8))
    _along(walk, node, (4, 5), out, -1)
    return [out]


@rule(_MS + "MatMulIntegerToFloat")
def matmul_integer_to_float(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 1, (4, 5))
    _one_for_all(walk, node, (2, 4))
    _along(walk, node, (3, 5, 6), walk.axes(node, 1), -1)
    return [out]


@rule(_MS + "DynamicQuantizeMatMul")
def dynamic_quantise_matmul(walk: Walk, node: Node) -> Outputs:
    """Its left operand is quantised by the largest and smallest value of those that are kept."""
    x, y = walk.axes(node, 0), walk.axes(node, 1)
    if len(x) < 2 or len(y) != 2:
        raise Unsupported("its operands are vectors or stacks of matrices")
    unify(x[-1], y[0])
    walk.normalisations.append(Normalisation(node, ((0, len(x) - 1), (1, 0)), ()))
    normalise(walk, node, range(len(x) - 1))
    _along(walk, node, (2, 3, 4), y, -1)
    out = [*x[:-1], y[1]]
    walk.work.append(Work(node, 1, (*out, x[-1])))
    walk.operands.append(operand(node, 1, 0, y, -2, 3))
    walk.alone += [Alone(x), Alone(y)]
    return [out]


@rule(_MS + "MatMulNBits")
def matmul_n_bits(walk: Walk, node: Node) -> Outputs:
    """The weight has a row for each output, in blocks that share a scale: those go whole."""
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    size, bits = node.attrs["block_size"], node.attrs.get("bits", 4)
    if node.has(4) or node.attrs.get("weight_prepacked", 0) or len(w) != 3:
        raise Unsupported("its weight is laid out in another way")
    rows, blocks, packed = w
    pin(packed, f"{node.name} has one scale for a block of {size}")
    if x[-1].size % size:
        for axis in (x[-1], blocks):
            pin(axis, f"the last block of {node.name} is not full")
    else:
        inner, inside = factor(x[-1], size)
        pin(inside, f"{node.name} has one scale for a block of {size}")
        unify(inner, blocks)
    _by_block(walk, node, 2, rows, blocks)
    if node.has(3) and walk.dtype(node, 3).kind == "u" and bits < 8:
        pin(blocks, f"{node.name} packs the zero points of its blocks")
        zeros = walk.axes(node, 3)
        held = zeros if len(zeros) == 2 else list(factor(zeros[0], zeros[0].size // rows.size))
        unify(held[0], rows)
        pin(held[1], f"{node.name} packs the zero points of its blocks")
    else:
        _by_block(walk, node, 3, rows, blocks)
    if node.has(5):
        unify(walk.axes(node, 5)[0], rows)
    walk.contractions.append(Contraction(node, ((0, len(x) - 1),), in_place=True))
    walk.baked += [CountBaked(node, "N", rows), CountBaked(node, "K", x[-1])]
    walk.work.append(Work(node, 1, (*x[:-1], rows, x[-1])))
    walk.alone += [Alone(x), Alone([rows])]
    return [[*x[:-1], rows]]


def _by_block(walk: Walk, node: Node, i: int, rows: Axis, blocks: Axis) -> None:
    """One number for each row and block."""
    if not node.has(i):
        return
    given = walk.axes(node, i)
    for a, b in zip(given if len(given) == 2 else factor(given[0], blocks.size), (rows, blocks), strict=True):
        unify(a, b)


@rule("ConvInteger")
def conv_integer(walk: Walk, node: Node) -> Outputs:
    out = convolution(walk, node, 0, 1, None, 3)
    _one_for_all(walk, node, (2,))
    _along(walk, node, (3,), out, 1)
    return [out]


@rule("QLinearConv", _MS + "QLinearConv")
def qlinear_conv(walk: Walk, node: Node) -> Outputs:
    if node.attrs.get("channels_last", 0):
        raise Unsupported("its channels are last")
    out = convolution(walk, node, 0, 3, 8, 5)
    _one_for_all(walk, node, (1, 2, 6, 7))
    _along(walk, node, (4, 5), out, 1)
    return [out]


@rule(_MS + "DynamicQuantizeLSTM")
def dynamic_quantise_lstm(walk: Walk, node: Node) -> Outputs:
    """Features and state are quantised by the extremes of those that are kept.

    The check lets removed units be zero: their gates see zero weights and biases, and start from zero. So the
    range of the state is that of the kept ones, since it holds zero in any case.
    """
    (time, batch, features), w, r = (walk.axes(node, i) for i in range(3))
    directions, hidden = w[0], r[1]
    pin_all([directions, time], "a recurrent layer runs along it")
    unify(features, w[1])
    walk.normalisations.append(Normalisation(node, ((0, 2), (1, 1)), ()))
    for i in range(1, len(node.inputs)):
        given = walk.axes(node, i) if node.has(i) else []
        if i == 4:  # lengths of the sequences
            unify(given[0] if given else batch, batch)
        elif given:
            unify(given[0], directions)
        if i in (5, 6) and given:  # initial state
            unify(given[1], batch)
            unify(given[2], hidden)
        elif i != 4 and len(given) > 1:  # the gates of each unit; a scale may be one for all of them
            gates(given[-1], hidden)
        if i in (1, 2, 3, 5, 6) and given:
            walk.contractions.append(Contraction(node, ((i, len(given) - 1),), in_place=True))
    # The zero of signed weights is 0 by definition.
    off_zero = any(walk.dtype(node, i).kind == "u" and not is_zero(walk, node, i) for i in (9, 11))
    if off_zero or "activations" in node.attrs:
        pin(hidden, f"{node.name} has no zero weights that would keep a unit at zero")
    walk.baked.append(CountBaked(node, "hidden_size", hidden))
    walk.work += [Work(node, 1, (time, batch, *w)), Work(node, 1, (time, batch, *r))]
    walk.operands += [operand(node, 1, 0, w, -2, 9), operand(node, 2, None, r, -2, 11)]
    walk.alone += [Alone([features]), Alone([hidden])]
    state = [directions, batch, hidden]
    return [[time, *state], state, state]


# ---------------------------------------------------------------------- operators on quantised tensors


@rule(_MS + "QLinearAdd", _MS + "QLinearMul")
def qlinear_pair(walk: Walk, node: Node) -> Outputs:
    _one_for_all(walk, node, (1, 2, 4, 5, 6, 7))
    return [broadcast([walk.axes(node, 0), walk.axes(node, 3)])]


@rule(_MS + "QLinearWhere")
def qlinear_where(walk: Walk, node: Node) -> Outputs:
    _one_for_all(walk, node, (2, 3, 5, 6, 7, 8))
    return [broadcast([walk.axes(node, i) for i in (0, 1, 4)])]


@rule(_MS + "QLinearConcat")
def qlinear_concat(walk: Walk, node: Node) -> Outputs:
    """After the scale and zero point of the result, each part has three inputs."""
    parts = range(2, len(node.inputs), 3)
    _one_for_all(walk, node, (i for i in range(len(node.inputs)) if i not in parts))
    return [joined([walk.axes(node, i) for i in parts], node.attrs["axis"])]


@rule(_MS + "QLinearSigmoid", _MS + "QLinearLeakyRelu")
def qlinear_unary(walk: Walk, node: Node) -> Outputs:
    _one_for_all(walk, node, range(1, 5))
    return [walk.axes(node, 0)]


@rule(_MS + "QLinearSoftmax")
def qlinear_softmax(walk: Walk, node: Node) -> Outputs:
    """Over one axis, or over all from it on, as the version of Softmax it was made from."""
    x = walk.axes(node, 0)
    _one_for_all(walk, node, range(1, 5))
    first = node.attrs.get("axis", -1) % len(x)
    normalise(walk, node, range(first, len(x)) if node.attrs["opset"] < 13 else [first])
    return [x]


@rule(_MS + "QLinearAveragePool")
def qlinear_pool(walk: Walk, node: Node) -> Outputs:
    if node.attrs.get("channels_last", 0):
        raise Unsupported("its channels are last")
    _one_for_all(walk, node, range(1, 5))
    return pool(walk, node)


@rule(_MS + "QLinearGlobalAveragePool")
def qlinear_global_pool(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    _one_for_all(walk, node, range(1, 5))
    last = bool(node.attrs.get("channels_last", 0))
    pin_all(x[1:-1] if last else x[2:], SPATIAL)
    ones = [ONE] * (len(x) - 2)
    return [[x[0], *ones, x[-1]] if last else [*x[:2], *ones]]
