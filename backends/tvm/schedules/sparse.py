"""Products with weights that are mostly zero: outputs are sums of shifted rows of the source.

    sums[o, p] = Σ values[k, o] · source[offsets[k] + p]    over the non-zeros k of the block of outputs of o

Positions p are in the lanes, so that any pattern of zeros will do. A product and a pointwise convolution read
a panel of the positions of a tile, packed where the tile begins; other convolutions read the padded image,
where a tap is an offset: no im2col, and a stride makes one image of each of its phases. Where there are few
positions, outputs of a block are in the lanes. What follows is fused to a last pass over the sums.
Source: E. Elsen, M. Dukhan, T. Gale, K. Simonyan, "Fast Sparse ConvNets", CVPR 2020.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .blocks import Blocks, Strip
from .common import (
    LANES,
    WORTH_THREADS,
    Core,
    Rule,
    annotated,
    ceil_div,
    extent,
    flat,
    i64,
    inline_around,
    joined,
    last_block,
    with_axes_joined,
)
from .sources import LINE, Image, Pixels, Source, Tokens, lanes, positions, turned, width

_GATHER = "llvm.x86.avx2.gather.d.ps.256"
_FUSIBLE = 4  # for TVM's fusion: what is elementwise may follow
_AHEAD = 8192  # bytes, how far ahead weights are asked for
_NEAR = 1 << 21  # bytes of weights that stay in caches where asking takes longer than it saves
_WORTH_PARTS = 1 << 16  # elements of the result, below which one thread writes it


@dataclass(frozen=True)
class Result:
    """Shape of what a kernel gives, and where each of its elements is in the sums.

    Attributes:
        place: the output and the position at an index.
        turned: whether outputs are beside each other.
    """

    shape: tuple[int, ...]
    place: Callable[..., tuple[Any, Any]]
    turned: bool = False


def rows_of(source: Tokens, outputs: int) -> Result:
    """Rows arranged as they are read, outputs last."""

    shape = (*source.lead, outputs)
    return Result(shape, lambda *at: (at[-1], joined(source.lead, at[:-1])), turned=True)


def image_of(source: Pixels | Image, outputs: int) -> Result:
    """(n, outputs, height, width)."""
    if isinstance(source, Pixels):
        (rows, columns), (high, wide) = source.area, source.area
    else:
        (rows, columns), (high, wide) = source.out, source.phase
    shape = (source.data[0], outputs, rows, columns)
    return Result(shape, lambda b, o, i, j: (o, b * i64(high * wide) + i * i64(wide) + j))


def kernel(source: Source, outputs: int, blocks: Blocks, strip: Strip, result: Result, core: Core) -> Any:
    """A PrimFunc of the operand and of the arrays of ``blocks``; `Sparse` schedules what is fused to it."""
    tiles, last = count_tiles(source, strip), strip.last(source.positions, core.lanes)
    whole = tiles * strip.wide if result.turned else width(source, last or strip)
    work = 2.0 * blocks.values.size * strip.wide  # floating-point operations of a tile
    by_tile = core.threads > 1 and shares_tiles(source, strip, core) and tiles * work > WORTH_THREADS
    by_block = core.threads > 1 and not by_tile and work > WORTH_THREADS
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"op_pattern": _FUSIBLE, "tirx.noalias": True})

        def argument(name: str, shape: Sequence[int], dtype: str) -> Any:
            return script.arg(name, script.buffer([i64(d) for d in shape], dtype))

        x = argument("x", source.shape, "float32")
        arrays = zip(_Weights._fields, blocks.arrays, strict=True)
        weights = _Weights(*(argument(name, array.shape, str(array.dtype)) for name, array in arrays))
        made = argument("result", result.shape, "float32")
        high = ceil_div(outputs, strip.rows) * strip.rows
        turned = result.turned or bool(strip.chains)
        sums = written.buffer(whole, ceil_div(high, LANES) * LANES) if turned else written.buffer(high, whole)
        tile = _Tile(source, x, weights, sums, result.turned, high, strip.wide, blocks.groups, by_block, core)

        def numbered(t: Any, image: Any) -> None:
            """The tile of a number: of the last, only the vectors that hold positions."""
            first = t * i64(strip.wide)
            if last is None or tiles == 1:
                tile.write(image, first, last or strip)
                return
            with script.If(t < i64(tiles - 1)):
                with script.Then(), written.block("sparse_whole"):
                    tile.write(image, first, strip)
                with script.Else(), written.block("sparse_rest"):
                    first = first if result.turned else i64(whole - last.wide)
                    tile.write(image, first, last)

        if result.turned:
            with script.serial(i64(0), i64(tiles)) as t, script.sblock("sparse_sum"):
                t, all_ = script.axis.spatial(i64(tiles), t), script.axis.spatial(i64(1), i64(0))
                script.sblock_attr({"sparse": f"{strip.wide},{int(by_tile)}"})
                script.reads(*(buffer[written.whole(buffer)] for buffer in (x, *weights)))
                first, start, size = t * strip.wide, all_ * sums.shape[1], sums.shape[1]
                script.writes(sums[first : first + strip.wide, start : start + size])
                numbered(t, None)
        else:
            with script.sblock("sparse_sum"):
                script.sblock_attr({"sparse": "0,0"})
                script.reads(*(buffer[written.whole(buffer)] for buffer in (x, *weights)))
                script.writes(sums[written.whole(sums)])
                image = source.prepare(x, core, strip)
                with _each(tiles, by_tile) as t, written.block("sparse_tile"):
                    numbered(t, image)
        with script.grid(*(i64(size) for size in result.shape)) as at, script.sblock("sparse_out"):
            axes = list(script.axis.remap("S" * len(result.shape), list(at)))
            o, p = result.place(*axes)
            script.buffer_store(made, sums[p, o] if turned else sums[o, p], axes)
    return builder.get()


def count_tiles(source: Source, strip: Strip) -> int:
    return ceil_div(source.positions, strip.wide)


def shares_tiles(source: Source, strip: Strip, core: Core) -> bool:
    """Whether threads share the tiles, of which there are enough, and not the blocks of outputs."""
    return count_tiles(source, strip) >= 2 * core.threads


class _Weights(NamedTuple):
    """Buffers of `Blocks`."""

    values: Any
    offsets: Any
    starts: Any
    places: Any


@dataclass(frozen=True)
class _Tile:
    """What tiles have in common.

    Attributes:
        sums: (outputs, positions); or turned, which they are too where outputs are in the lanes.
        turned: whether positions in the lanes have to be turned.
        outputs: of whole blocks.
        wide: positions of whole tiles.
        groups: of runs, on a thread each where they are ``apart``.
    """

    source: Source
    x: Any
    weights: _Weights
    sums: Any
    turned: bool
    outputs: int
    wide: int
    groups: int
    apart: bool
    core: Core

    def write(self, image: Any, first: Any, strip: Strip) -> None:
        """The sums of the tile that begins at position ``first``.

        Args:
            image: what is read where that is one for all tiles; or None.
        """
        panel = self.source.pack(self.x, first, strip, self.wide, self.core)
        data, base = (panel, i64(0)) if image is None else (image, first)
        if strip.chains:
            with self._runs() as (run, _):
                _few(self.weights, data, base, self.sums, first, run, strip, self.core)
            return
        part, at = self.sums, first
        if strip.run or self.turned:  # runs add to sums, which no tile may share with another
            part, at = written.buffer(self.outputs, strip.wide), i64(0)
        if strip.run:
            with self._rows(strip) as (o, v):
                script.buffer_store(part, f32(0), [o, v])
        with self._runs() as (run, share):
            self.source.ask_for(self.x, first + strip.wide, strip, *share)
            _many(self.weights, data, base, part, at, run, strip, self.core)
        if self.turned:
            _turn(part, self.sums, first, strip, self.outputs, self.apart)
        elif strip.run:
            with self._rows(strip) as (o, v):
                script.buffer_store(self.sums, part[o, v], [o, first + v])

    @contextmanager
    def _runs(self) -> Iterator[tuple[Any, tuple[Any, int]]]:
        """Loops over runs; a run, and which it is of how many on a thread."""
        runs = int(self.weights.places.shape[0]) // self.groups
        groups = _each(self.groups, self.apart)
        with groups as g, script.serial(i64(0), i64(runs)) as r, written.block("sparse_run"):
            yield g * i64(runs) + r, (r, runs)

    @contextmanager
    def _rows(self, strip: Strip) -> Iterator[tuple[Any, Any]]:
        with script.serial(i64(0), i64(self.outputs)) as o, positions(strip, self.core.lanes) as v:
            yield o, v


def _many(
    weights: _Weights, data: Any, base: Any, part: Any, first: Any, run: Any, strip: Strip, core: Core
) -> None:
    """Add what a run gives to the sums of its block, positions in the lanes."""
    rows, wide = strip.rows, strip.wide
    kept, output = written.local(rows * wide), script.bind(weights.places[run].astype("int64"))

    @contextmanager
    def registers() -> Iterator[tuple[Any, Any]]:
        with script.unroll(i64(0), i64(rows)) as r, positions(strip, core.lanes) as v:
            yield r, v

    with registers() as (r, v):
        script.buffer_store(kept, part[output + r, first + v] if strip.run else f32(0), [r * wide + v])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        for n in range(strip.turn):
            at = turn.astype("int64") * strip.turn + n
            for r, factor in enumerate(_consecutive(weights.values, at * rows, rows, core)):
                with positions(strip, core.lanes) as v:
                    read = data[base + weights.offsets[at].astype("int64") + v]
                    script.buffer_store(kept, kept[r * wide + v] + factor * read, [r * wide + v])
    with registers() as (r, v):
        script.buffer_store(part, kept[r * wide + v], [output + r, first + v])


def _consecutive(buffer: Any, first: Any, count: int, core: Core) -> list[Any]:
    """Factors of vectors: elements of a vector where these multiply, or read one by one."""
    if not core.elements or count % 2:
        return [buffer[first + n] for n in range(count)]
    vector = script.bind(buffer[tirx.Ramp(first, i64(1), count)])
    return [tirx.Shuffle([vector], [tirx.const(n, "int32")]) for n in range(count)]


def _few(
    weights: _Weights, data: Any, base: Any, sums: Any, first: Any, run: Any, strip: Strip, core: Core
) -> None:
    """The sums of one block of outputs at the few positions of one tile, outputs in the lanes."""
    if strip.rows == 1:
        _one(weights, data, base, sums, first, run, strip, core)
        return
    output = script.bind(weights.places[run].astype("int64"))
    rows, wide, chains = strip.rows, strip.wide, strip.chains
    kept = written.local(chains * wide * rows)

    @contextmanager
    def registers(count: int) -> Iterator[tuple[Any, Any, Any]]:
        chain, position = script.unroll(i64(0), i64(count)), script.unroll(i64(0), i64(wide))
        with chain as c, position as v, _outputs(rows) as r:
            yield c, v, r

    def place(c: Any, v: Any, r: Any) -> Any:
        return (c * wide + v) * rows + r

    with registers(chains) as at:
        script.buffer_store(kept, f32(0), [place(*at)])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * chains
        _ask_for(weights, begin, chains, rows)
        for c in range(chains):
            k = begin + c
            at = base + weights.offsets[k].astype("int64")
            for v, read in enumerate(_consecutive(data, at, wide, core)):
                with _outputs(rows) as r:
                    factor = weights.values[k * rows + r].astype("float32")
                    script.buffer_store(kept, kept[place(c, v, r)] + factor * read, [place(c, v, r)])
    with registers(1) as (_, v, r):
        total = kept[place(0, v, r)]
        for c in range(1, chains):
            total = total + kept[place(c, v, r)]
        script.buffer_store(sums, total, [first + v, output + r])


def _one(
    weights: _Weights, data: Any, base: Any, sums: Any, first: Any, run: Any, strip: Strip, core: Core
) -> None:
    """The sums of one output, its non-zeros in the lanes: what they multiply is put together."""
    wide, vectors = strip.wide, strip.chains // LANES
    kept = written.local(wide * strip.chains)
    with script.unroll(i64(0), i64(wide * vectors)) as v:
        script.buffer_store(kept, tirx.Broadcast(f32(0), LANES), [lanes(v * i64(LANES))])
    with script.serial(weights.starts[run], weights.starts[run + 1]) as turn:
        begin = turn.astype("int64") * strip.chains
        _ask_for(weights, begin, strip.chains, 1)
        for u in range(vectors):
            k = begin + u * LANES
            values = script.bind(weights.values[lanes(k)].astype(f"float32x{LANES}"))
            for v in range(wide):
                at = lanes(i64((v * vectors + u) * LANES))
                script.buffer_store(
                    kept, kept[at] + values * _elements(data, base + v, weights.offsets, k, core), [at]
                )
    with script.unroll(i64(0), i64(wide)) as v:
        total = kept[v * strip.chains]
        for lane in range(1, strip.chains):
            total = total + kept[v * strip.chains + lane]
        script.buffer_store(sums, total, [first + v, weights.places[run].astype("int64")])


def _elements(data: Any, first: Any, offsets: Any, at: Any, core: Core) -> Any:
    """A vector of the elements that are the offsets at ``at`` away from ``first``."""
    if core.gathers:
        none, read = tirx.Broadcast(f32(0), LANES), tirx.Broadcast(f32(-1), LANES)  # a sign has one read
        places = [tirx.address_of(data[first]), offsets[lanes(at)].astype(f"int32x{LANES}")]
        return tirx.call_llvm_intrin(f"float32x{LANES}", _GATHER, none, *places, read, tirx.const(4, "int8"))
    numbers = range(LANES)
    each = [data[first + script.bind(offsets[at + n].astype("int64"))] for n in numbers]
    return tirx.Shuffle(each, [tirx.const(n, "int32") for n in numbers])


def _ask_for(weights: _Weights, begin: Any, count: int, rows: int) -> None:
    """Have many weights that are needed soon read from memory: for few positions that is what takes time."""
    if int(weights.values.shape[0]) * np.dtype(str(weights.values.dtype)).itemsize < _NEAR:
        return
    for buffer, each in ((weights.values, rows), (weights.offsets, 1)):
        width = np.dtype(str(buffer.dtype)).itemsize
        for line in range(0, count * each * width, LINE):
            written.ask_for(buffer[(begin * each) + (_AHEAD + line) // width], 3)


def _turn(part: Any, sums: Any, first: Any, strip: Strip, outputs: int, parallel: bool) -> None:
    """The sums of a tile, as rows of outputs."""
    whole = outputs // LANES
    if whole:
        with _each(whole, parallel) as c, script.unroll(i64(0), i64(strip.vectors)) as u:
            lines = [part[c * i64(LANES) + j, lanes(u * i64(LANES))] for j in range(LANES)]
            for j, value in enumerate(turned(lines)):
                script.buffer_store(sums, value, [first + u * i64(LANES) + j, lanes(c * i64(LANES))])
    if whole * LANES < outputs:
        with script.serial(i64(whole * LANES), i64(outputs)) as o, positions(strip) as v:
            script.buffer_store(sums, part[o, v], [first + v, o])


@contextmanager
def _outputs(rows: int) -> Iterator[Any]:
    """Loops over the outputs of a block, as vectors where they make any."""
    wide = min(rows, LANES)
    with script.unroll(i64(0), i64(rows // wide)) as u, script.vectorized(i64(0), i64(wide)) as lane:
        yield u * i64(wide) + lane


@contextmanager
def _each(count: int, parallel: bool) -> Iterator[Any]:
    with (script.parallel if parallel else script.serial)(i64(0), i64(count)) as at:
        yield at


class Sparse(Rule):
    """Schedule of `kernel` with whatever elementwise operators were fused after it.

    Rows of tokens are finished tile by tile, images in a last pass.
    """

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, "sparse")
        if found is None:
            return None
        wide, parallel = (int(v) for v in str(found[1]).split(","))
        out = inline_around(schedule, lambda name: name.startswith("sparse_"))
        shape = [extent(schedule, loop) for loop in schedule.get_loops(out)]
        if wide:
            if len(shape) > 2:
                schedule = with_axes_joined(schedule, out, flat(shape))
                out = last_block(schedule)
            rows, _ = schedule.get_loops(out)
            tile, _ = schedule.split(rows, [None, wide])
            schedule.compute_at(schedule.get_sblock("sparse_sum"), tile, preserve_unit_loops=True)
            if parallel:
                schedule.parallel(tile)
        elif self.core.threads > 1 and math.prod(shape) > _WORTH_PARTS and len(shape) > 1:
            schedule.parallel(schedule.fuse(*schedule.get_loops(out)[:-1]))
        return schedule
