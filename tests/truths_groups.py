"""What the profiles of processors for neural networks with zeros by group say of small models."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto
from truths_models import (
    INT4,
    NO,
    OTHER,
    YES,
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
    layouts,
    matmul,
    matmul_integer,
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
    unsqueeze,
)

# Rows have two of four, the first column has none that is zero.
EIGHT = byte(rows("1100 0101", 8))
FOUR = byte(rows("1100 0101", 4))
COUNTED = np.arange(4, dtype=np.int8)
PIXELS = byte(filters(rows("1010"), 2, 2))
INNER = PIXELS.transpose(0, 2, 3, 1)  # outputs, height, width, inputs
BY_OUTPUT = PIXELS + COUNTED[:, None, None, None]


def gather(net: Net, name: str) -> str:
    """An embedding with the same weight."""
    return net("Gather", name, net.input(np.int64, 3), axis=0)


def twins() -> ModelProto:
    """Two layers, each with an initializer of its own, of equal values."""
    net = Net()
    ends = [gemm(True)(net, dq()(net, net.const(FOUR, name=name))) for name in ("w", "v")]
    return net.model(*ends)


T = "two-of-four"
ASCEND = [
    *products(T, EIGHT, 4, dq()),
    *layouts(T, dq(), dtype=np.int8),
    Truth("ConvInteger", T, of(PIXELS, conv_integer()), YES),
    Truth("ConvInteger, zeros are 3", T, of(PIXELS + np.int8(3), conv_integer(zero=3)), YES),
    Truth("ConvInteger, zeros by output", T, of(BY_OUTPUT, conv_integer(zero=[0, 1, 2, 3])), YES),
    Truth(
        "ConvInteger, zeros of other outputs",
        T,
        of(BY_OUTPUT, conv_integer(zero=[3, 2, 1, 0])),
        NO,
        first=[(0, k, 0, 0) for k in range(4)],
    ),
    Truth(
        "ConvInteger, what is zero is known at run time only",
        T,
        of(PIXELS, conv_integer(zero="input")),
        OTHER,
    ),
    Truth(
        "ConvInteger of floats quantised before", T, of(filters(rows("1010"), 2, 2), q(), conv_integer()), YES
    ),
    Truth(
        "ConvInteger of floats, cut off",
        T,
        of(rows("8833") / np.float32(4), cast(np.int8), unsqueeze(2, 3), conv_integer()),
        YES,
    ),
    Truth("QLinearConv, zeros are -7", T, of(PIXELS - np.int8(7), qlinear_conv(zero=-7)), YES),
    Truth(
        "QLinearConv, one too many behind a 3-cycle",
        T,
        of(put(INNER, (3, 0, 1, 1)), transpose(0, 3, 1, 2), qlinear_conv()),
        NO,
        first=[(3, 0, 1, 0), (3, 0, 1, 1), (3, 0, 1, 2)],
    ),
    Truth("MatMulInteger on the right", T, of(EIGHT, matmul_integer()), NO, first=[(k, 0) for k in range(4)]),
    Truth("MatMulInteger on the left", T, of(EIGHT, matmul_integer(left=True)), YES),
    Truth(
        "QLinearMatMul, zeros by column",
        T,
        of((FOUR + COUNTED[:, None]).T, qlinear_matmul(zero=[0, 1, 2, 3], scale=[1] * 4)),
        YES,
    ),
    Truth(
        "QLinearMatMul on the left, zeros by row",
        T,
        of(FOUR + COUNTED[:, None], qlinear_matmul(zero=[0, 1, 2, 3], scale=[1] * 4, left=True)),
        YES,
    ),
    Truth("uint8", T, of(EIGHT.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth("float32", T, of(EIGHT.astype(np.float32), gemm(True)), OTHER),
    Truth("quantised floats", T, of(EIGHT.astype(np.float32), q(), dq(0), gemm(True)), YES),
    Truth("six inputs", T, of(byte(rows("1100 11")), dq(), gemm(True)), OTHER),
    Truth("three inputs", T, of(byte(rows("110")), dq(), gemm(True)), OTHER),
    Truth("grouped", T, of(byte(filters(rows("1100", 8), 1, 1)), dq(), conv(2)), YES),
    Truth(
        "grouped, one too many in the second group",
        T,
        of(put(byte(filters(rows("1100", 8), 1, 1)), (6, 2, 0, 0)), dq(), conv(2)),
        NO,
        first=[(6, 0, 0, 0), (6, 1, 0, 0), (6, 2, 0, 0)],
    ),
    Truth("four inputs in groups of two", T, of(ones(4, 2, 1, 1, dtype=np.int8), dq(), conv(2)), OTHER),
    Truth("depthwise", T, of(ones(8, 1, 3, 3, dtype=np.int8), dq(), conv(8)), OTHER),
    Truth("shared by two", T, of(PIXELS, dq(), fork((conv(),), (conv(),))), OTHER),
    Truth(
        "shared, each with a DequantizeLinear",
        T,
        of(EIGHT, fork((dq(), transpose(), matmul()), (dq(), gemm(True)))),
        OTHER,
    ),
    Truth("shared with an embedding", T, of(EIGHT, dq(), fork((gemm(True),), (gather,))), OTHER),
    Truth("equal values, but not shared", T, twins, YES),
    Truth("a stack of matrices", T, of(np.stack([FOUR.T, FOUR.T]), dq(), matmul()), YES),
    Truth(
        "a stack of matrices, one too many in the second",
        T,
        of(put(np.stack([FOUR.T, FOUR.T]), (1, 2, 3)), matmul_integer()),
        NO,
        first=[(1, 0, 3), (1, 1, 3), (1, 2, 3)],
    ),
    Truth("all zero", T, of(np.zeros((4, 8), np.int8), dq(), gemm(True)), YES),
    Truth(
        "none zero", T, of(np.ones((4, 8), np.int8), dq(), gemm(True)), NO, first=[(0, k) for k in range(4)]
    ),
    Truth("ConvTranspose", T, of(PIXELS, dq(), conv(op="ConvTranspose")), OTHER),
]

# ---------------------------------------------------------------------- Ethos-U

U, R = "u85-two-of-four", "zero-runs"
BYTES = EIGHT.astype(np.uint8) + np.uint8(128)
FLAT = INNER.reshape(-1)
ETHOS = [
    *products(U, EIGHT, 4, dq(), only="Gemm"),
    *layouts(U, dq(), dtype=np.int8),
    Truth("uint8, zeros are 128", U, of(BYTES, dq(128), gemm(True)), YES),
    Truth(
        "uint8, zeros are 128, none is",
        U,
        of(BYTES - np.uint8(128), dq(128), gemm(True)),
        NO,
        first=[(0, k) for k in range(4)],
    ),
    Truth("six inputs, the last two are not zero", U, of(byte(rows("1100 11")), dq(), gemm(True)), YES),
    Truth(
        "seven inputs, the last three are not zero",
        U,
        of(byte(rows("1100 111")), dq(), gemm(True)),
        NO,
        first=[(0, 4), (0, 5), (0, 6)],
    ),
    Truth("two groups of five inputs", U, of(byte(filters(rows("1100 1"), 1, 1)), dq(), conv(2)), YES),
    Truth(
        "two groups of seven inputs",
        U,
        of(put(byte(filters(rows("1100 100"), 1, 1)), (2, 5, 0, 0), (2, 6, 0, 0)), dq(), conv(2)),
        NO,
        first=[(2, 4, 0, 0), (2, 5, 0, 0), (2, 6, 0, 0)],
    ),
    Truth("depthwise", U, of(ones(8, 1, 3, 3, dtype=np.int8), dq(), conv(8)), OTHER),
    Truth("shared by two", U, of(PIXELS, dq(), fork((conv(),), (conv(),))), YES),
    Truth("MatMul", U, of(EIGHT.T, dq(), matmul()), OTHER),
    Truth("MatMulInteger", U, of(EIGHT.T, matmul_integer()), OTHER),
    Truth("int16", U, of(EIGHT.astype(np.int16), dq(), gemm(True)), OTHER),
    Truth("float32", U, of(EIGHT.astype(np.float32), gemm(True)), OTHER),
    Truth("QGemm transB=1, zeros are 9", U, of(EIGHT + np.int8(9), qgemm(True, zero=9)), YES),
    Truth("QGemm transB=0", U, of(EIGHT, qgemm()), NO, first=[(k, 0) for k in range(4)]),
    Truth(
        "QGemm transB=0, zeros by column", U, of((FOUR + COUNTED[:, None]).T, qgemm(zero=[0, 1, 2, 3])), YES
    ),
    Truth("ConvInteger, uint8", U, of(PIXELS.astype(np.uint8) + np.uint8(5), conv_integer(zero=5)), YES),
    Truth(
        "QLinearConv, zeros by output", U, of(BY_OUTPUT, qlinear_conv(zero=[0, 1, 2, 3], scale=[1] * 4)), YES
    ),
    Truth(
        "QLinearConv, zeros of other outputs",
        U,
        of(BY_OUTPUT, qlinear_conv(zero=[3, 2, 1, 0], scale=[1] * 4)),
        NO,
    ),
    Truth(
        "zeros by output, outputs stored last",
        U,
        of(BY_OUTPUT.transpose(1, 2, 3, 0), dq([0, 1, 2, 3], [1] * 4, axis=3), transpose(3, 0, 1, 2), conv()),
        YES,
    ),
    Truth(
        "Reshape, then Transpose, one too many",
        U,
        of(put(FLAT, (27,)), dq(), reshape(4, 2, 2, 4), transpose(0, 3, 1, 2), conv()),
        NO,
        first=[(24,), (26,), (27,)],
    ),
    Truth("runs: half of the zeros", R, of(byte(rows("1001 0101")), dq(), gemm(True)), YES),
    Truth("runs: two zeros of five", R, of(byte(rows("1001 0101 0")), dq(), gemm(True)), NO),
    Truth("runs: zeros are 3", R, of(byte(rows("5335 3535")), dq(3), gemm(True)), YES),
    Truth("runs: none stands beside another", R, of(byte(rows("1010 1010")), dq(), gemm(True)), NO),
    Truth(
        "runs: the last of an output and the first of the next",
        R,
        of(byte(rows("0110")), dq(), gemm(True)),
        NO,
    ),
    Truth("runs: along the kernel only", R, of(byte(filters(rows("1010"), 1, 4)), dq(), conv()), NO),
    Truth(
        "runs: along the inputs at one pixel of two",
        R,
        of(np.stack([rows("1001"), rows("1111")], -1)[:, :, None].astype(np.int8), dq(), conv()),
        YES,
    ),
    Truth("runs: rows of zeros, transB=1", R, of(byte(rows("1010", 8)).T, dq(), gemm(True)), YES),
    Truth("runs: rows of zeros, transB=0", R, of(byte(rows("1010", 8)).T, dq(), gemm()), NO),
    Truth("runs: all zero", R, of(np.zeros((4, 4), np.int8), dq(), gemm()), YES),
    Truth("runs: none zero", R, of(np.ones((4, 4), np.int8), dq(), gemm()), NO),
    Truth("runs: one input", R, of(np.zeros((1, 4), np.int8), dq(), gemm()), OTHER),
    Truth("runs: depthwise", R, of(np.zeros((4, 1, 3, 3), np.int8), dq(), conv(4)), OTHER),
]

# ---------------------------------------------------------------------- RK3576

LONG = byte(rows("1100" * 8, 32))
INPUTS, OUTPUTS = byte(filters(LONG, 1, 1)), byte(filters(LONG.T, 1, 1))  # what the zeros stand along
ROCKCHIP = [
    Truth("along the inputs", T, of(INPUTS, dq(), conv()), YES),
    Truth("along the outputs", T, of(OUTPUTS, dq(), conv()), YES),
    Truth(
        "half of the outputs along the inputs, the rest along the outputs",
        T,
        of(np.concatenate([INPUTS[:16], OUTPUTS[16:]]), dq(), conv()),
        NO,
    ),
    Truth(
        "one too many along the inputs",
        T,
        of(put(INPUTS, (9, 2, 0, 0)), dq(), conv()),
        NO,
        first=[(9, 0, 0, 0), (9, 1, 0, 0), (9, 2, 0, 0)],
    ),
    Truth(
        "one too many along the outputs",
        T,
        of(put(OUTPUTS, (30, 7, 0, 0)), dq(), conv()),
        NO,
        first=[(28, 7, 0, 0), (29, 7, 0, 0), (30, 7, 0, 0)],
    ),
    Truth(
        "one too many along the inputs behind a 3-cycle",
        T,
        of(
            put(byte(filters(LONG, 2, 2)).transpose(0, 2, 3, 1), (17, 1, 0, 3)),
            dq(),
            transpose(0, 3, 1, 2),
            conv(),
        ),
        NO,
        first=[(17, 1, 0, 0), (17, 1, 0, 1), (17, 1, 0, 3)],
    ),
    Truth(
        "along the outputs, which are stored last",
        T,
        of(byte(filters(LONG.T, 2, 2)).transpose(1, 2, 3, 0), dq(), transpose(3, 0, 1, 2), conv()),
        YES,
    ),
    Truth(
        "one too many along the outputs, which are stored last",
        T,
        of(
            put(byte(filters(LONG.T, 2, 2)).transpose(1, 2, 3, 0), (4, 1, 1, 2)),
            dq(),
            transpose(3, 0, 1, 2),
            conv(),
        ),
        NO,
        first=[(4, 1, 1, 0), (4, 1, 1, 1), (4, 1, 1, 2)],
    ),
    Truth(
        "inputs before outputs and no Transpose",
        T,
        of(put(INPUTS, (9, 2, 0, 0)).transpose(1, 0, 2, 3), dq(), conv()),
        NO,
        first=[(0, 9, 0, 0), (1, 9, 0, 0), (2, 9, 0, 0)],
    ),
    Truth(
        "one too many behind a Reshape",
        T,
        of(put(LONG.reshape(-1), (290,)), dq(), reshape(32, 32, 1, 1), conv()),
        NO,
        first=[(288,), (289,), (290,)],
    ),
    Truth("a Constant node, Unsqueeze", T, of(LONG, dq(), unsqueeze(2, 3), conv(), held="value"), YES),
    Truth("ConvInteger, zeros are 4", T, of(INPUTS + np.int8(4), conv_integer(zero=4)), YES),
    Truth("ConvInteger, zeros are none", T, of(INPUTS + np.int8(4), conv_integer()), NO),
    Truth(
        "QLinearConv, zeros by output",
        T,
        of(
            INPUTS + np.arange(32, dtype=np.int8)[:, None, None, None],
            qlinear_conv(zero=list(range(32)), scale=[1] * 32),
        ),
        YES,
    ),
    Truth("quantised floats", T, of(INPUTS.astype(np.float32), q(), dq(0), conv()), YES),
    Truth("64 inputs", T, of(byte(filters(rows("1010" * 16, 32), 1, 1)), dq(), conv()), YES),
    Truth("48 inputs", T, of(byte(filters(rows("1010" * 12, 32), 1, 1)), dq(), conv()), OTHER),
    Truth("48 outputs", T, of(byte(filters(rows("1010" * 8, 48), 1, 1)), dq(), conv()), OTHER),
    Truth("16 inputs", T, of(byte(filters(rows("1010" * 4, 32), 1, 1)), dq(), conv()), OTHER),
    Truth("two groups of 32", T, of(byte(filters(rows("1010" * 8, 64), 1, 1)), dq(), conv(2)), OTHER),
    Truth("depthwise", T, of(np.zeros((32, 1, 3, 3), np.int8), dq(), conv(32)), OTHER),
    Truth("uint8", T, of(INPUTS.astype(np.uint8), dq(), conv()), OTHER),
    Truth("float32", T, of(INPUTS.astype(np.float32), conv()), OTHER),
    Truth("Gemm", T, of(LONG, dq(), gemm(True)), OTHER),
    Truth("ConvTranspose", T, of(INPUTS, dq(), conv(op="ConvTranspose")), OTHER),
    Truth("all zero", T, of(np.zeros((32, 32, 3, 3), np.int8), dq(), conv()), YES),
    Truth("none zero", T, of(np.ones((32, 32, 1, 1), np.int8), dq(), conv()), NO),
    Truth("along the kernel only", T, of(byte(rows("1100", 1024)).reshape(32, 32, 1, 4), dq(), conv()), NO),
    Truth("shared by two", T, of(INPUTS, dq(), fork((conv(),), (conv(),))), YES),
]

# ---------------------------------------------------------------------- Vitis AI

V = "half-of-block"
HALF = rows("1111 0000 1010 1100", 8)
FULL = [0, 1, 2, 3, 8, 10, 12, 13]  # what is not zero of its rows
TWICE = filters(HALF, 2, 2).transpose(1, 2, 3, 0)  # inputs, height, width, outputs
VITIS = [
    *products(V, rows("11111111 00000000", 16), 16),
    Truth("8 of 16, but not 2 of 4", V, of(HALF, gemm(True)), YES),
    Truth("9 of 16", V, of(put(HALF, (0, 15)), gemm(True)), NO, first=[(0, k) for k in (*FULL, 15)]),
    Truth(
        "half of 32, not half of 16",
        V,
        of(rows("1" * 16 + "0" * 16, 8), gemm(True)),
        NO,
        first=[(0, k) for k in range(16)],
    ),
    Truth(
        "eight zeros in a row, four in each block",
        V,
        of(rows("1" * 12 + "0" * 8 + "1" * 12, 8), gemm(True)),
        NO,
    ),
    Truth("24 inputs", V, of(rows("10" * 12, 8), gemm(True)), OTHER),
    Truth("8 inputs", V, of(rows("1010 1010", 8), gemm(True)), OTHER),
    Truth("12 outputs", V, of(rows("10" * 8, 12), gemm(True)), OTHER),
    Truth("two groups of 16 inputs and 4 outputs", V, of(filters(HALF, 1, 1), conv(2)), YES),
    Truth("two groups of 8 inputs", V, of(filters(rows("1010 1010", 16), 1, 1), conv(2)), OTHER),
    Truth("depthwise", V, of(np.zeros((16, 1, 3, 3), np.float32), conv(16)), OTHER),
    Truth("a stack", V, of(np.zeros((2, 16, 8), np.float32), matmul()), OTHER),
    Truth("a stack of one", V, of(HALF.T[None], matmul()), YES),
    Truth("a vector has one output", V, of(HALF[0], matmul()), OTHER),
    Truth("int8, zeros are 2", V, of(byte(HALF) + np.int8(2), dq(2), gemm(True)), YES),
    Truth(
        "int8, zeros are none",
        V,
        of(byte(HALF) + np.int8(2), dq(), gemm(True)),
        NO,
        first=[(0, k) for k in range(16)],
    ),
    Truth("int4", V, of(HALF.astype(INT4), dq(), gemm(True)), YES),
    Truth("64-bit floats", V, of(HALF.astype(np.float64), gemm(True)), YES),
    Truth("QLinearMatMul", V, of(byte(HALF).T, qlinear_matmul()), OTHER),
    Truth("ConvInteger", V, of(byte(filters(HALF, 1, 1)), conv_integer()), OTHER),
    Truth("outputs stored last, Transpose (3,0,1,2)", V, of(TWICE, transpose(3, 0, 1, 2), conv()), YES),
    Truth(
        "outputs stored last, one too many",
        V,
        of(put(TWICE, (15, 1, 0, 6)), transpose(3, 0, 1, 2), conv()),
        NO,
        first=[(k, 1, 0, 6) for k in (*FULL, 15)],
    ),
    Truth(
        "Reshape of rows, pixels last",
        V,
        of(rows("1111" * 8 + "0000" * 8, 8), reshape(8, 16, 2, 2), conv()),
        YES,
    ),
    Truth(
        "Reshape of rows that are half zero, but by pixel",
        V,
        of(rows("1100" * 16, 8), reshape(8, 16, 2, 2), conv()),
        NO,
        first=[(0, k) for k in range(0, 64, 4)],
    ),
    Truth("all zero", V, of(np.zeros((8, 16), np.float32), gemm(True)), YES),
    Truth("computed", V, of(HALF, times(0), gemm(True)), OTHER, weight="Mul.y"),
    Truth(
        "of two readers, the one along rows",
        V,
        of(rows("11111111 00000000", 16), fork((gemm(True),), (matmul(),))),
        YES,
        node="Gemm",
    ),
    Truth(
        "of two readers, the one along columns",
        V,
        of(rows("11111111 00000000", 16), fork((gemm(True),), (matmul(),))),
        NO,
        node="MatMul",
    ),
]
