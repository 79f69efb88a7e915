"""Backends: the ONNX Runtime runner, TVM kernels against it, libraries in a fresh process, timing, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import models
from onnx_prune.analysis.errors import BackendError, UsageError
from onnx_prune.backends import artifact as artifacts
from onnx_prune.backends.artifact import load_artifact
from onnx_prune.backends.base import TensorSpec
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import Timing, compare, interleaved, ratio
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.passes.execute import random_inputs

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
DIGITS = Path(models.__file__).parent / "digits_resnet.onnx"
TOLERANCE = 1e-4  # of max|y|


class Net:
    """A graph under construction; weights are random."""

    def __init__(self, *shape: int | str, dtype: int = TensorProto.FLOAT) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.input = helper.make_tensor_value_info("x", dtype, shape)

    def weight(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        value = (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        return self.constant(value)

    def constant(self, value: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def conv(self, x: str, c: int, out: int, k: int = 3, groups: int = 1, **attributes: object) -> str:
        weights = self.weight(out, c // groups, k, k)
        return self.op("Conv", x, weights, self.weight(out), group=groups, **attributes)

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [helper.make_empty_tensor_value_info(name) for name in outputs]
        for info in infos:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self.nodes, "net", [self.input], infos, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def worst(model: onnx.ModelProto, threads: int = 1, dims: dict[str, int] | None = None) -> float:
    """Largest difference of TVM from ONNX Runtime over max|y|, over all outputs."""
    size = next(iter(dims.values())) if dims else 1
    inputs = random_inputs(model, dynamic=size)
    wanted = OnnxRuntimeBackend().compile(model).run(inputs)
    got = CpuBackend(threads, dims or {}).compile(model).run(inputs)
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert wanted[name].shape == got[name].shape
        assert wanted[name].dtype == got[name].dtype
    return max(float(np.abs(wanted[n] - got[n]).max() / max(np.abs(wanted[n]).max(), 1e-9)) for n in wanted)


# ---------------------------------------------------------------------------------------- ONNX Runtime


def test_onnxruntime_runs_and_describes_its_tensors() -> None:
    net = Net("batch", 3)
    artifact = OnnxRuntimeBackend().compile(net.model(net.op("MatMul", "x", net.weight(3, 5))))
    assert artifact.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    out = artifact.run({"x": np.ones((2, 3), np.float32)})
    assert [value.shape for value in out.values()] == [(2, 5)]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'x' is missing"),
        ({"x": np.ones((2, 3), np.float32), "z": np.ones(1)}, "no input 'z'"),
        ({"x": np.ones((2, 4), np.float32)}, "float32\\[2, 4\\]"),
        ({"x": np.ones((2, 3))}, "float64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, np.ndarray], message: str) -> None:
    net = Net("batch", 3)
    artifact = OnnxRuntimeBackend().compile(net.model(net.op("Relu", "x")))
    with pytest.raises(BackendError, match=message):
        artifact.run(inputs)


def test_onnxruntime_refuses_a_broken_model() -> None:
    net = Net(1, 3)
    with pytest.raises(BackendError, match="ONNX Runtime refuses"):
        OnnxRuntimeBackend().compile(net.model(net.op("NoSuchOperator", "x")))


@pytest.mark.parametrize("backend", [OnnxRuntimeBackend, CpuBackend])
def test_a_backend_needs_a_thread(backend: type) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        backend(0)


# ---------------------------------------------------------------------------------------- TVM kernels


@needs_tvm
@pytest.mark.parametrize(
    ("c", "out", "k", "size", "attributes"),
    [
        (3, 23, 3, 11, {"pads": [1, 1, 1, 1]}),
        (23, 37, 3, 9, {"pads": [1, 1, 1, 1]}),
        (37, 23, 1, 7, {}),
        (16, 24, 3, 10, {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        (12, 20, 3, 13, {"pads": [2, 1, 0, 1], "dilations": [2, 1], "strides": [1, 2]}),
        (9, 8, 3, 5, {"pads": [6, 6, 6, 6], "dilations": [6, 6]}),
        (9, 8, 3, 5, {"pads": [8, 3, 4, 7], "dilations": [4, 5], "strides": [2, 1]}),
        (8, 9, 5, 9, {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        (520, 40, 3, 6, {"pads": [1, 1, 1, 1]}),
    ],
)
def test_convolutions_agree(c: int, out: int, k: int, size: int, attributes: dict[str, object]) -> None:
    net = Net(1, c, size, size + 2)
    y = net.op("Relu", net.conv("x", c, out, k, **attributes))
    assert worst(net.model(net.conv(y, out, 5, 1))) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize(
    ("c", "out", "groups", "stride"),
    [(23, 23, 23, 1), (16, 16, 16, 2), (13, 26, 13, 1), (32, 16, 2, 1), (24, 24, 6, 2), (21, 35, 7, 1)],
)
def test_grouped_convolutions_agree(c: int, out: int, groups: int, stride: int) -> None:
    net = Net(1, 5, 9, 8)
    y = net.op("Relu", net.conv("x", 5, c, 1))
    y = net.conv(y, c, out, 3, groups, pads=[1, 1, 1, 1], strides=[stride, stride])
    assert worst(net.model(net.conv(y, out, 6, 1))) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize(
    ("c", "out", "k", "stride", "groups", "attributes"),
    [
        (16, 13, 2, 2, 1, {}),
        (23, 13, 3, 2, 1, {"pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (8, 9, 5, 3, 1, {"pads": [2, 1, 3, 0]}),
        (5, 7, 3, 1, 1, {"pads": [1, 0, 0, 1]}),
        (12, 20, 2, 3, 1, {}),
        (8, 8, 2, 2, 1, {"pads": [3, 2, 1, 2]}),
        (8, 16, 16, 8, 1, {"pads": [4, 4, 4, 4]}),
        (6, 6, 4, 2, 6, {"pads": [1, 1, 1, 1]}),
        (24, 12, 3, 2, 3, {"pads": [1, 1, 1, 1]}),
        (9, 11, 3, 2, 1, {"dilations": [2, 3], "pads": [1, 1, 2, 1]}),
        (9, 11, 3, 2, 1, {"auto_pad": "SAME_UPPER"}),
    ],
)
def test_transposed_convolutions_agree(
    c: int, out: int, k: int, stride: int, groups: int, attributes: dict[str, object]
) -> None:
    net = Net(1, c, 5, 7)
    weights = net.weight(c, out // groups, k, k)
    strides = [stride, stride]
    y = net.op("ConvTranspose", "x", weights, net.weight(out), group=groups, strides=strides, **attributes)
    assert worst(net.model(net.conv(net.op("Relu", y), out, 5, 1))) < TOLERANCE


@needs_tvm
def test_a_residual_net_with_squeeze_and_excitation_agrees_for_a_batch() -> None:
    net = Net("N", 3, 12, 12)
    a = net.op("Relu", net.conv("x", 3, 23, pads=[1, 1, 1, 1]))
    gate = net.op("GlobalAveragePool", a)
    gate = net.op("Sigmoid", net.conv(net.op("Relu", net.conv(gate, 23, 7, 1)), 7, 23, 1))
    b = net.op("Add", a, net.op("Mul", net.op("HardSwish", net.conv(a, 23, 23, pads=[1] * 4)), gate))
    c = net.op("Concat", b, net.op("Tanh", b), axis=1)
    pooled = net.op("MaxPool", c, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    mean = net.op("AveragePool", pooled, kernel_shape=[2, 2], strides=[2, 2])
    flat = net.op("Flatten", net.op("GlobalAveragePool", mean))
    y = net.op("Gemm", flat, net.weight(46, 10), net.weight(10))
    assert worst(net.model(y, mean), dims={"N": 3}) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize("threads", [1, 2])
def test_a_dense_block_agrees(threads: int) -> None:
    """Each layer reads everything before it, normalised by itself; joined parts are joined again."""
    net = Net(1, 8, 32, 32)
    parts, y, channels = [], "x", 8
    for width in (16, 8, 24, 13):
        parts.append(net.conv(y, channels, width, pads=[1, 1, 1, 1]))
        channels = width if len(parts) == 1 else channels + width
        y = net.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
        scale, shift, mean = (net.weight(channels) for _ in range(3))
        spread = net.constant(np.linspace(0.5, 2, channels).astype(np.float32))
        y = net.op("Relu", net.op("BatchNormalization", y, scale, shift, mean, spread))
    assert worst(net.model(net.op("Concat", y, net.op("Neg", y), axis=2)), threads) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize("attributes", [{"ceil_mode": 1}, {"ceil_mode": 0, "pads": [1, 1, 1, 1]}])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_pools_agree(kind: str, attributes: dict[str, object]) -> None:
    net = Net(1, 3, 10, 12)
    y = net.op(kind, net.conv("x", 3, 11), kernel_shape=[3, 3], strides=[2, 2], **attributes)
    assert worst(net.model(y)) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize(("rows", "k", "n"), [(1, 37, 23), (5, 23, 37), (13, 64, 701), (1, 8, 8), (40, 3, 1)])
def test_products_agree(rows: int, k: int, n: int) -> None:
    net = Net(rows, k)
    y = net.op("Add", net.op("MatMul", "x", net.weight(k, n)), net.weight(n))
    assert worst(net.model(net.op("Relu", y))) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("tokens", "heads", "width"), [(11, 3, 7), (19, 2, 16), (1, 2, 5)])
def test_attention_agrees(tokens: int, heads: int, width: int, threads: int) -> None:
    hidden = heads * width
    net = Net(2, tokens, hidden)
    x = net.op("LayerNormalization", "x", net.weight(hidden), net.weight(hidden), axis=-1)
    split = net.constant(np.array([2, tokens, heads, width]))

    def heads_of(transposed: list[int]) -> str:
        y = net.op("Add", net.op("MatMul", x, net.weight(hidden, hidden)), net.weight(hidden))
        return net.op("Transpose", net.op("Reshape", y, split), perm=transposed)

    q, k, v = heads_of([0, 2, 1, 3]), heads_of([0, 2, 3, 1]), heads_of([0, 2, 1, 3])
    scores = net.op("Div", net.op("MatMul", q, k), net.constant(np.float32(np.sqrt(width))))
    mask = np.where(np.arange(tokens) < tokens - 1, 0, -np.inf if tokens > 1 else 0).astype(np.float32)
    weights = net.op("Softmax", net.op("Add", scores, net.constant(mask)), axis=-1)
    mixed = net.op("Transpose", net.op("MatMul", weights, v), perm=[0, 2, 1, 3])
    flat = net.op("Reshape", mixed, net.constant(np.array([2, tokens, hidden])))
    out = net.op("Add", "x", net.op("MatMul", flat, net.weight(hidden, hidden)))
    ffn = net.op("Erf", net.op("MatMul", out, net.weight(hidden, 4 * hidden)))
    assert worst(net.model(net.op("MatMul", ffn, net.weight(4 * hidden, hidden))), threads) < TOLERANCE


@needs_tvm
@pytest.mark.parametrize("batch", [1, 3])
def test_every_kernel_is_scheduled_whatever_is_left_over(
    batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Counts of channels and positions that no tile divides: neither alone nor together."""
    image = Net(batch, 16, 9, 11)
    x = image.op("Relu", image.conv(image.op("Relu", image.conv("x", 16, 56, 1)), 56, 50, 1))
    x = image.op("Add", x, image.conv("x", 16, 50, 1))
    rows = Net(batch, 197, 24)
    y = rows.op("Relu", rows.op("MatMul", "x", rows.weight(24, 51)))
    y = rows.op("Add", rows.op("MatMul", y, rows.weight(51, 70)), rows.weight(70))
    with caplog.at_level("DEBUG", "onnx_prune"):
        assert worst(image.model(x)) <= TOLERANCE
        assert worst(rows.model(y)) <= TOLERANCE
    assert not [record.message for record in caplog.records if "cannot schedule" in record.message]


