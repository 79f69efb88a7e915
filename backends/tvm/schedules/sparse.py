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
from contextlib import contextmanager
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
from .sources import Image, Pixels, Source, Tokens, along, positions
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
    tiles, last = count_tiles(source, strip), strip.last(source.positions, core.lanes)
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
            tile = _Tile(
                source,
                data,
                weights,
                into,
                at,
                result.turns,
                outputs,
                strip.wide,
                blocks.groups,
                by_block,
                core,
            )
            image = source.prepare(data, core, strip)
            with written.each(tiles, by_tile) as t, written.block("sparse_tile"):
                if last is None or tiles == 1:
                    tile.write(image, t * i64(strip.wide), last or strip)
                else:
                    with script.If(t < i64(tiles - 1)):
                        with script.Then(), written.block("sparse_whole"):
                            tile.write(image, t * i64(strip.wide), strip)
                        with script.Else(), written.block("sparse_rest"):
                            tile.write(image, i64(source.positions - last.wide), last)
            if isinstance(source, Image) and not source.exact:
                _pick(into, made, source, core)
    return builder.get()


def count_tiles(source: Source, strip: Strip) -> int:
    return ceil_div(source.positions, strip.wide)


def shares_tiles(source: Source, strip: Strip, core: Core) -> bool:
    """Whether threads share the tiles, of which there are enough, and not the blocks of outputs."""
    return count_tiles(source, strip) >= 2 * core.threads


@dataclass(frozen=True)
class _Tile:
    """What tiles have in common.

    Attributes:
        into: buffer of the results.
        at: where that of an output at a position is.
        turns: see `Result`.
        wide: positions of whole tiles.
        groups: of runs, on a thread each where they are ``apart``.
    """

    source: Source
    data: Sequence[Any]
    weights: sums.Weights
    into: Any
    at: Callable[[Any, Any], tuple[Any, ...]]
    turns: tuple[int, ...]
    outputs: int
    wide: int
    groups: int
    apart: bool
    core: Core

    def write(self, image: Any, first: Any, strip: Strip) -> None:
        """The results of the tile that begins at position ``first``.

        Args:
            image: what is read where that is one for all tiles; or None.
        """
        panel = self.source.pack(self.data, first, strip, self.wide, self.core, self.apart)
        read = (panel, i64(0)) if image is None else (image, first)
        if strip.run:
            self._in_runs(read, first, strip)
        elif len(self.turns) > 1 and not strip.chains:
            self._in_lines(read, first, strip)
        else:
            blocks = ceil_div(self.outputs, strip.rows)
            with written.each(blocks, self.apart) as run, written.block("sparse_run"):
                self.source.ask_for(self.data, first + strip.wide, strip, run, blocks)
                (self._few if strip.chains else self._many)(read, first, run, strip)

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

    def _many(self, read: tuple[Any, Any], first: Any, run: Any, strip: Strip) -> None:
        output, wide = self.weights.output(run), strip.wide
        kept = sums.many(self.weights, *read, run, strip, self.core, sums.nothing)
        with script.unroll(i64(0), i64(strip.rows)) as r, self._inside(output + r, strip.rows):
            self._store_row(output + r, first, strip, lambda v: kept[r * wide + v])

    def _in_runs(self, read: tuple[Any, Any], first: Any, strip: Strip) -> None:
        """Runs add to the sums of the tile."""
        wide, runs = strip.wide, int(self.weights.places.shape[0]) // self.groups
        rows = ceil_div(self.outputs, strip.rows) * strip.rows
        part = written.buffer(rows * wide)
        with script.serial(i64(0), i64(rows)) as o, positions(strip, self.core.lanes) as v:
            script.buffer_store(part, f32(0), [o * wide + v])
        loops = written.each(self.groups, self.apart), script.serial(i64(0), i64(runs))
        with loops[0] as g, loops[1] as r, written.block("sparse_run"):
            self.source.ask_for(self.data, first + wide, strip, r, runs)
            run = g * i64(runs) + r
            at = self.weights.output(run) * i64(wide)

            def begin(r: Any, v: Any) -> Any:
                return part[at + r * wide + v]

            kept = sums.many(self.weights, *read, run, strip, self.core, begin)
            self._keep(kept, part, at, strip)
        if len(self.turns) == 1:
            with script.serial(i64(0), i64(self.outputs)) as o:
                self._store_row(o, first, strip, lambda v: part[o * wide + v])
            return
        for start, count, each in pieces(self.outputs, *self.turns):
            with written.each(count, self.apart) as c:
                o = i64(start) + c * i64(each)
                self._turn(part, o * i64(wide), o, each, first, strip)

    def _in_lines(self, read: tuple[Any, Any], first: Any, strip: Strip) -> None:
        """As many outputs as a line of the cache has are summed, and turned while their sums are near."""
        for start, count, each in pieces(self.outputs, _LINE):
            blocks = ceil_div(each, strip.rows)
            with written.each(count, self.apart) as c, written.block("sparse_line"):
                part = written.local(blocks * strip.rows * strip.wide)
                with script.serial(i64(0), i64(blocks)) as b, written.block("sparse_run"):
                    run = i64(start // strip.rows) + c * i64(blocks) + b
                    kept = sums.many(self.weights, *read, run, strip, self.core, sums.nothing)
                    self._keep(kept, part, b * i64(strip.rows * strip.wide), strip)
                for at, lines, wide in pieces(each, *self.turns):
                    with script.serial(i64(0), i64(lines)) as n:
                        within = i64(at) + n * i64(wide)
                        o = start + c * i64(_LINE) + within
                        self._turn(part, within * i64(strip.wide), o, wide, first, strip)

    def _keep(self, kept: Any, part: Any, at: Any, strip: Strip) -> None:
        with script.unroll(i64(0), i64(strip.rows)) as r, positions(strip, self.core.lanes) as v:
            script.buffer_store(part, kept[r * strip.wide + v], [at + r * strip.wide + v])

    def _store_row(self, o: Any, first: Any, strip: Strip, value: Callable[[Any], Any]) -> None:
        """The results of an output at those positions of the tile that there are."""
        valid = min(strip.wide, self.source.positions)
        for start, count, size in pieces(valid, strip.vector(self.core.lanes)):
            with script.unroll(i64(0), i64(count)) as u, script.vectorized(i64(0), i64(size)) as lane:
                v = i64(start) + u * i64(size) + lane
                script.buffer_store(self.into, value(v), self.at(o, first + v))

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

    @contextmanager
    def _inside(self, o: Any, rows: int) -> Iterator[None]:
        """Skips what outputs are filled up with to whole blocks of ``rows``."""
        if self.outputs % rows == 0:
            yield
            return
        with script.If(o < i64(self.outputs)), script.Then():
            yield


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
