"""Sums of products of bytes that are worth tuning, as `workloads` are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, ClassVar

from .computed import MOST, Choice, Computed, placeholder, shown
from .schedules import conv, dots, gemm
from .schedules.common import LANES, Core, Rule, ceil_div
from .schedules.tile import Tile, tiles


@dataclass(frozen=True)
class ByteConvolution(Computed):
    """A convolution of bytes (n, channels, height, width) to ``out`` channels of int32.

    Attributes:
        kind: type of the data; weights are int8.
        zero: what the data is padded with.
    """

    name: ClassVar[str] = "byte_conv2d"
    rules: ClassVar[tuple[type[Rule], ...]] = (dots.DotConv,)

    data: tuple[int, int, int, int]
    out: int
    window: conv.Window
    kind: str
    zero: int

    @property
    def description(self) -> str:
        return f"convolution of bytes {shown(self.data, self.window)}, {self.data[1]} to {self.out} channels"

    @property
    def flops(self) -> float:
        rows, columns = self.window.out(self.data[2:])
        taps = math.prod(self.window.kernel)
        return 2.0 * self.data[0] * self.out * rows * columns * self.data[1] * taps

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        rows, columns = self.window.out(self.data[2:])
        area = (1, rows * columns) if conv.is_pointwise(self.window) else (rows, columns)
        found = tiles(ceil_div(self.out, LANES), *area, self.data[1], core)
        return [astuple(replace(tile, outer=outer)) for tile in found for outer in (0, 1)][:MOST]

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        tile = Tile(*choice)
        n, c, h, w = self.data
        blocks, width = ceil_div(c, LANES), tile.channels * LANES
        outer = ceil_div(self.out, width)
        x = placeholder((n, blocks, h, w, LANES), "x", self.kind)
        packed = (outer, blocks, *self.window.kernel, LANES // dots.FOUR, width, dots.FOUR)
        k = placeholder(packed, "w", "int8")
        return x, k, self.compute(x, k, tile)

    def compute(self, x: Any, weights: Any, tile: Tile) -> Any:
        """The kernel in TE, of weights as `dots.pack_conv` packs them."""
        size, blocks = self.data[2:], ceil_div(self.out, LANES)
        return dots.conv2d(x, weights, self.window, size, blocks, tile, self.zero)


@dataclass(frozen=True)
class ByteProduct(Computed):
    """Bytes (rows, depth) times a constant matrix of bytes (depth, columns), to int32."""

    name: ClassVar[str] = "byte_gemm"
    rules: ClassVar[tuple[type[Rule], ...]] = (dots.DotGemm,)

    rows: int
    depth: int
    columns: int
    kind: str

    @property
    def description(self) -> str:
        return f"product of bytes {self.rows} x {self.depth} by {self.depth} x {self.columns}"

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.depth * self.columns

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        found = gemm.tiles(self.rows, self.columns, core)
        return [(*tile, outer) for tile in found for outer in (0, 1)][:MOST]

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        panels = ceil_div(self.columns, choice[1])
        x = placeholder((self.rows, self.depth), "x", self.kind)
        k = placeholder((panels, self.depth // dots.FOUR, choice[1], dots.FOUR), "w", "int8")
        return x, k, dots.matmul(lambda at: x(*at), (self.rows,), self.depth, k, self.columns, choice)
