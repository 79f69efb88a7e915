"""Cases of quantisation: scales and zero points that are one for all, by channel and by block."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from casebook import SIZE, Net, add, case

S = SIZE
MS = "com.microsoft::"
IMAGE = (1, S, S, S)


def _q(g: Net, x: str, zero: int = 3) -> str:
    """Quantised to bytes with a zero point of its own."""
    return str(g("QuantizeLinear", x, g.scalar(2.0), g.const(zero, np.uint8)))


def _real(g: Net, x: str, zero: int = 3) -> str:
    return str(g("DequantizeLinear", x, g.scalar(2.0), g.const(zero, np.uint8)))


def _bytes(g: Net, *shape: int, name: str = "w") -> str:
    return g.const(g.rng.integers(1, 4, shape) * g.rng.choice([-1, 1], shape), np.int8, name=name)


def _scales(g: Net, count: int, name: str = "scale") -> str:
    return g.const(2.0 ** g.rng.integers(0, 3, count), name=name)


def _zeros(g: Net, count: int, name: str = "zero") -> str:
    return g.const(g.rng.integers(-3, 4, count), np.int8, name=name)


def _s(g: Net) -> list[str]:
    """A scale and a zero point for all."""
    return [g.scalar(2.0), g.const(3, np.uint8)]


for _prefix in ("", MS):

    def _for_all(g: Net, prefix: str = _prefix) -> str:
        y = g(f"{prefix}QuantizeLinear", g.free(S, S, S), *_s(g))
        return g.use(g(f"{prefix}DequantizeLinear", y, *_s(g)), S, S, S)

    def _by_channel(g: Net, prefix: str = _prefix) -> str:
        scale, zero = _scales(g, S), _zeros(g, S)
        y = g(f"{prefix}QuantizeLinear", g.free(S, S, S), scale, zero, axis=1)
        return g.use(g(f"{prefix}DequantizeLinear", y, scale, zero, axis=1), S, S, S)

    for _op in ("QuantizeLinear", "DequantizeLinear"):
        add(_prefix + _op, "one scale for all", "a012 z012", _for_all)
        add(_prefix + _op, "a scale for each channel", "a012 scale:0 zero:0 z012", _by_channel)


@case("DequantizeLinear", "a1 w:0 w:1 scale:0 z1")
def a_weight_by_filter(g: Net) -> str:
    weight = g("DequantizeLinear", _bytes(g, S, S, 1, 1), _scales(g, S), _zeros(g, S), axis=0)
    return g.use(g("Conv", g.free(*IMAGE), weight), *IMAGE)


@case("DequantizeLinear", "a1 w:0 w:1 scale:0 scale:1 z1", opset=21)
def a_weight_by_block(g: Net) -> str:
    scale = g.const(2.0 ** g.rng.integers(0, 3, (S, 6)), name="scale")
    weight = g("DequantizeLinear", _bytes(g, 12, 6), scale, axis=0, block_size=2)
    return g.use(g("MatMul", g.free(1, 12), weight), 1, 6)


@case("DequantizeLinear", "w:0 w:1 y1 z1")
def one_weight_for_two(g: Net) -> str:
    """Each reader may keep other positions of it."""
    weight = g("DequantizeLinear", _bytes(g, S, S), g.scalar(2.0))
    one, two = (g("MatMul", g.free(1, S, name=name), weight) for name in "ab")
    return g("Add", g.use(one, 1, S, name="y"), g.use(two, 1, S))


@case("DynamicQuantizeLinear", "a012 z012", exact=False)
def by_the_range(g: Net) -> str:
    y, scale, zero = g("DynamicQuantizeLinear", g.free(S, S, S), outputs=3)
    return g.use(g("DequantizeLinear", y, scale, zero), S, S, S)


@case("MatMulInteger", "a01 w:0 w:1 zero:0 z01")
def integers(g: Net) -> str:
    zero = g.const(3, np.uint8)
    y = g("MatMulInteger", _q(g, g.free(S, S)), _bytes(g, S, S), zero, _zeros(g, S))
    return g.use(g("Cast", y, to=1), S, S)


@case("MatMulInteger", "a012 w:0 w:1 z012")
def integers_of_rank_three(g: Net) -> str:
    y = g("MatMulInteger", _q(g, g.free(S, S, S)), _bytes(g, S, S), g.const(3, np.uint8))
    return g.use(g("Cast", y, to=1), S, S, S)


@case("QLinearMatMul", "a01 w:0 w:1 scale:0 zero:0 z01")
def columns_with_scales(g: Net) -> str:
    x = _q(g, g.free(S, S))
    y = g("QLinearMatMul", x, *_s(g), _bytes(g, S, S), _scales(g, S), _zeros(g, S), *_s(g))
    return g.use(_real(g, y), S, S)


@case(MS + "QGemm", "a01 w:0 w:1 scale:0 zero:0 bias:0 z01")
def transposed(g: Net) -> str:
    bias = g.const(g.rng.integers(-9, 9, S), np.int32, name="bias")
    weight, scale, zero = _bytes(g, S, S), _scales(g, S), _zeros(g, S)
    y = g(MS + "QGemm", _q(g, g.free(S, S)), *_s(g), weight, scale, zero, bias, *_s(g), transB=1)
    return g.use(_real(g, y), S, S)


@case(MS + "MatMulIntegerToFloat", "a01 w:0 w:1 scale:0 zero:0 bias:0 z01")
def integers_to_floats(g: Net) -> str:
    parts = [g.scalar(2.0), _scales(g, S), g.const(3, np.uint8), _zeros(g, S), g.weight(S, name="bias")]
    return g.use(g(MS + "MatMulIntegerToFloat", _q(g, g.free(S, S)), _bytes(g, S, S), *parts), S, S)


@case(MS + "DynamicQuantizeMatMul", "a01 w:0 w:1 scale:0 zero:0 bias:0 z01", exact=False)
def by_its_range(g: Net) -> str:
    parts = [_scales(g, S), _zeros(g, S), g.weight(S, name="bias")]
    return g.use(g(MS + "DynamicQuantizeMatMul", g.free(S, S), _bytes(g, S, S), *parts), S, S)


@case("ConvInteger", "a1 w:0 w:1 z1")
def integer_images(g: Net) -> str:
    y = g("ConvInteger", _q(g, g.free(*IMAGE)), _bytes(g, S, S, 3, 3), g.const(3, np.uint8), pads=[1] * 4)
    return g.use(g("Cast", y, to=1), *IMAGE)


def _qlinear_conv(name: str, shrinks: str, c: int, w: tuple[int, ...], **attrs: int) -> None:
    def body(g: Net) -> str:
        bias = g.const(g.rng.integers(-9, 9, w[0]), np.int32, name="bias")
        weight, scale = _bytes(g, *w), _scales(g, w[0])
        zero = g.const(np.zeros(w[0]), np.int8, name="zero")
        x = _q(g, g.free(1, c, S, S))
        y = g("QLinearConv", x, *_s(g), weight, scale, zero, *_s(g), bias, **attrs)
        return g.use(_real(g, y), 1, w[0], S, S)

    add("QLinearConv", name, shrinks, body)


_qlinear_conv("plain", "a1 w:0 w:1 scale:0 zero:0 bias:0 z1", S, (S, S, 1, 1))
_qlinear_conv("depthwise", "a1 w:0 scale:0 zero:0 bias:0 z1", 8, (8, 1, 1, 1), group=8)
_qlinear_conv("two groups", "a1 w:0 w:1 scale:0 zero:0 bias:0 z1", 8, (8, 4, 1, 1), group=2)


def _pair(op: str) -> Callable[[Net], str]:
    def body(g: Net) -> str:
        a, b = (_q(g, g.free(S, S, name=name)) for name in "ab")
        return g.use(_real(g, g(MS + op, a, *_s(g), b, *_s(g), *_s(g))), S, S)

    return body


for _op in ("QLinearAdd", "QLinearMul"):
    add(MS + _op, "two of a shape", "a01 b01 z01", _pair(_op))


@case(MS + "QLinearAdd", "a01 b1 z01")
def with_a_row(g: Net) -> str:
    a, b = _q(g, g.free(S, S)), _q(g, g.free(1, S, name="b"))
    return g.use(_real(g, g(MS + "QLinearAdd", a, *_s(g), b, *_s(g), *_s(g))), S, S)


@case(MS + "QLinearConcat", "a01 b01 z01")
def side_by_side(g: Net) -> str:
    a, b = (_q(g, g.free(S, S, name=name)) for name in "ab")
    return g.use(_real(g, g(MS + "QLinearConcat", *_s(g), a, *_s(g), b, *_s(g), axis=1)), S, 2 * S)


@case(MS + "QLinearLeakyRelu", "a012 z012")
def with_a_slope(g: Net) -> str:
    y = g(MS + "QLinearLeakyRelu", _q(g, g.free(S, S, S)), *_s(g), *_s(g), alpha=0.5)
    return g.use(_real(g, y), S, S, S)


@case(MS + "QLinearSigmoid", "a012 z012")
def between_zero_and_one(g: Net) -> str:
    """Real values of a few hundredths, so that the results differ; they are counted in whole steps again."""
    fine, steps = [g.scalar(1 / 64), g.const(128, np.uint8)], [g.scalar(1 / 256), g.const(0, np.uint8)]
    y = g(MS + "QLinearSigmoid", _q(g, g.free(S, S, S), 128), *fine, *steps)
    return g.use(g("DequantizeLinear", y, g.scalar(1.0), steps[1]), S, S, S)


@case(MS + "QLinearSoftmax", "a012 z012", exact=False)
def along_the_last(g: Net) -> str:
    small = [g.scalar(1 / 256), g.const(0, np.uint8)]
    y = g(MS + "QLinearSoftmax", _q(g, g.free(S, S, S)), *_s(g), *small, axis=-1, opset=13)
    return g.use(g("DequantizeLinear", y, *small), S, S, S)


@case(MS + "QLinearAveragePool", "a1 z1")
def quantised_windows(g: Net) -> str:
    y = g(MS + "QLinearAveragePool", _q(g, g.free(*IMAGE)), *_s(g), *_s(g), kernel_shape=[2, 2])
    return g.use(_real(g, y), 1, S, S - 1, S - 1)


@case(MS + "QLinearGlobalAveragePool", "a1 z1")
def quantised_means(g: Net) -> str:
    y = g(MS + "QLinearGlobalAveragePool", _q(g, g.free(*IMAGE)), *_s(g), *_s(g), channels_last=0)
    return g.use(_real(g, y), 1, S, 1, 1)
