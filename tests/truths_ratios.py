"""What the profiles that count zeros say of small models."""

from __future__ import annotations

from typing import Any

import numpy as np
from truths_models import (
    BFLOAT16,
    E4M3,
    NO,
    OTHER,
    YES,
    Array,
    Truth,
    byte,
    cast,
    conv,
    conv_integer,
    cycled,
    dq,
    filters,
    fork,
    gemm,
    half,
    matmul,
    matmul_integer,
    negative_zeros,
    of,
    ones,
    products,
    put,
    q,
    qgemm,
    qlinear_conv,
    qlinear_matmul,
    reshape,
    rows,
    times,
    transpose,
    zeros,
)

# ---------------------------------------------------------------------- Core ML

N, C = "neural-engine", "cpu-groups"
SIXTY_FOUR = rows("1100" * 16, 64)


def pairs(both: int, upper: int) -> Array:
    """64x64 in pairs of rows: in so many both are zero, then in so many the upper one."""
    return np.stack([zeros(both + upper, 32, 64), zeros(both, 32, 64)], axis=1).reshape(64, 64)


def every(*of_four: int) -> Array:
    """64x64 where these of every four rows are zero."""
    return (~np.isin(np.arange(64) % 4, of_four)).astype(np.float32)[:, None].repeat(64, 1)


# 3x3 filters, of which those of outputs 0 to 7, or of every other output, are zero.
BLOCK = put(ones(16, 16, 3, 3), *((k,) for k in range(8)), value=0)
EVEN = put(ones(16, 16, 3, 3), *((k,) for k in range(0, 16, 2)), value=0)

