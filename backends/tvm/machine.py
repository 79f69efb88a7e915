"""The machine that runs this: its processor as a target, its caches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tvm.target import codegen

from .schedules.common import Core

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE = 1 << 24  # bytes, where the system does not tell
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def host_target(threads: int) -> dict[str, Any]:
    """This machine's CPU as a target. Sums may be reordered, which vectorising them needs, and -0 be 0."""
    target: dict[str, Any] = {"kind": "llvm", "num-cores": threads}
    cpu = codegen.llvm_get_system_cpu()
    if cpu and cpu != "generic":
        target["mcpu"] = cpu
    return target | {f"fast-math-{flag}": True for flag in ("reassoc", "contract", "nsz")}


def core_of(target: Any) -> Core:
    """What kernels are made for: vectors of AVX-512, of AVX2, or pairs of those of NEON or SSE."""

    def has(feature: str) -> bool:
        return bool(codegen.target_has_features(feature, target))

    threads = int(target.attrs.get("num-cores", 1) or 1)
    if has("avx512f"):
        return Core(threads, lanes=16, registers=32, halves=True)
    vectors = 16 if has("avx2") or has("neon") else 8
    return Core(threads, registers=vectors, halves=has("f16c") or has("neon"))


def last_cache() -> int:
    """Bytes of the last cache."""
    try:
        sizes = [path.read_text().strip() for path in _CACHES.glob("index*/size")]
        return max((int(size[:-1]) * _UNITS[size[-1]] for size in sizes), default=_USUAL_CACHE)
    except (OSError, ValueError, KeyError, IndexError):
        return _USUAL_CACHE
