"""What kernels cost on an emulated processor: all ways to compute one in one program, run once.

A cost is cycles as llvm-mca estimates them, all data in the first cache, or executed instructions where it
does not know the processor. Both tell padding, spilled registers and idle units, and nothing of memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from ..artifact import Compiled
from ..base import TensorSpec
from ..tvm import passes
from ..tvm.build import scheduled_kernel
from ..tvm.computed import Choice, Operand
from ..tvm.devices import array_of
from ..tvm.machine import core_of
from ..tvm.workloads import Workload
from ..weights import Program, gathered
from .counts import counted
from .cycles import Model
from .run import emulate
from .tools import Tools


@dataclass(frozen=True)
class Emulation:
    """Where costs come from.

    Attributes:
        scheduler: None where llvm-mca is not installed: instructions are counted.
        target: what kernels are compiled for.
    """

    tools: Tools
    scheduler: Model | None
    target: Mapping[str, Any]

    @property
    def unit(self) -> str:
        """What costs are."""
        return "instructions" if self.scheduler is None else "cycles"

    def costs(self, workload: Workload, choices: Sequence[Choice]) -> list[float | None]:
        """Of one call for each choice; None for those that are no way to compute it, or of unknown cost.

        Raises:
            BackendError: the program cannot be linked or run.
        """
        target = tvm.target.Target(dict(self.target))
        kernels = {
            f"choice{n}": made
            for n, choice in enumerate(choices)
            if (made := _kernel(workload, choice, target)) is not None
        }
        if not kernels:
            return [None for _ in choices]
        compiled, feeds = _program(kernels, target, self.target)
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "choices.so"
            compiled.save(library)
            run = emulate(self.tools, library, compiled, feeds)
            found = counted(library, run.blocks, {name: (name, 1.0) for name in kernels})
            blocks = {count.what: count.blocks for count in found if count.what in kernels}
            known: dict[str, float | None] = {
                count.what: float(count.instructions) for count in found if count.what in kernels
            }
            if self.scheduler is not None:
                cycles = self.scheduler.cycles(library, list(blocks.values()), str(self.target["mcpu"]))
                known = dict(zip(blocks, cycles, strict=True))
        return [known.get(f"choice{n}") for n in range(len(choices))]


def _kernel(workload: Workload, choice: Choice, target: Any) -> tuple[Any, list[Operand]] | None:
    """A scheduled kernel and what it takes; None where TVM's passes take it for no way to compute it."""
    try:
        module = scheduled_kernel(workload, choice, target)
        return module["main"].without_attr("global_symbol"), workload.operands(choice, core_of(target))
    except Exception:  # whatever they raise
        return None


def _program(
    kernels: Mapping[str, tuple[Any, list[Operand]]], target: Any, description: Mapping[str, Any]
) -> tuple[Compiled, dict[str, Any]]:
    """A program that calls each kernel once, and random inputs of it."""
    builder, rng = relax.BlockBuilder(), np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    arguments: dict[str, list[Any]] = {}
    results = {name: array_of(rng, operands[-1]) for name, (_, operands) in kernels.items()}
    for name, (_, operands) in kernels.items():
        arguments[name] = []
        for n, operand in enumerate(operands[:-1]):
            array = array_of(rng, operand)
            variable = relax.Var(f"{name}_{n}", relax.TensorType(array.shape, array.dtype.name))
            feeds[f"{name}_{n}"] = array
            arguments[name].append(variable)
    with builder.function("main", [v for variables in arguments.values() for v in variables]):
        with builder.dataflow():
            made = []
            for name, (kernel, _) in kernels.items():
                variable = builder.add_func(kernel, name)
                type_ = relax.TensorType(results[name].shape, results[name].dtype.name)
                made.append(builder.emit(relax.call_tir(variable, arguments[name], type_)))
            result = builder.emit_output(relax.Tuple(made))
        builder.emit_func_output(result)
    with target, tvm.transform.PassContext(opt_level=3, config=passes.CONFIG):
        executable = tvm.compile(builder.get(), target=target)
    inputs = tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in feeds.items())
    outputs = tuple(TensorSpec(name, array.dtype.name, array.shape) for name, array in results.items())
    program = Program(executable, gathered([]), {"main": ()})
    return Compiled(program, inputs, outputs, description), feeds
