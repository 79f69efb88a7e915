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
from .sources import Image, Pixels, Source, Tokens, lanes, positions, turned, width

_FUSIBLE = 4  # for TVM's fusion: what is elementwise may follow
_LINE, _AHEAD = 64, 8192  # bytes of a line of the cache, and how far ahead weights are asked for
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
    nonzeros = len(blocks.offsets)
    count, panels = ceil_div(outputs, strip.rows), strip.panels(source.channels)
    tiles = ceil_div(width(source, strip), strip.wide)
    whole = tiles * strip.wide if result.turned else width(source, strip)
    work = 2.0 * nonzeros * strip.rows * strip.wide  # floating-point operations of a tile
    by_tile = core.threads > 1 and tiles >= 2 * core.threads and tiles * work > WORTH_THREADS
    by_block = core.threads > 1 and not by_tile and work / panels > WORTH_THREADS
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"op_pattern": _FUSIBLE, "tirx.noalias": True})

        def argument(name: str, shape: Sequence[int], dtype: str) -> Any:
            return script.arg(name, script.buffer([i64(d) for d in shape], dtype))

        x = argument("x", source.shape, "float32")
        weights = _Weights(
            argument("values", (nonzeros * strip.rows,), str(blocks.values.dtype)),
            argument("offsets", (nonzeros,), str(blocks.offsets.dtype)),
            argument("starts", (panels * count + 1,), "int32"),
        )
        made = argument("result", result.shape, "float32")
        high = count * strip.rows
        turned = result.turned or bool(strip.chains)
        sums = written.buffer(whole, ceil_div(high, LANES) * LANES) if turned else written.buffer(high, whole)

        def tile(t: Any, image: Any) -> None:
            first = t * i64(strip.wide)
            if whole % strip.wide:
                first = tirx.min(first, i64(whole - strip.wide))
            panel = source.pack(x, first, core, strip)
            data, base = (panel, i64(0)) if image is None else (image, first)
            part, at = (written.buffer(high, strip.wide), i64(0)) if result.turned else (sums, first)
            parts = script.serial(i64(0), i64(panels))
            with parts as number, _each(count, by_block) as o, written.block("sparse_block"):
                block = number * i64(count) + o
                if strip.chains:
                    _few(weights, data, base, sums, first, block, strip)
                else:
                    _many(
                        weights,
                        data,
                        base,
                        part,
                        at,
                        block,
                        o,
                        None if panels == 1 else number,
                        strip,
                        core,
                    )
            if result.turned and not strip.chains:
                _turn(part, sums, first, strip, high, by_block)

        if result.turned:
            with script.serial(i64(0), i64(tiles)) as t, script.sblock("sparse_sum"):
                t, all_ = script.axis.spatial(i64(tiles), t), script.axis.spatial(i64(1), i64(0))
                script.sblock_attr({"sparse": f"{strip.wide},{int(by_tile)}"})
                script.reads(*(buffer[written.whole(buffer)] for buffer in (x, *weights)))
                first, start, size = t * strip.wide, all_ * sums.shape[1], sums.shape[1]
                script.writes(sums[first : first + strip.wide, start : start + size])
                tile(t, None)
        else:
            with script.sblock("sparse_sum"):
                script.sblock_attr({"sparse": "0,0"})
                script.reads(*(buffer[written.whole(buffer)] for buffer in (x, *weights)))
                script.writes(sums[written.whole(sums)])
                image = source.prepare(x, core, strip)
                with _each(tiles, by_tile) as t, written.block("sparse_tile"):
                    tile(t, image)
        with script.grid(*(i64(size) for size in result.shape)) as at, script.sblock("sparse_out"):
            axes = list(script.axis.remap("S" * len(result.shape), list(at)))
            o, p = result.place(*axes)
            script.buffer_store(made, sums[p, o] if turned else sums[o, p], axes)
    return builder.get()


class _Weights(NamedTuple):
    """Buffers of `Blocks`."""

    values: Any
    offsets: Any
    starts: Any


