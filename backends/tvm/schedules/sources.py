"""What kernels of sparse weights read: the operand laid out so that positions are in a line.

A column of the weights is then an offset into it, the same for all positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .blocks import Strip
from .common import LANES, Core, ceil_div, i64
from .conv import Window

LINE = 64  # bytes of a line of the cache
_NEAR = 1 << 19  # bytes of an image that the second cache holds besides what else is in it


class Source(Protocol):
    """What a kernel reads, laid out so that positions are in a line."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the operand."""
        ...

    @property
    def channels(self) -> int: ...

    @property
    def positions(self) -> int:
        """How many are in a line, those included that are dropped in the end."""
        ...

    def columns(self, strip: Strip) -> NDArray[Any]:
        """Offset of each column of the weights."""
        ...

    def prepare(self, x: Any, core: Core, strip: Strip) -> Any:
        """Emit what is done before all tiles; the buffer, or None."""
        ...

    def pack(self, x: Any, first: Any, strip: Strip, wide: int, core: Core) -> Any:
        """Emit what is done before a tile that begins at position ``first``; the buffer, or None.

        Args:
            strip: of this tile.
            wide: positions of tiles, by which columns are apart.
        """
        ...

    def ask_for(self, x: Any, first: Any, strip: Strip, part: Any, parts: int) -> None:
        """Emit what brings a part of the tile that begins at position ``first`` to a nearer cache."""
        ...


def width(source: Source, strip: Strip) -> int:
    """Positions of sums: those of the source, or of one tile where there are fewer."""
    return max(source.positions, strip.wide)


@dataclass(frozen=True)
class _Images:
    """Of images (n, channels, height, width)."""

    data: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data

    @property
    def channels(self) -> int:
        return self.data[1]


