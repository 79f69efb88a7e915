"""The image of a convolution with parts of it in the lanes of vectors: no tap lies between two of them.

Rows and columns are cut into as many parts as vectors have lanes. What is at the same place of all parts is
one vector: a tap is so many vectors further on, none of which lies in two lines of the cache. What taps reach
beyond a part is in the vectors, too.
Source: T. Henretty et al., "Data Layout Transformation for Stencil Computations on Short-Vector SIMD
Architectures", CC 2011 (dimension-lifted transposition), here in two dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, groupby
from typing import Any, ClassVar

from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from . import written
from .blocks import Strip
from .common import LANES, LINE, Core, ceil_div, i64, pieces
from .image import Image, copy_row, span_of
from .sources import Prepared
from .turning import lanes, turned

_SETS = 64  # of a first cache: lines that far apart take each other's place


@dataclass(frozen=True)
class Lifted(Prepared):
    """An image whose positions are counted part by part in the lanes, then along a row, then down the rows.

    Attributes:
        image: which is that.
        cuts: parts of the rows, and of the columns; their product is the lanes of a vector.
    """

    image: Image
    cuts: tuple[int, int]

    exact: ClassVar[bool] = True

    @property
    def operands(self) -> Sequence[tuple[str, tuple[int, ...], str]]:
        return self.image.operands

    @property
    def channels(self) -> int:
        return self.image.channels

    @property
    def lanes(self) -> int:
        return math.prod(self.cuts)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a part of the result."""
        (height, width), (down, across) = self.image.out, self.cuts
        return ceil_div(height, down), ceil_div(width, across)

    @property
    def held(self) -> tuple[int, int]:
        """Rows and columns of a part of a phase of the source: those of the result, and those taps reach."""
        (height, width), (down, across) = self.size, self.image.window.reach
        return height + down, width + across

    @property
    def pitch(self) -> int:
        """Elements that phases of channels are apart: an odd number of lines of the cache, and none that is
        next to a multiple of its sets, so that what a tile reads of many of them is spread over all sets.
        """
        line = LINE // 4
        lines = ceil_div(self.image.data[0] * math.prod(self.held) * self.lanes, line)
        return next(n for n in count(lines) if n % 2 and 1 < n % _SETS < _SETS - 1) * line

    @property
    def positions(self) -> int:
        return self.image.data[0] * math.prod(self.size) * self.lanes

    @property
    def line(self) -> int:
        """Positions of a row of the parts: tiles are within one."""
        return self.size[1] * self.lanes

    def packed(self, wide: int) -> int:
        return self.channels * math.prod(self.image.window.strides) * self.pitch

    def span(self, wide: int) -> int:
        (down, across), phases = self.image.window.reach, math.prod(self.image.window.strides)
        return phases * (1 + down) * (wide // self.lanes + across) * self.lanes

    def start(self, first: Any) -> Any:
        """Where that of a position is, the first of a vector."""
        image, row, column = self._vector(first)
        return ((image * self.held[0] + row) * self.held[1] + column) * self.lanes

    def _vector(self, p: Any) -> tuple[Any, Any, Any]:
        """Image, row and column of the vector of a position, within its part."""
        height, width = self.size
        vector = tirx.floordiv(p, i64(self.lanes))
        row = tirx.floordiv(vector, i64(width))
        return (
            tirx.floordiv(row, i64(height)),
            tirx.floormod(row, i64(height)),
            tirx.floormod(vector, i64(width)),
        )

    def columns(self, strip: Strip) -> NDArray[Any]:
        (channel, y, x), window = self.image.taps, self.image.window
        (dy, dx), (sy, sx) = window.dilations, window.strides
        phase = (channel * sy + y * dy % sy) * sx + x * dx % sx
        vectors = y * dy // sy * self.held[1] + x * dx // sx
        offsets: NDArray[Any] = phase * self.pitch + vectors * self.lanes
        return offsets.reshape(-1)

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        (x,), (n, channels, _, w), window = data, self.image.data, self.image.window
        (top, left), (sy, sx), (height, width) = window.padding[:2], window.strides, self.held
        # Of a phase of a channel, with a margin of zeros; vectors of eight may begin at its last element.
        rows, wide = (self.cuts[i] * self.size[i] + window.reach[i] for i in (0, 1))
        made = written.buffer(self.packed(strip.wide))

        def span(px: int) -> tuple[int, int]:
            return span_of(px - left, wide, w, sx)

        with written.each(channels, core.threads > 1) as c, written.block("sparse_lifted"):
            plain = written.buffer(rows * wide + LANES)
            for there, alike in groupby(range(sx), span):
                phases = list(alike)
                loops = script.serial(i64(0), i64(sy)), script.serial(i64(0), i64(len(phases)))
                with loops[0] as py, loops[1] as at, script.serial(i64(0), i64(n)) as m:
                    px = phases[0] + at
                    with script.serial(i64(0), i64(rows)) as r:
                        row = (m, c, r * sy + py - top)
                        copy_row(plain, r * i64(wide), wide, x, row, px - left, there, sx)
                    phase = (c * i64(sy) + py) * i64(sx) + px
                    self._lift(
                        plain, wide, made, phase * i64(self.pitch) + m * i64(height * width * self.lanes)
                    )
        return made

    def _lift(self, plain: Any, wide: int, made: Any, to: Any) -> None:
        """The vectors of a phase, from its rows of so many elements."""
        with script.serial(i64(0), i64(self.held[0])) as i:
            for start, turns, each in pieces(self.held[1], LANES):
                with script.serial(i64(0), i64(turns)) as n:
                    column = i64(start) + n * i64(LANES)
                    for some in range(0, self.lanes, LANES):
                        corners = [(i64(y * self.size[0]), x * self.size[1]) for y, x in self._parts(some)]
                        lines = [plain[lanes((y + i) * wide + x + column)] for y, x in corners]
                        for j, value in enumerate(turned(lines)[:each]):
                            at = to + (i * i64(self.held[1]) + column + j) * self.lanes + some
                            script.buffer_store(made, value, [lanes(at)])

    def _parts(self, first: int) -> list[tuple[int, int]]:
        """Eight of them that follow each other: of the rows, and of the columns."""
        return [divmod(lane, self.cuts[1]) for lane in range(first, first + LANES)]

    def store(self, into: Any, o: Any, kept: Callable[[Any], Any], first: Any, strip: Strip) -> None:
        """Emit the storing of results at the positions of a tile from ``first`` on as (n, outputs, h, w).

        Args:
            kept: of where eight of them begin in the tile, these.
        """
        (height, width), size = self.image.out, self.size
        image, row, column = self._vector(first)
        for start, turns, each in pieces(strip.wide // self.lanes, LANES):
            with script.unroll(i64(0), i64(turns)) as n, written.block("sparse_lowered"):
                begin, memory = i64(start) + n * i64(LANES), written.local(LANES * LANES)
                for some in range(0, self.lanes, LANES):
                    lines = [kept((begin + min(j, each - 1)) * self.lanes + some) for j in range(LANES)]
                    for j, value in enumerate(turned(lines)):
                        script.buffer_store(memory, value, [lanes(i64(j * LANES))])
                    for j, (down, across) in enumerate(self._parts(some)):
                        y, x = i64(down * size[0]) + row, i64(across * size[1]) + column + begin
                        whole = (across + 1) * size[1] <= width
                        loop = script.vectorized if whole else script.unroll
                        inside = [] if (down + 1) * size[0] <= height else [y < height]
                        with (
                            loop(i64(0), i64(each)) as k,
                            written.where(*inside, *([] if whole else [x + k < width])),
                        ):
                            value = memory[i64(j * LANES) + k]
                            script.buffer_store(into, value, [image, o, y, x + k])


def lifted(image: Image, lanes: int) -> list[Lifted]:
    """The image cut into as many parts as a vector has lanes, in the ways that leave the fewest vectors."""
    found = [Lifted(image, (down, lanes // down)) for down in range(1, lanes + 1) if lanes % down == 0]
    least = min(each.positions for each in found)
    return [each for each in found if each.positions == least]
