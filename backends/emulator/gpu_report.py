"""What `emulate_gpu` tells of a model that is compiled for a GPU and run with its tensor cores emulated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx

from ...passes.execute import execute, random_inputs
from ...passes.verify import worst_error
from ..artifact import CpuArtifact
from ..base import Arrays, SparseLayer, signature
from ..cuda import CudaBackend

if TYPE_CHECKING:
    from ..tvm.cuda.assemble import Resources


@dataclass(frozen=True)
class EmulatedGpu:
    """A model, compiled for a GPU.

    Attributes:
        error: largest difference from ONNX Runtime over the largest output.
        emulated: kernels that ran from their CUDA source: those on tensor cores.
        sparse_products: instructions for two-of-four zeros in the assembled kernels.
        kernels: all that were assembled.
        sparse: the layers with zeros.
    """

    model: str
    arch: str
    precision: str
    error: float
    emulated: tuple[str, ...]
    sparse_products: int
    kernels: tuple[Resources, ...]
    sparse: tuple[SparseLayer, ...]


def emulated_gpu(name: str, model: onnx.ModelProto, backend: CudaBackend) -> EmulatedGpu:
    """A model compiled, assembled, and run once on random inputs. Sizes known only at run time are 1.

    Raises:
        BackendError: TVM, nvcc or a C++ compiler is missing, or the model cannot be compiled.
    """
    made = backend.compile(model)
    feeds = random_inputs(model, dynamic=1)
    got, kernels = run_emulated(model, backend, feeds)
    error, _ = worst_error(execute(model, feeds), got)
    assembled = made.assembled
    return EmulatedGpu(
        name,
        backend.arch,
        backend.precision,
        error,
        kernels,
        assembled.ptx.count("mma.sp"),
        assembled.kernels,
        made.sparse,
    )


def run_emulated(
    model: onnx.ModelProto, backend: CudaBackend, feeds: Arrays, seed: int = 0
) -> tuple[Arrays, tuple[str, ...]]:
    """Outputs of a model whose kernels on tensor cores are emulated, and the names of these.

    Args:
        seed: of the order in which threads go on.

    Raises:
        BackendError: TVM or a C++ compiler is missing, or the model cannot be compiled.
    """
    from ..quiet import native_log_hidden
    from ..tvm import build, frontend
    from ..tvm.machine import host_target
    from .gpu import EmulatedKernels

    fixed, host = frontend.static(model, {}), host_target(1)
    kernels = EmulatedKernels(backend.target(), seed)
    with native_log_hidden():
        steps = build.Steps(backend.tensor_cores(), kernels)
        program = build.built({"main": frontend.import_model(fixed)}, host, steps)
    got = CpuArtifact(program, *signature(fixed), host).run(feeds)
    return got, tuple(kernels.kernels)
