"""Kernels for GPUs: run from their CUDA source with tensor cores emulated, assembled by nvcc, and saved."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

if find_spec("tvm") is None:
    pytest.skip("Apache TVM is not installed", allow_module_level=True)

import tvm
from onnx_prune import BackendError, UsageError, bench, compile, emulate_gpu, load, save, sparsify, tune
from onnx_prune.analysis.model import Model
from onnx_prune.backends import artifact
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.cuda import CudaBackend
from onnx_prune.backends.emulator.gpu import Emulated
from onnx_prune.backends.emulator.gpu_report import run_emulated
from onnx_prune.backends.tvm.cuda import fragments
from onnx_prune.backends.tvm.cuda.assemble import nvcc, source_of
from onnx_prune.backends.tvm.cuda.gpu import GPUS
from onnx_prune.backends.tvm.cuda.product import Layer, packed
from onnx_prune.backends.tvm.cuda.reading import Patches, Rows
from onnx_prune.backends.tvm.cuda.tensor_core import Form, TensorCore
from onnx_prune.backends.tvm.schedules.common import Core
from onnx_prune.backends.tvm.schedules.conv import Window
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.execute import execute
from test_cli import assert_one_line, run
from test_fragments import random_two_of_four
from tvm import s_tir

Array = NDArray[Any]
VIT = FOLDER / "digits_vit.onnx"
CUDA = 190  # machine in an ELF file
SMALL = 1e-3  # of max|y|: float16 and tf32 have ten bits of mantissa


def _missing() -> str | None:
    try:
        nvcc()
    except BackendError as error:
        return str(error)
    return None


MISSING = _missing()
needs_nvcc = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


class Zeros:
    """Patterns of zeros in integers, as matrices (outputs, columns) whose columns are channels."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def all(self, outputs: int, columns: int) -> Array:
        return self.rng.integers(1, 4, (outputs, columns)) * self.rng.choice([-1, 1], (outputs, columns))

    def two_of_four(self, outputs: int, columns: int) -> Array:
        return random_two_of_four(self.rng, outputs, columns)

    def blocks(self, outputs: int, columns: int, size: int = 32) -> Array:
        kept = self.rng.random((-(-outputs // size), -(-columns // size))) < 0.4
        kept[len(kept) // 2] = False
        return self.all(outputs, columns) * np.kron(kept, np.ones((size, size)))[:outputs, :columns]

    def narrow(self, outputs: int, columns: int) -> Array:
        return self.blocks(outputs, columns, 16)

    def none(self, outputs: int, columns: int) -> Array:
        return np.zeros((outputs, columns))

    def one(self, outputs: int, columns: int) -> Array:
        made = np.zeros((outputs, columns))
        made[-1, -1] = 3
        return made


class Wide:
    """A model with many products of one input: each its own output."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[str] = []

    def _constant(self, value: Array) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def product(self, matrix: Array) -> None:
        bias = self._constant(np.arange(len(matrix)) % 5 - 2)
        y = self._op("Add", self._op("MatMul", "x", self._constant(matrix.T)), bias)
        self.outputs.append(self._op("Relu", y))

    def convolution(self, matrix: Array, kernel: tuple[int, int], **attributes: Any) -> None:
        """Of a matrix whose columns are channels within taps."""
        weights = matrix.reshape(len(matrix), *kernel, -1).transpose(0, 3, 1, 2)
        bias = self._constant(np.arange(len(matrix)) % 5 - 2)
        y = self._op("Conv", "x", self._constant(weights), bias, **attributes)
        self.outputs.append(self._op("Relu", y))

    def model(self) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, self.shape)
        made = [helper.make_tensor_value_info(o, onnx.TensorProto.FLOAT, None) for o in self.outputs]
        graph = helper.make_graph(self.nodes, "wide", [given], made, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def products(zeros: Zeros) -> onnx.ModelProto:
    """Rows of tokens in two axes, odd sizes, every form of weights."""
    wide = Wide(2, 19, 76)
    for pattern in (zeros.all, zeros.two_of_four, zeros.blocks, zeros.narrow, zeros.none, zeros.one):
        wide.product(pattern(50, 76))
    wide.product(zeros.two_of_four(130, 76))
    wide.product(zeros.all(1, 76))
    wide.product(zeros.all(8, 76) * 2.0**17)  # more than half precision holds
    return wide.model()


def convolutions(zeros: Zeros) -> onnx.ModelProto:
    """A batch of images of odd sizes; windows, strides, dilations and padding that is not the same around."""
    wide = Wide(2, 24, 9, 11)
    wide.convolution(zeros.all(40, 24), (1, 1))
    wide.convolution(zeros.two_of_four(40, 24), (1, 1), strides=[2, 2])
    wide.convolution(zeros.all(17, 9 * 24), (3, 3), pads=[1, 0, 2, 1])
    wide.convolution(zeros.two_of_four(17, 9 * 24), (3, 3), pads=[1, 1, 1, 1], strides=[2, 1])
    wide.convolution(zeros.blocks(64, 6 * 24), (2, 3), dilations=[2, 1])
    return wide.model()


def stem(zeros: Zeros) -> onnx.ModelProto:
    """Few channels: taps come after channels, so that less is filled up."""
    wide = Wide(1, 3, 20, 18)
    wide.convolution(zeros.all(24, 49 * 3), (7, 7), strides=[2, 2], pads=[3, 3, 3, 3])
    wide.convolution(zeros.narrow(24, 49 * 3), (7, 7), strides=[2, 2], pads=[3, 3, 3, 3])
    return wide.model()


@pytest.mark.parametrize(("arch", "precision"), [("sm_80", "fp16"), ("sm_90", "tf32")])
@pytest.mark.parametrize("net", [products, convolutions, stem])
def test_kernels_compute_integers_exactly(
    net: Callable[[Zeros], onnx.ModelProto], arch: str, precision: str
) -> None:
    """Whatever is fused to them, and in whatever order threads go on."""
    zeros = Zeros()
    model = net(zeros)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": zeros.rng.integers(-3, 4, shape).astype(np.float32)}
    wanted = execute(model, feeds)
    seed = len(arch + precision + net.__name__)
    got, kernels = run_emulated(model, CudaBackend(arch=arch, precision=precision), feeds, seed)
    assert kernels
    for name, value in wanted.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


FORMS = {
    "dense": (Form("dense", fragments.FP16), Zeros().all),
    "tf32": (Form("dense", fragments.TF32), Zeros().all),
    "2:4": (Form("two_of_four", fragments.FP16), Zeros().two_of_four),
    "32x32": (Form("blocks", fragments.FP16, 32), Zeros().blocks),
    "16x16": (Form("blocks", fragments.TF32, 16), Zeros().narrow),
}


def scheduled(layer: Layer, matrix: Array) -> list[tuple[Any, tuple[int, int, int]]]:
    """The kernel of each of a layer's choices, with its grid."""
    found = []
    for warps in layer.choices(GPUS["sm_80"]):
        schedule = TensorCore(Core()).schedule(
            s_tir.Schedule(layer.kernel(packed(matrix, layer.form), warps))
        )
        columns = -(-layer.source.positions // warps.positions)
        found.append((schedule.mod["main"], (columns, -(-layer.outputs // warps.outputs), 1)))
    return found


def emulated(kernels: list[Any]) -> tuple[Emulated, str]:
    """Kernels k0, k1, … and their source."""
    named = {f"k{n}": kernel.with_attr("global_symbol", f"k{n}") for n, kernel in enumerate(kernels)}
    target = tvm.target.Target(dict(CudaBackend(arch="sm_80").target()))
    source = source_of(tvm.compile(tvm.IRModule(named), target=target))
    return Emulated(source), source


@pytest.mark.parametrize("form", FORMS)
def test_every_choice_computes_the_same(form: str) -> None:
    shape, pattern = FORMS[form]
    matrix = pattern(70, 40)
    x = Zeros(1).rng.integers(-3, 4, (1, 40, 7, 9)).astype(np.float32)
    source = Patches(x.shape, Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0)), True)
    found = scheduled(Layer(source, 70, shape), matrix)
    assert len(found) > 3
    program, _ = emulated([kernel for kernel, _ in found])
    arrays = {f"weights{n}_ptr": array for n, array in enumerate(packed(matrix, shape).arrays)}
    wanted = np.einsum("ok,nkij->noij", matrix, x)
    for n, (_, grid) in enumerate(found):
        result = np.full((1, 70, 7, 9), np.nan, np.float32)
        program.launch(f"k{n}_kernel", arrays | {"x_ptr": x, "result_ptr": result}, grid, seed=n)
        np.testing.assert_array_equal(result, wanted)


def small() -> tuple[Array, Array, list[tuple[Any, tuple[int, int, int]]]]:
    matrix, x = Zeros().two_of_four(32, 128), Zeros(1).rng.integers(-3, 4, (32, 128)).astype(np.float32)
    layer = Layer(Rows((32,), 128), 32, Form("two_of_four", fragments.FP16))
    return matrix, x, scheduled(layer, matrix)[:1]


def launch(program: Emulated, matrix: Array, x: Array, grid: tuple[int, int, int], **changed: Array) -> Array:
    form = Form("two_of_four", fragments.FP16)
    arrays = {f"weights{n}_ptr": array for n, array in enumerate(packed(matrix, form).arrays)}
    result = np.full((len(x), len(matrix)), np.nan, np.float32)
    program.launch("k0_kernel", arrays | {"x_ptr": x, "result_ptr": result} | changed, grid)
    return result


def test_the_emulator_finds_threads_that_do_not_wait() -> None:
    matrix, x, ((kernel, grid),) = small()
    program, source = emulated([kernel])
    np.testing.assert_array_equal(launch(program, matrix, x, grid), x @ matrix.T)
    hasty = Emulated(source.replace("__syncthreads();", ""))
    assert not np.array_equal(launch(hasty, matrix, x, grid), x @ matrix.T)
    with pytest.raises(BackendError, match="never come"):
        stuck = source.replace("__syncthreads();", "if (threadIdx.x < 32) __syncthreads();", 1)
        launch(Emulated(stuck), matrix, x, grid)


def test_the_emulator_refuses_metadata_out_of_order() -> None:
    matrix, x, ((kernel, grid),) = small()
    program, _ = emulated([kernel])
    metadata = packed(matrix, Form("two_of_four", fragments.FP16)).arrays[1].copy()
    metadata[0, 0, 0] = 0x11111111  # the second of four, then the first
    with pytest.raises(BackendError, match="not in order"):
        launch(program, matrix, x, grid, weights1_ptr=metadata)


@cache
def vit(pattern: str) -> Model:
    """The model of digits, dense or with zeros in all products that are large enough."""
    return load(VIT) if pattern == "dense" else sparsify(load(VIT), pattern, samples=16).model


VERSIONS = ["dense", "2:4", "32x32@70%"]


@needs_nvcc
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_a_model_is_assembled(version: str, arch: str, tmp_path: Path) -> None:
    made = CudaBackend(arch=arch, precision="fp16").compile(vit(version).proto)
    assembled = made.assembled
    assert ("mma.sp" in assembled.ptx) == (version == "2:4") and "mma.sync.aligned.m16n8k16" in assembled.ptx
    assert f".target {arch}" in assembled.ptx
    machine, flags = struct.unpack_from("<18xH28xI", assembled.cubin)
    assert assembled.cubin[:4] == b"\x7fELF" and machine == CUDA
    assert int(arch.removeprefix("sm_")) in (flags & 0xFF, flags >> 8 & 0xFF)
    ours = [kernel for kernel in assembled.kernels if "tensor_core" in kernel.kernel]
    assert ours and all(kernel.registers <= 255 and kernel.spilled < 64 for kernel in assembled.kernels)
    assert all(0 < kernel.shared <= 48 << 10 for kernel in ours)
    skipping = [layer for layer in made.sparse if layer.sparse]
    assert (len(skipping) > 10) == (version != "dense")
    made.save(tmp_path / "m.so")
    assert assembled.cubin in (tmp_path / "m.so").read_bytes()


@needs_nvcc
def test_a_model_agrees_with_onnxruntime() -> None:
    (found,) = emulate_gpu([("blocks", vit("32x32@70%"))], "cuda:sm_80", "fp16")
    assert found.error < SMALL and len(found.emulated) >= 4 and not found.sparse_products
    assert any(layer.sparse for layer in found.sparse)
    (found,) = emulate_gpu([("2:4", vit("2:4"))], "cuda:sm_80", "tf32")
    assert found.error < SMALL and not found.sparse_products
    assert found.sparse and not any(layer.sparse for layer in found.sparse)


@needs_nvcc
def test_the_runtime_finds_machine_code_in_the_library(tmp_path: Path) -> None:
    """TVM's own reader of what a library brings along, which wants NVIDIA's driver: an empty one will do."""
    made = CudaBackend(arch="sm_80").compile(load(VIT).proto)
    made.save(tmp_path / "m.so")
    runtime = Path(tvm.__file__).parent / "lib" / "libtvm_runtime_cuda.so"
    wanted = subprocess.run(["nm", "-D", "--undefined-only", runtime], capture_output=True, text=True).stdout
    functions = re.findall(r" U (cu[A-Z]\w*)", wanted)
    (tmp_path / "driver.c").write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in functions))
    driver = tmp_path / "libcuda.so.1"
    command = ["cc", "-shared", "-fPIC", "-o", driver, tmp_path / "driver.c", "-Wl,-soname,libcuda.so.1"]
    subprocess.run(command, check=True)
    code = f"""
import ctypes
ctypes.CDLL({str(driver)!r}, ctypes.RTLD_GLOBAL)
import tvm
ctypes.CDLL({str(runtime)!r}, ctypes.RTLD_GLOBAL)
waiting = [tvm.runtime.load_module({str(tmp_path / "m.so")!r})]
while waiting:
    module = waiting.pop()
    waiting.extend(module.imports)
    if module.kind == "cuda":
        print(module.implements_function({made.assembled.kernels[0].kernel!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]


def test_results_are_copied_from_other_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a GPU, whose memory is not this process's."""

    class Elsewhere(artifact.GpuArtifact):
        def device(self) -> Any:
            return tvm.cpu()

    made = CpuBackend(batches=(1, 2)).compile(load(VIT).proto)
    monkeypatch.setattr(artifact, "_is_here", lambda device: False)
    there = Elsewhere(**{k: v for k, v in vars(made).items() if not k.startswith("_")})
    x = np.random.default_rng(0).random((3, 1, 8, 8), np.float32)
    (wanted,), (got,) = made.run({"x": x}).values(), there.run({"x": x}).values()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(
    ("target", "precision", "says"),
    [
        ("cuda", "fp16", "name the architecture"),
        ("cuda:sm_70", "fp16", "choose sm_80, sm_86, sm_89, sm_90"),
        ("cuda:sm_80", "int3", "tf32 or fp16"),
        ("cpu", "fp16", "goes with a GPU"),
    ],
)
def test_what_is_no_gpu_is_told(target: str, precision: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        compile(load(VIT), target, precision=precision)
    with pytest.raises(UsageError, match="no GPU"):
        emulate_gpu([], "arm:cortex-a72")


def test_what_a_gpu_cannot_do_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not tuned"):
        compile(load(VIT), "cuda:sm_80", database=tmp_path)
    with pytest.raises(UsageError, match="not tuned or timed"):
        tune(load(VIT), tmp_path, 1, "cuda:sm_80")


def test_a_missing_assembler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("onnx_prune.backends.tvm.cuda.assemble.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"onnx-prune\[cuda\]"):
        compile(load(VIT), "cuda:sm_80")


@pytest.mark.skipif(bool(tvm.cuda().exist), reason="there is a GPU here")
@needs_nvcc
def test_without_a_gpu_nothing_is_timed(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no GPU here; bench --emulate"):
        bench([("vit", load(VIT))], "cuda:sm_80")
    compile(load(VIT), "cuda:sm_80").save(tmp_path / "m.so")
    with pytest.raises(BackendError, match="sm_80, and TVM finds none here"):
        artifact.load_artifact(tmp_path / "m.so")


@needs_nvcc
def test_the_command_compiles_and_emulates(tmp_path: Path) -> None:
    save(vit("2:4"), tmp_path / "s.onnx")
    target = ("--target", "cuda:sm_90", "--precision", "fp16", "--json", "-")
    done = run("compile", tmp_path / "s.onnx", "-o", tmp_path / "s.so", *target)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert all(kernel["registers"] > 0 for kernel in told["assembled"])
    assert any(layer["sparse"] and "2:4" in layer["kernel"] for layer in told["sparse"])
    assert f"{len(told['assembled'])} kernels assembled for cuda:sm_90" in done.stderr
    assert "--tune" not in done.stderr
    done = run("bench", tmp_path / "s.onnx", "--emulate", "--kernels", *target)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["emulated"]
    assert found["error"] < SMALL and found["sparse_products"] > 0
    assert "it was not run on a GPU" in done.stderr
    assert_one_line(run("compile", tmp_path / "s.onnx", "-o", tmp_path / "s.so", "--target", "cuda"))
