"""Weights that are mostly zero, as their kernels read them: blocks of outputs that share non-zero columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .common import LANES, ceil_div


@dataclass(frozen=True)
class Strip:
    """What is in registers at once, and what part of the source is read in turn.

    Attributes:
        rows: outputs of a block.
        vectors: of positions; single positions where there are ``chains``.
        depth: channels of the source after which the next block of outputs is begun, so that what is read
            stays in the cache; 0 for all.
        chains: 0 where positions are in the lanes. For few positions outputs are, and so many non-zeros are
            summed apart from each other, which hides the latency of a multiply-add; with one output, these
            are in the lanes.
    """

    rows: int
    vectors: int
    depth: int = 0
    chains: int = 0

    @property
    def wide(self) -> int:
        """Positions of a tile."""
        return self.vectors if self.chains else self.vectors * LANES

    def panels(self, channels: int) -> int:
        return ceil_div(channels, self.depth) if self.depth else 1


@dataclass(frozen=True)
class Blocks:
    """Non-zero weights by blocks of outputs.

    Attributes:
        values: shape (non-zeros · rows,), float32 or float16: the rows of a block at one column.
        offsets: shape (non-zeros,), of the column in the source: uint16 where that holds all, or int32.
        starts: shape (panels · blocks + 1,), int32: where the non-zeros of each block begin, panel by panel,
            counted in chains.
    """

    values: NDArray[Any]
    offsets: NDArray[Any]
    starts: NDArray[Any]


def blocks_of(
    weights: NDArray[Any], offsets: NDArray[Any], channels: NDArray[Any], strip: Strip, dtype: str = "float32"
) -> Blocks:
    """Weights (outputs, columns) by blocks of outputs; each filled with zeros to whole chains.

    Args:
        offsets, channels: of each column, where it is in the source and the channel it belongs to.
        dtype: of the values, which it holds exactly.
    """
    outputs, columns = weights.shape
    count, chains = ceil_div(outputs, strip.rows), max(1, strip.chains)
    padded = np.zeros((count * strip.rows, columns), np.float32)
    padded[:outputs] = weights
    blocks = padded.reshape(count, strip.rows, columns)
    panels = strip.panels(int(channels.max()) + 1)
    panel = channels // strip.depth if strip.depth else np.zeros_like(channels)
    block, column = np.nonzero((blocks != 0).any(1))
    order = np.lexsort((offsets[column], block, panel[column]))
    block, column = block[order], column[order]
    number = panel[column] * count + block
    counts = np.bincount(number, minlength=panels * count)
    filled = -(-counts // chains) * chains
    starts = np.concatenate([[0], np.cumsum(filled)])
    # Arrays of no elements are none to TVM.
    size = max(1, starts[-1])
    values = np.zeros((size, strip.rows), dtype)
    places = np.zeros(size, np.uint16 if offsets.max() < 1 << 16 else np.int32)
    at = starts[number] + np.arange(len(number)) - (np.cumsum(counts) - counts)[number]
    values[at], places[at] = blocks[block, :, column], offsets[column]
    return Blocks(values.reshape(-1), places, (starts // chains).astype(np.int32))
