"""Integer operators as float ones of what DequantizeLinear gives, as quantised models are usually written.

Where the processor multiplies bytes, `integers` makes integers of them again. In float32 sums of products of
bytes are exact below 2^24, and rounded to seven digits above.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto

from .writer import Writer

_BY_AXIS = 13  # the opset from which DequantizeLinear takes a scale for each position of an axis


def qlinear_conv(writer: Writer, node: onnx.NodeProto) -> str | None:
    """A float convolution between the scales; the int32 bias has the scale of the sums."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = writer.inputs(node, 9)
    rank = len(writer.shape(w) or ())
    if not rank:
        return "with weights whose shape is not static"
    data = _real(writer, x, x_scale, x_zero)
    weights = _real(writer, w, w_scale, w_zero, 0)
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
    left, right = _real(writer, a, a_scale, a_zero, -2), _real(writer, b, b_scale, b_zero, -1)
    result = writer.op("MatMul", left, right)
    writer.give(node.output[0], _quantised(writer, result, y_scale, y_zero))
    return None


def conv_integer(writer: Writer, node: onnx.NodeProto) -> str | None:
    x, w, x_zero, w_zero = writer.inputs(node, 4)
    rank = len(writer.shape(w) or ())
    if not rank:
        return "with weights whose shape is not static"
    data, weights = _real(writer, x, "", x_zero), _real(writer, w, "", w_zero, 0)
    result = writer.op("Conv", data, weights, **writer.attributes(node))
    writer.give(node.output[0], writer.op("Cast", result, to=TensorProto.INT32))
    return None


def matmul_integer(writer: Writer, node: onnx.NodeProto) -> str | None:
    a, b, a_zero, b_zero = writer.inputs(node, 4)
    left, right = _real(writer, a, "", a_zero, -2), _real(writer, b, "", b_zero, -1)
    result = writer.op("MatMul", left, right)
    writer.give(node.output[0], writer.op("Cast", result, to=TensorProto.INT32))
    return None


def _real(writer: Writer, x: str, scale: str, zero: str, axis: int = 0) -> str:
    """Integers as the floats that they stand for, by a scale, if there is one, and a zero point.

    Several numbers of either go with an axis.
    """
    rank = len(writer.shape(x) or ())
    shapes = [writer.shape(name) for name in (scale, zero) if name]
    counts = [math.prod(shape or ()) for shape in shapes]
    count = max(counts, default=1)
    scale = scale or writer.constant(np.ones(() if count == 1 else count, np.float32))
    if None not in shapes and rank and (count == 1 or (writer.opset >= _BY_AXIS and {*counts} == {count})):
        shape, along = ([], {}) if count == 1 else ([-1], {"axis": axis % rank})
        point = [writer.reshape(name, *shape) for name in (scale, zero) if name]
        return writer.op("DequantizeLinear", x, *point, **along)
    value = writer.op("Cast", x, to=TensorProto.FLOAT)
    spread = [-1, *[1] * (-axis - 1 if axis < 0 else rank - 1)] if count > 1 else None
    if zero:
        shift = writer.op("Cast", zero, to=TensorProto.FLOAT)
        value = writer.op("Sub", value, writer.reshape(shift, *spread) if spread else shift)
    return writer.op("Mul", value, writer.reshape(scale, *spread) if spread else scale)


def _quantised(writer: Writer, x: str, scale: str, zero: str) -> str:
    return writer.op("QuantizeLinear", x, scale, *([zero] if zero else []))


TABLE: dict[str, Callable[[Writer, onnx.NodeProto], str | None]] = {
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
}
