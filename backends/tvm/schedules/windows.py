"""Outputs that have columns of their own, at one position: each picks what it multiplies from a window of the
source, which vectors hold.

Outputs alike pick the same. The lanes of a vector are blocks of these, as many as there are or it has lanes
for: it has a row of all of them, the next vector the next row, and picks are made once for all rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import sums, written
from .blocks import Blocks, Strip, numbers
from .common import LINE, Core, ceil_div, i64

_PICK = "llvm.x86.avx512.vpermi2var.ps.512"


def windows_of(weights: NDArray[Any], strip: Strip, lanes: int, dtype: str = "float32") -> Blocks:
    """Weights (outputs, columns) by blocks of outputs that have columns of their own. Columns are enough for
    one window, and follow each other in the source.

    The next window of a block begins where those outputs that are behind the others have their next non-zero,
    or at the line of the cache that this is in: what lies in two lines takes twice as long to read. All that
    have one in the window give it, for the others there is a zero.

    Args:
        lanes: of a vector.
    """
    outputs, columns = weights.shape
    rows, alike, window, turn, line = strip.rows, strip.alike, strip.window, strip.turn, LINE // 4
    count, none = ceil_div(outputs, rows), columns + window
    padded = np.zeros((count * rows, columns + 1), np.float32)
    padded[:outputs, :columns] = weights
    padded = padded.reshape(-1, alike, columns + 1)
    owner, column = np.nonzero((padded != 0).any(1))
    each = np.bincount(owner, minlength=len(padded))
    # The columns of the non-zeros of each, and none at last.
    lists = np.full((len(padded), each.max() + 1), none, np.int32)
    lists[owner, numbers(owner, each)] = column
    every, given = np.arange(len(padded)), np.zeros(len(padded), np.int64)
    steps = []
    while True:
        reads = lists[every, given].reshape(count, -1)
        begin = np.minimum(reads.min(1) // line * line, columns - window)
        gives = reads < begin[:, None] + window
        steps.append((begin, np.where(gives, reads, columns), gives))
        if not gives.any():
            break
        given += gives.reshape(-1)
    begins, read, gives = (np.stack(part, 1) for part in zip(*steps, strict=True))
    there = gives.any(2)
    starts = np.concatenate([[0], np.cumsum(-(-there.sum(1) // turn))])
    at = (starts[:-1, None] * turn + np.arange(len(steps)))[there]
    size = max(1, starts[-1]) * turn  # arrays of no elements are none to TVM
    values = np.zeros((size, rows // alike, alike), dtype)
    picks = np.zeros((size, rows // alike), np.uint8)
    offsets = np.zeros(size, np.uint16 if columns < 1 << 16 else np.int32)
    values[at] = padded[every.reshape(count, 1, -1), :, read][there]
    picks[at] = np.where(gives, read - begins[..., None], 0)[there]
    offsets[at] = begins[there]
    values = values.reshape(size, -1, _beside(strip, lanes), alike).swapaxes(2, 3)
    return Blocks(values.reshape(-1), offsets, starts.astype(np.int32), picks.reshape(-1))


def few(weights: sums.Weights, data: Any, base: Any, run: Any, strip: Strip, core: Core) -> Any:
    """The sums of a block of outputs at one position: registers (rows)."""
    rows, chains, wide, alike = strip.rows, strip.chains, core.lanes, strip.alike
    each = _beside(strip, wide)
    kept = written.local(chains * rows)
    with script.unroll(i64(0), i64(chains * rows // wide)) as v, script.vectorized(i64(0), i64(wide)) as lane:
        script.buffer_store(kept, f32(0), [v * i64(wide) + lane])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * chains
        sums.ask_for(weights, begin, strip)
        for c, offset in enumerate(sums.offsets_of(weights.offsets, begin, chains, core)):
            starts = [base + offset + i64(n) for n in range(0, strip.window, wide)]
            window = [script.bind(data[tirx.Ramp(start, i64(1), wide)]) for start in starts]
            for first in range(0, rows, each * alike):
                k = (begin + c) * rows + first
                read = script.bind(_picked(window, weights.picks, k // alike, each, wide))
                for n in range(0, each * alike, wide):
                    values = weights.values[tirx.Ramp(k + n, i64(1), wide)].astype(f"float32x{wide}")
                    to = tirx.Ramp(i64(c * rows + first + n), i64(1), wide)
                    script.buffer_store(kept, kept[to] + values * read, [to])
    with script.unroll(i64(0), i64(rows // wide)) as v, script.vectorized(i64(0), i64(wide)) as lane:
        total = kept[v * i64(wide) + lane]
        for c in range(1, chains):
            total = total + kept[c * rows + v * i64(wide) + lane]
        script.buffer_store(kept, total, [v * i64(wide) + lane])
    if alike > 1:
        _turn(kept, strip, each, wide)
    return kept


def _beside(strip: Strip, lanes: int) -> int:
    """Blocks of outputs alike that are in the lanes of a vector."""
    return min(lanes, strip.rows // strip.alike)


def _picked(window: list[Any], picks: Any, first: Any, each: int, wide: int) -> Any:
    """What a row of each block multiplies: elements of a window by their numbers, of pairs of its vectors by
    the low bits of these.
    """
    some, read = picks[tirx.Ramp(first, i64(1), each)], None
    if each < wide:
        some = sums.picked(some, each, [lane % each for lane in range(wide)])
    numbers = script.bind(some.astype(f"int32x{wide}"))
    for n in range(0, len(window), 2):
        these = tirx.call_llvm_intrin(f"float32x{wide}", _PICK, window[n], numbers, window[n + 1])
        least = tirx.Broadcast(tirx.const(n * wide, "int32"), wide)
        read = these if read is None else tirx.Select(numbers >= least, these, read)
    return read


def _turn(kept: Any, strip: Strip, each: int, wide: int) -> None:
    """Outputs in their order, from row after row of blocks beside each other."""
    size = each * strip.alike
    order = [tirx.const(row * each + block, "int32") for block in range(each) for row in range(strip.alike)]
    for first in range(0, strip.rows, size):
        vectors = [script.bind(kept[tirx.Ramp(i64(first + n), i64(1), wide)]) for n in range(0, size, wide)]
        script.buffer_store(kept, tirx.Shuffle(vectors, order), [tirx.Ramp(i64(first), i64(1), size)])
