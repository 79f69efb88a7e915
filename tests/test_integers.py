"""Quantised layers as sums of integers: equal to the floats of ONNX Runtime, by the right instructions."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.passes.execute import execute
from test_arm import needs_qemu
from test_backends import Net
from test_decompose import model_of

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")

ARM, X86 = "arm:cortex-a76", "sapphirerapids"


class Quantised(Net):
    """Numbers are small and scales powers of two, so that floats are exact in any order."""

    def data(self, x: str, zero: int = 9, kind: Any = np.uint8, scale: float = 0.5) -> str:
        """Quantised and made floats again."""
        point = self.constant(np.float32(scale)), self.constant(kind(zero))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *point), *point)

    def bytes(self, *shape: int, axis: int = 0, kind: Any = np.int8, zero: int = 0) -> str:
        """Weights with a scale for each output."""
        values = self.rng.integers(-7, 8, shape) + zero
        scales = 2.0 ** -self.rng.integers(0, 3, shape[axis])
        parts = [values.astype(kind), scales.astype(np.float32), np.full(shape[axis], zero, kind)]
        return self.op("DequantizeLinear", *(self.constant(part) for part in parts), axis=axis)


def exact(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes in floats, node by node."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed(model)), strict=True))


def feed(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng, (info,) = np.random.default_rng(1), model.graph.input
    shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
    return {"x": (rng.integers(-12, 12, shape) / 2).astype(np.float32)}


def same(model: onnx.ModelProto) -> None:
    """Here, whether this processor multiplies bytes or not."""
    got = CpuBackend(1).compile(model).run(feed(model))
    for name, wanted in exact(model).items():
        np.testing.assert_array_equal(got[name], wanted)


def code(model: onnx.ModelProto, cpu: str = X86) -> str:
    """Assembly of a model for a processor of the x86 kind."""
    from onnx_prune.backends.tvm import build, frontend

    module = frontend.import_model(frontend.static(model, {}))
    program = build.build({"main": module}, {"kind": "llvm", "mcpu": cpu, "num-cores": 1})
    return str(program.executable.mod.imports[0].inspect_source("s"))


CONVOLUTIONS: dict[str, Any] = {
    "3x3": {"c": 16, "out": 24, "k": 3, "pads": [1] * 4},
    "pointwise": {"c": 24, "out": 16, "k": 1},
    "strides": {"c": 8, "out": 8, "k": 3, "pads": [1] * 4, "strides": [2, 2]},
    "dilations": {"c": 8, "out": 8, "k": 3, "pads": [2] * 4, "dilations": [2, 2]},
    "odd": {"c": 13, "out": 21, "k": 3, "pads": [0, 1, 2, 0]},
    "many": {"c": 70, "out": 100, "k": 1, "strides": [2, 1]},
}


@pytest.mark.parametrize(("name", "kind"), [*((name, np.uint8) for name in CONVOLUTIONS), ("odd", np.int8)])
def test_convolutions_are_exact(name: str, kind: Any) -> None:
    """Also of images whose margin is not zero."""
    given = dict(CONVOLUTIONS[name])
    c, out, k = (given.pop(key) for key in ("c", "out", "k"))
    net = Quantised(1, c, 9, 11)
    bias = net.constant(net.rng.integers(-9, 9, out).astype(np.float32))
    y = net.op("Conv", net.data("x", kind=kind), net.bytes(out, c, k, k), bias, **given)
    model = net.model(net.data(net.op("Relu", y), scale=4.0))
    same(model)
    assert "vpdpbusd" in code(model)


def test_layers_in_a_row_stay_packed_bytes() -> None:
    """A block with a residual and a pool: no kernel between the convolutions."""
    net = Quantised(1, 16, 8, 8)
    x = net.data("x")
    h = net.data(net.op("Conv", x, net.bytes(16, 16, 3, 3), pads=[1] * 4), scale=8.0)
    h = net.data(net.op("Conv", h, net.bytes(16, 16, 3, 3), pads=[1] * 4), scale=64.0)
    h = net.data(net.op("Add", h, x), scale=64.0)
    model = net.model(net.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]))
    same(model)


def test_groups_and_single_channels_stay_floats() -> None:
    net = Quantised(1, 1, 8, 8)
    h = net.data(net.op("Conv", net.data("x"), net.bytes(8, 1, 3, 3)), scale=2.0)
    model = net.model(net.op("Conv", h, net.bytes(8, 1, 3, 3), group=8))
    same(model)
    assert "vpdpbusd" not in code(model)


@pytest.mark.parametrize(("rows", "turned"), [(1, False), (5, True), (40, False)])
def test_products_are_exact(rows: int, turned: bool) -> None:
    """A matrix as it is, and behind a transpose."""
    net = Quantised(2, rows, 36)
    weights = net.bytes(36, 20, axis=1)
    if turned:
        weights = net.op("Transpose", net.bytes(20, 36), perm=[1, 0])
    model = net.model(net.op("MatMul", net.data("x"), weights))
    same(model)
    assert "vpdpbusd" in code(model)


def test_weights_that_are_not_about_zero() -> None:
    """Unsigned ones about 128 become signed; what does not fit stays float."""
    net = Quantised(1, 16, 5, 5)
    model = net.model(net.op("Conv", net.data("x"), net.bytes(8, 16, 3, 3, kind=np.uint8, zero=128)))
    same(model)
    assert "vpdpbusd" in code(model)
    net = Quantised(1, 16, 5, 5)
    far = net.bytes(8, 16, 3, 3, kind=np.int8, zero=-120)
    net.weights[0] = onnx.numpy_helper.from_array(np.full((8, 16, 3, 3), 127, np.int8), net.weights[0].name)
    model = net.model(net.op("Conv", net.data("x"), far))
    same(model)
    assert "vpdpbusd" not in code(model)


def test_integer_operators_become_sums_of_integers() -> None:
    """Zero points that are computed are taken off again."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 8)).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "b", "z"], ["i"]),
    ]
    constants = {"b": rng.integers(-7, 8, (8, 20)).astype(np.int8)}
    model = model_of(nodes, {"x": a}, constants, {"i": TensorProto.INT32})
    got = CpuBackend(1).compile(model).run({"x": a})["i"]
    # A step of one of the bytes, where quotients are halves.
    assert np.abs(got - execute(model, {"x": a})["i"]).max() <= 8 * 7
    assert "vpdpbusd" in code(model)