APPLE = [
    Truth("three quarters are zero", N, of(zeros(3072, 64, 64), gemm(True)), YES),
    Truth("three quarters but one, half but two in pairs", N, of(pairs(1023, 1025), gemm(True)), NO),
    Truth("the same, pairs are of columns", N, of(pairs(1023, 1025), gemm()), YES),
    Truth("the same by MatMul", N, of(pairs(1023, 1025), matmul()), YES),
    Truth("the same by MatMul on the left", N, of(pairs(1023, 1025), matmul(left=True)), NO),
    Truth("three quarters, half in pairs", N, of(pairs(1024, 1024), gemm(True)), YES),
    Truth("half, all in pairs", N, of(pairs(1024, 0), gemm(True)), YES),
    Truth("half but two, all in pairs", N, of(pairs(1023, 0), gemm(True)), NO),
    Truth("half in rows 0 and 1 of four", N, of(every(0, 1), gemm(True)), YES),
    Truth("half in rows 1 and 2 of four, which are no pairs", N, of(every(1, 2), gemm(True)), NO),
    Truth("half in rows 1 and 2 of four, outputs are columns", N, of(every(1, 2), matmul()), YES),
    Truth("float16", N, of(half(pairs(1024, 0)), gemm(True)), YES),
    Truth("negative zeros", N, of(negative_zeros(zeros(3072, 64, 64)), gemm(True)), YES),
    Truth("bfloat16", N, of(pairs(1024, 0).astype(BFLOAT16), gemm(True)), OTHER),
    Truth("int8", N, of(byte(pairs(1024, 0)), dq(), gemm(True)), OTHER),
    Truth("int8 cast to float16", N, of(byte(pairs(1024, 0)), cast(np.float16), gemm(True)), YES),
    Truth("2048 elements", N, of(np.zeros((32, 64), np.float32), gemm(True)), OTHER),
    Truth("2049 elements", N, of(np.zeros((3, 683), np.float32), gemm(True)), YES),
    Truth("2049 elements, none zero", N, of(ones(3, 683), gemm(True)), NO),
    Truth("filters, outputs in pairs", N, of(BLOCK, conv()), YES),
    Truth("filters, every other output", N, of(EVEN, conv()), NO),
    Truth("filters, every other output but stored as input", N, of(EVEN.transpose(1, 0, 2, 3), conv()), YES),
    Truth(
        "filters stored with outputs last",
        N,
        of(EVEN.transpose(1, 2, 3, 0), transpose(3, 0, 1, 2), conv()),
        NO,
    ),
    Truth("two groups of filters", N, of(BLOCK, conv(2)), YES),
    Truth("a stack of matrices", N, of(pairs(1024, 0).reshape(2, 32, 64), matmul(left=True)), YES),
    Truth("ConvTranspose", N, of(BLOCK, conv(op="ConvTranspose")), OTHER),
    Truth("computed", N, of(zeros(3072, 64, 64), times(2), gemm(True)), OTHER, weight="Mul.y"),
    *products(C, SIXTY_FOUR, 16),
    Truth(
        "groups: 9 of 16",
        C,
        of(put(SIXTY_FOUR, (63, 2)), gemm(True)),
        NO,
        first=[(63, k) for k in (0, 1, 2, 4, 5, 8, 9, 12, 13)],
    ),
    Truth(
        "groups: behind a Reshape",
        C,
        of(put(SIXTY_FOUR, (63, 2)).reshape(8, 8, 64), reshape(64, 64), gemm(True)),
        NO,
        first=[(7, 7, k) for k in (0, 1, 2, 4, 5, 8, 9, 12, 13)],
    ),
    Truth(
        "groups: behind a 3-cycle",
        C,
        of(cycled(32, 64, np.float32), transpose(2, 0, 1), reshape(64, 64), gemm(True)),
        YES,
    ),
    Truth(
        "groups: behind a 3-cycle, one too many",
        C,
        of(put(cycled(32, 64), (0, 1, 5)), transpose(2, 0, 1), reshape(64, 64), gemm(True)),
        NO,
        first=[(0, 1, 5), *((k, 0, 5) for k in range(8))],
    ),
    Truth(
        "groups: eight beyond the last whole group", C, of(rows("1100" * 16 + "1" * 8, 64), gemm(True)), YES
    ),
    Truth(
        "groups: nine beyond the last whole group",
        C,
        of(rows("1100" * 16 + "1" * 9, 64), gemm(True)),
        NO,
        first=[(0, k) for k in range(64, 73)],
    ),
    Truth("groups: 15 inputs", C, of(np.zeros((160, 15), np.float32), gemm(True)), OTHER),
    Truth("groups: 2048 elements", C, of(rows("1100" * 16, 32), gemm(True)), OTHER),
    Truth("groups: a convolution", C, of(filters(SIXTY_FOUR, 1, 1), conv()), OTHER),
    Truth("groups: uint8", C, of(SIXTY_FOUR.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth(
        "groups: half zero, by blocks of 16",
        C,
        of(rows(("1" * 16 + "0" * 16) * 2, 64), gemm(True)),
        NO,
        first=[(0, k) for k in range(16)],
    ),
]

# ---------------------------------------------------------------------- onnx-prune

S = "skips"


def block(height: slice, width: slice, size: int = 8) -> Array:
    found = ones(size, size)
    found[height, width] = 0
    return found


def scattered(count: int) -> Array:
    """10x10 with so many zeros, of which none is in rows 0, 4 and 8."""
    found = ones(10, 10)
    free = np.flatnonzero(np.arange(100) // 10 % 4)
    found.reshape(-1)[free[:count]] = 0
    return found


def cut(*index: Any) -> Array:
    """4x4 filters of four by four, which are zero at an index."""
    found = ones(4, 4, 4, 4)
    found[index] = 0
    return found


ALL = slice(None)
TURNS = np.stack([rows("1100")[0], rows("0011")[0]] * 4)  # each group is full, but for each output alone
ONNX_PRUNE = [
    Truth("a quarter in blocks", S, of(block(slice(4), slice(4)), gemm(True)), YES),
    Truth("a block too few", S, of(block(slice(4), slice(3)), gemm(True)), NO),
    Truth("a quarter, but not in blocks", S, of(block(slice(2, 6), slice(4)), gemm(True)), NO),
    Truth("two rows, which are outputs", S, of(block(slice(2), ALL), gemm(True)), NO),
    Truth("two rows, which are inputs", S, of(block(slice(2), ALL), gemm()), YES),
    Truth("two rows, which are inputs of a MatMul", S, of(block(slice(2), ALL), matmul()), YES),
    Truth("two rows, which are outputs of a MatMul", S, of(block(slice(2), ALL), matmul(left=True)), NO),
    Truth(
        "two rows, which are inputs after a Transpose",
        S,
        of(block(slice(2), ALL), transpose(), gemm(True)),
        YES,
    ),
    Truth("60 of 100 alone", S, of(scattered(60), gemm(True)), YES),
    Truth("59 of 100 alone", S, of(scattered(59), gemm(True)), NO),
    Truth("59 of 100, by column in blocks", S, of(scattered(59), gemm()), YES),
    Truth("two of four of all outputs", S, of(rows("1100 0101", 8), gemm(True)), YES),
    Truth("two of four of each output", S, of(TURNS, gemm(True)), NO),
    Truth("two outputs beyond the last block", S, of(put(ones(6, 4), (4,), (5,), value=0), gemm(True)), YES),
    Truth("one output beyond the last block", S, of(put(ones(5, 4), (4,), value=0), gemm(True)), NO),
    Truth("three outputs, 36 of 60 zero", S, of(zeros(36, 3, 20), gemm(True)), YES),
    Truth("three outputs, 35 of 60 zero", S, of(zeros(35, 3, 20), gemm(True)), NO),
    Truth("filters, an input", S, of(cut(ALL, 0), conv()), YES),
    Truth("filters, an output", S, of(cut(0), conv()), NO),
    Truth("filters, a row of the kernel", S, of(cut(ALL, ALL, 0), conv()), YES),
    Truth("filters, three pixels of the kernel", S, of(cut(ALL, ALL, 0, slice(3)), conv()), NO),
    Truth("outputs last, an input", S, of(cut(0), transpose(3, 0, 1, 2), conv()), YES),
    Truth("outputs last, an output", S, of(cut(ALL, ALL, ALL, 0), transpose(3, 0, 1, 2), conv()), NO),
    Truth("outputs second, a row of the kernel", S, of(cut(ALL, 0), transpose(1, 2, 3, 0), conv()), NO),
    Truth("outputs second, taken back the other way", S, of(cut(ALL, 0), transpose(3, 0, 1, 2), conv()), YES),
    Truth(
        "two groups, four outputs of one", S, of(block(slice(4), slice(4))[:, :, None, None], conv(2)), YES
    ),
    Truth(
        "two groups, two outputs of each", S, of(block(slice(2, 6), slice(4))[:, :, None, None], conv(2)), NO
    ),
    Truth("depthwise", S, of(np.zeros((8, 1, 3, 3), np.float32), conv(8)), OTHER),
    Truth("one input channel", S, of(np.zeros((8, 1, 3, 3), np.float32), conv()), YES),
    Truth("a stack", S, of(np.zeros((2, 8, 8), np.float32), matmul()), OTHER),
    Truth("a stack of one", S, of(block(slice(2), ALL)[None], matmul()), YES),
    Truth("float16", S, of(half(block(slice(4), ALL)), gemm(True)), OTHER),
    Truth(
        "float16 cast to float32", S, of(half(block(slice(4), slice(4))), cast(np.float32), gemm(True)), YES
    ),
    Truth("int8", S, of(byte(block(slice(4), ALL)), dq(), gemm(True)), OTHER),
    Truth("ConvTranspose", S, of(cut(ALL, 0), conv(op="ConvTranspose")), OTHER),
    Truth("none zero", S, of(ones(8, 8), gemm(True)), NO),
    Truth(
        "Reshape, a block", S, of(block(slice(4), slice(4)).reshape(2, 32), reshape(8, 8), gemm(True)), YES
    ),
    Truth(
        "Reshape, rows of 16 are two outputs",
        S,
        of(put(ones(4, 16), (0,), value=0), reshape(8, 8), gemm(True)),
        NO,
    ),
    Truth(
        "shared, blocks for one of two",
        S,
        of(block(slice(2), ALL), fork((gemm(True),), (matmul(),))),
        YES,
        node="MatMul",
    ),
    Truth(
        "shared, no blocks for the other",
        S,
        of(block(slice(2), ALL), fork((gemm(True),), (matmul(),))),
        NO,
        node="Gemm",
    ),
]

# ---------------------------------------------------------------------- OpenVINO on processors

R = "rate"
ENOUGH = zeros(3277, 64, 64, dtype=np.int8)  # 0.8 of them are 3276.8
FEW = zeros(3276, 64, 64, dtype=np.int8)
COUNTED = np.arange(64, dtype=np.int8)
EACH = COUNTED.tolist()
OPENVINO_CPU = [
    Truth("Gemm", R, of(ENOUGH, dq(), gemm(True)), YES),
    Truth("Gemm, one too few", R, of(FEW, dq(), gemm(True)), NO),
    Truth("MatMul", R, of(ENOUGH, dq(), matmul()), YES),
    Truth("MatMul on the left, one too few", R, of(FEW, dq(), matmul(left=True)), NO),
    # The source says "at least", where the text of the profile says "above".
    Truth("exactly 0.8", R, of(zeros(16384, 64, 320, dtype=np.int8), dq(), gemm(True)), YES),
    Truth("0.8 but one", R, of(zeros(16383, 64, 320, dtype=np.int8), dq(), gemm(True)), NO),
    Truth("128 outputs", R, of(zeros(6554, 64, 128, dtype=np.int8), dq(), gemm()), YES),
    Truth("96 inputs", R, of(zeros(6000, 64, 96, dtype=np.int8), dq(), gemm(True)), OTHER),
    Truth("96 outputs", R, of(zeros(6000, 64, 96, dtype=np.int8), dq(), gemm()), OTHER),
    Truth("63 inputs", R, of(np.zeros((63, 64), np.int8), dq(), gemm()), OTHER),
    Truth("zeros are 7", R, of(ENOUGH + np.int8(7), dq(7), gemm(True)), YES),
    Truth("zeros are none", R, of(ENOUGH + np.int8(7), dq(), gemm(True)), NO),
    Truth("zeros by output", R, of(ENOUGH + COUNTED[:, None], dq(EACH, [1] * 64, axis=0), gemm(True)), YES),
    Truth("zeros by input", R, of(ENOUGH + COUNTED[:, None], dq(EACH, [1] * 64, axis=1), gemm(True)), NO),
    Truth("uint8", R, of(ENOUGH.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth("float32", R, of(ENOUGH.astype(np.float32), gemm(True)), OTHER),
    Truth("8-bit floats", R, of(ENOUGH.astype(E4M3), dq(), gemm(True)), OTHER),
    Truth(
        "floats below a half of the scale",
        R,
        of(ENOUGH * np.float32(0.6) + np.float32(0.4), q(), dq(0), gemm(True)),
        YES,
    ),
    Truth(
        "floats above a half of the scale",
        R,
        of(ENOUGH * np.float32(0.4) + np.float32(0.6), q(), dq(0), gemm(True)),
        NO,
    ),
    Truth(
        "floats cut off",
        R,
        of(ENOUGH * np.float32(0.1) + np.float32(0.9), cast(np.int8), matmul_integer()),
        YES,
    ),
    Truth("MatMulInteger, zeros by column", R, of(ENOUGH + COUNTED, matmul_integer(zero=EACH)), YES),
    Truth(
        "MatMulInteger, zeros of other columns", R, of(ENOUGH + COUNTED, matmul_integer(zero=EACH[::-1])), NO
    ),
    Truth(
        "QLinearMatMul on the left",
        R,
        of(ENOUGH + COUNTED[:, None], qlinear_matmul(zero=EACH, scale=[1] * 64, left=True)),
        YES,
    ),
    Truth("QLinearMatMul, one too few", R, of(FEW, qlinear_matmul()), NO),
    Truth(
        "a 3-cycle, then Reshape",
        R,
        of(zeros(3277, 8, 64, 8, dtype=np.int8), dq(), transpose(1, 2, 0), reshape(64, 64), gemm(True)),
        YES,
    ),
    Truth(
        "a Constant node in a row",
        R,
        of(FEW.reshape(-1), dq(), reshape(64, 64), gemm(True), held="value"),
        NO,
    ),
    Truth("a stack", R, of(np.zeros((2, 64, 64), np.int8), dq(), matmul()), OTHER),
    Truth("a vector has one output", R, of(np.zeros(64, np.int8), dq(), matmul()), OTHER),
    Truth("a convolution", R, of(ENOUGH[:, :, None, None], dq(), conv()), OTHER),
    Truth("QGemm", R, of(ENOUGH, qgemm()), OTHER),
    Truth("all zero", R, of(np.zeros((64, 64), np.int8), dq(), gemm()), YES),
    Truth("none zero", R, of(np.ones((64, 64), np.int8), dq(), gemm()), NO),
    Truth("computed", R, of(ENOUGH, dq(), times(2), gemm()), OTHER, weight="Mul.y"),
]

# ---------------------------------------------------------------------- OpenVINO on NPUs

F, G = "ratio-of-floats", "ratio-of-integers"
ONE, TWO = (zeros(count, 4, 4, 1, 1) for count in (1, 2))
BYTES = byte(TWO)
FIRST = np.arange(4, dtype=np.int8)[:, None, None, None]
OPENVINO_NPU = [
    Truth("1 of 16", F, of(ONE, conv()), YES),
    Truth("none of 16", F, of(ones(4, 4, 1, 1), conv()), NO),
    Truth("9 of 144", F, of(zeros(9, 4, 4, 3, 3), conv()), YES),
    Truth("8 of 144", F, of(zeros(8, 4, 4, 3, 3), conv()), NO),
    Truth("2 of 25", F, of(half(zeros(2, 5, 5, 1, 1)), conv()), YES),
    Truth("1 of 25", F, of(half(zeros(1, 5, 5, 1, 1)), conv()), NO),
    Truth("a negative zero", F, of(negative_zeros(ONE), conv()), YES),
    Truth("64-bit floats", F, of(ONE.astype(np.float64), conv()), OTHER),
    Truth("two groups", F, of(ONE, conv(2)), YES),
    Truth("depthwise", F, of(np.zeros((4, 1, 3, 3), np.float32), conv(4)), OTHER),
    Truth("one input channel, not depthwise", F, of(zeros(1, 16, 1, 1, 1), conv()), YES),
    Truth("Conv1d", F, of(zeros(2, 4, 4, 3), conv()), NO),
    Truth("Gemm", F, of(np.zeros((4, 4), np.float32), gemm()), OTHER),
    Truth("ConvTranspose", F, of(ONE, conv(op="ConvTranspose")), OTHER),
    Truth(
        "stored with outputs last, behind a Reshape",
        F,
        of(zeros(9, 4, 36), reshape(4, 3, 3, 4), transpose(3, 0, 1, 2), conv()),
        YES,
    ),
    Truth(
        "float16 that is zero as float16 only",
        F,
        of(put(ones(4, 4, 1, 1), (0, 0, 0, 0), value=1e-9), cast(np.float16), conv()),
        YES,
    ),
    Truth("weights are quantised, data is not", F, of(byte(ONE), dq(), conv(real=True)), YES),
    Truth("weights and data are quantised", F, of(BYTES, dq(), conv()), OTHER),
    Truth("computed", F, of(ONE, times(2), conv()), OTHER, weight="Mul.y"),
    Truth("integers: 2 of 16", G, of(BYTES, dq(), conv()), YES),
    Truth("integers: 1 of 16", G, of(byte(ONE), dq(), conv()), NO),
    Truth("integers: zeros are 3", G, of(BYTES + np.int8(3), dq(3), conv()), YES),
    Truth("integers: stored zeros are none", G, of(BYTES * np.int8(2), dq(1), conv()), NO),
    Truth(
        "integers: uint8, zeros are 128", G, of(BYTES.astype(np.uint8) + np.uint8(128), dq(128), conv()), YES
    ),
    Truth("integers: zeros by output", G, of(BYTES + FIRST, dq([0, 1, 2, 3], [1] * 4, axis=0), conv()), YES),
    Truth("integers: ConvInteger", G, of(BYTES, conv_integer()), YES),
    Truth("integers: ConvInteger, uint8, one too few", G, of(byte(ONE).astype(np.uint8), conv_integer()), NO),
    Truth("integers: ConvInteger is not of floats", F, of(BYTES, conv_integer()), OTHER),
    Truth(
        "integers: QLinearConv, zeros by output",
        G,
        of(BYTES + FIRST, qlinear_conv(zero=[0, 1, 2, 3], scale=[1] * 4)),
        YES,
    ),
    Truth(
        "integers: QLinearConv, zeros of other outputs",
        G,
        of(BYTES + FIRST, qlinear_conv(zero=[4, 5, 6, 7], scale=[1] * 4)),
        NO,
    ),
    Truth(
        "integers: quantised floats", G, of(TWO * np.float32(0.6) + np.float32(0.4), q(), dq(0), conv()), YES
    ),
    Truth("integers: float32", G, of(TWO, conv()), OTHER),
    Truth("integers: int16", G, of(TWO.astype(np.int16), dq(), conv()), OTHER),
    Truth("integers: depthwise", G, of(np.zeros((4, 1, 3, 3), np.int8), conv_integer(4)), OTHER),
    Truth("integers: MatMulInteger", G, of(np.zeros((4, 4), np.int8), matmul_integer()), OTHER),
    Truth("integers: weights are quantised, data is not", G, of(byte(ONE), dq(), conv(real=True)), OTHER),
]
