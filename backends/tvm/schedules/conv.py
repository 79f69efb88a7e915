"""Convolution on activations packed by channels of eight: (N, C/8, H, W, 8).

Odd channel counts are padded with zero weights, so that padded lanes never reach a result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from .common import (
    LANES,
    Core,
    Rule,
    annotated,
    ceil_div,
    extent,
    i64,
    inline_around,
    last_block,
    unroll_init,
    vectorize_blocks,
    with_axes_joined,
)
from .tile import Tile

_SPARE = 9  # registers of a depthwise tile for what it reads and for what follows it
_FEWEST = 4  # sums of such a tile

_BAND_BYTES = 1 << 15  # sums of a band of the image, kept while chunks of the input channels are added


@dataclass(frozen=True)
class Window:
    """Kernel, strides, dilations and padding (top, left, bottom, right) of a two-dimensional window."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    padding: tuple[int, int, int, int]

    def out(self, size: tuple[int, int]) -> tuple[int, int]:
        h, w = (
            (size[i] + self.padding[i] + self.padding[i + 2] - self.dilations[i] * (self.kernel[i] - 1) - 1)
            // self.strides[i]
            + 1
            for i in (0, 1)
        )
        return h, w

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of a phase of the strides that taps reach beyond those of the result."""
        down, across = (self.dilations[i] * (self.kernel[i] - 1) // self.strides[i] for i in (0, 1))
        return down, across


def pack_weights(weights: NDArray[Any], tile: Tile, lanes_in: int, chunk: int = 1) -> NDArray[Any]:
    """(O, I, KH, KW) as (O/8t, I/lanes, KH, KW, lanes, 8t), zero padded; I/lanes a multiple of ``chunk``."""
    out, inner, kh, kw = weights.shape
    width = tile.channels * LANES
    outer, blocks = ceil_div(out, width), ceil_div(ceil_div(inner, lanes_in), chunk) * chunk
    padded = np.zeros((outer * width, blocks * lanes_in, kh, kw), weights.dtype)
    padded[:out, :inner] = weights
    shaped = padded.reshape(outer, width, blocks, lanes_in, kh, kw)
    return np.ascontiguousarray(shaped.transpose(0, 2, 4, 5, 3, 1))


def pack_depthwise(weights: NDArray[Any]) -> NDArray[Any]:
    """(C, 1, KH, KW) as (C/8, KH, KW, 8), zero padded."""
    channels, _, kh, kw = weights.shape
    padded = np.zeros((ceil_div(channels, LANES) * LANES, kh, kw), weights.dtype)
    padded[:channels] = weights[:, 0]
    return np.ascontiguousarray(padded.reshape(-1, LANES, kh, kw).transpose(0, 2, 3, 1))


def pad_image(x: Any, window: Window, rows: int, columns: int, size: tuple[int, int], fill: Any) -> Any:
    """Input as (N, C/lanes, H', W', lanes) large enough for whole tiles, from packed or plain x."""
    top, left, _, _ = window.padding
    h, w = size
    packed = len(x.shape) == 5
    n, blocks = x.shape[0], x.shape[1] if packed else i64(1)
    lanes = x.shape[4] if packed else x.shape[1]

    def read(b: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
        return x[b, c, i, j, v] if packed else x[b, v, i, j]

    if packed and not top and not left and rows <= h and columns <= w:
        return x

    def at(b: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
        # What is likely are parts of loops of their own.
        bounds = (i >= top, i < h + top, j >= left, j < w + left)
        inside = tirx.all(*(tirx.likely(bound) for bound in bounds))
        return tirx.if_then_else(inside, read(b, c, i - top, j - left, v), fill)

    return te.compute((n, blocks, i64(rows), i64(columns), lanes), at, name="conv_pad")


def reach(window: Window, tiles: tuple[int, int]) -> tuple[int, int]:
    """Input rows and columns that so many output rows and columns read."""
    (h, w), k, s, d = tiles, window.kernel, window.strides, window.dilations
    return (h - 1) * s[0] + d[0] * (k[0] - 1) + 1, (w - 1) * s[1] + d[1] * (k[1] - 1) + 1


def without_idle_taps(
    weights: NDArray[Any], window: Window, size: tuple[int, int]
) -> tuple[NDArray[Any], Window]:
    """Weights and window less the outer taps that only ever read padding, as wide dilations have."""
    padding, out = list(window.padding), window.out(size)
    for axis in (0, 1):
        step, last = window.dilations[axis], (out[axis] - 1) * window.strides[axis]
        while weights.shape[2 + axis] > 1 and last < padding[axis]:
            weights = np.delete(weights, 0, 2 + axis)
            padding[axis] -= step
        while weights.shape[2 + axis] > 1 and (
            (weights.shape[2 + axis] - 1) * step - padding[axis] >= size[axis]
        ):
            weights = np.delete(weights, -1, 2 + axis)
            padding[axis + 2] -= step
    kernel = (weights.shape[2], weights.shape[3])
    top, left, bottom, right = padding
    return weights, Window(kernel, window.strides, window.dilations, (top, left, bottom, right))


def joined_groups(each_in: int, each_out: int, groups: int) -> int:
    """How many groups to join so that their channels fill whole lanes, on both sides; at most all."""
    both = math.lcm(LANES // math.gcd(each_in, LANES), LANES // math.gcd(each_out, LANES))
    return min(both, groups)


def join_groups(weights: NDArray[Any], groups: int, joined: int) -> NDArray[Any]:
    """Weights of a grouped convolution for groups ``joined`` times as wide, zero between the old ones.

    (O, I/g, KH, KW) gives (O', joined·I/g, KH, KW), O' rounded up to whole groups.
    """
    out, each_in, kh, kw = weights.shape
    each_out, sections = out // groups, ceil_div(groups, joined)
    wide = np.zeros((sections * joined, each_out, joined, each_in, kh, kw), weights.dtype)
    split = weights.reshape(groups, each_out, each_in, kh, kw)
    for group in range(groups):
        wide[group, :, group % joined] = split[group]
    return wide.reshape(sections * joined * each_out, joined * each_in, kh, kw)


def repeat_channels(x: Any, channels: int, times: int) -> Any:
    """Each channel of x (N, C/8, H, W, 8) ``times`` over: (N, channels/8, H, W, 8)."""

    def at(b: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
        source = tirx.floordiv(tirx.min(c * LANES + v, i64(channels - 1)), i64(times))
        return x[b, tirx.floordiv(source, i64(LANES)), i, j, tirx.floormod(source, i64(LANES))]

    shape = (x.shape[0], i64(ceil_div(channels, LANES)), x.shape[2], x.shape[3], i64(LANES))
    return te.compute(shape, at, name="repeat")


def conv2d(
    x: Any,
    weights: Any,
    window: Window,
    size: tuple[int, int],
    blocks: int,
    tile: Tile,
    sections: int = 1,
    chunk: int = 0,
    line: bool = False,
) -> Any:
    """Convolution of x (N, I/8, H, W, 8), or (N, I, H, W) for few channels, to (N, O/8, OH, OW, 8).

    Args:
        blocks: O/8, rounded up.
        sections: groups that the channels fall into, each filling whole lanes.
        chunk: how many blocks of input channels are summed at a time, in one section; 0 means all of them.
        line: whether the result of a pointwise convolution is (N, O/8, OH·OW, 8).
    """
    oh, ow = window.out(size)
    flat = not chunk and len(x.shape) == 5 and is_pointwise(window)
    if flat:
        data, positions = in_line(x, tile.columns), oh * ow
        ohp, owp = 1, ceil_div(positions, tile.columns) * tile.columns
    else:
        ohp, owp = ceil_div(oh, tile.rows) * tile.rows, ceil_div(ow, tile.columns) * tile.columns
        rows, columns = reach(window, (ohp, owp))
        data = pad_image(x, window, rows, columns, size, tirx.const(0.0, "float32"))
    outer, inner, kh, kw, lanes, _ = weights.shape
    rc, ry, rx, rv = (
        te.reduce_axis((i64(0), e), name)
        for e, name in ((inner, "rc"), (kh, "ry"), (kw, "rx"), (lanes, "rv"))
    )
    (sy, sx), (dy, dx), t = window.strides, window.dilations, tile.channels
    label = f"{t},{tile.rows},{tile.columns}"
    if chunk:
        sums = _chunked(data, weights, window, (ohp, owp), t, chunk, label)
        return _crop(sums, blocks, (oh, ow), t)
    each = ceil_div(int(outer), sections)

    def source(o: Any) -> Any:
        if sections == 1:
            return rc
        # Joined groups past the last one have zero weights: any block will do.
        block = tirx.floordiv(o, i64(each)) * inner + rc
        return tirx.min(block, data.shape[1] - 1)

    sums = te.compute(
        (x.shape[0], outer, i64(ohp), i64(owp), i64(t), i64(LANES)),
        lambda b, o, i, j, c, v: te.sum(
            data[b, source(o), i * sy + ry * dy, j * sx + rx * dx, rv]
            * weights[o, rc, ry, rx, rv, c * LANES + v],
            axis=[rc, ry, rx, rv],
        ),
        name="conv_sum",
        attrs={"conv.tile": f"{label},{tile.outer},{int(flat)}"},
    )
    return _line_of(sums, blocks, oh * ow, t) if flat and line else _crop(sums, blocks, (oh, ow), t, flat)


def is_pointwise(window: Window) -> bool:
    """Whether positions are computed from themselves alone, so that the image is as good as a line."""
    return window.kernel == window.strides == (1, 1) and not any(window.padding)


def in_line(x: Any, columns: int) -> Any:
    """x (N, C/8, H, W, 8) as (N, C/8, 1, P, 8), P a multiple of ``columns``: the last position repeated."""
    n, blocks, h, w, lanes = x.shape
    whole = int(h) * int(w)
    padded = ceil_div(whole, columns) * columns

    def at(b: Any, c: Any, _: Any, p: Any, v: Any) -> Any:
        place = p if padded == whole else tirx.min(p, i64(whole - 1))
        return x[b, c, tirx.floordiv(place, w), tirx.floormod(place, w), v]

    return te.compute((n, blocks, i64(1), i64(padded), lanes), at, name="conv_line")


def _line_of(sums: Any, blocks: int, positions: int, t: int) -> Any:
    return te.compute(
        (sums.shape[0], i64(blocks), i64(positions), i64(LANES)),
        lambda b, o, p, v: sums[b, tirx.floordiv(o, i64(t)), 0, p, tirx.floormod(o, i64(t)), v],
        name="conv_out",
    )


def _crop(sums: Any, blocks: int, size: tuple[int, int], t: int, flat: bool = False) -> Any:
    def at(b: Any, o: Any, i: Any, j: Any, v: Any) -> Any:
        place = (i64(0), i * i64(size[1]) + j) if flat else (i, j)
        return sums[b, tirx.floordiv(o, i64(t)), *place, tirx.floormod(o, i64(t)), v]

    shape = (sums.shape[0], i64(blocks), i64(size[0]), i64(size[1]), i64(LANES))
    return te.compute(shape, at, name="conv_out")


def _chunked(
    data: Any, weights: Any, window: Window, padded: tuple[int, int], t: int, chunk: int, label: str
) -> Any:
    """Sums (N, O/8t, OH, OW, t, 8) in two stages, so that weights of a chunk stay in the nearest cache."""
    outer, inner, kh, kw, lanes, _ = weights.shape
    rc, ry, rx, rv = (
        te.reduce_axis((i64(0), e), name)
        for e, name in ((i64(chunk), "rc"), (kh, "ry"), (kw, "rx"), (lanes, "rv"))
    )
    (sy, sx), (dy, dx) = window.strides, window.dilations
    chunks = ceil_div(int(inner), chunk)
    last = data.shape[1] - 1
    shape = (data.shape[0], outer, i64(padded[0]), i64(padded[1]), i64(t), i64(LANES))

    def part(b: Any, o: Any, q: Any, i: Any, j: Any, c: Any, v: Any) -> Any:
        block = q * i64(chunk) + rc
        # Weights are zero past the last block: any block will do.
        source = block if int(inner) == int(data.shape[1]) else tirx.min(block, last)
        read = data[b, source, i * sy + ry * dy, j * sx + rx * dx, rv]
        return te.sum(read * weights[o, block, ry, rx, rv, c * LANES + v], axis=[rc, ry, rx, rv])

    parts = te.compute((*shape[:2], i64(chunks), *shape[2:]), part, name="conv_part")
    rq = te.reduce_axis((i64(0), i64(chunks)), "rq")
    return te.compute(
        shape,
        lambda b, o, i, j, c, v: te.sum(parts[b, o, rq, i, j, c, v], axis=[rq]),
        name="conv_sum",
        attrs={"conv.chunked": label},
    )


def depthwise(x: Any, weights: Any, window: Window, size: tuple[int, int], tile: Tile) -> Any:
    """Depthwise convolution of x (N, C/8, H, W, 8) by weights (C/8, KH, KW, 8)."""
    oh, ow = window.out(size)
    ohp, owp = ceil_div(oh, tile.rows) * tile.rows, ceil_div(ow, tile.columns) * tile.columns
    rows, columns = reach(window, (ohp, owp))
    data = pad_image(x, window, rows, columns, size, tirx.const(0.0, "float32"))
    ry = te.reduce_axis((i64(0), weights.shape[1]), "ry")
    rx = te.reduce_axis((i64(0), weights.shape[2]), "rx")
    (sy, sx), (dy, dx) = window.strides, window.dilations
    sums = te.compute(
        (x.shape[0], x.shape[1], i64(ohp), i64(owp), i64(LANES)),
        lambda b, c, i, j, v: te.sum(
            data[b, c, i * sy + ry * dy, j * sx + rx * dx, v] * weights[c, ry, rx, v], axis=[ry, rx]
        ),
        name="conv_sum",
        attrs={"depthwise.tile": f"{tile.rows},{tile.columns}"},
    )
    return te.compute(
        (x.shape[0], x.shape[1], i64(oh), i64(ow), i64(LANES)),
        lambda b, c, i, j, v: sums[b, c, i, j, v],
        name="conv_out",
    )


def most_sums(taps: int, core: Core) -> int:
    """Of half vectors in a depthwise tile: what weights of all taps leave of the registers where none is an
    operand in memory; 0 where vectors are whole.
    """
    left = 2 * core.registers - taps - _SPARE
    return left if core.elements and left >= _FEWEST else 0


class Conv(Rule):
    """Schedule of `conv2d` with whatever elementwise operators were fused after it."""

    label = "conv.tile"

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, self.label)
        if found is None:
            return None
        sums, (t, rows, columns, outer, flat) = found[0], (int(v) for v in str(found[1]).split(","))
        out = inline_around(schedule, lambda name: name in ("conv_pad", "conv_sum"))
        if flat and len(schedule.get_loops(out)) == 5:
            width = extent(schedule, schedule.get_loops(out)[3])
            schedule = with_axes_joined(schedule, out, lambda b, o, i, j, v: [b, o, i * i64(width) + j, v])
            sums, out = schedule.get_sblock("conv_sum"), last_block(schedule)
        if flat:
            schedule.split(schedule.get_loops(out)[2], [1, None])
        if len(schedule.get_loops(out)) != 5:
            return None
        b, o, i, j, v = schedule.get_loops(out)
        oo, oi = schedule.split(o, [None, t])
        io, ii = schedule.split(i, [None, rows])
        jo, ji = schedule.split(j, [None, columns])
        # Weights of a tile serve the whole batch, or those of all tiles an image.
        around = (b, io, jo, oo) if outer else (oo, b, io, jo)
        schedule.reorder(*around, ii, ji, oi, v)
        schedule.vectorize(v)
        for loop in (ii, ji, oi):
            schedule.unroll(loop)
        if self.threaded(schedule, sums):
            schedule.parallel(schedule.fuse(*around[:3]))
        vector_pad(schedule)
        self.sum(schedule, sums, around[3])
        return schedule

    def sum(self, schedule: Any, sums: Any, at: Any) -> None:
        """Compute a tile of sums within the loop ``at``."""
        _sum_in_registers(schedule, sums, at, self.core.lanes)


class ChunkedConv(Rule):
    """Schedule of `conv2d` with chunks: they are summed over a band of the image before it is written."""

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, "conv.chunked")
        if found is None:
            return None
        sums, (t, rows, columns) = found[0], (int(v) for v in str(found[1]).split(","))
        parts = schedule.get_sblock("conv_part")
        out = inline_around(schedule, lambda name: name in ("conv_pad", "conv_part", "conv_sum"))
        loops = schedule.get_loops(out)
        if len(loops) != 5:
            return None
        b, o, i, j, v = loops
        width, height = extent(schedule, j), extent(schedule, i)
        positions = _BAND_BYTES // (4 * LANES * t)
        band = max(rows, min(ceil_div(height, rows), positions // max(1, width * rows)) * rows)
        images = max(1, positions // (width * height)) if band >= height else 1
        oo, oi = schedule.split(o, [None, t])
        bo, bi = schedule.split(b, [None, min(images, extent(schedule, b))])
        io, ii = schedule.split(i, [None, band])
        schedule.reorder(oo, bo, io, bi, ii, j, oi, v)
        schedule.vectorize(v)
        schedule.unroll(oi)
        if self.threaded(schedule, parts):
            schedule.parallel(schedule.fuse(oo, bo))
        vector_pad(schedule)
        schedule.compute_at(sums, io, preserve_unit_loops=True)
        image, _, y, x, c, lane, q = schedule.get_loops(sums)[-7:]
        yo, yi = schedule.split(y, [None, rows])
        xo, xi = schedule.split(x, [None, columns])
        schedule.reorder(q, image, yo, xo, yi, xi, c, lane)
        for loop in (yi, xi):
            schedule.unroll(loop)
        vectorize_blocks(schedule, c, lane, self.core.lanes)
        _sum_in_registers(schedule, parts, xo, self.core.lanes)
        unroll_init(schedule, schedule.decompose_reduction(sums, q), 1)
        return schedule


class Depthwise(Rule):
    """Schedule of `depthwise` with whatever elementwise operators were fused after it."""

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, "depthwise.tile")
        if found is None:
            return None
        sums, (rows, columns) = found[0], (int(v) for v in str(found[1]).split(","))
        out = inline_around(schedule, lambda name: name in ("conv_pad", "conv_sum"))
        loops = schedule.get_loops(out)
        if len(loops) != 5:
            return None
        b, c, i, j, v = loops
        io, ii = schedule.split(i, [None, rows])
        jo, ji = schedule.split(j, [None, columns])
        taps = math.prod(extent(schedule, loop) for loop in schedule.get_loops(sums)[-2:])
        part, v = schedule.split(v, [2 if most_sums(taps, self.core) else 1, None])
        schedule.reorder(b, c, part, io, jo, ii, ji, v)
        schedule.vectorize(v)
        schedule.unroll(ii)
        schedule.unroll(ji)
        if self.threaded(schedule, sums):
            c = schedule.fuse(b, c)
            schedule.parallel(c)
        schedule.set_scope(sums, 0, "local")
        schedule.compute_at(sums, jo, preserve_unit_loops=True)
        vector_pad(schedule, at=c)
        y, x, lane, ry, rx = schedule.get_loops(sums)[-5:]
        schedule.reorder(ry, rx, y, x, lane)
        for loop in (y, x, rx, ry):
            schedule.unroll(loop)
        schedule.vectorize(lane)
        unroll_init(schedule, schedule.decompose_reduction(sums, ry), 2)
        return schedule


def _sum_in_registers(schedule: Any, sums: Any, at: Any, lanes: int) -> None:
    """Compute a tile of sums within the loop ``at``, one input channel after the other."""
    schedule.set_scope(sums, 0, "local")
    schedule.compute_at(sums, at, preserve_unit_loops=True)
    y, x, c, lane, rc, ry, rx, rv = schedule.get_loops(sums)[-8:]
    schedule.reorder(rc, ry, rx, rv, y, x, c, lane)
    for loop in (rv, y, x):
        schedule.unroll(loop)
    vectorize_blocks(schedule, c, lane, lanes)
    unroll_init(schedule, schedule.decompose_reduction(sums, rc), 3)


def vector_pad(schedule: Any, at: Any = None) -> None:
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        if schedule.get(block).name_hint == "conv_pad":
            if at is not None:
                schedule.compute_at(block, at, preserve_unit_loops=True)
            lane = schedule.get_loops(block)[-1]
            if int(schedule.get(lane).extent) == LANES:
                schedule.vectorize(lane)