def _many(
    weights: _Weights,
    data: Any,
    base: Any,
    sums: Any,
    first: Any,
    number: Any,
    block: Any,
    panel: Any,
    strip: Strip,
    core: Core,
) -> None:
    """The sums of one block of outputs at the positions of one tile, positions in the lanes.

    Args:
        number: of the block in the arrays.
        panel: of the source, where there are several: sums are added to those of the ones before.
    """
    rows, wide = strip.rows, strip.wide
    kept = written.local(rows * wide)

    @contextmanager
    def registers() -> Iterator[tuple[Any, Any]]:
        with script.unroll(i64(0), i64(rows)) as r, positions(strip, core.lanes) as v:
            yield r, v

    with registers() as (r, v):
        start = f32(0)
        if panel is not None:
            start = tirx.Select(panel == 0, start, sums[block * rows + r, first + v])
        script.buffer_store(kept, start, [r * wide + v])
    with script.serial(weights.starts[number], weights.starts[number + 1]) as k:
        at = k.astype("int64")
        for r, factor in enumerate(_factors(weights.values, at, rows, core)):
            with positions(strip, core.lanes) as v:
                read = data[base + weights.offsets[at].astype("int64") + v]
                script.buffer_store(kept, kept[r * wide + v] + factor * read, [r * wide + v])
    with registers() as (r, v):
        script.buffer_store(sums, kept[r * wide + v], [block * rows + r, first + v])


def _factors(values: Any, at: Any, rows: int, core: Core) -> list[Any]:
    """The values of a block at one column: elements of a vector where these multiply, or read one by one."""
    if not core.elements or rows == 1:
        return [values[at * rows + r] for r in range(rows)]
    vector = script.bind(values[tirx.Ramp(at * rows, i64(1), rows)])
    return [tirx.Shuffle([vector], [tirx.const(r, "int32")]) for r in range(rows)]


def _few(weights: _Weights, data: Any, base: Any, sums: Any, first: Any, number: Any, strip: Strip) -> None:
    """The sums of one block of outputs at the few positions of one tile, outputs in the lanes."""
    if strip.rows == 1:
        _one(weights, data, base, sums, first, number, strip)
        return
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
    with script.serial(weights.starts[number], weights.starts[number + 1]) as turn:
        begin = turn.astype("int64") * chains
        _ask_for(weights, begin, chains, rows)
        with registers(chains) as (c, v, r):
            k = begin + c
            read = data[base + weights.offsets[k].astype("int64") + v]
            factor = weights.values[k * rows + r].astype("float32")
            script.buffer_store(kept, kept[place(c, v, r)] + factor * read, [place(c, v, r)])
    with registers(1) as (_, v, r):
        total = kept[place(0, v, r)]
        for c in range(1, chains):
            total = total + kept[place(c, v, r)]
        script.buffer_store(sums, total, [first + v, number * rows + r])


def _one(weights: _Weights, data: Any, base: Any, sums: Any, first: Any, number: Any, strip: Strip) -> None:
    """The sums of one output, its non-zeros in the lanes: what they multiply is put together."""
    wide, vectors = strip.wide, strip.chains // LANES
    kept = written.local(wide * strip.chains)
    with script.unroll(i64(0), i64(wide * vectors)) as v:
        script.buffer_store(kept, tirx.Broadcast(f32(0), LANES), [lanes(v * i64(LANES))])
    with script.serial(weights.starts[number], weights.starts[number + 1]) as turn:
        begin = turn.astype("int64") * strip.chains
        _ask_for(weights, begin, strip.chains, 1)
        for u in range(vectors):
            k = begin + u * LANES
            offsets = [script.bind(weights.offsets[k + lane].astype("int64")) for lane in range(LANES)]
            values = script.bind(weights.values[lanes(k)].astype(f"float32x{LANES}"))
            for v in range(wide):
                each = [data[base + offset + v] for offset in offsets]
                read = tirx.Shuffle(each, [tirx.const(n, "int32") for n in range(LANES)])
                at = lanes(i64((v * vectors + u) * LANES))
                script.buffer_store(kept, kept[at] + values * read, [at])
    with script.unroll(i64(0), i64(wide)) as v:
        total = kept[v * strip.chains]
        for lane in range(1, strip.chains):
            total = total + kept[v * strip.chains + lane]
        script.buffer_store(sums, total, [first + v, number])


def _ask_for(weights: _Weights, begin: Any, count: int, rows: int) -> None:
    """Have many weights that are needed soon read from memory: for few positions that is what takes time."""
    if int(weights.values.shape[0]) * np.dtype(str(weights.values.dtype)).itemsize < _NEAR:
        return
    for buffer, each in ((weights.values, rows), (weights.offsets, 1)):
        width = np.dtype(str(buffer.dtype)).itemsize
        for line in range(0, count * each * width, _LINE):
            address = tirx.address_of(buffer[(begin * each) + (_AHEAD + line) // width])
            script.evaluate(
                tirx.call_intrin(
                    "void", "tirx.prefetch", address, *(tirx.const(n, "int32") for n in (0, 3, 1))
                )
            )


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
