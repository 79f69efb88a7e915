"""Constant matrices as threads of a warp hold them for tensor cores, all, two of four, or blocks that are not
zero.

A matrix is cut into *fragments* of 16 rows by eight words of 32 bits, of which each of the 32 threads of a
warp holds four: one read of 16 bytes. A *step* is what is read of the other operand at once, 64 bytes of each
of its rows: two fragments of a dense matrix, one of a matrix with two of four non-zeros.
Source: PTX ISA, "Matrix multiply-accumulate operation using mma" and "… using mma.sp"; CUTLASS's
``reorder_meta`` has the same order of metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..schedules.common import ceil_div

ROWS = 16  # of a fragment
WARP = 32
_WORDS, _GROUPS, _PAIRS = 8, 8, 4  # words of a fragment's rows; rows and columns that threads stand in
ROUND, KEPT = 0x1000, 0xFFFFE000  # half of the last bit that tf32 has of a float, and the bits that it has

Words = NDArray[np.uint32]
_KEPT_OF_FOUR = 2


@dataclass(frozen=True)
class Precision:
    """What tensor cores multiply; they add in float32.

    Attributes:
        name: float16 or tf32, which has the range of float32 and ten bits of mantissa.
        dtype: of the other operand in shared memory.
        chunk: its elements in 16 bytes.
    """

    name: str
    dtype: str
    chunk: int

    @property
    def step(self) -> int:
        """Columns of a step."""
        return 4 * self.chunk

    def rounded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Values as tensor cores see them, to the nearest; in float16, or as float32."""
        if self is FP16:
            with np.errstate(over="ignore"):
                return values.astype(np.float16)
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        return ((bits + np.uint32(ROUND)) & np.uint32(KEPT)).view(np.float32)


FP16 = Precision("float16", "float16", 8)
TF32 = Precision("tf32", "uint32", 4)


@dataclass(frozen=True)
class Packed:
    """A matrix of weights, in the arrays that a kernel reads.

    Attributes:
        arrays: uint32 values; metadata of two-of-four matrices; of blocks, where their columns are, and where
            the steps of each row of blocks begin.
        steps: of each row of fragments; 0 where rows of blocks have their own.
    """

    arrays: tuple[NDArray[Any], ...]
    steps: int


def dense(matrix: NDArray[Any], precision: Precision) -> Packed:
    """All of a matrix (outputs, columns).

    Values have the shape (rows of fragments, steps, 2, 32, 4).
    """
    padded = _padded(matrix, ROWS, precision.step)
    return Packed((_fragments(_words(padded, precision), 2),), padded.shape[1] // precision.step)


def two_of_four(matrix: NDArray[Any]) -> Packed:
    """The non-zeros of a matrix (outputs, columns) of which every four columns have two at most, in float16.

    Values have the shape (rows of fragments, steps, 1, 32, 4); metadata (rows of fragments, steps, 16): of
    every four columns the places of the two, for rows g and g + 8 and half of the step in word 2 g + half.
    """
    padded = _padded(matrix, ROWS, FP16.step)
    rows, columns = padded.shape
    steps = columns // FP16.step
    fours = padded.reshape(rows, -1, 4)
    # The places of non-zeros come first, others fill up; metadata wants them in order.
    order = np.argsort(fours == 0, axis=-1, kind="stable")[..., :_KEPT_OF_FOUR]
    places = np.sort(order, axis=-1)
    values = np.take_along_axis(fours, places, -1).reshape(rows, columns // 2)
    bits = (places[..., 0] | places[..., 1] << 2).astype(np.uint32)
    # (rows of fragments, half, g, step, half of the step, four columns of it)
    bits = bits.reshape(rows // ROWS, 2, _GROUPS, steps, 2, 4) << (4 * np.arange(4, dtype=np.uint32))
    halves = np.bitwise_or.reduce(bits, -1)
    metadata = (halves[:, 0] | halves[:, 1] << np.uint32(16)).transpose(0, 2, 1, 3)
    metadata = np.ascontiguousarray(metadata).reshape(rows // ROWS, steps, 2 * _GROUPS)
    return Packed((_fragments(_words(values, FP16), 1), metadata), steps)


def is_two_of_four(matrix: NDArray[Any]) -> bool:
    """Whether every four columns of a matrix have two non-zeros at most."""
    padded = _padded(matrix, 1, 4)
    return bool(((padded.reshape(len(padded), -1, 4) != 0).sum(-1) <= _KEPT_OF_FOUR).all())


def blocks(matrix: NDArray[Any], precision: Precision, size: int) -> Packed:
    """The blocks of ``size`` by ``size`` (16 or 32) of a matrix (outputs, columns) that are not all zero.

    Values have the shape (steps, size / 16, 2, 32, 4), steps of all rows of blocks after each other. A step
    takes several blocks where these are narrower, parts of one where they are wider: the second array, int32,
    has the place of each part in its row, shape (steps, parts). The third, int32, has where each row of
    blocks begins, and where the last ends.
    """
    part = min(size, precision.step)
    parts = precision.step // part
    padded = _padded(matrix, size, size)
    high, wide = padded.shape[0] // size, padded.shape[1] // part
    tiles = padded.reshape(high, size, wide, part)
    present = (padded.reshape(high, size, -1, size) != 0).any((1, 3)).repeat(size // part, 1)
    counts = -(-present.sum(1) // parts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # One step more than there are: what is read ahead is there.
    places = np.zeros((starts[-1] + 1, parts), np.int32)
    gathered = np.zeros((size, starts[-1] + 1, parts, part), np.float32)
    for row in range(high):
        (columns,) = np.nonzero(present[row])
        step, within = starts[row] + np.arange(len(columns)) // parts, np.arange(len(columns)) % parts
        places[step, within] = columns
        gathered[:, step, within] = tiles[row][:, columns]
    words = _words(gathered.reshape(size, -1), precision)
    values = _fragments(words, 2).transpose(1, 0, 2, 3, 4)
    return Packed((np.ascontiguousarray(values), places, starts.astype(np.int32)), 0)


def block_density(matrix: NDArray[Any], size: int) -> float:
    """How many blocks of ``size`` by ``size`` are not all zero, of all."""
    padded = _padded(matrix, size, size)
    shaped = padded.reshape(padded.shape[0] // size, size, -1, size)
    return float((shaped != 0).any((1, 3)).mean())


def _padded(matrix: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    high, wide = (ceil_div(n, by) * by for n, by in zip(matrix.shape, (rows, columns), strict=True))
    padded = np.zeros((high, wide), np.float32)
    padded[: matrix.shape[0], : matrix.shape[1]] = matrix
    return padded


def _words(values: NDArray[Any], precision: Precision) -> Words:
    return np.ascontiguousarray(precision.rounded(values)).view(np.uint32)


def _fragments(words: Words, each: int) -> Words:
    """Rows of words as (rows of fragments, steps, fragments of a step, 32, 4), with ``each`` in a step.

    Thread 4 g + t holds words t and t + 4 of rows g and g + 8: (g, t), (g + 8, t), (g, t + 4),
    (g + 8, t + 4).
    """
    rows = len(words)
    shaped = words.reshape(rows // ROWS, 2, _GROUPS, -1, each, 2, _PAIRS)
    turned = shaped.transpose(0, 3, 4, 2, 6, 5, 1)
    return np.ascontiguousarray(turned).reshape(rows // ROWS, -1, each, WARP, 4)
