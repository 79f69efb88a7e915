"""What the profiles that are about numbers of channels say of small models."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto
from truths_models import (
    NO,
    OTHER,
    YES,
    Array,
    Make,
    Net,
    Truth,
    cast,
    conv,
    conv_integer,
    dq,
    fork,
    gemm,
    half,
    matmul,
    matmul_integer,
    of,
    ones,
    q,
    qgemm,
    qlinear_conv,
    qlinear_matmul,
    reshape,
    squeeze,
    transpose,
    unsqueeze,
)


def integers(*shape: int) -> Array:
    return np.ones(shape, np.int8)


def after(weight: Array) -> Make:
    """A convolution of one channel that is not the first."""

    def make() -> ModelProto:
        net = Net()
        first = net("Conv", net.input(np.float32, 1, 4, 8, 8), net.const(ones(1, 4, 1, 1), name="first"))
        return net.model(net("Conv", first, net.const(weight, name="w")))

    return make


# ---------------------------------------------------------------------- ARTPEC-8

S = "filters-by-6"
ARTPEC_8 = [
    Truth("6 outputs", S, of(ones(6, 4, 3, 3), conv()), YES),
    Truth("12 outputs of one input", S, of(ones(12, 1, 3, 3), conv()), YES),
    Truth("5 outputs", S, of(ones(5, 6, 3, 3), conv()), NO),
    Truth("7 outputs", S, of(ones(7, 6, 3, 3), conv()), NO),
    Truth("64 outputs", S, of(ones(64, 6, 1, 1), conv()), NO),
    Truth("3 outputs, all zero", S, of(np.zeros((3, 6, 1, 1), np.float32), conv()), NO),
    Truth("depthwise of 6", S, of(ones(6, 1, 3, 3), conv(6)), YES),
    Truth("depthwise of 8", S, of(ones(8, 1, 3, 3), conv(8)), NO),
    Truth("depthwise of 3, each for 2 outputs", S, of(ones(6, 1, 3, 3), conv(3)), YES),
    Truth("two groups of 3", S, of(ones(6, 2, 1, 1), conv(2)), YES),
    Truth("two groups of 5", S, of(ones(10, 6, 1, 1), conv(2)), NO),
    Truth("6 inputs", S, of(ones(4, 6, 1, 1), conv()), NO),
    Truth("outputs last, 6 of them", S, of(ones(4, 3, 3, 6), transpose(3, 0, 1, 2), conv()), YES),
    Truth("outputs last, 4 of them", S, of(ones(6, 3, 3, 4), transpose(3, 0, 1, 2), conv()), NO),
    Truth("all axes reversed", S, of(ones(3, 3, 4, 6), transpose(), conv()), YES),
    Truth("all axes reversed, 6 are inputs", S, of(ones(3, 3, 6, 4), transpose(), conv()), NO),
    Truth("Reshape to 6 outputs", S, of(ones(4, 54), reshape(6, 4, 3, 3), conv()), YES),
    Truth("Reshape to 4 outputs", S, of(ones(6, 36), reshape(4, 6, 3, 3), conv()), NO),
    Truth("Unsqueeze", S, of(ones(6, 4), unsqueeze(2, 3), conv()), YES),
    Truth("Conv1d", S, of(ones(18, 4, 3), conv()), YES),
    Truth("a Constant node", S, of(ones(8, 4, 3, 3), conv(), held="value"), NO),
    Truth("int8 behind DequantizeLinear", S, of(integers(6, 4, 3, 3), dq(), conv()), YES),
    Truth("quantised floats", S, of(ones(8, 4, 3, 3), q(), dq(0), conv()), NO),
    Truth("float16", S, of(half(ones(6, 4, 3, 3)), conv()), YES),
    Truth("ConvInteger", S, of(integers(6, 4, 3, 3), conv_integer()), YES),
    Truth("ConvInteger of 8", S, of(integers(8, 4, 3, 3), conv_integer(zero=[1] * 8)), NO),
    Truth("QLinearConv", S, of(integers(12, 4, 3, 3), qlinear_conv(zero=[1] * 12, scale=[1] * 12)), YES),
    Truth("QLinearConv of 9", S, of(integers(9, 4, 3, 3), qlinear_conv()), NO),
    Truth("ConvTranspose", S, of(ones(4, 6, 2, 2), conv(op="ConvTranspose")), OTHER),
    Truth("Gemm", S, of(ones(4, 6), gemm()), OTHER),
    Truth("MatMul", S, of(ones(4, 5), matmul()), OTHER),
    Truth(
        "FusedConv",
        S,
        of(ones(5, 4, 1, 1), conv(op="com.microsoft::FusedConv"), cast(np.float32), reshape(-1)),
        OTHER,
    ),
    Truth("read by two", S, of(ones(6, 4, 3, 3), fork((conv(),), (conv(),))), YES),
]

# ---------------------------------------------------------------------- ARTPEC-9

S = "channels-by-16"
ARTPEC_9 = [
    Truth("16 by 16", S, of(ones(16, 16, 3, 3), conv()), YES),
    Truth("48 outputs, 32 inputs", S, of(ones(48, 32, 1, 1), conv()), YES),
    Truth("15 inputs", S, of(ones(16, 15, 1, 1), conv()), NO),
    Truth("17 outputs", S, of(ones(17, 16, 1, 1), conv()), NO),
    Truth("24 inputs and outputs", S, of(ones(24, 24, 1, 1), conv()), NO),
    Truth("an image of three channels", S, of(ones(32, 3, 3, 3), conv()), NO),
    Truth("depthwise of 16", S, of(ones(16, 1, 3, 3), conv(16)), YES),
    Truth("depthwise of 24", S, of(ones(24, 1, 3, 3), conv(24)), NO),
    Truth("depthwise of 16, each for 2 outputs", S, of(ones(32, 1, 3, 3), conv(16)), YES),
    Truth("depthwise of 8, each for 2 outputs", S, of(ones(16, 1, 3, 3), conv(8)), NO),
    Truth("two groups of 8 inputs", S, of(ones(32, 8, 1, 1), conv(2)), YES),
    Truth("two groups of 8 outputs", S, of(ones(16, 16, 1, 1), conv(2)), YES),
    Truth("two groups of 4 inputs", S, of(ones(16, 4, 1, 1), conv(2)), NO),
    Truth("outputs last", S, of(ones(16, 3, 3, 32), transpose(3, 0, 1, 2), conv()), YES),
    Truth("outputs last, 24 of them", S, of(ones(16, 1, 1, 24), transpose(3, 0, 1, 2), conv()), NO),
    Truth(
        "16 by 16 are stored, but as pixels",
        S,
        of(ones(2, 2, 16, 16), reshape(2, 32, 16), transpose(0, 2, 1), conv()),
        NO,
    ),
    Truth("Reshape to 16 by 16", S, of(ones(2304), reshape(16, 16, 3, 3), conv()), YES),
    Truth("Reshape to 8 by 32", S, of(ones(16, 16), reshape(8, 32, 1, 1), conv()), NO),
    Truth("Squeeze", S, of(ones(1, 16, 16, 3), squeeze(), conv()), YES),
    Truth("int8 behind DequantizeLinear", S, of(integers(16, 16, 1, 1), dq(), conv()), YES),
    Truth("ConvInteger", S, of(integers(16, 32, 1, 1), conv_integer(zero=0)), YES),
    Truth("ConvInteger of 20 inputs", S, of(integers(16, 20, 1, 1), conv_integer()), NO),
    Truth("QLinearConv", S, of(integers(32, 16, 1, 1), qlinear_conv()), YES),
    Truth("QLinearConv of 20 outputs", S, of(integers(20, 16, 1, 1), qlinear_conv()), NO),
    Truth("ConvTranspose", S, of(ones(16, 16, 2, 2), conv(op="ConvTranspose")), OTHER),
    Truth("Gemm", S, of(ones(16, 16), gemm()), OTHER),
    Truth("MatMulInteger", S, of(integers(15, 16), matmul_integer()), OTHER),
]

# ---------------------------------------------------------------------- Hexagon

S = "channels-by-32"
QUALCOMM = [
    Truth("32 by 32", S, of(ones(32, 32, 1, 1), conv()), YES),
    Truth("31 inputs", S, of(ones(32, 31, 1, 1), conv()), NO),
    Truth("33 outputs", S, of(ones(33, 32, 1, 1), conv()), NO),
    Truth("48 by 48", S, of(ones(48, 48, 1, 1), conv()), NO),
    Truth("an image of three channels", S, of(ones(32, 3, 3, 3), conv()), NO),
    Truth("depthwise of 64", S, of(ones(64, 1, 3, 3), conv(64)), YES),
    Truth("depthwise of 16", S, of(ones(16, 1, 3, 3), conv(16)), NO),
    Truth("two groups of 16 inputs", S, of(ones(64, 16, 1, 1), conv(2)), YES),
    Truth("two groups of 8 inputs", S, of(ones(64, 8, 1, 1), conv(2)), NO),
    Truth("two groups of 16 outputs", S, of(ones(32, 32, 1, 1), conv(2)), YES),
    Truth("ConvTranspose", S, of(ones(32, 64, 2, 2), conv(op="ConvTranspose")), YES),
    Truth("ConvTranspose of 48 outputs", S, of(ones(32, 48, 2, 2), conv(op="ConvTranspose")), NO),
    Truth("ConvTranspose of 48 inputs", S, of(ones(48, 32, 2, 2), conv(op="ConvTranspose")), NO),
    Truth(
        "ConvTranspose, two groups of 16 outputs", S, of(ones(32, 16, 2, 2), conv(2, op="ConvTranspose")), YES
    ),
    Truth(
        "ConvTranspose, two groups of 8 outputs", S, of(ones(32, 8, 2, 2), conv(2, op="ConvTranspose")), NO
    ),
    Truth(
        "ConvTranspose, two groups of 8 inputs", S, of(ones(16, 16, 2, 2), conv(2, op="ConvTranspose")), NO
    ),
    Truth("ConvTranspose, depthwise", S, of(ones(32, 1, 2, 2), conv(32, op="ConvTranspose")), YES),
    Truth(
        "ConvTranspose of one axis behind a 3-cycle",
        S,
        of(ones(2, 32, 64), transpose(1, 2, 0), conv(op="ConvTranspose")),
        YES,
    ),
    Truth("outputs last", S, of(ones(32, 3, 3, 64), transpose(3, 0, 1, 2), conv()), YES),
    Truth("outputs last, 40 of them", S, of(ones(32, 1, 1, 40), transpose(3, 0, 1, 2), conv()), NO),
    Truth("Reshape to 64 by 16", S, of(ones(32, 32), reshape(64, 16, 1, 1), conv()), NO),
    Truth("Reshape to 64 by 32", S, of(ones(32, 64), reshape(64, 32, 1, 1), conv()), YES),
    Truth("int8 behind DequantizeLinear", S, of(integers(32, 32, 1, 1), dq(3), conv()), YES),
    Truth("ConvInteger of 24 inputs", S, of(integers(32, 24, 1, 1), conv_integer()), NO),
    Truth(
        "QLinearConv, zeros by output",
        S,
        of(integers(32, 32, 1, 1), qlinear_conv(zero=[2] * 32, scale=[1] * 32)),
        YES,
    ),
    Truth("Conv3d of 8 outputs", S, of(ones(8, 32, 1, 1, 1), conv()), NO),
    Truth("Gemm", S, of(ones(31, 31), gemm()), OTHER),
    Truth("MatMul", S, of(ones(32, 32), matmul()), OTHER),
]

# ---------------------------------------------------------------------- TI

M, N, F = "outputs-by-4", "inputs-by-4", "features"
TI = [
    Truth("4 outputs", M, of(ones(4, 3, 3, 3), conv()), YES),
    Truth("6 outputs", M, of(ones(6, 4, 3, 3), conv()), NO),
    Truth("5 outputs of a first convolution of one channel", M, of(ones(5, 1, 3, 3), conv()), NO),
    Truth("8 outputs of a first convolution of one channel", M, of(ones(8, 1, 3, 3), conv()), YES),
    Truth("depthwise of 6", M, of(ones(6, 1, 3, 3), conv(6)), OTHER),
    Truth("two groups of 2 outputs", M, of(ones(4, 4, 1, 1), conv(2)), YES),
    Truth("two groups of 3 outputs", M, of(ones(6, 4, 1, 1), conv(2)), NO),
    Truth("QLinearConv of 6 outputs", M, of(integers(6, 4, 1, 1), qlinear_conv()), NO),
    Truth("outputs last", M, of(ones(3, 1, 1, 4), transpose(3, 0, 1, 2), conv()), YES),
    Truth("4 inputs", N, of(ones(6, 4, 1, 1), conv()), YES),
    Truth("3 inputs", N, of(ones(4, 3, 1, 1), conv()), NO),
    Truth("2 inputs", N, of(ones(4, 2, 1, 1), conv()), NO),
    Truth("one input of the first convolution", N, of(ones(4, 1, 3, 3), conv()), OTHER),
    # Only a first convolution of one channel has an operator of its own.
    Truth("one input of a later convolution", N, after(ones(4, 1, 3, 3)), NO),
    Truth("two groups of 2 inputs", N, of(ones(4, 2, 1, 1), conv(2)), YES),
    Truth("two groups of 3 inputs", N, of(ones(4, 3, 1, 1), conv(2)), NO),
    Truth("depthwise of 5", N, of(ones(5, 1, 3, 3), conv(5)), OTHER),
    Truth("ConvInteger of 8 inputs", N, of(integers(3, 8, 1, 1), conv_integer()), YES),
    Truth("int8 of 6 inputs", N, of(integers(4, 6, 1, 1), dq(), conv()), NO),
    Truth("outputs last, 5 inputs", N, of(ones(5, 1, 1, 4), transpose(3, 0, 1, 2), conv()), NO),
    Truth("inputs of ConvTranspose", N, of(ones(5, 4, 2, 2), conv(op="ConvTranspose")), OTHER),
    Truth("outputs of Gemm", M, of(ones(5, 5), gemm()), OTHER),
    Truth("features: 16, transB=0", F, of(integers(16, 4), dq(), gemm()), YES),
    Truth("features: 4, the same with transB=1", F, of(integers(16, 4), dq(), gemm(True)), NO),
    Truth("features: 15", F, of(integers(15, 16), dq(), gemm()), NO),
    Truth("features: 16, weight on the left", F, of(integers(4, 16), dq(), matmul(left=True)), YES),
    Truth("features: 4, the same on the right", F, of(integers(4, 16), dq(), matmul()), NO),
    Truth("features: MatMulInteger", F, of(integers(16, 1), matmul_integer()), YES),
    Truth("features: MatMulInteger of 15", F, of(integers(15, 20), matmul_integer(zero=[1] * 20)), NO),
    Truth(
        "features: QLinearMatMul, uint8", F, of(ones(17, 4, dtype=np.uint8), qlinear_matmul(zero=128)), YES
    ),
    Truth("features: QGemm", F, of(integers(4, 16), qgemm(True)), YES),
    Truth("features: QGemm of 4, transB=0", F, of(integers(4, 16), qgemm()), NO),
    Truth("features: a vector", F, of(integers(16), dq(), matmul()), YES),
    Truth("features: Transpose of 16 by 4", F, of(integers(16, 4), dq(), transpose(), gemm()), NO),
    Truth("features: Reshape to 16", F, of(integers(8, 8), dq(), reshape(16, 4), gemm()), YES),
    Truth("features: float32", F, of(ones(4, 4), gemm()), OTHER),
    Truth("features: quantised floats", F, of(ones(16, 4), q(), dq(0), gemm()), YES),
    Truth("features: a convolution", F, of(integers(4, 4, 1, 1), dq(), conv()), OTHER),
]
