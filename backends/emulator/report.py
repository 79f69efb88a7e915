"""Models compiled for a processor of 64-bit ARM and run in emulation: what comes of it."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from ...passes.execute import random_inputs
from ...passes.verify import worst_error
from ..arm import ArmBackend
from ..artifact import require_tvm
from ..onnxruntime import OnnxRuntimeBackend
from .cycles import Model
from .run import emulate
from .tools import find


@dataclass(frozen=True)
class EmulatedKernel:
    """A kernel in a run, all its calls together.

    Attributes:
        what: it computes.
        calls: of it; 0 for what is no kernel.
        macs: multiply-adds that it is asked for; None where it is no product or convolution.
        instructions: executed; of these ``vector_fmas`` multiply and add vectors, ``memory`` read or write.
        cycles: by LLVM's model of the processor, with all data in the first cache; None where it has none.
    """

    what: str
    calls: int
    macs: float | None
    instructions: int
    vector_fmas: int
    memory: int
    cycles: float | None


@dataclass(frozen=True)
class Emulated:
    """A model on an emulated processor. It tells what is computed and with how much work, and no times.

    Attributes:
        model: its name, as given.
        processor: that it was compiled for.
        error: the largest difference from ONNX Runtime's outputs, over the largest output.
        instructions: of its library; ``elsewhere`` are those of loading and of TVM's runtime.
        kernels: those with the most instructions first.
        scheduler: the name of LLVM's model that ``cycles`` are of; None where llvm-mca is not installed.
    """

    model: str
    processor: str
    error: float
    instructions: int
    elsewhere: int
    kernels: tuple[EmulatedKernel, ...]
    scheduler: str | None

    @property
    def macs(self) -> float:
        """Multiply-adds of its products and convolutions."""
        return sum(kernel.macs or 0.0 for kernel in self.kernels)

    @property
    def vector_fmas(self) -> int:
        return sum(kernel.vector_fmas for kernel in self.kernels)

    @property
    def cycles(self) -> float | None:
        """Of all kernels whose cycles are known; None where none are."""
        known = [kernel.cycles for kernel in self.kernels if kernel.cycles is not None]
        return sum(known) if known else None


def emulated(name: str, model: onnx.ModelProto, backend: ArmBackend, cpu: str | None = None) -> Emulated:
    """Compile a model, run it once on random inputs under QEMU, and compare with ONNX Runtime.

    Sizes known only at run time are 1.

    Args:
        cpu: the processor to emulate, by LLVM's name; the one it is compiled for by default.

    Raises:
        BackendError: a tool is missing, the model cannot be compiled, or has instructions that the processor
            lacks.
    """
    require_tvm()
    from .counts import counted

    tools, scheduler = find(), Model.find()
    feed = random_inputs(model, dynamic=1)
    wanted = OnnxRuntimeBackend(1).compile(model).run(feed)
    compiled = backend.compile(model)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "model.so"
        compiled.save(library)
        run = emulate(tools, library, compiled, feed, cpu)
        counts = counted(library, run.blocks, compiled.program.kernels)
        cycles: list[float | None] = [None] * len(counts)
        if scheduler is not None:
            cycles = scheduler.cycles(library, [count.blocks for count in counts], backend.processor.cpu)
    error, _ = worst_error(wanted, run.outputs)
    kernels = tuple(
        EmulatedKernel(c.what, c.calls, c.macs, c.instructions, c.vector, c.memory, each)
        for c, each in zip(counts, cycles, strict=True)
    )
    return Emulated(
        name,
        backend.processor.name,
        error,
        sum(count.instructions for count in counts),
        run.elsewhere,
        kernels,
        None if scheduler is None else backend.processor.cpu,
    )
