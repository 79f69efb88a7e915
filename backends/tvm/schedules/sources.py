"""What kernels of sparse weights read: the operand laid out so that positions are in a line.

A column of the weights is then an offset into it, the same for all positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .blocks import Strip
from .common import LANES, LINE, Core, apart, ceil_div, i64, pieces
from .conv import Window

FEW = 8  # positions below which outputs are in the lanes
_LINE = LINE // 4  # floats
_ROW = 64  # elements
_COPIES, _FEWER = 1 << 18, 0.9  # bytes of copies, and the share of vectors, up to which they are worth it
_NEAR = 1 << 19  # bytes of an image that the second cache holds besides what else is in it


class Source(Protocol):
    """What a kernel reads, laid out so that positions are in a line."""

    @property
    def operands(self) -> Sequence[tuple[str, tuple[int, ...], str]]:
        """Name, shape and type of the buffers that it reads."""
        ...

    @property
    def channels(self) -> int: ...

    @property
    def exact(self) -> bool:
        """Whether there is a result at every position."""
        ...

    @property
    def positions(self) -> int:
        """How many are in a line."""
        ...

    def columns(self, strip: Strip) -> NDArray[Any]:
        """Offset of each column of the weights."""
        ...

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        """Emit what is done before all tiles; the buffer, or None."""
        ...

    def pack(self, data: Sequence[Any], first: Any, strip: Strip, wide: int, core: Core, apart: bool) -> Any:
        """Emit what is done before a tile that begins at position ``first``; the buffer, or None.

        Args:
            strip: of this tile.
            wide: positions of tiles, by which columns are apart.
            apart: whether threads share the work on a tile.
        """
        ...

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        """Emit what brings a part of the tile that begins at position ``first`` to a nearer cache."""
        ...


class _OfOne(ABC):
    """Of one tensor."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]: ...

    @property
    def operands(self) -> Sequence[tuple[str, tuple[int, ...], str]]:
        return [("x", self.shape, "float32")]


@dataclass(frozen=True)
class _Images(_OfOne):
    """Of images (n, channels, height, width)."""

    data: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data

    @property
    def channels(self) -> int:
        return self.data[1]


class Packed:
    """A panel for each tile, in which a column of the weights is a channel."""

    channels: int
    exact: ClassVar[bool] = True

    def columns(self, strip: Strip) -> NDArray[Any]:
        return np.arange(self.channels) * strip.wide

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        return None

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