@needs_tvm
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_and_reductions_agree_on_any_axis(axis: int) -> None:
    net = Net(5, 9, 6)
    y = net.op("Softmax", "x", axis=axis)
    outs = [net.op("ReduceMean", y, axes=[axis]), net.op("ReduceMax", "x", axes=[axis], keepdims=0)]
    assert worst(net.model(y, *outs)) < TOLERANCE


@needs_tvm
def test_functions_keep_their_values_at_the_ends_of_their_range() -> None:
    net = Net(1, 64)
    kinds = ["Exp", "Erf", "Tanh", "Sigmoid"]
    model = net.model(*(net.op(kind, "x") for kind in kinds))
    x = np.linspace(-100, 80, 64, dtype=np.float32)[None]
    wanted = OnnxRuntimeBackend().compile(model).run({"x": x})
    got = CpuBackend().compile(model).run({"x": x})
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-5, atol=1e-6)


@needs_tvm
def test_values_outside_a_polynomials_range_and_indices_outside_a_table_do_no_harm() -> None:
    net = Net(3, dtype=TensorProto.INT64)
    model = net.model(net.op("Gather", net.weight(10, 4), "x"))
    out = CpuBackend().compile(model).run({"x": np.array([-1, 3, 1 << 40])})
    assert np.isfinite(next(iter(out.values()))[:2]).all()


