"""Integer operators as float ones between casts.

Sums of products of bytes are exact in float32 below 2^24, and rounded to seven digits above.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import TensorProto

from .writer import Writer


def qlinear_conv(writer: Writer, node: onnx.NodeProto) -> str | None:
    """A float convolution between the scales; the int32 bias has the scale of the sums."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = writer.inputs(node, 9)
    rank = len(writer.shape(w) or ())
    if not rank:
        return "with weights whose shape is not static"
    data = _real(writer, x, x_scale, x_zero)
    weights = _real(writer, w, w_scale, w_zero, [-1, *[1] * (rank - 1)])
    inputs = [data, weights]
    if bias:
        scale = writer.op("Mul", writer.reshape(x_scale, 1), writer.reshape(w_scale, -1))
        inputs.append(writer.op("Mul", writer.op("Cast", bias, to=TensorProto.FLOAT), scale))
    result = writer.op("Conv", *inputs, **writer.attributes(node))
    writer.give(node.output[0], _quantised(writer, result, y_scale, y_zero))
    return None


def qlinear_matmul(writer: Writer, node: onnx.NodeProto) -> str | None:
    """A float product; a may have a scale for each row, b for each column."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = writer.inputs(node, 8)
    left = _real(writer, a, a_scale, a_zero, _by_row(writer, a_scale))
    right = _real(writer, b, b_scale, b_zero)
    result = writer.op("MatMul", left, right)
    writer.give(node.output[0], _quantised(writer, result, y_scale, y_zero))
    return None


def conv_integer(writer: Writer, node: onnx.NodeProto) -> str | None:
    x, w, x_zero, w_zero = writer.inputs(node, 4)
    rank = len(writer.shape(w) or ())
    if not rank:
        return "with weights whose shape is not static"
    data, weights = _centred(writer, x, x_zero), _centred(writer, w, w_zero, [-1, *[1] * (rank - 1)])
    result = writer.op("Conv", data, weights, **writer.attributes(node))
    writer.give(node.output[0], writer.op("Cast", result, to=TensorProto.INT32))
    return None


def matmul_integer(writer: Writer, node: onnx.NodeProto) -> str | None:
    a, b, a_zero, b_zero = writer.inputs(node, 4)
    left, right = _centred(writer, a, a_zero, _by_row(writer, a_zero)), _centred(writer, b, b_zero)
    result = writer.op("MatMul", left, right)
    writer.give(node.output[0], writer.op("Cast", result, to=TensorProto.INT32))
    return None


def _by_row(writer: Writer, name: str) -> list[int] | None:
    """How a vector of one number for each row is spread; None for a scalar."""
    shape = writer.shape(name) if name else None
    return [-1, 1] if shape is not None and len(shape) == 1 and shape[0] > 1 else None


def _centred(writer: Writer, x: str, zero: str, spread: list[int] | None = None) -> str:
    """Integers as floats, less their zero point."""
    value = writer.op("Cast", x, to=TensorProto.FLOAT)
    if not zero:
        return value
    zero = writer.op("Cast", zero, to=TensorProto.FLOAT)
    return writer.op("Sub", value, writer.reshape(zero, *spread) if spread else zero)


def _real(writer: Writer, x: str, scale: str, zero: str, spread: list[int] | None = None) -> str:
    scale = writer.reshape(scale, *spread) if spread else scale
    return writer.op("Mul", _centred(writer, x, zero, spread), scale)


def _quantised(writer: Writer, x: str, scale: str, zero: str) -> str:
    return writer.op("QuantizeLinear", x, scale, *([zero] if zero else []))


TABLE: dict[str, Callable[[Writer, onnx.NodeProto], str | None]] = {
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
}
