"""What the profiles of sparse tensor cores and matrix cores say of small models, found by reading them."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from truths_models import (
    BFLOAT16,
    E4M3,
    INT4,
    NO,
    OTHER,
    YES,
    Array,
    Make,
    Net,
    Truth,
    byte,
    cast,
    conv,
    conv_integer,
    dq,
    filters,
    fork,
    gemm,
    half,
    layouts,
    matmul,
    matmul_integer,
    negative_zeros,
    node,
    of,
    products,
    put,
    q,
    reshape,
    rows,
    squeeze,
    times,
    transpose,
    unsqueeze,
)

# Rows have two of four, the first column has none that is zero.
EIGHT = rows("1100 0101", 8)
FOUR = rows("1100 0101", 4)
SEVEN = np.arange(8, dtype=np.int8)[:, None]
COUNTED = np.arange(4, dtype=np.int8)[:, None]


def branches() -> ModelProto:
    """Two branches, each with a weight of its own that is called w: the first is dense.

    When a model is read, the name of one of them becomes another.
    """
    net = Net()
    x, yes = net.input(np.float32, 3, 8), net.input(np.bool_)
    bodies = []
    for name, weight in (("dense", np.ones((4, 8), np.float32)), ("sparse", FOUR)):
        inner = helper.make_node("Gemm", [x, "w"], [f"{name}.y"], name, transB=1)
        made = [helper.make_tensor_value_info(f"{name}.y", TensorProto.FLOAT, [3, 4])]
        bodies.append(helper.make_graph([inner], name, [], made, [numpy_helper.from_array(weight, "w")]))
    return net.model(net("If", yes, then_branch=bodies[0], else_branch=bodies[1]))


def called(weight: Array) -> Make:
    """A product within a function of the model."""

    def make() -> ModelProto:
        net = Net()
        x, w = net.input(np.float32, 3, 8), net.const(weight, name="w")
        proto = net.model(net("Gemm", x, w, transB=1))
        body = helper.make_node("Gemm", ["a", "b"], ["c"], transB=1)
        opsets = [helper.make_opsetid("", 21)]
        proto.functions.append(helper.make_function("own", "Layer", ["a", "b"], ["c"], [body], opsets))
        proto.opset_import.append(helper.make_opsetid("own", 1))
        proto.graph.node[0].CopyFrom(helper.make_node("Layer", [x, w], ["Gemm.y"], "Layer", domain="own"))
        return proto

    return make


def two_by_pixel() -> Array:
    """Inputs 0 and 1 at one pixel of the kernel, 2 and 3 at the next."""
    return np.stack([rows("1100"), rows("0011")], axis=-1)[:, :, None, :]


def three_axes() -> Array:
    """(inputs, pixels, outputs); inputs 0 and 1 of four are not zero."""
    return np.stack([np.full((4, 4), k < 2) for k in range(4)]).astype(np.float32)


INNER = filters(rows("1010"), 4, 4).transpose(0, 2, 3, 1)  # outputs, height, width, inputs
FLAT = filters(rows("1010"), 2, 2).transpose(0, 2, 3, 1).reshape(-1)

T = "two-of-four"
NVIDIA = [
    *products(T, EIGHT, 4),
    *layouts(T),
    Truth("MatMul of a transposed weight", T, of(EIGHT, transpose(), matmul()), YES),
    Truth("all zero", T, of(np.zeros((4, 8), np.float32), gemm(True)), YES),
    Truth("none zero", T, of(np.ones((4, 8), np.float32), gemm(True)), NO, first=[(0, k) for k in range(4)]),
    Truth("four in a row, two of each group", T, of(rows("0011 1100"), gemm(True)), YES),
    Truth("one of four", T, of(rows("0100 0000"), gemm(True)), YES),
    Truth(
        "one too many in the last group of the last output",
        T,
        of(put(FOUR, (3, 4)), gemm(True)),
        NO,
        first=[(3, 4), (3, 5), (3, 7)],
    ),
    Truth("half of it is zero, but not half of each group", T, of(rows("1110 0100"), gemm(True)), NO),
    Truth("inputs are no multiple of four", T, of(rows("1100 11"), gemm(True)), OTHER),
    Truth("fewer inputs than a group", T, of(rows("110"), gemm(True)), OTHER),
    Truth("grouped", T, of(filters(rows("1100"), 1, 1), conv(2)), OTHER),
    Truth("depthwise", T, of(np.ones((8, 1, 3, 3), np.float32), conv(8)), OTHER),
    Truth("one input channel, not depthwise", T, of(np.ones((8, 1, 3, 3), np.float32), conv()), OTHER),
    Truth("a stack of matrices", T, of(np.zeros((2, 8, 4), np.float32), matmul()), OTHER),
    Truth("a stack of one matrix", T, of(FOUR.T[None], matmul()), YES),
    Truth("a stack of one matrix on the left", T, of(put(FOUR, (0, 2))[None], matmul(left=True)), NO),
    Truth("a vector", T, of(FOUR[0], matmul()), YES),
    Truth("a vector on the left", T, of(put(FOUR[0], (3,), (2,)), matmul(left=True)), NO),
    Truth("Conv1d", T, of(filters(rows("1010"), 3), conv()), YES),
    Truth("Conv3d, one too many", T, of(put(filters(rows("1010"), 2, 2, 2), (3, 1, 1, 0, 1)), conv()), NO),
    Truth("other inputs at each pixel", T, of(two_by_pixel(), conv()), YES),
    Truth(
        "zeros along the kernel, not along the inputs",
        T,
        of(rows("1100", 16).reshape(4, 4, 1, 4), conv()),
        NO,
        first=[(0, k, 0, 0) for k in range(4)],
    ),
    # ------------------------------------------------------------------ quantised
    Truth("int8", T, of(byte(EIGHT), dq(), gemm(True)), YES),
    Truth("int8, zeros are stored as 3", T, of(byte(FOUR) + np.int8(3), dq(3), gemm(True)), YES),
    Truth(
        "int8, stored zeros are numbers",
        T,
        of(byte(rows("1000")), dq(1), gemm(True)),
        NO,
        first=[(0, 1), (0, 2), (0, 3)],
    ),
    Truth(
        "a zero point for each output",
        T,
        of(byte(FOUR) * np.int8(5) + COUNTED, dq([0, 1, 2, 3], [1, 2, 1, 4], axis=0), gemm(True)),
        YES,
    ),
    Truth(
        "a zero point for each output, of which the last turns zeros into numbers",
        T,
        of(byte(rows("1000")), dq([0, 0, 0, 1], [1] * 4, axis=0), gemm(True)),
        NO,
        first=[(3, 1), (3, 2), (3, 3)],
    ),
    Truth(
        "a zero point for each stored column, transposed after it",
        T,
        of((byte(FOUR) * np.int8(5) + COUNTED).T, dq([0, 1, 2, 3], [1] * 4, axis=1), transpose(), gemm(True)),
        YES,
    ),
    Truth(
        "zero points by block along the inputs",
        T,
        of(byte(rows("6616 2622")), dq([[6, 2]] * 4, [[1, 1]] * 4, axis=1, block_size=4), gemm(True)),
        YES,
    ),
    Truth(
        "zero points by block the other way round",
        T,
        of(byte(rows("6616 2622")), dq([[2, 6]] * 4, [[1, 1]] * 4, axis=1, block_size=4), gemm(True)),
        NO,
        first=[(0, 0), (0, 1), (0, 2), (0, 3)],
    ),
    Truth(
        "a zero point for each of the default axis, 1",
        T,
        of((byte(FOUR) * np.int8(5) + COUNTED).T, dq([0, 1, 2, 3], [1] * 4), matmul()),
        YES,
    ),
    Truth(
        "a zero point for each of the last axis, transposed before it",
        T,
        of(byte(FOUR) * np.int8(5) + COUNTED, transpose(), dq([0, 1, 2, 3], [1] * 4, axis=-1), matmul()),
        YES,
    ),
    Truth(
        "a zero point for each of the axis the outputs were stored in",
        T,
        of(put(EIGHT, (0, 2)).astype(np.int8) + SEVEN, transpose(), dq(range(8), [1] * 8, axis=1), matmul()),
        NO,
        first=[(0, 0), (0, 1), (0, 2)],
    ),
    Truth("uint8", T, of(EIGHT.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth("int4", T, of(EIGHT.astype(INT4), dq(), gemm(True)), OTHER),
    Truth("8-bit floats", T, of(EIGHT.astype(E4M3), dq(), gemm(True)), OTHER),
    Truth("64-bit floats", T, of(EIGHT.astype(np.float64), gemm(True)), OTHER),
    Truth(
        "floats that become zero when quantised",
        T,
        of(rows("8833") / np.float32(8), q(), dq(0), gemm(True)),
        YES,
    ),
    Truth(
        "a half is rounded to zero, 1.5 is not",
        T,
        of(rows("3311") / np.float32(2), q(), dq(0), gemm(True)),
        YES,
    ),
    Truth(
        "0.6 is not rounded to zero",
        T,
        of(put(FOUR, (0, 2), value=0.6), q(), dq(0), gemm(True)),
        NO,
        first=[(0, 0), (0, 1), (0, 2)],
    ),
    Truth("quantised, zeros are 3", T, of(FOUR, q(3), dq(3), gemm(True)), YES),
    Truth("quantised to bytes without a sign", T, of(FOUR, q(3, to=np.uint8), dq(3), gemm(True)), OTHER),
    Truth(
        "a large scale makes zeros of all outputs but the last",
        T,
        of(rows("1111"), q([0] * 4, [4, 4, 4, 1], axis=0), dq([0] * 4, [4, 4, 4, 1], axis=0), gemm(True)),
        NO,
        first=[(3, k) for k in range(4)],
    ),
    # ------------------------------------------------------------------ on the way to the reader
    Truth("bfloat16 with negative zeros", T, of(negative_zeros(FOUR.astype(BFLOAT16)), gemm(True)), YES),
    Truth("float32 with negative zeros", T, of(negative_zeros(FOUR), gemm(True)), YES),
    Truth(
        "the least float is not zero",
        T,
        of(put(FOUR, (0, 2), value=1e-45), gemm(True)),
        NO,
        first=[(0, 0), (0, 1), (0, 2)],
    ),
    Truth("float16 cast to float32", T, of(half(EIGHT), cast(np.float32), gemm(True)), YES),
    Truth("int8 cast to float32", T, of(byte(EIGHT), cast(np.float32), matmul()), NO),
    Truth(
        "a cast to integers cuts off what is below one",
        T,
        of(rows("8822") / np.float32(4), cast(np.int32), cast(np.float32), gemm(True)),
        YES,
    ),
    Truth(
        "8-bit floats cast to integers, cut off",
        T,
        of((rows("8822") / np.float32(4)).astype(E4M3), cast(np.int8), cast(np.float32), gemm(True)),
        YES,
    ),
    Truth(
        "what is too small for float16 is zero",
        T,
        of(put(FOUR, (0, 2), value=1e-30).astype(BFLOAT16), cast(np.float16), gemm(True)),
        YES,
    ),
    Truth("any number of rows of data", T, of(EIGHT, gemm(True, batch="N")), YES),
    Truth("any number of rows of data, along columns", T, of(EIGHT, gemm(batch="N")), NO),
    Truth(
        "Reshape by 0 and -1",
        T,
        of(rows("1111 0000 1111 0000"), reshape(0, -1, 1, 2), reshape(0, 0, 2, -1), conv()),
        YES,
    ),
    Truth(
        "Reshape by 0 and -1 of what is full at every other pixel",
        T,
        of(rows("1010 1010 1010 1010"), reshape(0, -1, 1, 2), reshape(0, 0, 2, -1), conv()),
        NO,
        first=[(0, 0), (0, 2), (0, 4), (0, 6)],
    ),
    Truth("two Transposes", T, of(INNER, transpose(3, 0, 1, 2), transpose(1, 0, 2, 3), conv()), YES),
    Truth(
        "two Transposes, one too many",
        T,
        of(put(INNER, (2, 0, 3, 1)), transpose(3, 0, 1, 2), transpose(1, 0, 2, 3), conv()),
        NO,
        first=[(2, 0, 3, 0), (2, 0, 3, 1), (2, 0, 3, 2)],
    ),
    Truth(
        "Reshape of rows, pixels last", T, of(rows("1111 1111 0000 0000"), reshape(4, 4, 2, 2), conv()), YES
    ),
    Truth(
        "Reshape of rows that have two of four, but by pixel",
        T,
        of(rows("1100 1100 1100 1100"), reshape(4, 4, 2, 2), conv()),
        NO,
        first=[(0, 0), (0, 4), (0, 8), (0, 12)],
    ),
    Truth("Reshape, then Transpose", T, of(FLAT, reshape(4, 2, 2, 4), transpose(0, 3, 1, 2), conv()), YES),
    Truth(
        "Reshape, then Transpose, one too many",
        T,
        of(put(FLAT, (27,)), reshape(4, 2, 2, 4), transpose(0, 3, 1, 2), conv()),
        NO,
        first=[(24,), (26,), (27,)],
    ),
    Truth(
        "Transpose, then Reshape", T, of(three_axes(), transpose(2, 0, 1), reshape(4, 4, 2, 2), conv()), YES
    ),
    Truth(
        "Transpose, then Reshape, one too many",
        T,
        of(put(three_axes(), (3, 1, 2)), transpose(2, 0, 1), reshape(4, 4, 2, 2), conv()),
        NO,
        first=[(0, 1, 2), (1, 1, 2), (3, 1, 2)],
    ),
    Truth("Squeeze of all ones", T, of(FOUR.reshape(1, 4, 8, 1), squeeze(), gemm(True)), YES),
    Truth("Squeeze of some", T, of(EIGHT.reshape(1, 8, 8, 1), squeeze(0, -1), matmul()), NO),
    Truth("Unsqueeze into filters", T, of(FOUR, unsqueeze(2, 3), conv()), YES),
    Truth(
        "Unsqueeze of a weight with inputs first",
        T,
        of(FOUR.T, unsqueeze(-1, -2), conv()),
        NO,
        first=[(0, k) for k in range(4)],
    ),
    Truth("Flatten", T, of(FOUR.reshape(4, 2, 2, 2), node("Flatten", axis=1), gemm(True)), YES),
    Truth("Identity", T, of(EIGHT, node("Identity"), gemm()), NO, first=[(k, 0) for k in range(4)]),
    Truth("a Constant node", T, of(EIGHT, gemm(True), held="value"), YES),
    Truth("a Constant node, transposed", T, of(EIGHT, transpose(), gemm(True), held="value"), NO),
    Truth("a Constant node with a list", T, of(FOUR[0], reshape(1, 8), gemm(True), held="value_floats"), YES),
    Truth(
        "a Constant node with a list, dense",
        T,
        of(np.ones(8), reshape(1, 8), gemm(True), held="value_floats"),
        NO,
    ),
    Truth("multiplied by a constant", T, of(FOUR, times(2), gemm(True)), OTHER, weight="Mul.y"),
    # ------------------------------------------------------------------ readers
    Truth("ConvTranspose", T, of(filters(rows("1100"), 2, 2), conv(op="ConvTranspose")), OTHER),
    Truth("ConvInteger", T, of(byte(filters(rows("1100"), 2, 2)), conv_integer()), OTHER),
    Truth("MatMulInteger", T, of(byte(EIGHT.T), matmul_integer()), OTHER),
    Truth(
        "FusedMatMul",
        T,
        of(FOUR.T, matmul(op="com.microsoft::FusedMatMul"), cast(np.float32), reshape(-1)),
        OTHER,
    ),
    Truth(
        "of two readers, the one along rows", T, of(EIGHT, fork((gemm(True),), (matmul(),))), YES, node="Gemm"
    ),
    Truth(
        "of two readers, the one along columns",
        T,
        of(EIGHT, fork((gemm(True),), (matmul(),))),
        NO,
        node="MatMul",
    ),
    Truth("read by two after one Transpose", T, of(EIGHT, transpose(), fork((matmul(),), (gemm(),))), YES),
    Truth("in branches, each with its own w: dense", T, branches, NO, weight="w.1", node="dense"),
    Truth("in branches, each with its own w: sparse", T, branches, YES, node="sparse"),
    Truth("in a function", T, called(FOUR), YES),
    Truth("in a function, dense", T, called(np.ones((4, 8), np.float32)), NO),
    # ------------------------------------------------------------------ sizes
    Truth("256 by 256", "large-enough", of(np.ones((256, 256, 1, 1), np.float32), conv()), YES),
    Truth("255 inputs", "large-enough", of(np.ones((256, 255, 1, 1), np.float32), conv()), NO),
    Truth("255 outputs", "large-enough", of(half(np.ones((255, 256, 1, 1))), conv()), NO),
    Truth("256 in two groups", "large-enough", of(np.ones((256, 128, 1, 1), np.float32), conv(2)), OTHER),
    Truth("256 of int8", "large-enough", of(np.ones((256, 256, 1, 1), np.int8), dq(), conv()), YES),
    Truth("Gemm of 256", "large-enough", of(np.ones((256, 256), np.float32), gemm()), OTHER),
    Truth(
        "256 by 255 behind a Transpose",
        "large-enough",
        of(np.ones((1, 1, 256, 255), np.float32), transpose(3, 2, 0, 1), conv()),
        NO,
    ),
]
