"""What the profiles of libraries of sparse products say of small models, found by reading them."""

from __future__ import annotations

import numpy as np
from truths_models import (
    BFLOAT16,
    E4M3,
    E5M2,
    NO,
    OTHER,
    YES,
    Truth,
    byte,
    cast,
    conv,
    cycled,
    dq,
    filters,
    gemm,
    half,
    matmul,
    matmul_integer,
    negative_zeros,
    of,
    products,
    put,
    q,
    qlinear_matmul,
    reshape,
    rows,
    squeeze,
    times,
    transpose,
)

H, B, F = "two-of-four-half", "two-of-four-byte", "one-of-two-float"
SIXTEEN = half(rows("1100 1010 1001 1100", 16))
THIRTY_TWO = byte(rows("1001" * 8, 32))
PER_OUTPUT = list(range(-16, 16))
SHIFTED = THIRTY_TWO + np.array(PER_OUTPUT, np.int8)[:, None]  # zeros of output k are stored as k - 16

CUSPARSELT = [
    *products(H, SIXTEEN, 4),
    *products(B, THIRTY_TWO, 4, dq()),
    *products(F, rows("10 10 10 10", 8), 2),
    Truth("half: 32 inputs, 16 outputs", H, of(half(rows("1100" * 8, 16)), gemm(True)), YES),
    Truth(
        "half: bfloat16 with negative zeros", H, of(negative_zeros(SIXTEEN.astype(BFLOAT16)), gemm(True)), YES
    ),
    Truth("half: all zero", H, of(np.zeros((16, 16), np.float16), matmul()), YES),
    Truth("half: 24 inputs", H, of(half(rows("1100" * 6, 16)), gemm(True)), OTHER),
    Truth("half: 24 outputs", H, of(half(rows("1100" * 4, 24)), gemm(True)), OTHER),
    Truth("half: 24 inputs of a MatMul", H, of(half(rows("1100" * 6, 16)).T, matmul()), OTHER),
    Truth(
        "half: three rows of data are no size of the weight", H, of(SIXTEEN.T, transpose(), gemm(True)), YES
    ),
    Truth("half: a stack of matrices", H, of(np.zeros((2, 16, 16), np.float16), matmul()), OTHER),
    Truth("half: a vector has one output", H, of(SIXTEEN[0], matmul()), OTHER),
    Truth("half: a convolution", H, of(filters(SIXTEEN, 1, 1), conv()), OTHER),
    Truth("half: float32", H, of(SIXTEEN.astype(np.float32), gemm(True)), OTHER),
    Truth("half: cast to float32", H, of(SIXTEEN, cast(np.float32), gemm(True)), OTHER),
    Truth("half: int8 cast to float16", H, of(byte(SIXTEEN), cast(np.float16), gemm(True)), YES),
    Truth(
        "half: one too many behind a Reshape",
        H,
        of(put(SIXTEEN, (5, 2)).reshape(2, 8, 16), reshape(16, 16), gemm(True)),
        NO,
        first=[(0, 5, 0), (0, 5, 1), (0, 5, 2)],
    ),
    Truth(
        "half: a 3-cycle, then Reshape",
        H,
        of(cycled(8, 16), transpose(2, 0, 1), reshape(16, 16), gemm(True)),
        YES,
    ),
    Truth(
        "half: a 3-cycle, then Reshape, one too many",
        H,
        of(put(cycled(8, 16), (1, 1, 7)), transpose(2, 0, 1), reshape(16, 16), gemm(True)),
        NO,
        first=[(0, 0, 7), (1, 0, 7), (1, 1, 7)],
    ),
    Truth(
        "half: the other 3-cycle takes outputs for inputs",
        H,
        of(cycled(16, 8), transpose(1, 2, 0), reshape(16, 16), gemm(True)),
        NO,
        first=[(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)],
    ),
    Truth("byte: 16 inputs", B, of(byte(rows("1001" * 4, 32)), dq(), gemm(True)), OTHER),
    Truth("byte: 16 outputs", B, of(byte(rows("1001" * 8, 16)), dq(), gemm(True)), OTHER),
    Truth("byte: uint8", B, of(THIRTY_TWO.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth("byte: float8_e4m3fn", B, of(negative_zeros(THIRTY_TWO.astype(E4M3)), dq(), gemm(True)), YES),
    Truth(
        "byte: float8_e4m3fn, one too many",
        B,
        of(put(THIRTY_TWO, (9, 29)).astype(E4M3), dq(), gemm(True)),
        NO,
        first=[(9, 28), (9, 29), (9, 31)],
    ),
    Truth("byte: float8_e5m2", B, of(THIRTY_TWO.astype(E5M2), dq(), gemm(True)), OTHER),
    Truth(
        "byte: float8 cast to float32", B, of(THIRTY_TWO.astype(E4M3), cast(np.float32), gemm(True)), OTHER
    ),
    Truth("byte: MatMulInteger", B, of(THIRTY_TWO.T, matmul_integer()), YES),
    Truth("byte: MatMulInteger, zeros by column", B, of(SHIFTED.T, matmul_integer(zero=PER_OUTPUT)), YES),
    Truth(
        "byte: MatMulInteger, zeros by row on the left",
        B,
        of(SHIFTED, matmul_integer(zero=PER_OUTPUT, left=True)),
        YES,
    ),
    Truth(
        "byte: MatMulInteger, zeros of other columns",
        B,
        of(SHIFTED.T, matmul_integer(zero=PER_OUTPUT[::-1])),
        NO,
    ),
    Truth(
        "byte: QLinearMatMul, zeros are 5", B, of((THIRTY_TWO + np.int8(5)).T, qlinear_matmul(zero=5)), YES
    ),
    Truth(
        "byte: QLinearMatMul, zeros are none", B, of((THIRTY_TWO + np.int8(5)).T, qlinear_matmul(zero=0)), NO
    ),
    Truth(
        "float: two of four are not one of two",
        F,
        of(rows("1100 1100", 8), gemm(True)),
        NO,
        first=[(0, 0), (0, 1)],
    ),
    Truth("float: pairs are aligned", F, of(rows("0110 0110", 8), gemm(True)), YES),
    Truth("float: 12 inputs", F, of(rows("10" * 6, 8), gemm(True)), OTHER),
    Truth("float: 4 outputs", F, of(rows("10" * 4, 4), gemm(True)), OTHER),
    Truth("float: float16", F, of(half(rows("10" * 4, 8)), gemm(True)), OTHER),
    Truth(
        "float: float16 cast to float32", F, of(half(rows("10" * 4, 8)), cast(np.float32), gemm(True)), YES
    ),
    Truth("float: int8", F, of(byte(rows("10" * 4, 8)), dq(), gemm(True)), OTHER),
    Truth("float: computed", F, of(rows("10" * 4, 8), times(2), gemm(True)), OTHER, weight="Mul.y"),
]

# ---------------------------------------------------------------------- hipSPARSELt

BYTES = byte(rows("1010 0011 1100 1000", 16))
HIPSPARSELT = [
    *products(H, half(rows("1001 0110", 8)), 4),
    *products(B, BYTES, 4, dq(), only="MatMul"),
    Truth("half: bfloat16, 8 by 24", H, of(rows("1001 0110", 24, BFLOAT16), gemm(True)), YES),
    Truth("half: 12 inputs", H, of(half(rows("1001" * 3, 8)), gemm(True)), OTHER),
    Truth("half: 4 outputs", H, of(half(rows("1001 0110", 4)), gemm(True)), OTHER),
    Truth("half: float32", H, of(rows("1001 0110", 8), gemm(True)), OTHER),
    Truth("half: a stack", H, of(np.zeros((3, 8, 8), np.float16), matmul(left=True)), OTHER),
    Truth("half: a stack of one", H, of(half(rows("1001 0110", 8))[None], matmul(left=True)), YES),
    Truth("half: a convolution", H, of(np.zeros((8, 8, 1, 1), np.float16), conv()), OTHER),
    Truth("half: dense", H, of(np.ones((8, 8), np.float16), gemm()), NO, first=[(k, 0) for k in range(4)]),
    Truth("half: float32 cast to float16", H, of(rows("1001 0110", 8), cast(np.float16), gemm(True)), YES),
    Truth(  # the least float16 is 6e-8
        "half: what is too small for float16 is zero",
        H,
        of(put(rows("1001 0110", 8), (0, 1), (7, 7), value=1e-9), cast(np.float16), gemm(True)),
        YES,
    ),
    Truth(
        "half: a 3-cycle, then Reshape, one too many",
        H,
        of(put(cycled(4, 8), (3, 1, 0)), transpose(2, 0, 1), reshape(8, 8), gemm(True)),
        NO,
        first=[(2, 0, 0), (3, 0, 0), (3, 1, 0)],
    ),
    Truth(
        "half: two by Squeeze, Reshape and Transpose",
        H,
        of(
            put(half(rows("1001 0110", 8)), (4, 4)).reshape(1, 64),
            squeeze(),
            reshape(8, 8),
            transpose(),
            matmul(),
        ),
        NO,
        first=[(0, 36), (0, 37), (0, 38)],
    ),
    Truth("byte: 8 inputs", B, of(byte(rows("1010 0011", 16)), dq(), gemm(True)), OTHER),
    Truth("byte: 24 outputs", B, of(byte(rows("1010" * 4, 24)), dq(), gemm(True)), OTHER),
    Truth("byte: float8_e5m2", B, of(negative_zeros(BYTES.astype(E5M2)), dq(), gemm(True)), YES),
    Truth(
        "byte: float8_e4m3fn, along columns",
        B,
        of(BYTES.astype(E4M3), dq(), gemm()),
        NO,
        first=[(k, 0) for k in range(4)],
    ),
    Truth("byte: uint8", B, of(BYTES.astype(np.uint8), dq(), gemm(True)), OTHER),
    Truth("byte: quantised floats", B, of(rows("8282" * 4, 16) / np.float32(4), q(), dq(0), gemm(True)), YES),
    Truth(
        "byte: quantised floats, finely", B, of(rows("8282" * 4, 16), q(scale=2), dq(0, 2), gemm(True)), NO
    ),
    Truth("byte: MatMulInteger, zeros are -3", B, of((BYTES - np.int8(3)).T, matmul_integer(zero=-3)), YES),
    Truth(
        "byte: MatMulInteger with them stored as rows",
        B,
        of(BYTES, matmul_integer()),
        NO,
        first=[(k, 0) for k in range(4)],
    ),
    Truth(
        "byte: QLinearMatMul on the left", B, of(BYTES + np.int8(1), qlinear_matmul(zero=1, left=True)), YES
    ),
    Truth(
        "byte: QGemm is none of the operators",
        B,
        of(BYTES, dq(), gemm(op="com.microsoft::FusedGemm"), cast(np.float32), reshape(-1)),
        OTHER,
    ),
]
