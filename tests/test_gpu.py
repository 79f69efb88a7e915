"""What only a machine with a GPU of NVIDIA can tell: that kernels run there, and compute what they should."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("tvm") is None:
    pytest.skip("Apache TVM is not installed", allow_module_level=True)

import tvm
from onnx_prune import bench, compile
from onnx_prune.analysis.model import Model
from onnx_prune.backends.artifact import load_artifact
from onnx_prune.passes.execute import execute
from onnx_prune.passes.verify import worst_error
from test_cuda import SMALL, VERSIONS, Zeros, convolutions, products, stem, vit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not tvm.cuda().exist, reason="TVM finds no GPU here"),
]


def target() -> str:
    return "cuda:sm_" + tvm.cuda().compute_version.replace(".", "")


@pytest.mark.parametrize("precision", ["fp16", "tf32"])
@pytest.mark.parametrize("net", [products, convolutions, stem])
def test_kernels_compute_integers_exactly(net, precision: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    zeros = Zeros()
    model = net(zeros)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": zeros.rng.integers(-3, 4, shape).astype(np.float32)}
    compile(Model(model), target(), precision=precision).save(tmp_path / "m.so")
    got = load_artifact(tmp_path / "m.so").run(feeds)
    for name, value in execute(model, feeds).items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp16", "tf32"])
def test_a_model_agrees_with_onnxruntime(version: str, precision: str, tmp_path: Path) -> None:
    compile(vit(version), target(), precision=precision).save(tmp_path / "m.so")
    feeds = {"x": np.random.default_rng(0).random((1, 1, 8, 8), np.float32)}
    error, _ = worst_error(execute(vit(version).proto, feeds), load_artifact(tmp_path / "m.so").run(feeds))
    assert error < SMALL


def test_models_are_timed() -> None:
    timings = bench([("vit", vit("dense"))], target(), precision="fp16")
    assert all(timing.median_ms > 0 for timing in timings)
