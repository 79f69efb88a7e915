"""The TVM backend for processors of 64-bit ARM: compiled and linked here, run there or in an emulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx

from .artifact import Compiled
from .base import Progress
from .compiler import ProcessorCompiler
from .processor import Linker, Processor, linker
from .quiet import native_log_hidden


@dataclass(frozen=True)
class ArmBackend(ProcessorCompiler):
    """Apache TVM for a processor of 64-bit ARM.

    Attributes:
        processor: what to compile for.
    """

    processor: Processor = field(kw_only=True)
    name: ClassVar[str] = "tvm"

    def target(self) -> Mapping[str, Any]:
        from .tvm import machine

        return machine.target_of(self.processor, self.threads)

    def linker(self) -> Linker:
        return linker(self.processor.system)

    def tune_emulated(
        self,
        model: onnx.ModelProto,
        seconds: float,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Compare ways to compute the kernels of ``model`` under QEMU for so long, into the database.

        Costs are cycles as llvm-mca estimates them, or instructions; compiling takes them where nothing was
        measured.

        Raises:
            UsageError: there is no database.
            BackendError: a tool is missing, or TVM cannot take the model.
        """
        folder = self.to_tune()
        from .emulator import tune

        with native_log_hidden():
            return tune.tune(self.modules(model), self.target(), folder, seconds, progress)

    def compile(self, model: onnx.ModelProto) -> Compiled:
        """Machine code and weights of ``model``, for one set of sizes; `Compiled.save` links it.

        Raises:
            UsageError: LLVM does not know the processor.
            BackendError: TVM is not installed, cannot take the model, or there is no linker.
        """
        self.linker()  # before the work
        return self.compiled(model)
