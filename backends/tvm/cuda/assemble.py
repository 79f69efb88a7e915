"""From the CUDA source that TVM writes to machine code, inside the library that is saved.

TVM leaves the source in the library where no GPU is at hand, to be compiled where it is loaded. NVIDIA's nvcc
needs no GPU: it assembles kernels here, which proves that it can be done, and tells what registers and shared
memory they take.
"""

from __future__ import annotations

import re
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tvm.runtime import _ffi_api

from ....analysis.errors import BackendError
from ...command import run_command
from ...library import Packing

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_USED = re.compile(r"Used (\d+) registers")
_SPILLED = re.compile(r"(\d+) bytes spill stores")
_STATIC = re.compile(r"(\d+) bytes smem")
_BLOB = "__tvm_ffi__library_bin"  # where TVM's libraries have what they bring along


@dataclass(frozen=True)
class Resources:
    """What a thread or block of a kernel takes.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that registers have no room for.
        shared: bytes of a block, those apart that are asked for when it is started.
    """

    kernel: str
    registers: int
    spilled: int
    shared: int


@dataclass(frozen=True, eq=False)
class Assembled:
    """Machine code of all kernels of a program.

    Attributes:
        source: the CUDA source it is made of.
        cubin: for one architecture.
        ptx: the same as text.
    """

    source: str
    cubin: bytes
    ptx: str
    kernels: tuple[Resources, ...]


def nvcc() -> str:
    """NVIDIA's compiler: of the system, or of PyPI's package nvidia-cuda-nvcc.

    Raises:
        BackendError: there is none.
    """
    found = shutil.which("nvcc")
    if found:
        return found
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*/bin/nvcc")):
            return str(path)
    raise BackendError(
        "no nvcc to assemble kernels for a GPU: install NVIDIA's CUDA toolkit, or pip install"
        " 'onnx-prune[cuda]'"
    )


def source_of(executable: Any) -> str:
    """The CUDA source within a compiled program, or an empty string."""
    waiting = [executable.mod]
    while waiting:
        module = waiting.pop()
        if module.kind == "cuda":
            return str(module.inspect_source("cuda"))
        waiting.extend(module.imports)
    return ""


def assemble(source: str, arch: str) -> Assembled:
    """Machine code of a CUDA source.

    Raises:
        BackendError: there is no nvcc, or it does not take the source.
    """
    command = [nvcc(), f"-arch={arch}", "-O3", "--use_fast_math", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.cu"
        path.write_text(source)
        cubin, ptx = path.with_suffix(".cubin"), path.with_suffix(".ptx")
        told = run_command([*command, "--keep", "--keep-dir", folder, "--cubin", "-o", str(cubin), str(path)])
        return Assembled(source, cubin.read_bytes(), ptx.read_text(), _resources(told))


def _resources(told: str) -> tuple[Resources, ...]:
    found = []
    parts = _ENTRY.split(told)[1:]
    for kernel, text in zip(parts[::2], parts[1::2], strict=True):
        numbers = [re.search(pattern, text) for pattern in (_USED, _SPILLED, _STATIC)]
        found.append(Resources(kernel, *(int(match[1]) if match else 0 for match in numbers)))
    return tuple(sorted(found, key=lambda each: each.kernel))


def packing(assembled: Assembled, command: Sequence[str]) -> Packing:
    """How TVM's ``export_library`` is to pack what a library brings along: with machine code for its source.

    Args:
        command: the C compiler of the machine that the library is for.
    """

    def pack(module: Any, is_system_lib: bool, prefix: str, folder: str) -> str:
        blob = with_cubin(_ffi_api.ModulePackImportsToTensor(module).numpy().tobytes(), assembled)
        data, text = Path(folder) / "brought.bin", Path(folder) / "brought.s"
        made = text.with_suffix(".o")
        data.write_bytes(blob)
        text.write_text(
            f".section .rodata\n.globl {_BLOB}\n.type {_BLOB}, @object\n.size {_BLOB}, {len(blob)}\n"
            f'.balign 64\n{_BLOB}:\n.incbin "{data}"\n'
        )
        run_command([*command, "-c", str(text), "-o", str(made)])
        return str(made)

    return pack


def with_cubin(blob: bytes, assembled: Assembled) -> bytes:
    """What a library of TVM brings along, with machine code in place of CUDA source.

    It is a length of eight bytes and then modules, each with its kind and its bytes; those of kind "cuda" are
    a format, a table of kernels, and code in that format. A string has its length before it, in eight bytes.

    Raises:
        BackendError: it does not have this form.
    """
    source = assembled.source.encode()
    before, format_, after = (_string(text) for text in (b"cuda", b"cuda", source))
    kind = blob.find(before)
    while kind >= 0:
        start = kind + len(before) + 8
        (size,) = struct.unpack("<Q", blob[start - 8 : start])
        body = blob[start : start + size]
        if body.startswith(format_) and body.endswith(after):
            table = body[len(format_) : -len(after)]
            changed = _string(b"cubin") + table + _string(assembled.cubin)
            rest = blob[8 : start - 8] + _string(changed) + blob[start + size :]
            return _string(rest)
        kind = blob.find(before, kind + 1)
    raise BackendError("TVM packs kernels for a GPU in a way that this program does not know")


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text