class _Packed:
    """Packed to a panel for each tile, in which a column of the weights is a channel."""

    channels: int

    def columns(self, strip: Strip) -> NDArray[Any]:
        return np.arange(self.channels) * strip.wide

    def prepare(self, x: Any, core: Core, strip: Strip) -> Any:
        return None

    def ask_for(self, x: Any, first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


@dataclass(frozen=True)
class Pixels(_Packed, _Images):
    """Positions of an image (n, channels, height, width), or every so many of its rows and columns."""

    strides: tuple[int, int] = (1, 1)

    @property
    def area(self) -> tuple[int, int]:
        return ceil_div(self.data[2], self.strides[0]), ceil_div(self.data[3], self.strides[1])

    @property
    def positions(self) -> int:
        return self.data[0] * math.prod(self.area)

    def pack(self, x: Any, first: Any, strip: Strip, wide: int, core: Core) -> Any:
        panel = written.buffer(self.channels * wide)
        rows, columns = self.area
        (sy, sx), each = self.strides, rows * columns
        with script.serial(i64(0), i64(self.channels)) as i, positions(strip, core.lanes) as v:
            p = first + v
            if self.positions < strip.wide:
                p = tirx.min(p, i64(self.positions - 1))
            image, at = (i64(0), p) if self.data[0] == 1 else (_div(p, each), _mod(p, each))
            value = x[image, i, _div(at, columns) * i64(sy), _mod(at, columns) * i64(sx)]
            script.buffer_store(panel, value, [i * i64(wide) + v])
        return panel

    def ask_for(self, x: Any, first: Any, strip: Strip, part: Any, parts: int) -> None:
        if self.strides != (1, 1) or self.data[0] > 1 or 4 * math.prod(self.data) <= _NEAR:
            return
        each = ceil_div(self.channels, parts)
        with script.serial(i64(0), i64(each)) as c:
            channel = tirx.min(part * i64(each) + c, i64(self.channels - 1))
            for line in range(0, 4 * strip.wide, LINE):
                written.ask_for(x[i64(0), channel, i64(0), first + line // 4], 2)


@dataclass(frozen=True)
class Tokens(_Packed):
    """Rows of channels, arranged as ``lead``; they are turned."""

    lead: tuple[int, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lead, self.channels)

    @property
    def positions(self) -> int:
        return math.prod(self.lead)

    def pack(self, x: Any, first: Any, strip: Strip, wide: int, core: Core) -> Any:
        whole = 0 if strip.chains else self.channels // LANES
        panel = written.buffer(self.channels * wide)
        if whole:
            with script.serial(i64(0), i64(whole)) as c, script.unroll(i64(0), i64(strip.vectors)) as u:
                rows = [first + u * i64(LANES) + j for j in range(LANES)]
                for j, value in enumerate(
                    turned([self._read(x, row, lanes(c * i64(LANES))) for row in rows])
                ):
                    at = (c * i64(LANES) + j) * i64(wide) + u * i64(LANES)
                    script.buffer_store(panel, value, [lanes(at)])
        if whole * LANES < self.channels:
            with script.serial(i64(whole * LANES), i64(self.channels)) as i, positions(strip) as v:
                script.buffer_store(panel, self._read(x, first + v, i), [i * i64(wide) + v])
        return panel

    def _read(self, x: Any, row: Any, channel: Any) -> Any:
        place = []
        row = tirx.min(row, i64(self.positions - 1))
        for size in reversed(self.lead):
            place.append(_mod(row, size))
            row = _div(row, size)
        return x[(*reversed(place), channel)]


@dataclass(frozen=True)
class Image(_Images):
    """The padded image (n, channels, height, width) that the taps of a window are offsets into.

    Positions are those of results, in rows as wide as the image of a phase: those past a row's end are
    dropped. All images of a batch are in one line.
    """

    window: Window

    @property
    def out(self) -> tuple[int, int]:
        return self.window.out(self.data[2:])

    @property
    def phase(self) -> tuple[int, int]:
        """Rows and columns of the image of one phase of the strides."""
        taps = [d * (k - 1) for d, k in zip(self.window.dilations, self.window.kernel, strict=True)]
        sizes = [o + t // s for o, t, s in zip(self.out, taps, self.window.strides, strict=True)]
        return sizes[0], sizes[1]

    @property
    def positions(self) -> int:
        rows, columns = self.phase
        return (self.data[0] - 1) * rows * columns + (self.out[0] - 1) * columns + self.out[1]

    def columns(self, strip: Strip) -> NDArray[Any]:
        (kh, kw), (dy, dx), (sy, sx) = self.window.kernel, self.window.dilations, self.window.strides
        i, y, x = np.meshgrid(*(np.arange(size) for size in (self.channels, kh, kw)), indexing="ij")
        y, x = y * dy, x * dx
        phase = (y % sy) * sx + x % sx
        within = (y // sy) * self.phase[1] + x // sx
        offsets: NDArray[Any] = (i * sy * sx + phase) * self._length(strip) + within
        return offsets.reshape(-1)

    def _length(self, strip: Strip) -> int:
        """Positions of one phase of a channel, those included that the last tile reads past it."""
        rows, columns = self.phase
        return max(self.data[0] * rows * columns, width(self, strip) + rows * columns - self._last)

    @property
    def _last(self) -> int:
        """The position after which a tap of the last result may still reach to the end of the image."""
        return (self.out[0] - 1) * self.phase[1] + self.out[1]

    def prepare(self, x: Any, core: Core, strip: Strip) -> Any:
        n, channels, h, w = self.data
        (sy, sx), (top, left) = self.window.strides, self.window.padding[:2]
        (rows, columns), length = self.phase, self._length(strip)
        image = written.buffer(channels * sy * sx * length)
        each = script.parallel if core.threads > 1 else script.serial
        with each(i64(0), i64(channels)) as i:
            for a in range(sy):
                for b in range(sx):
                    start = ((i * sy + a) * sx + b) * i64(length)
                    for m in range(n):
                        with script.serial(i64(0), i64(rows)) as r, script.serial(i64(0), i64(columns)) as c:
                            y, z = r * sy + (a - top), c * sx + (b - left)
                            inside = tirx.all(y >= 0, y < h, z >= 0, z < w)
                            value = tirx.if_then_else(inside, x[m, i, y, z], f32(0))
                            at = start + (m * rows + r) * i64(columns) + c
                            script.buffer_store(image, value, [at])
                    with script.serial(i64(n * rows * columns), i64(length)) as rest:
                        script.buffer_store(image, f32(0), [start + rest])
        return image

    def pack(self, x: Any, first: Any, strip: Strip, wide: int, core: Core) -> Any:
        return None

    def ask_for(self, x: Any, first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


@contextmanager
def positions(strip: Strip, wide: int = LANES) -> Iterator[Any]:
    """Loops over the positions of a tile: vectors, of ``wide`` lanes where that comes out, or single ones."""
    size = 1 if strip.chains else wide if strip.wide % wide == 0 else LANES
    with script.unroll(i64(0), i64(strip.wide // size)) as u:
        if strip.chains:
            yield u
        else:
            with script.vectorized(i64(0), i64(size)) as lane:
                yield u * i64(size) + lane


def lanes(start: Any) -> Any:
    """Indices of a vector."""
    return tirx.Ramp(start, i64(1), LANES)


# Pairs of vectors interleaved, pairs of pairs, halves: three steps that turn eight by eight.
_LOW, _HIGH = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
_FIRST, _SECOND = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
_LEFT, _RIGHT = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)


def turned(lines: Sequence[Any]) -> list[Any]:
    """Eight vectors of eight lanes: the j-th of what the lanes j hold."""

    def mixed(a: Any, b: Any, order: Sequence[int]) -> Any:
        return script.bind(tirx.Shuffle([a, b], [tirx.const(n, "int32") for n in order]))

    lines = [script.bind(line) for line in lines]
    pairs = [mixed(lines[i], lines[i + 1], order) for i in range(0, 8, 2) for order in (_LOW, _HIGH)]
    fours = [
        mixed(pairs[half + low], pairs[half + low + 2], order)
        for half in (0, 4)
        for low in (0, 1)
        for order in (_FIRST, _SECOND)
    ]
    return [mixed(fours[i], fours[4 + i], order) for order in (_LEFT, _RIGHT) for i in range(4)]


def _div(value: Any, by: int) -> Any:
    return tirx.floordiv(value, i64(by))


def _mod(value: Any, by: int) -> Any:
    return tirx.floormod(value, i64(by))
