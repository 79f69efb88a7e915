"""The TVM backend for GPUs of NVIDIA: compiled and assembled here, run where there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import onnx

from ..analysis.errors import BackendError, UsageError
from .artifact import Artifact, Compiled, load_artifact, require_tvm
from .compiler import Compiler, Lowered
from .library import Packing

if TYPE_CHECKING:
    from .tvm.cuda.assemble import Assembled
    from .tvm.cuda.passes import TensorCores

KIND = "cuda"
PRECISIONS = ("tf32", "fp16")  # the first is what is taken where none is asked for


@dataclass(frozen=True)
class CudaBackend(Compiler):
    """Apache TVM for a GPU of NVIDIA.

    Attributes:
        arch: its architecture, such as sm_80.
        precision: what tensor cores multiply, "tf32" or "fp16"; they add in float32. Two-of-four zeros take
            half the time in fp16 only.
    """

    arch: str = field(kw_only=True)
    precision: str = field(kw_only=True, default=PRECISIONS[0])
    name: ClassVar[str] = "tvm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in PRECISIONS:
            raise UsageError(f"'{self.precision}' is no precision: choose {' or '.join(PRECISIONS)}")

    @staticmethod
    def architecture(target: str) -> str | None:
        """The architecture of a target such as ``cuda:sm_80``; None for a target of another kind.

        Raises:
            UsageError: it names none.
        """
        kind, _, arch = target.partition(":")
        if kind != KIND:
            return None
        if not arch:
            raise UsageError("name the architecture of the GPU: cuda:sm_80")
        return arch

    def target(self) -> Mapping[str, Any]:
        from .tvm.cuda.gpu import GPUS

        if self.arch not in GPUS:
            raise UsageError(f"there are no kernels for '{self.arch}': choose {', '.join(GPUS)}")
        return {
            "kind": "cuda",
            "arch": self.arch,
            "max_threads_per_block": 1024,
            "max_num_threads": 1024,
            "thread_warp_size": 32,
            "max_shared_memory_per_block": 48 << 10,
            "host": {"kind": "llvm", "num-cores": self.threads},
        }

    def lowered(self, modules: Mapping[str, Any], target: Mapping[str, Any]) -> Lowered:
        from .tvm import build
        from .tvm.cuda.passes import GpuSchedules

        cores = self.tensor_cores()
        program = build.built(modules, target, build.Steps(cores, GpuSchedules()))
        return Lowered(program, cores.layers)

    def tensor_cores(self) -> TensorCores:
        """The pass that makes kernels on tensor cores."""
        from .tvm.cuda.fragments import FP16, TF32
        from .tvm.cuda.gpu import GPUS
        from .tvm.cuda.passes import TensorCores

        return TensorCores(GPUS[self.arch], FP16 if self.precision == "fp16" else TF32)

    def compile(self, model: onnx.ModelProto) -> CudaCompiled:
        """Machine code and weights of ``model``, for one set of sizes.

        Raises:
            UsageError: the architecture is not known.
            BackendError: TVM or nvcc is not installed, or cannot take the model.
        """
        self.target()
        from .tvm.cuda.assemble import assemble, nvcc, source_of

        nvcc()  # before the work
        made = self.compiled(model)
        source = source_of(made.program.executable)
        return CudaCompiled(**vars(made), assembled=assemble(source, self.arch))


@dataclass(eq=False)
class CudaCompiled(Compiled):
    """A model compiled for a GPU. `save` writes it, with machine code of its kernels.

    Attributes:
        assembled: that code, and what registers and memory kernels take.
    """

    assembled: Assembled = field(kw_only=True)

    def packing(self) -> Packing:
        from tvm.support import cc

        from .tvm.cuda.assemble import packing

        return packing(self.assembled, [cc.get_cc()])


@dataclass(frozen=True)
class GpuBackend:
    """Apache TVM on a GPU of this machine.

    Attributes:
        compiler: what compiles for it.
    """

    compiler: CudaBackend
    name: ClassVar[str] = "tvm"

    @property
    def threads(self) -> int:
        return self.compiler.threads

    def compile(self, model: onnx.ModelProto) -> Artifact:
        """The model, ready to run.

        Raises:
            BackendError: TVM or nvcc is not installed, cannot take the model, or there is no such GPU.
        """
        require_tvm()
        import tvm

        if not tvm.cuda().exist:
            raise BackendError("TVM finds no GPU here; bench --emulate checks a model without one")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.so"
            self.compiler.compile(model).save(path)
            return load_artifact(path)
