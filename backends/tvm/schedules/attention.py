"""Attention in one kernel: scores of a few rows, their softmax, and what they weigh, while all is in cache.

    result[i] = Σ softmax(score(query[i] · keyᵀ))[j] · value[j]    over the keys j

Keys and values are packed to panels first, for each batch. The scores of a tile of rows are then computed by
register tiles, as products are; they are never in memory as a whole.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import sym, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from ..vecmath import LOG2_E, exp2, f32
from . import turning, written
from .common import LANES, Core, apart, ceil_div, i64, pieces

# Reads an element of a buffer's view at a position; gives the score of a product at a position.
Read = Callable[[Any, Sequence[Any]], Any]
Score = Callable[[Sequence[Any], Sequence[Any], Any], Any]

_LEAST = -3.0e38
_NEAR = 1 << 14  # bytes of scores that stay in the first cache with a panel
_TOGETHER = 3  # rows of scores that become shares at once: what one waits for hides behind the others
_STEP = 32  # of a product's depth in a loop of its own: sums of the innermost loops keep their registers
_AGAIN = 0.2  # what reading a panel again takes, of a tile


@dataclass(frozen=True)
class Sizes:
    """Of attention.

    Attributes:
        batch: axes of matrices that do not mix.
        rows, keys: of queries, and of what they attend to.
        depth, columns: of a key, and of a value.
    """

    batch: tuple[int, ...]
    rows: int
    keys: int
    depth: int
    columns: int


@dataclass(frozen=True)
class Operands:
    """What attention reads and writes.

    Attributes:
        shapes: of the buffers: those read, the result last.
        query, key, value: which buffer holds each, and the element of it at (*batch, row, depth),
            (*batch, depth, key) and (*batch, key, column).
        score: of the buffers read, a position (*batch, row, key) and the product of a query and a key.
        place: of the result at (*batch, row, column).
    """

    shapes: tuple[tuple[int, ...], ...]
    query: tuple[int, Read]
    key: tuple[int, Read]
    value: tuple[int, Read]
    score: Score
    place: Callable[[Sequence[Any]], Sequence[Any]]


def kernel(sizes: Sizes, operands: Operands, tile: Sequence[int], core: Core) -> Any:
    """A PrimFunc of the buffers.

    Args:
        tile: rows, and columns of scores and of results, in registers.
    """
    rows, wide_keys, wide_values = tile
    batch, tiles = math.prod(sizes.batch), ceil_div(sizes.rows, rows)
    band = _band(sizes.rows, rows, 4 * rows * ceil_div(sizes.keys, core.lanes) * core.lanes)
    of_keys = _panels(sizes.keys, wide_keys, core.lanes)
    of_values = _panels(sizes.columns, wide_values, core.lanes)
    bands, parts = ceil_div(tiles, band), 1
    if core.threads > 1 and batch % core.threads and batch < 4 * core.threads:
        parts = min(core.threads, bands)  # of the rows of a batch, each of which packs keys for itself
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"tirx.noalias": True})
        names = [f"x{n}" for n in range(len(operands.shapes) - 1)] + ["result"]
        buffers = [
            script.arg(name, script.buffer([i64(size) for size in shape], "float32"))
            for name, shape in zip(names, operands.shapes, strict=True)
        ]
        with script.sblock("root"), script.sblock("attention"):
            script.sblock_attr({"written": 1})
            script.reads(*(buffer[written.whole(buffer)] for buffer in buffers[:-1]))
            script.writes(buffers[-1][written.whole(buffers[-1])])
            with written.each(batch * parts, core.threads > 1) as turn, written.block("attention_part"):
                lead = apart(sizes.batch, tirx.floordiv(turn, i64(parts)))
                emit = _Emit(sizes, operands, buffers, lead, rows, band, core.lanes)
                keys = emit.packed(operands.key, of_keys, sizes.depth)
                values = emit.packed(operands.value, of_values, sizes.keys)
                each = ceil_div(bands, parts)
                with script.serial(i64(0), i64(each)) as t, written.block("attention_part"):
                    first = (tirx.floormod(turn, i64(parts)) * i64(each) + t) * i64(band * rows)
                    if each * parts * band * rows > sizes.rows:
                        first = tirx.min(first, i64(sizes.rows - band * rows))
                    scores = emit.scores(keys, of_keys, first)
                    shares = emit.softmax(scores, first)
                    emit.weighed(scores, shares, values, of_values, first)
    return builder.get()


def _band(rows: int, tile: int, size: int) -> int:
    """How many tiles of rows read a panel in turn, while their scores of so many bytes stay in the cache."""
    fitting = range(1, max(1, min(rows // tile, _NEAR // size)) + 1)
    return min(fitting, key=lambda band: ceil_div(rows, band * tile) * band * (1 + _AGAIN / band))


@dataclass(frozen=True)
class Panels:
    """Columns of a matrix in panels of equal width.

    Attributes:
        start: the first column.
        count: of panels.
        wide: columns of a panel, whole vectors.
        columns: of them that are there: all but in the last panel of a matrix.
    """

    start: int
    count: int
    wide: int
    columns: int

    def column(self, panel: Any) -> Any:
        """The first of a panel."""
        return i64(self.start) + panel * i64(self.wide)

    def there(self, panel: Any, at: Any) -> Any:
        """A column of a panel; the last one, where it overhangs."""
        column = self.column(panel) + at
        return tirx.min(column, i64(self.start + self.columns - 1)) if self.columns < self.wide else column


def _panels(columns: int, wide: int, lanes: int) -> list[Panels]:
    whole, rest = divmod(columns, wide)
    found = [Panels(0, whole, wide, wide)] if whole else []
    if rest:
        found.append(Panels(whole * wide, 1, ceil_div(rest, lanes) * lanes, rest))
    return found


@dataclass(frozen=True)
class _Emit:
    """The parts of the kernel for one batch.

    Attributes:
        lead: the position of the batch.
        rows: of a tile.
        band: tiles that are computed together.
    """

    sizes: Sizes
    operands: Operands
    buffers: Sequence[Any]
    lead: Sequence[Any]
    rows: int
    band: int
    lanes: int

    def packed(self, operand: tuple[int, Read], runs: Sequence[Panels], depth: int) -> Any:
        """Panels (depth, wide) of a matrix (depth, columns), one after the other; what overhangs is the last
        column again.
        """
        made = written.buffer(depth * (runs[-1].start + runs[-1].count * runs[-1].wide))
        eights = depth // LANES if self._runs_down(operand) else 0
        for run in runs:
            with script.serial(i64(0), i64(run.count)) as p:
                panel = run.column(p) * i64(depth)
                if eights:
                    loops = script.serial(i64(0), i64(eights)), script.serial(i64(0), i64(run.wide // LANES))
                    with loops[0] as k, loops[1] as u:
                        row, at = k * i64(LANES), u * i64(LANES)
                        columns = [run.there(p, at + i64(j)) for j in range(LANES)]
                        lines = turning.turned([self._eight(operand, row, column) for column in columns])
                        for j, line in enumerate(lines):
                            place = panel + (row + i64(j)) * i64(run.wide) + at
                            script.buffer_store(made, line, [turning.lanes(place)])
                if depth > eights * LANES:
                    with script.serial(i64(eights * LANES), i64(depth)) as k, self._columns(run.wide) as lane:
                        value = self._read(operand, [k, run.there(p, lane)])
                        script.buffer_store(made, value, [panel + k * i64(run.wide) + lane])
        return made

    def _runs_down(self, operand: tuple[int, Read]) -> bool:
        """Whether the elements of a column follow each other in memory."""
        row, column, analyzer = tirx.Var("row", "int64"), tirx.Var("column", "int64"), sym.Analyzer()
        here, next_ = (self._read(operand, [k, column]).indices for k in (row, row + i64(1)))
        steps = [analyzer.simplify(b - a) for a, b in zip(here, next_, strict=True)]
        return all(analyzer.can_prove(step == int(axis == len(here) - 1)) for axis, step in enumerate(steps))

    def _eight(self, operand: tuple[int, Read], k: Any, column: Any) -> Any:
        """Elements of a column that follow each other in memory, from row ``k``."""
        first = self._read(operand, [k, column])
        return first.source[(*first.indices[:-1], turning.lanes(first.indices[-1]))]

    def scores(self, keys: Any, runs: Sequence[Panels], first: Any) -> Any:
        """Products (rows of a band, keys) of queries and all keys, filled to whole vectors."""
        width = ceil_div(self.sizes.keys, self.lanes) * self.lanes
        made = written.buffer(self.band * self.rows * width)
        for run in runs:
            with self._tiles(run) as (p, row):

                def query(r: Any, k: Any, row: Any = row) -> Any:
                    return self._read(self.operands.query, [first + row + r, k])

                sums = self._product(query, keys, run, p, self.sizes.depth)
                with script.unroll(i64(0), i64(self.rows)) as r, self._columns(run.wide) as lane:
                    at = (row + r) * i64(width) + run.column(p) + lane
                    script.buffer_store(made, sums[r * run.wide + lane], [at])
        return made

    def softmax(self, scores: Any, first: Any) -> Any:
        """Powers in the place of scores; one over the sum of each row of them."""
        rows, keys, lanes = self.band * self.rows, self.sizes.keys, self.lanes
        width, some = int(scores.shape[0]) // rows, _some(rows)
        shares, top, sums = written.buffer(rows), written.local(some * lanes), written.local(some * lanes)
        with script.serial(i64(0), i64(rows // some)) as turn, written.block("attention_part"):
            start = turn * i64(some)

            def score(r: Any, j: Any, lane: Any, overhangs: bool) -> None:
                row, last = start + r, tirx.min(j, i64(keys - 1)) if overhangs else j
                at = row * i64(width) + j
                value = self.operands.score(self.buffers, [*self.lead, first + row, last], scores[at])
                if overhangs:
                    value = tirx.Select(j < i64(keys), value, f32(_LEAST))
                script.buffer_store(scores, value, [at])
                script.buffer_store(top, tirx.max(top[r * lanes + lane], scores[at]), [r * lanes + lane])

            def power(r: Any, j: Any, lane: Any, overhangs: bool) -> None:
                at = (start + r) * i64(width) + j
                most = top[r * i64(lanes)] * f32(LOG2_E)
                script.buffer_store(scores, exp2(scores[at] * f32(LOG2_E) - most), [at])
                script.buffer_store(sums, sums[r * lanes + lane] + scores[at], [r * lanes + lane])

            self._fill(top, _LEAST)
            self._each_key(some, score)
            written.join_halves(top, some, lanes, tirx.max)
            self._fill(sums, 0.0)
            self._each_key(some, power)
            written.join_halves(sums, some, lanes, operator.add)
            with script.unroll(i64(0), i64(some)) as r:
                script.buffer_store(shares, f32(1) / sums[r * i64(lanes)], [start + r])
        return shares

    def weighed(self, powers: Any, shares: Any, values: Any, runs: Sequence[Panels], first: Any) -> None:
        """Values by their shares, added up to the result."""
        width = int(powers.shape[0]) // (self.band * self.rows)
        for run in runs:
            with self._tiles(run) as (p, row):

                def power(r: Any, k: Any, row: Any = row) -> Any:
                    return powers[(row + r) * i64(width) + k]

                sums = self._product(power, values, run, p, self.sizes.keys)
                for start, count, lanes in pieces(run.columns, self.lanes, 1):
                    rows, vectors = script.unroll(i64(0), i64(self.rows)), script.unroll(i64(0), i64(count))
                    with rows as r, vectors as u, script.vectorized(i64(0), i64(lanes)) as v:
                        at = i64(start) + u * i64(lanes) + v
                        place = self.operands.place([*self.lead, first + row + r, run.column(p) + at])
                        value = sums[r * run.wide + at] * shares[row + r]
                        script.buffer_store(self.buffers[-1], value, list(place))

    @contextmanager
    def _tiles(self, run: Panels) -> Iterator[tuple[Any, Any]]:
        """Loops over panels and the tiles of a band; the panel, and the row of the band a tile begins at."""
        panels, tiles = script.serial(i64(0), i64(run.count)), script.serial(i64(0), i64(self.band))
        with panels as p, tiles as t, written.block("attention_part"):
            yield p, t * i64(self.rows)

    def _product(self, read: Callable[[Any, Any], Any], packed: Any, run: Panels, p: Any, depth: int) -> Any:
        """Sums (rows, wide) over ``depth`` of what is read and of a panel, in registers."""
        wide = run.wide
        sums = written.local(self.rows * wide)
        with script.unroll(i64(0), i64(self.rows)) as r, self._columns(wide) as lane:
            script.buffer_store(sums, f32(0), [r * wide + lane])
        for start, count, each in pieces(depth, _STEP, 1):
            turns, steps = script.serial(i64(0), i64(count)), script.serial(i64(0), i64(each))
            rows = script.unroll(i64(0), i64(self.rows))
            with turns as t, steps as s, rows as r, self._columns(wide) as lane:
                k = i64(start) + t * i64(each) + s
                factor = packed[run.column(p) * i64(depth) + k * i64(wide) + lane]
                script.buffer_store(sums, sums[r * wide + lane] + read(r, k) * factor, [r * wide + lane])
        return sums

    def _read(self, operand: tuple[int, Read], at: Sequence[Any]) -> Any:
        number, read = operand
        return read(self.buffers[number], [*self.lead, *at])

    @contextmanager
    def _columns(self, wide: int) -> Iterator[Any]:
        """Loops over the vectors of a panel."""
        count, lanes = i64(wide // self.lanes), i64(self.lanes)
        with script.unroll(i64(0), count) as u, script.vectorized(i64(0), lanes) as lane:
            yield u * lanes + lane

    def _each_key(self, some: int, body: Callable[[Any, Any, Any, bool], None]) -> None:
        """Loops over vectors of keys, the last of which may overhang, for each of some rows in turn."""
        whole, lanes = self.sizes.keys // self.lanes, i64(self.lanes)
        loops = script.serial(i64(0), i64(whole)), script.unroll(i64(0), i64(some))
        with loops[0] as k, loops[1] as r, script.vectorized(i64(0), lanes) as lane:
            body(r, k * lanes + lane, lane, False)
        if self.sizes.keys % self.lanes:
            with script.unroll(i64(0), i64(some)) as r, script.vectorized(i64(0), lanes) as lane:
                body(r, whole * lanes + lane, lane, True)

    def _fill(self, buffer: Any, value: float) -> None:
        vectors = script.unroll(i64(0), i64(int(buffer.shape[0]) // self.lanes))
        with vectors as u, script.vectorized(i64(0), i64(self.lanes)) as lane:
            script.buffer_store(buffer, f32(value), [u * i64(self.lanes) + lane])


def _some(rows: int) -> int:
    """How many rows wait for their sums together."""
    return next(some for some in range(_TOGETHER, 0, -1) if rows % some == 0)
