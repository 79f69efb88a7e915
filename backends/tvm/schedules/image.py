"""The padded image of a convolution: what a tap reads is so many elements further on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .blocks import Strip
from .common import LANES, LINE, Core, ceil_div, i64
from .conv import Window
from .sources import FEW, Images, InLine, Prepared
from .turning import lanes

_LINE = LINE // 4  # floats
_ROW = 64  # elements
_COPIES, _FEWER = 1 << 18, 0.9  # bytes of copies, and the share of vectors, up to which they are worth it


@dataclass(frozen=True)
class Image(InLine, Prepared, Images):
    """The padded image (n, channels, height, width) that the taps of a window are offsets into.

    Positions are in a line, of all images row by row. Where the image is small there is a copy of it for each
    column of taps, whose rows are as wide as those of the result; with few positions for each tap. Else rows
    are wider, and what is past the end of those of the result is dropped. Strides make an image of each of
    their phases.
    """

    window: Window

    @cached_property
    def out(self) -> tuple[int, int]:
        return self.window.out(self.data[2:])

    @cached_property
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
        return self.out[0] + self.window.reach[0]

    @property
    def wide(self) -> int:
        """Positions of a row."""
        return self.out[1] if self.exact else self._past

    @property
    def _past(self) -> int:
        """Positions of a row with those past its end that taps reach."""
        return self.out[1] + self.window.reach[1]

    @property
    def positions(self) -> int:
        return self.data[0] * self.out[0] * self.wide - (self.wide - self.out[1])

    def at(self, p: Any) -> tuple[Any, Any, Any]:
        """Image, row and column of a position."""
        n, row = self.data[0], tirx.floordiv(p, i64(self.wide))
        image, row = (i64(0), row) if n == 1 else (tirx.floormod(row, i64(n)), tirx.floordiv(row, i64(n)))
        return image, row, tirx.floormod(p, i64(self.wide))

    def columns(self, strip: Strip) -> NDArray[Any]:
        offsets: NDArray[Any] = self._offset(*self.taps, strip.wide)
        return offsets.reshape(-1)

    @property
    def taps(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Channel, row and column of the tap that a column of the weights is of."""
        channel, y, x = np.indices((self.channels, *self.window.kernel))
        return channel, y, x

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

    def packed(self, wide: int) -> int:
        return self.channels * self._copies * self._starts[0] * self._length(wide)

    def span(self, wide: int) -> int:
        kh, kw = self.window.kernel
        return (kw if self.exact else 1) * (wide + self.wide * (kh - 1))

    def prepare(self, data: Sequence[Any], core: Core, strip: Strip) -> Any:
        (x,), (n, channels, _, w) = data, self.data
        (top, left), (sy, sx), length = self.window.padding[:2], self.window.strides, self._length(strip.wide)
        between = self.window.dilations[1] if self.exact else 1
        count, step = self._starts
        image = written.buffer(self.packed(strip.wide))

        def span(copy: int) -> tuple[int, int]:
            return span_of(copy * between - left, self.wide, w, sx)

        with written.each(channels, core.threads > 1) as i:
            for there, alike in groupby(range(self._copies), span):
                copies = list(alike)
                loops = script.serial(i64(0), i64(len(copies))), script.serial(i64(0), i64(count))
                with loops[0] as c, loops[1] as number:
                    copy = copies[0] + c
                    first = number * step - top
                    start = ((i * self._copies + copy) * count + number) * i64(length)
                    with script.serial(i64(0), i64(self.rows)) as r, script.serial(i64(0), i64(n)) as m:
                        at, row = start + (r * n + m) * i64(self.wide), (m, i, r * sy + first)
                        copy_row(image, at, self.wide, x, row, copy * between - left, there, sx)
                    done = self.rows * n * self.wide
                    _zeros(image, start + done, length - done)
        return image


@contextmanager
def along(count: int, stride: int = 1) -> Iterator[Any]:
    """A loop over elements of a row: one vector of any length where that is code enough."""
    kind = script.vectorized if stride == 1 and count <= _ROW else script.serial
    with kind(i64(0), i64(count)) as at:
        yield at


def span_of(shift: int, wide: int, columns: int, stride: int) -> tuple[int, int]:
    """Which of so many elements, ``stride`` apart from ``shift`` on, are in a row of so many columns:
    from one to another.
    """
    low = min(wide, max(0, ceil_div(-shift, stride)))
    return low, max(low, min(wide, ceil_div(columns - shift, stride)))


def copy_row(
    memory: Any,
    at: Any,
    wide: int,
    x: Any,
    row: tuple[Any, Any, Any],
    shift: Any,
    there: tuple[int, int],
    stride: int,
) -> None:
    """Emit the copying of so many elements, ``stride`` apart from ``shift`` on, of a row of images to ``at``.

    Args:
        row: image, channel and row, which may be beyond the image: then there are zeros.
        there: their `span_of` those in it; others are zeros.
    """
    (m, c, y), (low, high) = row, there

    def sorted_out(j: Any, skipped: int) -> None:
        """Eight elements from the j-th on, from vectors that begin some elements before it."""
        first = j * stride + shift - skipped
        read = [x[m, c, y, lanes(first + n * LANES)] for n in range(stride)]
        order = [tirx.const(n * stride + skipped, "int32") for n in range(LANES)]
        script.buffer_store(memory, tirx.Shuffle(read, order), [lanes(at + j)])

    with script.If(tirx.all(y >= 0, y < int(x.shape[2]))):
        with script.Then():
            _zeros(memory, at, low)
            if 1 < stride <= LANES < high - low:
                with script.serial(i64(0), i64((high - low - 1) // LANES)) as q:
                    sorted_out(low + q * i64(LANES), 0)
                sorted_out(i64(high - LANES), stride - 1)  # nothing is read that is beyond the row
            elif high > low:
                with along(high - low, stride) as j:
                    script.buffer_store(memory, x[m, c, y, (j + low) * stride + shift], [at + low + j])
            _zeros(memory, at + high, wide - high)
        with script.Else():
            _zeros(memory, at, wide)


def _zeros(memory: Any, start: Any, count: int) -> None:
    if count:
        with along(count) as rest:
            script.buffer_store(memory, f32(0), [start + rest])