@dataclass(frozen=True)
class Pixels(Packed, _Images):
    """Positions of an image (n, channels, height, width), or every so many of its rows and columns."""

    strides: tuple[int, int] = (1, 1)

    @property
    def out(self) -> tuple[int, int]:
        return ceil_div(self.data[2], self.strides[0]), ceil_div(self.data[3], self.strides[1])

    @property
    def positions(self) -> int:
        return self.data[0] * math.prod(self.out)

    def at(self, p: Any) -> tuple[Any, Any, Any]:
        """Image, row and column of a position."""
        rows, columns = self.out
        image, at = (i64(0), p) if self.data[0] == 1 else (_div(p, rows * columns), _mod(p, rows * columns))
        return image, _div(at, columns), _mod(at, columns)

    def pack(self, data: Sequence[Any], first: Any, strip: Strip, wide: int, core: Core, apart: bool) -> Any:
        (x,), panel = data, written.buffer(self.channels * wide)
        sy, sx = self.strides
        with script.serial(i64(0), i64(self.channels)) as i, positions(strip, core.lanes) as v:
            p = first + v
            if self.positions < strip.wide:
                p = tirx.min(p, i64(self.positions - 1))
            image, row, column = self.at(p)
            value = x[image, i, row * i64(sy), column * i64(sx)]
            script.buffer_store(panel, value, [i * i64(wide) + v])
        return panel

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        if self.strides != (1, 1) or self.data[0] > 1 or 4 * math.prod(self.data) <= _NEAR:
            return
        (x,) = data
        each = ceil_div(self.channels, parts)
        with script.serial(i64(0), i64(each)) as c:
            channel = tirx.min(part * i64(each) + c, i64(self.channels - 1))
            for line in range(0, 4 * strip.wide, LINE):
                written.ask_for(x[i64(0), channel, i64(0), first + line // 4], 2)


@dataclass(frozen=True)
class Tokens(Packed, _OfOne):
    """Rows of channels, arranged as ``lead``; they are turned."""

    lead: tuple[int, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lead, self.channels)

    @property
    def positions(self) -> int:
        return math.prod(self.lead)

    def pack(self, data: Sequence[Any], first: Any, strip: Strip, wide: int, core: Core, apart: bool) -> Any:
        (x,), panel = data, written.buffer(self.channels * wide)
        sizes = (1,) if strip.chains else (_LINE, LANES, 1)  # a line of the cache is read at once
        for start, count, each in pieces(self.channels, *sizes):
            with script.serial(i64(0), i64(count)) as c:
                channel = i64(start) + c * i64(each)
                if each == 1:
                    with positions(strip) as v:
                        value = self._read(x, first + v, channel, strip)
                        script.buffer_store(panel, value, [channel * i64(wide) + v])
                    continue
                with script.serial(i64(0), i64(strip.vectors)) as u:
                    for part in range(0, each, LANES):
                        self._turn(x, panel, first, channel + part, u * i64(LANES), strip, wide)
        return panel

    def _turn(self, x: Any, panel: Any, first: Any, channel: Any, v: Any, strip: Strip, wide: int) -> None:
        rows = [first + v + j for j in range(LANES)]
        lines = turned([self._read(x, row, lanes(channel), strip) for row in rows])
        for j, value in enumerate(lines):
            script.buffer_store(panel, value, [lanes((channel + j) * i64(wide) + v)])

    def _read(self, x: Any, row: Any, channel: Any, strip: Strip) -> Any:
        if self.positions < strip.wide:
            row = tirx.min(row, i64(self.positions - 1))
        return x[(*apart(self.lead, row), channel)]


@dataclass(frozen=True)
class Image(_Images):
    """The padded image (n, channels, height, width) that the taps of a window are offsets into.

    Positions are in a line, of all images row by row. Where the image is small there is a copy of it for each
    column of taps, whose rows are as wide as those of the result. Else rows are wider, and what is past the
    end of those of the result is dropped. Strides make an image of each of their phases.
    """

    window: Window

    @property
    def out(self) -> tuple[int, int]:
        return self.window.out(self.data[2:])

    @property
    def exact(self) -> bool:
        """Whether rows are as wide as those of the result: that takes fewer vectors, or fewer positions where
        these are few, and more memory.
        """
        n, (height, width), window = self.data[0], self.out, self.window
        copies = self.channels * window.kernel[1] * window.strides[0] * self.rows * n * width
        each = 1 if n * height * width < FEW else _LINE
        steps = [ceil_div(n * height * wide, each) for wide in (width, self._past)]
        return 4 * copies <= _COPIES and steps[0] <= _FEWER * steps[1]

    @property
    def rows(self) -> int:
        """Of a copy or phase."""
        return self.out[0] + self.window.dilations[0] * (self.window.kernel[0] - 1) // self.window.strides[0]

    @property
    def wide(self) -> int:
        """Positions of a row."""
        return self.out[1] if self.exact else self._past

    @property
    def _past(self) -> int:
        """Positions of a row with those past its end that taps reach."""
        return self.out[1] + self.window.dilations[1] * (self.window.kernel[1] - 1) // self.window.strides[1]

    @property
    def positions(self) -> int:
        return self.data[0] * self.out[0] * self.wide - (self.wide - self.out[1])

    def at(self, p: Any) -> tuple[Any, Any, Any]:
        """Image, row and column of a position."""
        n, row = self.data[0], _div(p, self.wide)
        image, row = (i64(0), row) if n == 1 else (_mod(row, n), _div(row, n))
        return image, row, _mod(p, self.wide)

    def columns(self, strip: Strip) -> NDArray[Any]:
        (kh, kw), (dy, dx), (sy, sx) = self.window.kernel, self.window.dilations, self.window.strides
        i, y, x = np.meshgrid(*(np.arange(size) for size in (self.channels, kh, kw)), indexing="ij")
        y, (copy, shift) = y * dy, (x, 0) if self.exact else (x * dx % sx, x * dx // sx)
        first = ((i * self._copies + copy) * sy + y % sy) * self._length(strip)
        offsets: NDArray[Any] = first + y // sy * self.data[0] * self.wide + shift
        return offsets.reshape(-1)

    @property
    def _copies(self) -> int:
        return self.window.kernel[1] if self.exact else self.window.strides[1]

    def _length(self, strip: Strip) -> int:
        """Elements of a copy or phase, those included that a tile reads past it: whole lines, or a half or a
        quarter of one.
        """
        past = max(0, strip.wide - self.positions)
        size = self.rows * self.data[0] * self.wide + past
        each = next((part for part in (LANES // 2, LANES) if size <= part), _LINE)
        return ceil_div(size, each) * each

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        (x,), (n, channels, h, w) = data, self.data
        (top, left), (sy, sx), length = self.window.padding[:2], self.window.strides, self._length(strip)
        image = written.buffer(channels * self._copies * sy * length)
        with written.each(channels, core.threads > 1) as i:
            for copy in range(self._copies):
                shift = copy * (self.window.dilations[1] if self.exact else 1) - left
                low = min(self.wide, max(0, ceil_div(-shift, sx)))  # columns before it are of the margin
                high = max(low, min(self.wide, ceil_div(w - shift, sx)))
                for a in range(sy):
                    start = ((i * self._copies + copy) * sy + a) * i64(length)
                    with script.serial(i64(0), i64(self.rows)) as r, script.serial(i64(0), i64(n)) as m:
                        y, at = r * sy + (a - top), start + (r * n + m) * i64(self.wide)
                        with script.If(tirx.all(y >= 0, y < h)):
                            with script.Then():
                                _zeros(image, at, low)
                                with along(high - low, sx) as j:
                                    value = x[m, i, y, (j + low) * sx + shift]
                                    script.buffer_store(image, value, [at + low + j])
                                _zeros(image, at + high, self.wide - high)
                            with script.Else():
                                _zeros(image, at, self.wide)
                    done = self.rows * n * self.wide
                    _zeros(image, start + done, length - done)
        return image

    def pack(self, data: Sequence[Any], first: Any, strip: Strip, wide: int, core: Core, apart: bool) -> Any:
        return None

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


@contextmanager
def along(count: int, stride: int = 1) -> Iterator[Any]:
    """A loop over elements of a row: one vector of any length where that is code enough."""
    kind = script.vectorized if stride == 1 and count <= _ROW else script.serial
    with kind(i64(0), i64(count)) as at:
        yield at


def _zeros(memory: Any, start: Any, count: int) -> None:
    if count:
        with along(count) as rest:
            script.buffer_store(memory, f32(0), [start + rest])


@contextmanager
def positions(strip: Strip, wide: int = LANES) -> Iterator[Any]:
    """Loops over the positions of a tile: vectors, of ``wide`` lanes where that comes out, or single ones."""
    size = strip.vector(wide)
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
