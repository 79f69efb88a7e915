"""Compiled models take batches of any size, where their positions are independent, and say so where not."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_prune import models
from onnx_prune.analysis.errors import BackendError, UsageError
from onnx_prune.backends.artifact import Batch, load_artifact
from onnx_prune.backends.base import TensorSpec, check_inputs
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.passes.execute import random_inputs
from test_backends import TOLERANCE, Net
from variants import exported

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
DIGITS = Path(models.__file__).parent
SEQUENCE = {"sequence": 5}


def assert_agrees(artifact: Any, model: onnx.ModelProto, batch: int, **sizes: int) -> None:
    inputs = random_inputs(model, dynamic=batch, sizes=sizes)
    wanted, got = OnnxRuntimeBackend().compile(model).run(inputs), artifact.run(inputs)
    assert wanted.keys() == got.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype
        assert np.abs(got[name] - value).max() <= TOLERANCE * np.abs(value).max()


@pytest.mark.parametrize(
    ("sizes", "count", "pieces"),
    [
        ((1,), 3, [(1, 0, 1), (1, 1, 1), (1, 2, 1)]),
        ((1, 8), 11, [(8, 0, 8), (1, 8, 1), (1, 9, 1), (1, 10, 1)]),
        ((8, 2), 11, [(8, 0, 8), (2, 8, 2), (2, 10, 1)]),
        ((4,), 3, [(4, 0, 3)]),
    ],
)
def test_a_batch_is_run_in_the_largest_pieces(
    sizes: tuple[int, ...], count: int, pieces: list[tuple[int, int, int]]
) -> None:
    assert list(Batch("N", sizes, None).pieces(count)) == pieces


def test_a_batch_that_cannot_be_run_in_pieces_is_run_whole_or_refused() -> None:
    batch = Batch("N", (1, 8), "it is one")
    assert list(batch.pieces(8)) == [(8, 0, 8)]
    with pytest.raises(BackendError, match=r"'N' of 1 or 8, and 3 .* it is one"):
        list(batch.pieces(3))
    with pytest.raises(BackendError, match="no positions"):
        list(Batch("N", (1,), None).pieces(0))


def test_inputs_must_agree_on_a_symbol() -> None:
    specs = (TensorSpec("x", "float32", ("N", 2)), TensorSpec("y", "float32", ("N", "T")))
    check_inputs(specs, {"x": np.ones((3, 2), np.float32), "y": np.ones((3, 7), np.float32)})
    with pytest.raises(BackendError, match="'N' is 3 in the input 'x' and 4 in 'y'"):
        check_inputs(specs, {"x": np.ones((3, 2), np.float32), "y": np.ones((4, 7), np.float32)})


@needs_tvm
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit.ts-dynamic", {}),
        ("shufflenet.dynamo-dynamic", {"height": 32, "width": 32}),
        ("bert.ts-dynamic", SEQUENCE),
        ("lstm.ts-dynamic", SEQUENCE),
    ],
)
def test_an_export_takes_any_batch(name: str, sizes: dict[str, int]) -> None:
    model = exported(name)
    artifact = CpuBackend(dims=sizes, batches=(1, 4)).compile(model)
    assert artifact.batch == Batch("batch", (1, 4), None)
    assert {spec.shape[0] for spec in (*artifact.inputs, *artifact.outputs)} == {"batch"}
    for batch in (1, 3, 11):
        assert_agrees(artifact, model, batch, **sizes)


@needs_tvm
def test_sizes_share_a_library_and_its_weights(tmp_path: Path) -> None:
    model = onnx.load(DIGITS / "digits_resnet.onnx")
    artifact = CpuBackend(batches=(2, 8)).compile(model)
    first, second = artifact.program.uses["main"], artifact.program.uses["main_8"]
    assert set(first) & set(second)  # those that both sizes pack in the same way
    assert len(artifact.program.weights.places) == len(set(first) | set(second))
    artifact.save(tmp_path / "net.so")
    about = json.loads((tmp_path / "net.so.json").read_text())
    symbol = about["inputs"][0]["shape"][0]
    assert about["batch"] == {"symbol": symbol, "sizes": [2, 8], "obstacle": None}
    loaded = load_artifact(tmp_path / "net.so")
    assert loaded.batch == Batch(symbol, (2, 8), None)
    assert_agrees(loaded, model, 11)


@needs_tvm
def test_a_model_that_mixes_its_batch_takes_the_sizes_it_was_compiled_for() -> None:
    net = Net("N", 4)
    model = net.model(net.op("Sub", "x", net.op("ReduceMean", "x", axes=[0])))
    artifact = CpuBackend(batches=(1, 3)).compile(model)
    assert_agrees(artifact, model, 1)
    assert_agrees(artifact, model, 3)
    with pytest.raises(BackendError, match=r"of 1 or 3, and 11 cannot .* runs over the batch"):
        artifact.run({"x": np.ones((11, 4), np.float32)})


@needs_tvm
def test_a_result_that_is_its_input_is_no_view_of_it() -> None:
    net = Net("N", 4)
    artifact = CpuBackend().compile(net.model(net.op("Identity", "x")))
    first = artifact.run({"x": np.ones((3, 4), np.float32)})
    artifact.run({"x": np.zeros((3, 4), np.float32)})
    assert all((value == 1).all() for value in first.values())


@needs_tvm
def test_a_fixed_batch_stays_as_it_is() -> None:
    net = Net("N", 4)
    model = net.model(net.op("Relu", "x"))
    artifact = CpuBackend(dims={"N": 3}).compile(model)
    assert artifact.batch is None
    with pytest.raises(BackendError, match="takes float32\\[3, 4\\]"):
        artifact.run({"x": np.ones((2, 4), np.float32)})
    with pytest.raises(BackendError, match="no batch"):
        CpuBackend(dims={"N": 3}, batches=(1, 8)).compile(model)
    with pytest.raises(UsageError, match="at least 1"):
        CpuBackend(batches=(0,))


@needs_tvm
def test_inputs_without_a_common_first_size_have_no_batch() -> None:
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [s, 4]) for n, s in (("x", "N"), ("y", 1))]
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Add", ["x", "y"], ["z"])], "g", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert CpuBackend().compile(model).batch is None
    with pytest.raises(BackendError, match="no batch"):
        CpuBackend(batches=(8,)).compile(model)
