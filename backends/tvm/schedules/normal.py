"""LayerNorm in the panel that a product reads: positions are in the lanes, so that sums need no reduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as script

from ..vecmath import f32
from . import written
from .common import i64
from .sources import Tile, Tokens


@dataclass(frozen=True)
class Normalised(Tokens):
    """Rows of channels after LayerNorm: with a mean of 0 and a variance of 1, times factors, plus shifts.

    Attributes:
        epsilon: added to variances.
    """

    epsilon: float

    @property
    def operands(self) -> Sequence[tuple[str, tuple[int, ...], str]]:
        each = (self.channels,)
        return [*super().operands, ("factor", each, "float32"), ("shift", each, "float32")]

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        x, factor, shift = data
        panel, wide = super().pack([x], tile), tile.wide
        mean, scale = written.local(tile.strip.wide), written.local(tile.strip.wide)
        share = f32(1 / self.channels)

        def over_channels() -> Any:
            return script.serial(i64(0), i64(self.channels))

        with tile.positions() as v:
            script.buffer_store(mean, f32(0), [v])
            script.buffer_store(scale, f32(0), [v])
        with over_channels() as c, tile.positions() as v:
            script.buffer_store(mean, mean[v] + panel[c * i64(wide) + v], [v])
        with tile.positions() as v:
            script.buffer_store(mean, mean[v] * share, [v])
        with over_channels() as c, tile.positions() as v:
            centred = script.bind(panel[c * i64(wide) + v] - mean[v])
            script.buffer_store(panel, centred, [c * i64(wide) + v])
            script.buffer_store(scale, scale[v] + centred * centred, [v])
        with tile.positions() as v:
            script.buffer_store(scale, f32(1) / tirx.sqrt(scale[v] * share + f32(self.epsilon)), [v])
        with over_channels() as c, tile.positions() as v:
            value = panel[c * i64(wide) + v] * scale[v] * factor[c] + shift[c]
            script.buffer_store(panel, value, [c * i64(wide) + v])
        return panel
