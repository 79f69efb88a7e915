"""Weights that are mostly zero, as their kernels read them: blocks of outputs that share non-zero columns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .common import LANES, Core, ceil_div

_TURNS = {1: 4, 2: 2, 4: 2}  # by rows


@dataclass(frozen=True)
class Strip:
    """What is in registers at once, and for how long.

    Attributes:
        rows: outputs of a block.
        vectors: of positions; single positions where there are ``chains``.
        parts: of the columns, one after the other: what all blocks multiply by one stays in the first cache.
        chains: 0 where positions are in the lanes. For few positions outputs are, and so many non-zeros are
            summed apart from each other, which hides the latency of a multiply-add; with one output, these
            are in the lanes.
        window: 0 where outputs of a block share the column of a non-zero. Else each has its own one of so
            many that follow each other, which two vectors hold, or four.
        alike: outputs beside each other that share theirs nevertheless.
        cuts: parts of the rows of an image where parts of it are in the lanes, so that no vector lies in two
            lines of the cache (`Lifted`), else 0.
    """

    rows: int
    vectors: int
    parts: int = 1
    chains: int = 0
    window: int = 0
    alike: int = 1
    cuts: int = 0

    @property
    def wide(self) -> int:
        """Positions of a tile."""
        return self.vectors if self.chains else self.vectors * LANES

    @property
    def turn(self) -> int:
        """Non-zeros that a turn of the loop over them takes."""
        return self.chains or _TURNS.get(self.rows, 1)

    def vector(self, lanes: int) -> int:
        """Positions of a vector: of all ``lanes`` where that comes out; 1 where they make none."""
        return next((size for size in (lanes, LANES) if self.wide % size == 0), 1)

    def crossed(self, core: Core) -> bool:
        """Whether all outputs of a block at all positions are one vector of the core; not where elements of a
        vector are multiplied by all of another at no cost.
        """
        size = self.rows * self.wide
        fits = size <= core.lanes and size % LANES == 0 and not core.elements
        return fits and self.chains > 0 and min(self.rows, self.wide) > 1

    def gathers(self, core: Core) -> bool:
        """Whether what several non-zeros multiply at one position is put together by one instruction."""
        return core.gathers and self.chains >= LANES and self.vectors == 1 and 1 < self.rows < core.lanes

    def last(self, positions: int, lanes: int) -> Strip | None:
        """Of the last tile, which has fewer vectors of ``lanes`` where few positions are left to it; None
        where they make whole tiles.
        """
        rest = positions % self.wide
        if not rest or self.chains:
            return replace(self, vectors=rest) if rest else None
        each = self.vector(lanes)
        return replace(self, vectors=ceil_div(rest, each) * each // LANES)


@dataclass(frozen=True)
class Blocks:
    """Non-zero weights by blocks of outputs, in runs, filled with zeros to whole turns of the loop over them.

    Attributes:
        values: shape (non-zeros · rows,), float32 or float16: the rows of a block at one column; of a window,
            in the order of `windows`.
        offsets: shape (non-zeros and those of a turn,), of the column in the source: uint16 where that holds
            all, or int32. Of the first one of a window, where outputs have columns of their own.
        starts: shape (runs + 1,), int32: where the non-zeros of each run begin, counted in turns. A run is a
            block's in a part of the columns: all of the first part are before those of the next.
        picks: shape (non-zeros · rows / those alike,), uint8: the column of each within its window; of no
            elements where rows share them.
        unit: elements that offsets count.
    """

    values: NDArray[Any]
    offsets: NDArray[Any]
    starts: NDArray[Any]
    picks: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.uint8))
    unit: int = 1

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """In the order in which kernels take them."""
        picks = [self.picks] if self.picks.size else []
        return [self.values, self.offsets, self.starts, *picks]


def blocks_of(
    weights: NDArray[Any],
    offsets: NDArray[Any],
    strip: Strip,
    dtype: str = "float32",
    unit: int = 1,
    parts: NDArray[Any] | None = None,
) -> Blocks:
    """Weights (outputs, columns) by blocks of outputs.

    Args:
        offsets: shape (groups of channels, columns), where each column is in the source for the outputs of a
            group, which are whole blocks where there are several.
        dtype: of the values, which it holds exactly.
        unit: elements that offsets are to count, of which they are multiples.
        parts: of the columns, shaped as offsets; by default all are in the first.
    """
    outputs, columns = weights.shape
    count, turn = ceil_div(outputs, strip.rows), strip.turn
    padded = np.zeros((count * strip.rows, columns), np.float32)
    padded[:outputs] = weights
    blocks = padded.reshape(count, strip.rows, columns)
    block, column = np.nonzero((blocks != 0).any(1))
    group = block * len(offsets) // count
    place = offsets[group, column] // unit
    run = block if parts is None else parts[group, column] * count + block
    order = np.lexsort((place, run))
    block, column, place, run = block[order], column[order], place[order], run[order]
    counts = np.bincount(run, minlength=strip.parts * count)
    starts = np.concatenate([[0], np.cumsum(-(-counts // turn))])
    size = max(1, starts[-1]) * turn  # arrays of no elements are none to TVM
    values = np.zeros((size, strip.rows), dtype)
    reads = np.zeros(size, np.uint16 if offsets.max() // unit < 1 << 16 else np.int32)
    at = starts[run] * turn + numbers(run, counts)
    values[at], reads[at] = blocks[block, :, column], place
    # What fills a turn reads what the one before it does.
    reads = np.maximum.accumulate(reads.reshape(-1, turn), 1).reshape(-1)
    reads = np.append(reads, np.zeros(turn, reads.dtype))  # those of the next turn are read in each
    return Blocks(values.reshape(-1), reads, starts.astype(np.int32), unit=unit)


def numbers(owner: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    """The number of each element among those of its owner. Owners are ascending."""
    numbers: NDArray[Any] = np.arange(len(owner)) - (np.cumsum(counts) - counts)[owner]
    return numbers
