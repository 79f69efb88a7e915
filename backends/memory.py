"""Memory for tensors: aligned as TVM asks for, and in huge pages where there is much of it."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64  # bytes, of every tensor that TVM takes
_HUGE = 1 << 21

Bytes = NDArray[np.uint8]


def aligned(size: int) -> Bytes:
    """Zeros."""
    return _from_multiple(np.zeros(size + ALIGNMENT, np.uint8), ALIGNMENT, size)


def huge(size: int) -> Bytes:
    """Zeros for which huge pages are asked, where the system has them: fewer addresses to look up."""
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return aligned(size)
    # Shared memory, the default, gets no huge pages on most systems.
    pages = mmap.mmap(-1, size + _HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return _from_multiple(np.frombuffer(pages, np.uint8), _HUGE, size)


def _from_multiple(memory: Bytes, multiple: int, size: int) -> Bytes:
    start = -memory.ctypes.data % multiple
    return memory[start : start + size]


def tensor(memory: Bytes, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
    """An array over the first bytes of ``memory``."""
    kind = np.dtype(dtype)
    return memory[: kind.itemsize * math.prod(shape)].view(kind).reshape(tuple(shape))
