"""Kernels for GPUs on this processor, from the CUDA source that TVM writes: slow, exact, no GPU needed."""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.relax.expr_functor import PyExprMutator, mutator

from ...analysis.errors import BackendError
from ..command import run_command
from ..tvm.cuda.assemble import source_of
from ..tvm.cuda.tensor_core import BLOCK, TensorCore
from ..tvm.passes import Safe
from ..tvm.schedules.common import Core

_HELPER = re.compile(r"^__forceinline__ __device__ [^{;]*\{.*?^\}\n", re.DOTALL | re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)\) (\w+)\(([^)]*)\) \{')
_PREFIX = "onnx_prune.emulated."  # of functions that TVM knows emulated kernels by
_BEGIN = re.compile(r"__forceinline__ __device__|extern \"C\" __global__")
_SHARED = re.compile(r"__shared__ alignas\(\d+\) (\w+) (\w+)\[(\d+)\];")


@dataclass(frozen=True)
class Kernel:
    """A kernel of a source.

    Attributes:
        arguments: their types and names.
        threads: of a block.
    """

    name: str
    arguments: tuple[tuple[str, str], ...]
    threads: int


class Emulated:
    """The kernels of a CUDA source, compiled for this machine."""

    def __init__(self, source: str) -> None:
        """Compile them.

        Args:
            source: as TVM writes it, of kernels on tensor cores; what other kernels use may be missing.

        Raises:
            BackendError: there is no C++ compiler, or it does not take the source.
        """
        self.kernels = {kernel.name: kernel for kernel in map(_kernel, _KERNEL.finditer(source))}
        start = _BEGIN.search(source)
        text = _HELPER.sub("", source[start.start() if start else 0 :])
        text = _in_shared_memory(text)
        text = "\n".join(['#include "gpu.h"', text, *map(_launcher, self.kernels.values())])
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "kernels.cc"
        path.write_text(text)
        library = path.with_suffix(".so")
        command = ["c++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{Path(__file__).parent}"]
        run_command([*command, path, "-o", library])
        self._library = ctypes.CDLL(str(library))

    def launch(
        self, name: str, arrays: Mapping[str, NDArray[Any]], grid: tuple[int, int, int], seed: int = 0
    ) -> None:
        """Run a kernel.

        Args:
            arrays: by name of its arguments; those it writes are changed.
            grid: blocks along x, y and z.
            seed: of the order in which threads go on.

        Raises:
            BackendError: threads wait for each other for ever, or an instruction is given what it must not.
        """
        kernel = self.kernels[name]
        pointers = [ctypes.c_void_p(arrays[argument].ctypes.data) for _, argument in kernel.arguments]
        given = (ctypes.c_void_p * len(pointers))(*pointers)
        launch = self._library[f"launch_{name}"]
        launch.restype = ctypes.c_char_p
        failure = launch(given, *map(ctypes.c_int, grid), ctypes.c_uint(seed))
        if failure is not None:
            raise BackendError(f"the kernel '{name}' is wrong: {failure.decode()}")


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.EmulatedKernels")
class EmulatedKernels:
    """Kernels on tensor cores, with what was fused to them, are emulated; all others run as this machine's.

    Before: ``call_tir(kernel, arguments)``.
    After: ``call_dps_packed("onnx_prune.emulated.kernel", arguments)``.

    Args:
        target: description of the GPU they are compiled for.
        seed: of the order in which threads go on.

    Attributes:
        kernels: names of those that are emulated.
    """

    def __init__(self, target: Mapping[str, Any], seed: int = 0) -> None:
        self.target, self.seed = tvm.target.Target(dict(target)), seed
        self.kernels: list[str] = []

    def transform_module(self, module: Any, context: Any) -> Any:
        rule, grids = Safe(TensorCore(Core())), {}
        made, kernels = {}, {}
        for variable, function in module.functions.items():
            schedule = rule.apply(function, self.target) if isinstance(function, tirx.PrimFunc) else None
            if schedule is None:
                made[variable] = function
                continue
            name = variable.name_hint
            kernels[name] = schedule.mod["main"].with_attr("global_symbol", name)
            grids[name] = _grid(schedule)
        if not kernels:
            return module
        with tvm.transform.PassContext(opt_level=3):
            program = Emulated(source_of(tvm.compile(tvm.IRModule(kernels), target=self.target)))
        for name, function in kernels.items():
            launch = self._launcher(program, function, name, grids[name])
            tvm_ffi.register_global_func(_PREFIX + name, launch, override=True)
        self.kernels += kernels
        calls = _Calls(kernels)
        return tvm.IRModule(
            {v: calls.visit_expr(f) if isinstance(f, relax.Function) else f for v, f in made.items()}
        )

    def _launcher(
        self, program: Emulated, function: Any, name: str, grid: tuple[int, int, int]
    ) -> Callable[..., None]:
        """A kernel as a function of its arguments, the result last."""
        names = [f"{parameter.name}_ptr" for parameter in function.params]

        def launch(*arguments: Any) -> None:
            arrays = dict(zip(names, map(np.from_dlpack, arguments), strict=True))
            program.launch(f"{name}_kernel", arrays, grid, self.seed)

        return launch


def _grid(schedule: Any) -> tuple[int, int, int]:
    """Thread blocks along x, y and z of a scheduled kernel."""
    extents = {}
    for loop in map(schedule.get, schedule.get_loops(schedule.get_sblock(BLOCK))):
        if loop.thread_binding is not None:
            extents[str(loop.thread_binding.thread_tag)] = int(loop.extent)
    return extents["blockIdx.x"], extents["blockIdx.y"], 1


@mutator
class _Calls(PyExprMutator):  # type: ignore[misc]
    """Lets a Relax function call emulated kernels, by their names."""

    def __init__(self, kernels: Collection[str]) -> None:
        super().__init__()
        self.kernels = kernels

    def visit_call_(self, call: Any) -> Any:
        if getattr(call.op, "name", "") == "relax.call_tir" and call.args[0].name_hint in self.kernels:
            name = _PREFIX + call.args[0].name_hint
            return relax.call_dps_packed(name, self.visit_expr(call.args[1]), call.ty_args[0])
        return super().visit_call_(call)


def _in_shared_memory(text: str) -> str:
    """The source with arrays in shared memory at places of their own in that of the emulator."""
    sizes = ["0"]

    def placed(match: re.Match[str]) -> str:
        type_, name, count = match.groups()
        start = " + ".join(sizes)
        sizes.append(f"(sizeof({type_}) * {count} + 127) / 128 * 128")
        return f"{type_}* const {name} = ({type_}*)(emulated::shared + {start});"

    return _SHARED.sub(placed, text)


def _kernel(match: re.Match[str]) -> Kernel:
    threads, name, arguments = match.groups()
    given = []
    for argument in arguments.split(", "):
        type_, _, variable = argument.partition("* __restrict__ ")
        given.append((f"{type_}*", variable))
    return Kernel(name, tuple(given), int(threads))


def _launcher(kernel: Kernel) -> str:
    """A function that C calls, which launches a kernel of arguments that were given as pointers."""
    casts = ", ".join(f"({type_})given[{n}]" for n, (type_, _) in enumerate(kernel.arguments))
    return (
        f'extern "C" const char* launch_{kernel.name}(void** arguments, int x, int y, int z, uint seed) {{\n'
        "  static void** given; given = arguments;\n"
        f"  return emulated::Launch([] {{ {kernel.name}({casts}); }}, x, y, z, {kernel.threads}, seed);\n}}"
    )
