"""What products read beside their weights: rows of tokens, or patches of an image, one at each position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tvm import tirx

from ..schedules.common import ceil_div, i32, joined
from ..schedules.conv import Window

RUN = 8  # columns that belong to one tap of a window, at least where channels come last


@dataclass(frozen=True)
class Rows:
    """Tokens (..., channels); each is a position, and columns are channels.

    Attributes:
        beside: what lies beside each other in memory: columns, not positions.
    """

    beside: ClassVar[bool] = True

    lead: tuple[int, ...]
    channels: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.lead, self.channels)

    @property
    def wide(self) -> int:
        """Columns that are read at once."""
        return 4 if self.channels % 4 == 0 else 1

    @property
    def positions(self) -> int:
        return math.prod(self.lead)

    @property
    def columns(self) -> int:
        return self.channels

    def ordered(self, output: Any, position: Any) -> tuple[Any, Any]:
        """As results lie: what is beside each other last."""
        return position, output

    def result(self, outputs: int) -> tuple[int, ...]:
        return (*self.lead, outputs)

    def sum_at(self, axes: Sequence[Any]) -> list[Any]:
        """The output and the position of an element of the result."""
        return [axes[-1], joined(self.lead, axes[:-1])]

    def inside(self, column: Any, position: Any) -> Any:
        return tirx.all(position < self.positions, column < self.channels)

    def place(self, column: Any, position: Any) -> list[Any]:
        return [*_parts(position, self.lead), column]


@dataclass(frozen=True)
class Patches:
    """An image (n, channels, height, width) under a window; positions are those of the results.

    Attributes:
        taps_first: whether columns are the channels of the first tap of the window, then those of the next,
            each filled to a multiple of `RUN`; else they are the taps of the first channel, and so on, which
            fills less where channels are few.
    """

    beside: ClassVar[bool] = False
    wide: ClassVar[int] = 1

    data: tuple[int, int, int, int]
    window: Window
    taps_first: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data

    @property
    def out(self) -> tuple[int, int]:
        return self.window.out(self.data[2:])

    @property
    def positions(self) -> int:
        return self.data[0] * math.prod(self.out)

    @property
    def run(self) -> int:
        """Columns of a tap, those included that fill it up."""
        return ceil_div(self.data[1], RUN) * RUN

    @property
    def columns(self) -> int:
        taps = math.prod(self.window.kernel)
        return taps * self.run if self.taps_first else taps * self.data[1]

    def matrix(self, weights: NDArray[Any]) -> NDArray[Any]:
        """Weights (outputs, channels, height, width) as (outputs, columns)."""
        outputs, channels, *_ = weights.shape
        if not self.taps_first:
            return weights.reshape(outputs, -1)
        filled = np.zeros((outputs, *self.window.kernel, self.run), np.float32)
        filled[..., :channels] = weights.transpose(0, 2, 3, 1)
        return filled.reshape(outputs, -1)

    def ordered(self, output: Any, position: Any) -> tuple[Any, Any]:
        return output, position

    def result(self, outputs: int) -> tuple[int, ...]:
        return (self.data[0], outputs, *self.out)

    def sum_at(self, axes: Sequence[Any]) -> list[Any]:
        image, output, *place = axes
        return [output, joined((self.data[0], *self.out), (image, *place))]

    def inside(self, column: Any, position: Any) -> Any:
        channel, y, x = self._read(column, position)
        _, channels, h, w = self.data
        conditions = [position < self.positions, column < self.columns, y >= 0, y < h, x >= 0, x < w]
        if self.taps_first and self.run != channels:
            conditions.append(channel < channels)
        return tirx.all(*conditions)

    def place(self, column: Any, position: Any) -> list[Any]:
        return [tirx.floordiv(position, i32(math.prod(self.out))), *self._read(column, position)]

    def _read(self, column: Any, position: Any) -> tuple[Any, Any, Any]:
        window, taps = self.window, math.prod(self.window.kernel)
        if self.taps_first:
            tap, channel = tirx.floordiv(column, i32(self.run)), tirx.floormod(column, i32(self.run))
        else:
            channel, tap = tirx.floordiv(column, i32(taps)), tirx.floormod(column, i32(taps))
        i, j = _parts(tap, (taps // window.kernel[1], window.kernel[1]))
        _, row, line = _parts(position, (self.data[0], *self.out))
        y = row * window.strides[0] + i * window.dilations[0] - window.padding[0]
        x = line * window.strides[1] + j * window.dilations[1] - window.padding[1]
        return channel, y, x


Reading: TypeAlias = Rows | Patches


def _parts(at: Any, sizes: Sequence[int]) -> list[Any]:
    """The indices of a place in axes of these sizes."""
    found = []
    for size in reversed(sizes[1:]):
        found.append(tirx.floormod(at, i32(size)))
        at = tirx.floordiv(at, i32(size))
    return [at, *reversed(found)]