def test_processors_without_such_instructions_multiply_floats() -> None:
    net = Quantised(1, 16, 8, 8)
    model = net.model(net.op("Conv", net.data("x"), net.bytes(16, 16, 3, 3)))
    assert "vpdpbusd" in code(model, "alderlake")
    assert "vpdpbusd" not in code(model, "haswell")


@needs_qemu
def test_arm_multiplies_bytes() -> None:
    """The unsigned bytes that quantisers write become signed ones. With strides, floats are not rounded as by
    Winograd's algorithms.
    """
    from onnx_prune import Model, emulate

    net = Quantised(1, 16, 8, 8)
    h = net.data(
        net.op("Conv", net.data("x"), net.bytes(24, 16, 3, 3), pads=[1] * 4, strides=[2, 2]), scale=8.0
    )
    h = net.op("Reshape", h, net.constant(np.array([1, 24, 16])))
    model = net.model(net.op("MatMul", net.data(h, scale=8.0), net.bytes(16, 20, axis=1)))
    fast, slow = (emulate([("m", Model(model))], f"arm:{cpu}")[0] for cpu in ("cortex-a76", "cortex-a72"))
    assert fast.error == slow.error == 0
    assert fast.instructions < 0.6 * slow.instructions


def test_kernels_of_bytes_are_tuned() -> None:
    from onnx_prune.backends.tvm import build, frontend
    from onnx_prune.backends.tvm.bytewise import ByteConvolution, ByteProduct

    net = Quantised(1, 16, 8, 8)
    h = net.op("Conv", net.data("x"), net.bytes(24, 16, 3, 3), pads=[1] * 4)
    h = net.data(net.op("Reshape", h, net.constant(np.array([1, 24, 64]))), scale=8.0)
    model = net.model(net.op("MatMul", h, net.bytes(64, 20, axis=1)))
    target = {"kind": "llvm", "mcpu": X86, "num-cores": 1}
    choices = build.workloads_of(frontend.import_model(frontend.static(model, {})), target)
    found = [w for w in choices.seen if isinstance(w, ByteConvolution | ByteProduct)]
    assert len(found) == 2
    for workload in found:
        for choice in choices.options(workload):
            _, operands = build.kernel_of(workload, choice, target)
            assert [operand.dtype for operand in operands] == ["uint8", "int8", "int32"]  # type: ignore[union-attr]
