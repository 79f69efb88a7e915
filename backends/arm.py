"""The TVM backend for processors of 64-bit ARM: compiled and linked here, run there or in an emulator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import onnx

from .artifact import Compiled
from .compiler import ProcessorCompiler
from .processor import Linker, Processor, linker


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

    def compile(self, model: onnx.ModelProto) -> Compiled:
        """Machine code and weights of ``model``, for one set of sizes; `Compiled.save` links it.

        Raises:
            UsageError: LLVM does not know the processor.
            BackendError: TVM is not installed, cannot take the model, or there is no linker.
        """
        self.linker()  # before the work
        return self.compiled(model)
