"""Weights of compiled models: inside the library and beside it, once for all functions, damaged files."""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_prune import models
from onnx_prune.analysis.errors import BackendError, OutputError
from onnx_prune.backends.artifact import CpuArtifact, load_artifact
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.memory import aligned, huge
from onnx_prune.backends.weights import Place, gathered, mapped, read
from onnx_prune.passes.execute import random_inputs
from test_backends import Net

needs_tvm = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
DIGITS = Path(models.__file__).parent / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def compiled() -> CpuArtifact:
    return CpuBackend().compile(onnx.load(DIGITS))


@pytest.mark.parametrize("size", [0, 1, 100, 5 << 20])
def test_memory_is_aligned_and_zero(size: int) -> None:
    for memory, multiple in ((aligned(size), 64), (huge(size), 64)):
        assert len(memory) == size and not memory.any()
        assert memory.ctypes.data % multiple == 0 or not size
    if size > 1 << 21 and hasattr(mmap, "MADV_HUGEPAGE"):
        assert huge(size).ctypes.data % (1 << 21) == 0


def test_weights_are_laid_out_and_read_again(tmp_path: Path) -> None:
    arrays = [
        np.arange(5, dtype=np.float32),
        np.arange(40, dtype=np.int8).reshape(2, 20),
        np.float64(3) * np.ones(()),
    ]
    weights = gathered(arrays)
    assert [place.offset for place in weights.places] == [0, 64, 128]
    file = tmp_path / "raw"
    file.write_bytes(b"before" + weights.memory.tobytes())
    (tmp_path / "alone").write_bytes(weights.memory.tobytes())
    size = len(weights.memory)
    for found in (read(file, 6, weights.places, size), mapped(tmp_path / "alone", weights.places, size)):
        for array, wanted in zip(found.tensors, arrays, strict=True):
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)
    with pytest.raises(EOFError):
        read(file, 7, weights.places, size)
    with pytest.raises(EOFError):
        mapped(file, weights.places, size)
    assert gathered([]).tensors == []


@pytest.mark.parametrize("about", [{"offset": 1}, {"offset": -64}, {"shape": [-1]}, {"dtype": "spoon"}])
def test_a_place_that_cannot_be_is_refused(about: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Place.read({"dtype": "float32", "shape": [2], "offset": 64} | about)


@needs_tvm
def test_weights_inside_and_beside_give_the_same_bits(compiled: CpuArtifact, tmp_path: Path) -> None:
    compiled.save(tmp_path / "in.so")
    compiled.save(tmp_path / "be.so", beside=True)
    names = ["be.so", "be.so.json", "be.so.weights", "in.so", "in.so.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    inputs = random_inputs(onnx.load(DIGITS), dynamic=3)
    wanted = compiled.run(inputs)
    for name in ("in.so", "be.so"):
        got = load_artifact(tmp_path / name).run(inputs)
        for key, value in wanted.items():
            np.testing.assert_array_equal(got[key], value)

    about = json.loads((tmp_path / "in.so.json").read_text())["weights"]
    assert about["start"] % 4096 == 0
    assert about["start"] + about["bytes"] == (tmp_path / "in.so").stat().st_size
    beside = json.loads((tmp_path / "be.so.json").read_text())["weights"]
    assert beside["tensors"] == about["tensors"] and beside["beside"]
    assert (tmp_path / "be.so.weights").stat().st_size == about["bytes"]
    assert (tmp_path / "be.so").stat().st_size < about["start"] + 4096
    first, *others = compiled.program.weights.tensors
    where = beside["tensors"][0]["offset"]
    assert (tmp_path / "be.so.weights").read_bytes()[where : where + first.nbytes] == first.tobytes()
    assert others and all(tensor.nbytes >= 1024 for tensor in others)


@needs_tvm
def test_weights_are_mapped_and_never_changed(compiled: CpuArtifact, tmp_path: Path) -> None:
    compiled.save(tmp_path / "net.so", beside=True)
    before = (tmp_path / "net.so.weights").read_bytes()
    loaded = load_artifact(tmp_path / "net.so")
    base = loaded.program.weights.memory
    while isinstance(base, np.ndarray):
        base = base.base  # type: ignore[assignment]
    assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)
    loaded.program.weights.tensors[0][...] = 0
    assert (tmp_path / "net.so.weights").read_bytes() == before


@needs_tvm
def test_equal_weights_are_kept_once() -> None:
    net = Net("N", 64)
    weights = net.weight(64, 64)
    y = net.op("MatMul", net.op("Relu", net.op("MatMul", "x", weights)), weights)
    program = CpuBackend(batches=(1, 2)).compile(net.model(y)).program
    assert set(program.uses) == {"main", "main_2"}
    digests = {tensor.tobytes() for tensor in program.weights.tensors}
    assert len(digests) == len(program.weights.tensors) <= 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@needs_tvm
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("beside", [False, True])
def test_damaged_weights_are_named(
    compiled: CpuArtifact, tmp_path: Path, damage: Callable[[Path], None], beside: bool
) -> None:
    compiled.save(tmp_path / "net.so", beside)
    name = "net.so.weights" if beside else "net.so"
    damage(tmp_path / name)
    with pytest.raises(BackendError, match=rf"{name}'"):
        load_artifact(tmp_path / "net.so")


@needs_tvm
@pytest.mark.parametrize(
    "change",
    [
        lambda about: about["weights"].update(bytes=64),
        lambda about: about["weights"].update(start=-4096),
        lambda about: about["functions"].update(main=[10**6]),
        lambda about: about.update(functions=[]),
        lambda about: about["weights"]["tensors"][0].update(offset=3),
        lambda about: about.pop("weights"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(
    compiled: CpuArtifact, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    compiled.save(tmp_path / "net.so")
    beside = tmp_path / "net.so.json"
    about = json.loads(beside.read_text())
    change(about)
    beside.write_text(json.dumps(about))
    with pytest.raises(BackendError, match=r"net\.so\.json' does not describe"):
        load_artifact(tmp_path / "net.so")


@needs_tvm
def test_nothing_is_left_where_it_cannot_be_written(compiled: CpuArtifact, tmp_path: Path) -> None:
    (tmp_path / "net.so.weights").mkdir()
    with pytest.raises(OutputError, match=r"net\.so\.weights"):
        compiled.save(tmp_path / "net.so", beside=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net.so.weights"]