# ---------------------------------------------------------------------------------------- libraries


@needs_tvm
def test_a_library_runs_in_a_fresh_process(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    inputs = random_inputs(model, dynamic=1)
    artifact = CpuBackend().compile(model)
    library = tmp_path / "net.so"
    artifact.save(library)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.so", "net.so.json"]
    about = json.loads((tmp_path / "net.so.json").read_text())
    assert about["inputs"][0]["shape"] == ["N", 1, 8, 8]

    np.savez(tmp_path / "in.npz", **inputs)
    command = [sys.executable, "-m", "onnx_prune.backends.tvm.runner"]
    package = Path(artifacts.__file__).parent.parent
    done = subprocess.run(
        [*command, "net.so", "in.npz", "out.npz"],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{package / '.dev'}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wanted = OnnxRuntimeBackend().compile(model).run(inputs)
    with np.load(tmp_path / "out.npz") as got:
        for name, value in wanted.items():
            assert np.abs(got[name] - value).max() < TOLERANCE * np.abs(value).max()

    loaded = load_artifact(library)
    assert (loaded.inputs, loaded.outputs) == (artifact.inputs, artifact.outputs)
    with pytest.raises(BackendError, match="copy that file"):
        loaded.save(tmp_path / "again.so")
    about["sha256"] = "0" * 64
    (tmp_path / "net.so.json").write_text(json.dumps(about))
    with pytest.raises(BackendError, match="is not the library"):
        load_artifact(library)
    (tmp_path / "net.so.json").write_text("[]")
    with pytest.raises(BackendError, match="does not describe"):
        load_artifact(library)
    (tmp_path / "net.so.json").unlink()
    with pytest.raises(BackendError, match="cannot read"):
        load_artifact(library)


# ---------------------------------------------------------------------------------------- errors


@needs_tvm
def test_operators_that_cannot_be_imported_are_named() -> None:
    net = Net(4, 3)
    y = net.op("Det", net.op("MatMul", "x", net.weight(3, 4)))
    with pytest.raises(BackendError, match="Det"):
        CpuBackend().compile(net.model(y))


@needs_tvm
def test_a_size_the_model_does_not_have_is_refused() -> None:
    net = Net("N", 3)
    model = net.model(net.op("Relu", "x"))
    with pytest.raises(BackendError, match="'batch'"):
        CpuBackend(dims={"batch": 2}).compile(model)
    with pytest.raises(UsageError, match="at least 1"):
        CpuBackend(dims={"N": 0})


def test_without_tvm_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "find_spec", lambda name: None)
    net = Net(1, 3)
    with pytest.raises(BackendError, match=r"pip install 'onnx-prune\[tvm\]'"):
        CpuBackend().compile(net.model(net.op("Relu", "x")))


# ---------------------------------------------------------------------------------------- timing


def test_timing_takes_turns() -> None:
    calls: list[str] = []
    times = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3, 0.0)
    assert {name: len(rounds) for name, rounds in times.items()} == {"a": 3, "b": 3}
    assert calls == ["a", "a", "b", "b", *"ababab"]
    assert ratio([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == 3.0
    with pytest.raises(UsageError):
        interleaved({}, 0)


def test_comparison_reports_every_model_and_runtime() -> None:
    net = Net("N", 3)
    model = net.model(net.op("Relu", "x"))
    backend = OnnxRuntimeBackend()
    timings = compare([("net", model)], [backend], "onnxruntime", rounds=2, seconds=0.001)
    assert timings == [Timing("net", "onnxruntime", 1, timings[0].median_ms, 1.0)]
    with pytest.raises(UsageError, match="no runtime 'tensorrt'"):
        compare([("net", model)], [backend], "tensorrt")
    with pytest.raises(UsageError, match="threads"):
        compare([("net", model)], [backend, OnnxRuntimeBackend(2)], "onnxruntime")


@needs_tvm
def test_a_bound_run_computes_on_what_was_given() -> None:
    net = Net(1, 8, 6, 6)
    model = net.model(net.op("Relu", net.conv("x", 8, 16)))
    feed = {"x": np.random.default_rng(0).standard_normal((1, 8, 6, 6)).astype(np.float32)}
    artifact, reference = CpuBackend().compile(model), OnnxRuntimeBackend().compile(model)
    (wanted,) = reference.run(feed).values()
    reference.bound(feed)()
    found: Any = artifact.bound(feed)()
    assert np.abs(found.numpy() - wanted).max() <= TOLERANCE * np.abs(wanted).max()
