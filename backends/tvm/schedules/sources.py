"""What kernels of sparse weights read: the operand laid out so that positions are in a line.

A column of the weights is then an offset into it, the same for all positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
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
from .turning import lanes, packed_shape, turned

FEW = 8  # positions below which outputs are in the lanes
_LINE = LINE // 4  # floats
_ROW = 64  # elements
_COPIES, _FEWER = 1 << 18, 0.9  # bytes of copies, and the share of vectors, up to which they are worth it
_NEAR = 1 << 19  # bytes of an image that the second cache holds besides what else is in it


@dataclass(frozen=True)
class Tile:
    """Positions that are computed together.

    Attributes:
        first: of them.
        strip: what of it is in registers.
        wide: positions of whole tiles, by which columns of a panel are apart.
        apart: whether threads share the work on it.
    """

    first: Any
    strip: Strip
    wide: int
    core: Core
    apart: bool = False

    @contextmanager
    def positions(self) -> Iterator[Any]:
        with positions(self.strip, self.core.lanes) as v:
            yield v


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

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        """Emit what is done before a tile; the panel, or None."""
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
    """Positions of an image (n, channels, height, width), or every so many of its rows and columns.

    Attributes:
        blocked: whether it is (n, blocks of channels, height, width, 8); then positions are turned.
    """

    strides: tuple[int, int] = (1, 1)
    blocked: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        return packed_shape(self.data) if self.blocked else self.data

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

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        (x,), (sy, sx) = data, self.strides
        if self.blocked:

            def read(p: Any, channel: Any, vector: bool) -> Any:
                image, row, column = self.at(_inside(p, self.positions, tile.strip))
                block, lane = _div(channel, LANES), lanes(i64(0)) if vector else _mod(channel, LANES)
                return x[image, block, row * i64(sy), column * i64(sx), lane]

            return _turned_panel(self.channels, tile, read)
        panel = written.buffer(self.channels * tile.wide)
        with script.serial(i64(0), i64(self.channels)) as i, tile.positions() as v:
            image, row, column = self.at(_inside(tile.first + v, self.positions, tile.strip))
            value = x[image, i, row * i64(sy), column * i64(sx)]
            script.buffer_store(panel, value, [i * i64(tile.wide) + v])
        return panel

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        if self.blocked or self.strides != (1, 1) or self.data[0] > 1 or 4 * math.prod(self.data) <= _NEAR:
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

    def at(self, p: Any) -> tuple[Any, ...]:
        """Where a position is in them."""
        return apart(self.lead, p)

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        (x,) = data

        def read(row: Any, channel: Any, vector: bool) -> Any:
            at = self.at(_inside(row, self.positions, tile.strip))
            return x[(*at, lanes(channel) if vector else channel)]

        return _turned_panel(self.channels, tile, read)


@dataclass(frozen=True)
class Image(_Images):
    """The padded image (n, channels, height, width) that the taps of a window are offsets into.

    Positions are in a line, of all images row by row. Where the image is small there is a copy of it for each
    column of taps, whose rows are as wide as those of the result; with few positions for each tap. Else rows
    are wider, and what is past the end of those of the result is dropped. Strides make an image of each of
    their phases. A panel of a tile has what all taps read beside each other.
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
        n, (height, width), (kh, kw) = self.data[0], self.out, self.window.kernel
        if self._few:
            return 4 * self.channels * kh * kw * n * height * width <= _COPIES
        copies = self.channels * kw * self.window.strides[0] * self._phase * n * width
        steps = [ceil_div(n * height * wide, _LINE) for wide in (width, self._past)]
        return 4 * copies <= _COPIES and steps[0] <= _FEWER * steps[1]

    @property
    def _few(self) -> bool:
        return self.data[0] * math.prod(self.out) < FEW

    @property
    def _starts(self) -> tuple[int, int]:
        """How many rows of the padded image copies or phases begin at, and how far these are apart."""
        if self._few and self.exact:
            return self.window.kernel[0], self.window.dilations[0]
        return self.window.strides[0], 1

    @property
    def rows(self) -> int:
        """Of a copy or phase."""
        return self.out[0] if self._few and self.exact else self._phase

    @property
    def _phase(self) -> int:
        """Rows of a phase: those of the result, and those past them that taps reach."""
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
        channels, (kh, kw) = np.arange(self.channels), self.window.kernel
        if strip.panel:
            return np.arange(self.channels * kh * kw) % (self._part(strip) * kh * kw) * strip.wide
        taps = np.meshgrid(channels, np.arange(kh), np.arange(kw), indexing="ij")
        offsets: NDArray[Any] = self._offset(*taps, strip.wide)
        return offsets.reshape(-1)

    def _offset(self, channel: Any, y: Any, x: Any, wide: int) -> Any:
        """Of a tap, in the image that tiles of so many positions read."""
        (dy, dx), (sy, sx) = self.window.dilations, self.window.strides
        copy, shift = (x, x * 0) if self.exact else (x * dx % sx, x * dx // sx)
        start, row = (y, y * 0) if self._few and self.exact else (y * dy % sy, y * dy // sy)
        first = ((channel * self._copies + copy) * self._starts[0] + start) * self._length(wide)
        return first + row * (self.data[0] * self.wide) + shift

    @property
    def _copies(self) -> int:
        return self.window.kernel[1] if self.exact else self.window.strides[1]

    def _length(self, wide: int) -> int:
        """Elements of a copy or phase, those included that a tile of so many positions reads past it: whole
        lines, or a half or a quarter of one.
        """
        past = max(0, wide - self.positions)
        size = self.rows * self.data[0] * self.wide + past
        each = next((part for part in (LANES // 2, LANES) if size <= part), _LINE)
        return ceil_div(size, each) * each

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        (x,), (n, channels, h, w) = data, self.data
        (top, left), (sy, sx), length = self.window.padding[:2], self.window.strides, self._length(strip.wide)
        between = self.window.dilations[1] if self.exact else 1
        count, step = self._starts
        image = written.buffer(channels * self._copies * count * length)

        def inside(copy: int) -> tuple[int, int]:
            """Columns of a copy that are not of the margin: from one to another."""
            shift = copy * between - left
            low = min(self.wide, max(0, ceil_div(-shift, sx)))
            return low, max(low, min(self.wide, ceil_div(w - shift, sx)))

        with written.each(channels, core.threads > 1) as i:
            for (low, high), alike in groupby(range(self._copies), inside):
                copies = list(alike)
                loops = script.serial(i64(0), i64(len(copies))), script.serial(i64(0), i64(count))
                with loops[0] as c, loops[1] as number:
                    copy = copies[0] + c
                    shift, first = copy * between - left, number * step - top
                    start = ((i * self._copies + copy) * count + number) * i64(length)
                    with script.serial(i64(0), i64(self.rows)) as r, script.serial(i64(0), i64(n)) as m:
                        y, at = r * sy + first, start + (r * n + m) * i64(self.wide)
                        with script.If(tirx.all(y >= 0, y < h)):
                            with script.Then():
                                _zeros(image, at, low)
                                if high > low:
                                    with along(high - low, sx) as j:
                                        value = x[m, i, y, (j + low) * sx + shift]
                                        script.buffer_store(image, value, [at + low + j])
                                _zeros(image, at + high, self.wide - high)
                            with script.Else():
                                _zeros(image, at, self.wide)
                    done = self.rows * n * self.wide
                    _zeros(image, start + done, length - done)
        return image

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        if not tile.strip.panel:
            return None
        return written.buffer(self._part(tile.strip) * math.prod(self.window.kernel) * tile.wide)

    def copy(self, image: Any, panel: Any, part: Any, channels: int, tile: Tile) -> None:
        """Emit the copying of a part of the columns, of so many channels, to the panel of a tile.

        Args:
            image: what was made before all tiles.
        """
        kh, kw = self.window.kernel
        rows, columns = script.serial(i64(0), i64(kh)), script.serial(i64(0), i64(kw))
        with written.each(channels, tile.apart) as c, rows as y, columns as x, tile.positions() as v:
            start = self._offset(part * i64(self._part(tile.strip)) + c, y, x, tile.wide) + tile.first
            at = ((c * i64(kh) + y) * i64(kw) + x) * i64(tile.wide)
            script.buffer_store(panel, image[start + v], [at + v])

    def _part(self, strip: Strip) -> int:
        """Channels of a part of the columns; the last one may have fewer."""
        return ceil_div(self.channels, strip.parts)

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


def _turned_panel(channels: int, tile: Tile, read: Callable[[Any, Any, bool], Any]) -> Any:
    """The panel of a tile, made of what has channels beside each other.

    Args:
        read: of a position and a channel, what is there: of eight channels, of which it is the first, or of
            it alone.
    """
    first, strip, wide = tile.first, tile.strip, tile.wide
    panel = written.buffer(channels * wide)
    # A line of the cache is read at once.
    sizes = (1,) if strip.vector(LANES) == 1 else (_LINE, LANES, 1)
    for start, count, each in pieces(channels, *sizes):
        with script.serial(i64(0), i64(count)) as c:
            channel = i64(start) + c * i64(each)
            if each == 1:
                with positions(strip) as v:
                    script.buffer_store(panel, read(first + v, channel, False), [channel * i64(wide) + v])
                continue
            with script.serial(i64(0), i64(strip.wide // LANES)) as u:
                v = u * i64(LANES)
                for part in range(0, each, LANES):
                    rows = [read(first + v + j, channel + part, True) for j in range(LANES)]
                    for j, value in enumerate(turned(rows)):
                        at = lanes((channel + part + j) * i64(wide) + v)
                        script.buffer_store(panel, value, [at])
    return panel


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
        if size == 1:
            yield u
        else:
            with script.vectorized(i64(0), i64(size)) as lane:
                yield u * i64(size) + lane


def _inside(p: Any, count: int, strip: Strip) -> Any:
    """A position of a tile that may have more than there are."""
    return tirx.min(p, i64(count - 1)) if count < strip.wide else p


def _div(value: Any, by: int) -> Any:
    return tirx.floordiv(value, i64(by))


def _mod(value: Any, by: int) -> Any:
    return tirx.floormod(value, i64(by))
