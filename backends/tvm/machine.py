"""Processors as targets of TVM: that of the machine that runs this, and others; caches."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tvm.target import Target, codegen

from ...analysis.errors import UsageError
from ..processor import Processor
from .schedules.common import Core, Dots

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_GATHERS = Path("/sys/devices/system/cpu/vulnerabilities/gather_data_sampling")
_USUAL_CACHE = 1 << 24  # bytes, where the system does not tell
_SMALL_CACHE = 1 << 20  # of processors for phones and boards
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def host_target(threads: int) -> dict[str, Any]:
    """This machine's CPU as a target. Sums may be reordered, which vectorising them needs, and -0 be 0."""
    cpu = codegen.llvm_get_system_cpu()
    target = _target(threads) | ({"mcpu": cpu} if cpu and cpu != "generic" else {})
    return target | ({"mattr": ["-fast-gather"]} if _gathers_are_slowed() else {})


def _gathers_are_slowed() -> bool:
    """Whether this machine's processor leaks what it gathers, against which microcode makes it slow."""
    try:
        return _GATHERS.read_text().startswith("Mitigation")
    except OSError:
        return False


def target_of(processor: Processor, threads: int) -> dict[str, Any]:
    """Another machine's CPU as a target.

    Raises:
        UsageError: LLVM does not know it.
    """
    system = Target({"kind": "llvm", "mtriple": processor.system})
    known = {str(name) for name in codegen.llvm_get_cpu_archlist(system)}
    if processor.cpu not in known:
        near = get_close_matches(processor.cpu, known, 3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"LLVM knows no ARM processor '{processor.cpu}'{hint}")
    target = _target(threads) | {"mtriple": processor.system, "mcpu": processor.cpu}
    features = list(processor.features)
    if "+sve" not in features and codegen.target_has_features("sve", Target(target)):
        # Kernels are made of vectors of NEON. What LLVM makes with SVE of the loops around them was wrong in
        # emulation wherever vectors are longer than 16 bytes.
        features.append("-sve")
    return target | ({"mattr": features} if features else {})


def _target(threads: int) -> dict[str, Any]:
    flags = {f"fast-math-{flag}": True for flag in ("reassoc", "contract", "nsz")}
    return {"kind": "llvm", "num-cores": threads, **flags}


def core_of(target: Any) -> Core:
    """What kernels are made for: vectors of AVX-512, of AVX2, or pairs of those of NEON or SSE."""

    def has(feature: str) -> bool:
        return bool(codegen.target_has_features(feature, target))

    threads = int(target.attrs.get("num-cores", 1) or 1)
    gathers = has("avx2") and has("fast-gather")
    half = Dots("llvm.x86.avx512.vpdpbusd.256", 8, "uint8")
    if has("avx512f"):
        known = has("avx512vnni") and has("avx512vl")
        dots = Dots("llvm.x86.avx512.vpdpbusd.512", 16, "uint8", half) if known else None
        return Core(threads, lanes=16, registers=32, halves=True, gathers=gathers, picks=True, dots=dots)
    if has("neon"):
        dots = Dots("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, "int8") if has("dotprod") else None
        return Core(threads, registers=16, halves=True, elements=True, dots=dots)
    dots = half if has("avxvnni") else None
    registers = 16 if has("avx2") else 8
    return Core(threads, registers=registers, halves=has("f16c"), gathers=gathers, dots=dots)


def last_cache(target: Any) -> int:
    """Bytes of the last cache of this machine, or of what is usual for another processor."""
    if target is not None and target.attrs.get("mtriple"):
        return _SMALL_CACHE
    try:
        sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
        return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=_USUAL_CACHE)
    except (OSError, ValueError, KeyError, IndexError):
        return _USUAL_CACHE
