"""examples/cpp builds against the runtime alone, and gives the same bits as the artifact in Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_prune import models
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.passes.execute import random_inputs

EXAMPLE = Path(__file__).parent.parent / "examples" / "cpp"
DIGITS = Path(models.__file__).parent / "digits_resnet.onnx"

pytestmark = [
    pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler, g++"),
    pytest.mark.skipif(shutil.which("make") is None, reason="there is no make"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpp")
    for name in ("Makefile", "run.cc"):
        shutil.copy(EXAMPLE / name, folder)
    command = ["make", f"PYTHON={sys.executable}", "CXX=g++", "CXXFLAGS=-O0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False, env={}
    )


@pytest.mark.parametrize("beside", [False, True])
def test_the_example_computes_the_same(program: Path, tmp_path: Path, beside: bool) -> None:
    model = onnx.load(DIGITS)
    artifact = CpuBackend(threads=2, batches=(3,)).compile(model)
    artifact.save(tmp_path / "net.so", beside)
    inputs = random_inputs(model, dynamic=3)
    (value,) = inputs.values()
    value.tofile(tmp_path / "in.raw")
    done = run(program, tmp_path / "net.so", tmp_path, tmp_path / "in.raw")
    assert done.returncode == 0, done.stderr
    assert "float32 [ 3 10 ]" in done.stdout
    (wanted,) = artifact.run(inputs).values()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "0.raw", np.float32), wanted.reshape(-1))

    assert run(program, tmp_path / "net.so", tmp_path).returncode == 0
    (zeros,) = artifact.run({name: np.zeros_like(x) for name, x in inputs.items()}).values()
    np.testing.assert_array_equal(np.fromfile(tmp_path / "0.raw", np.float32), zeros.reshape(-1))

    (tmp_path / "in.raw").write_bytes(b"short")
    done = run(program, tmp_path / "net.so", tmp_path, tmp_path / "in.raw")
    assert done.returncode == 1 and "does not hold" in done.stderr


@pytest.mark.skipif(shutil.which("readelf") is None, reason="there is no readelf")
def test_the_example_needs_no_compiler_of_tvm(program: Path) -> None:
    linked = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True)
    needed = {line.split("[")[1].rstrip("]") for line in linked.stdout.splitlines() if "(NEEDED)" in line}
    assert {name for name in needed if "tvm" in name} == {"libtvm_runtime.so", "libtvm_ffi.so"}


def test_the_example_tells_what_is_wrong(program: Path, tmp_path: Path) -> None:
    assert "usage" in run(program).stderr
    done = run(program, tmp_path / "nothing.so", tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("error")
