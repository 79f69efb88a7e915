"""What kernels of sparse weights read: the operand laid out so that positions are in a line.

A column of the weights is then an offset into it, the same for all positions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from . import written
from .blocks import Strip
from .common import LANES, LINE, Core, apart, ceil_div, i64, pieces
from .turning import lanes, packed_shape, turned

FEW = 8  # positions below which outputs are in the lanes
_LINE = LINE // 4  # floats
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
        """Whether results are stored at once; else those of all positions are, and picked at last."""
        ...

    @property
    def positions(self) -> int: ...

    @property
    def line(self) -> int:
        """Positions of a line: tiles are within one, of as many as there are."""
        ...

    def start(self, first: Any) -> Any:
        """Where the first position of a tile is in what is prepared."""
        ...

    def packed(self, wide: int) -> int:
        """Elements of all that tiles of so many positions read."""
        ...

    def span(self, wide: int) -> int:
        """Elements of a channel that one of them reads: where taps are offsets, of the rows around it too."""
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
class Images(_OfOne):
    """Of images (n, channels, height, width)."""

    data: tuple[int, int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data

    @property
    def channels(self) -> int:
        return self.data[1]


class InLine(ABC):
    """All positions are in one line."""

    @property
    @abstractmethod
    def positions(self) -> int: ...

    @property
    def line(self) -> int:
        return self.positions

    def start(self, first: Any) -> Any:
        return first


class Prepared:
    """Made before all tiles: there is nothing to do for one."""

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        return None

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


class Packed(InLine):
    """A panel for each tile, in which a column of the weights is a channel."""

    channels: int
    exact: ClassVar[bool] = True

    def packed(self, wide: int) -> int:
        return self.channels * self.positions

    def span(self, wide: int) -> int:
        return wide

    def columns(self, strip: Strip) -> NDArray[Any]:
        return np.arange(self.channels) * strip.wide

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        return None

    def ask_for(self, data: Sequence[Any], first: Any, strip: Strip, part: Any, parts: int) -> None:
        return None


@dataclass(frozen=True)
class Pixels(Packed, Images):
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
