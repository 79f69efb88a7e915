"""Products with weights that are mostly zero: outputs are sums of shifted rows of the source.

    y[o, p] = Σ values[k, o] · source[offsets[k] + p]    over the non-zeros k of the block of outputs of o

Positions p are in the lanes, so that any pattern of zeros will do. A product and a pointwise convolution read
a panel of the positions of a tile, packed where the tile begins; other convolutions read the padded image,
where a tap is an offset: no im2col. Where there are few positions, outputs of a block are in the lanes. What
follows is done where results are stored.
Source: E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import sums, windows, written
from .blocks import Blocks, Strip
from .common import (
    LANES,
    LINE,
    WORTH_PASS,
    WORTH_THREADS,
    Core,
    Rule,
    annotated,
    ceil_div,
    i64,
    inline_around,
    pieces,
)
from .finish import finished_in_place
from .image import Image, along
from .lifted import Lifted
from .sources import Pixels, Source, Tile, Tokens, positions
from .turning import lanes, packed_shape, turned

_LINE = LINE // 4  # floats


@dataclass(frozen=True)
class Result:
    """Of a kernel: its shape, and where that of an output at a position is.

    Attributes:
        beside: outputs that are beside each other; 1 where positions are.
    """

    shape: tuple[int, ...]
    at: Callable[[Any, Any], tuple[Any, ...]]
    beside: int = 1

    @property
    def turns(self) -> tuple[int, ...]:
        """Outputs turned together: of a line of the cache, of a vector, or one."""
        return tuple(size for size in (_LINE, LANES, 1) if size <= self.beside)


def rows_of(source: Tokens, outputs: int) -> Result:
    """Rows arranged as they are read, outputs last."""
    return Result((*source.lead, outputs), lambda o, p: (*source.at(p), o), outputs)


def blocks_of_channels(source: Pixels | Image, outputs: int) -> Result:
    """(n, blocks of outputs, height, width, 8)."""

    def at(o: Any, p: Any) -> tuple[Any, ...]:
        image, row, column = source.at(p)
        return image, tirx.floordiv(o, i64(LANES)), row, column, tirx.floormod(o, i64(LANES))

    return Result(packed_shape((source.data[0], outputs, *source.out)), at, LANES)


def image_of(source: Pixels | Image, outputs: int) -> Result:
    """(n, outputs, height, width)."""

    def at(o: Any, p: Any) -> tuple[Any, ...]:
        image, row, column = source.at(p)
        return image, o, row, column

    return Result((source.data[0], outputs, *source.out), at)


def kernel(source: Source, outputs: int, blocks: Blocks, strip: Strip, result: Result, core: Core) -> Any:
    """A PrimFunc of what a source reads and of arrays of ``blocks``; `Sparse` adds what is fused to it."""
    tiles, last = count_tiles(source, strip), strip.last(source.line, core.lanes)
    work = 2.0 * blocks.values.size * strip.wide  # floating-point operations of a tile
    by_tile = core.threads > 1 and shares_tiles(source, strip, core) and tiles * work > WORTH_THREADS
    by_block = core.threads > 1 and not by_tile and work > WORTH_THREADS
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"tirx.noalias": True})

        def argument(name: str, shape: Sequence[int], dtype: str) -> Any:
            return script.arg(name, script.buffer([i64(d) for d in shape], dtype))

        data = [argument(*operand) for operand in source.operands]
        arrays = [argument(*operand) for operand in sums.operands(blocks)]
        weights = sums.Weights(*arrays)._replace(unit=blocks.unit)
        made = argument("result", result.shape, "float32")
        with script.sblock("root"), script.sblock("sparse"):
            script.sblock_attr({"sparse": 1})
            script.reads(*(buffer[written.whole(buffer)] for buffer in (*data, *arrays)))
            script.writes(made[written.whole(made)])
            into, at = made, result.at
            if not source.exact:
                into, at = written.buffer(outputs, max(source.positions, (last or strip).wide)), _together
            turns, wide = result.turns, strip.wide
            each = _Tiles(source, data, weights, into, at, turns, outputs, wide, by_block, core)
            image = source.prepare(data, core, strip)
            with written.each(tiles, by_tile) as t, written.block("sparse_tile"):
                each_line = ceil_div(source.line, strip.wide)
                if last is None or each_line == 1:
                    each.write(image, t * i64(min(strip.wide, source.line)), last or strip)
                else:
                    begin = tirx.floordiv(t, i64(each_line)) * i64(source.line)
                    at = tirx.floormod(t, i64(each_line))
                    with script.If(at < i64(each_line - 1)):
                        with script.Then(), written.block("sparse_whole"):
                            each.write(image, begin + at * i64(strip.wide), strip)
                        with script.Else(), written.block("sparse_rest"):
                            each.write(image, begin + i64(source.line - last.wide), last)
            if isinstance(source, Image) and not source.exact:
                _pick(into, made, source, core)
    return builder.get()


def count_tiles(source: Source, strip: Strip) -> int:
    return source.positions // source.line * ceil_div(source.line, strip.wide)


def shares_tiles(source: Source, strip: Strip, core: Core) -> bool:
    """Whether threads share the tiles, of which there are enough, and not the blocks of outputs."""
    return count_tiles(source, strip) >= 2 * core.threads


@dataclass(frozen=True)
class _Tiles:
    """What tiles have in common.

    Attributes:
        into: buffer of the results.
        at: where that of an output at a position is.
        turns: see `Result`.
        wide: positions of whole tiles.
        apart: whether threads share the blocks of outputs.
    """

    source: Source
    data: Sequence[Any]
    weights: sums.Weights
    into: Any
    at: Callable[[Any, Any], tuple[Any, ...]]
    turns: tuple[int, ...]
    outputs: int
    wide: int
    apart: bool
    core: Core

    def write(self, image: Any, first: Any, strip: Strip) -> None:
        """The results of the tile that begins at position ``first``.

        Args:
            image: what is read where that is one for all tiles; or None.
        """
        tile = Tile(first, strip, self.wide, self.core, self.apart)
        panel = self.source.pack(self.data, tile)
        read = (image, self.source.start(first)) if panel is None else (panel, i64(0))
        if strip.chains:
            with self._blocks(first, strip) as block:
                self._few(read, first, block, strip)
            return

        before = self._before_last(read, strip) if strip.parts > 1 else None
        if len(self.turns) > 1:
            self._in_lines(read, before, first, strip)
            return
        offsets = None
        if not self.apart:
            offsets = sums.Offsets(self.weights, self._run(i64(0), strip), strip, self.core)
        with self._blocks(first, strip) as block:
            kept, output = self._last(read, before, block, strip, offsets), block * i64(strip.rows)
            with script.unroll(i64(0), i64(strip.rows)) as r, self._inside(output + r, strip.rows):
                self._store_row(output + r, first, strip, kept, r)

    @contextmanager
    def _blocks(self, first: Any, strip: Strip) -> Iterator[Any]:
        """A loop over blocks of outputs, in which the next tile is asked for."""
        blocks = ceil_div(self.outputs, strip.rows)
        with written.each(blocks, self.apart) as block, written.block("sparse_run"):
            self.source.ask_for(self.data, first + strip.wide, strip, block, blocks)
            yield block

    def _few(self, read: tuple[Any, Any], first: Any, run: Any, strip: Strip) -> None:
        rows = strip.rows
        output = run * i64(rows)  # blocks that are summed as a whole follow each other
        kept = (windows if strip.window else sums).few(self.weights, *read, run, strip, self.core)

        def store(o: Any, v: Any) -> None:
            script.buffer_store(self.into, kept[v * rows + o], self.at(output + o, first + v))

        with script.unroll(i64(0), i64(strip.wide)) as v:
            if self.outputs % rows == 0:
                with sums.outputs(rows, self.core) as o:
                    store(o, v)
            else:
                with script.unroll(i64(0), i64(rows)) as o, self._inside(output + o, rows):
                    store(o, v)

    def _before_last(self, read: tuple[Any, Any], strip: Strip) -> Any:
        """The sums of all parts but the last."""
        blocks, size = ceil_div(self.outputs, strip.rows), strip.rows * strip.wide
        made, each = written.buffer(blocks * size), ceil_div(blocks, self.core.threads if self.apart else 1)
        with written.each(blocks * strip.rows, self.apart) as o, positions(strip, self.core.lanes) as v:
            script.buffer_store(made, f32(0), [o * i64(strip.wide) + v])
        parts, shares = script.serial(i64(0), i64(strip.parts - 1)), ceil_div(blocks, each)
        with parts as part, written.each(shares, self.apart) as share, written.block("sparse_part"):
            start = share * i64(each)
            run = part * i64(blocks) + start
            count = tirx.min(i64(each), i64(blocks) - start) if blocks % each else i64(each)
            offsets = sums.Offsets(self.weights, run, strip, self.core)
            with script.serial(i64(0), count) as b, written.block("sparse_run"):
                at = (start + b) * i64(size)

                def begin(r: Any, v: Any) -> Any:
                    return made[at + r * strip.wide + v]

                kept = sums.many(self.weights, *read, run + b, strip, self.core, begin, offsets)
                self._keep(kept, made, at, strip)
        return made

    def _last(self, read: tuple[Any, Any], before: Any, block: Any, strip: Strip, offsets: Any) -> Any:
        """The sums of a block, with those ``before`` its last part: registers (rows · positions)."""

        def begin(r: Any, v: Any) -> Any:
            return before[(block * i64(strip.rows) + r) * i64(strip.wide) + v]

        run = self._run(block, strip)
        begins = sums.nothing if before is None else begin
        offsets = offsets or sums.Offsets(self.weights, run, strip, self.core)
        return sums.many(self.weights, *read, run, strip, self.core, begins, offsets)

    def _run(self, block: Any, strip: Strip) -> Any:
        """The last of a block."""
        return block + i64((strip.parts - 1) * ceil_div(self.outputs, strip.rows))

    def _in_lines(self, read: tuple[Any, Any], before: Any, first: Any, strip: Strip) -> None:
        """As many outputs as a line of the cache has are summed, and turned while their sums are near."""
        for start, count, each in pieces(self.outputs, _LINE):
            blocks = ceil_div(each, strip.rows)
            with written.each(count, self.apart) as c, written.block("sparse_line"):
                part = written.local(blocks * strip.rows * strip.wide)
                block = i64(start // strip.rows) + c * i64(blocks)
                offsets = sums.Offsets(self.weights, self._run(block, strip), strip, self.core)
                with script.serial(i64(0), i64(blocks)) as b, written.block("sparse_run"):
                    kept = self._last(read, before, block + b, strip, offsets)
                    self._keep(kept, part, b * i64(strip.rows * strip.wide), strip)
                for at, lines, wide in pieces(each, *self.turns):
                    with script.serial(i64(0), i64(lines)) as n:
                        within = i64(at) + n * i64(wide)
                        o = start + c * i64(_LINE) + within
                        self._turn(part, within * i64(strip.wide), o, wide, first, strip)

    def _keep(self, kept: Any, part: Any, at: Any, strip: Strip) -> None:
        with script.unroll(i64(0), i64(strip.rows)) as r, positions(strip, self.core.lanes) as v:
            script.buffer_store(part, kept[r * strip.wide + v], [at + r * strip.wide + v])

    def _store_row(self, o: Any, first: Any, strip: Strip, kept: Any, row: Any) -> None:
        """The results of an output, a row of its block, at those positions of the tile that there are."""
        if isinstance(self.source, Lifted):
            begin = row * i64(strip.wide)
            self.source.store(self.into, o, lambda v: kept[lanes(begin + v)], first, strip)
            return
        valid = min(strip.wide, self.source.positions)
        for start, count, size in pieces(valid, strip.vector(self.core.lanes)):
            with script.unroll(i64(0), i64(count)) as u, script.vectorized(i64(0), i64(size)) as lane:
                v = i64(start) + u * i64(size) + lane
                script.buffer_store(self.into, kept[row * strip.wide + v], self.at(o, first + v))

    def _turn(self, part: Any, at: Any, o: Any, wide: int, first: Any, strip: Strip) -> None:
        """Rows of the results of ``wide`` outputs from their sums at ``at``, positions in the lanes."""
        for start, count, rows in pieces(min(strip.wide, self.source.positions), LANES):
            with script.serial(i64(0), i64(count)) as u, written.block("sparse_turn"):
                v, kept = i64(start) + u * i64(LANES), written.local(LANES * wide)
                if wide == 1:
                    script.buffer_store(kept, part[lanes(at + v)], [lanes(i64(0))])
                for column in range(0, wide if wide > 1 else 0, LANES):
                    lines = [part[lanes(at + (column + j) * strip.wide + v)] for j in range(LANES)]
                    for j, value in enumerate(turned(lines)):
                        script.buffer_store(kept, value, [lanes(i64(j * wide + column))])
                with script.unroll(i64(0), i64(rows)) as j, script.vectorized(i64(0), i64(wide)) as lane:
                    value = kept[j * i64(wide) + lane]
                    script.buffer_store(self.into, value, self.at(o + lane, first + v + j))

    def _inside(self, o: Any, rows: int) -> AbstractContextManager[None]:
        """Skips what outputs are filled up with to whole blocks of ``rows``."""
        return written.where(*([o < i64(self.outputs)] if self.outputs % rows else []))


def _together(o: Any, p: Any) -> tuple[Any, Any]:
    return o, p


def _pick(results: Any, made: Any, source: Image, core: Core) -> None:
    """What of all positions are results."""
    n, outputs, rows, columns = (int(size) for size in made.shape)
    parallel = core.threads > 1 and math.prod((n, outputs, rows, columns)) > WORTH_PASS
    with (
        written.each(outputs, parallel) as o,
        script.serial(i64(0), i64(rows)) as i,
        script.serial(i64(0), i64(n)) as m,
        along(columns) as j,
    ):
        script.buffer_store(made, results[o, (i * n + m) * source.wide + j], [m, o, i, j])


class Sparse(Rule):
    """Schedule of `kernel` with whatever elementwise operators were fused after it."""

    def schedule(self, schedule: Any) -> Any:
        if annotated(schedule, "sparse") is None:
            return None
        inline_around(schedule, lambda name: name == "sparse")
        return finished_in_place(schedule)
