"""The program of a compiled model: machine code, and weights that live wherever they are put."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .memory import ALIGNMENT, Bytes, huge, tensor


@dataclass(frozen=True)
class Place:
    """A tensor within raw bytes; ``offset`` is a multiple of 64."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def end(self) -> int:
        """One past its last byte."""
        return self.offset + np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @classmethod
    def read(cls, about: Mapping[str, Any]) -> Place:
        """From its fields as JSON has them. Raises ValueError, KeyError or TypeError: they are none."""
        place = cls(str(about["dtype"]), tuple(map(int, about["shape"])), int(about["offset"]))
        if place.offset < 0 or place.offset % ALIGNMENT or min(place.shape, default=0) < 0:
            raise ValueError(f"no tensor can be at {place.offset}")
        np.dtype(place.dtype)
        return place


@dataclass(frozen=True, eq=False)
class Weights:
    """Tensors in one piece of memory.

    Attributes:
        places: where each of them is.
        memory: raw bytes; it starts at a multiple of 64.
    """

    places: tuple[Place, ...]
    memory: Bytes

    @property
    def tensors(self) -> list[NDArray[Any]]:
        """Views, no copies."""
        return [tensor(self.memory[p.offset :], p.dtype, p.shape) for p in self.places]


@dataclass(frozen=True, eq=False)
class Program:
    """Machine code and the weights it computes with.

    Attributes:
        executable: of TVM's virtual machine; a runtime module when it was loaded.
        weights: of all its functions.
        uses: by function, which of them it takes after its inputs.
        kernels: what those of the first function compute, and their floating-point operations, by name.
    """

    executable: Any
    weights: Weights
    uses: Mapping[str, tuple[int, ...]]
    kernels: Mapping[str, tuple[str, float]] = field(default_factory=dict)


def gathered(arrays: Iterable[NDArray[Any]]) -> Weights:
    """Copies of ``arrays`` in new memory."""
    arrays = list(arrays)
    places: list[Place] = []
    end = 0
    for array in arrays:
        start = end + -end % ALIGNMENT
        places.append(Place(array.dtype.name, array.shape, start))
        end = places[-1].end
    weights = Weights(tuple(places), huge(end))
    for target, array in zip(weights.tensors, arrays, strict=True):
        np.copyto(target, array)
    return weights


def read(path: Path, start: int, places: tuple[Place, ...], size: int) -> Weights:
    """Weights that begin at ``start`` of a file, in memory of their own.

    Raises:
        OSError: it cannot be read.
        EOFError: it ends before they do.
    """
    memory = huge(size)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        done = 0
        while done < size:
            count = file.readinto(memory[done:].data)
            if not count:
                raise EOFError
            done += count
    return Weights(places, memory)


def mapped(path: Path, places: tuple[Place, ...], size: int) -> Weights:
    """Weights of a file that has nothing else, mapped: read when first used, shared between processes.

    Raises:
        OSError: it cannot be read.
        EOFError: it has another size.
    """
    if path.stat().st_size != size:
        raise EOFError
    if not size:
        return Weights(places, huge(0))
    with path.open("rb") as file:
        # A private mapping never changes the file; one that cannot be written to at all makes no tensors.
        pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    return Weights(places, np.frombuffer(pages, np.uint8))
