"""Two layers in one kernel: what the first makes of a tile of positions is all that the second reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tvm import tirx
from tvm.script.ir_builder import tirx as script

from . import sums, written
from .blocks import Blocks, Strip
from .common import ceil_div, i64
from .sources import Packed, Source, Tile, positions

# Of buffers, an output of the first layer, and its sum at a position: what the second layer reads. Gets, too,
# what keeps a value that is read more than once.
Between: TypeAlias = Callable[[Sequence[Any], Any, Any, Callable[[Any], Any]], Any]


@dataclass(frozen=True)
class Hidden(Packed):
    """The outputs of a layer, as another one reads them.

    Attributes:
        source: what the first layer reads.
        channels: its outputs.
        blocks: its weights.
        rows: of a block of them.
        between: what is done with its sums.
        others: shapes of the buffers that ``between`` reads.
    """

    source: Source
    channels: int
    blocks: Blocks
    rows: int
    between: Between
    others: Sequence[tuple[int, ...]] = ()

    @property
    def operands(self) -> Sequence[tuple[str, tuple[int, ...], str]]:
        others = [(f"between{n}", shape, "float32") for n, shape in enumerate(self.others)]
        return [*self.source.operands, *sums.operands(self.blocks, "first_"), *others]

    @property
    def positions(self) -> int:
        return self.source.positions

    def pack(self, data: Sequence[Any], tile: Tile) -> Any:
        count, arrays = len(self.source.operands), len(self.blocks.arrays)
        weights, others = sums.Weights(*data[count : count + arrays]), data[count + arrays :]
        strip, core, wide = Strip(self.rows, tile.strip.vectors), tile.core, tile.wide
        panel = self.source.pack(data[:count], replace(tile, strip=strip))
        blocks = ceil_div(self.channels, self.rows)
        made = written.buffer(blocks * self.rows * wide)
        with written.each(blocks, tile.apart) as run, written.block("sparse_run"):
            output = run * i64(self.rows)
            offsets = sums.Offsets(weights, run, strip, core)
            kept = sums.many(weights, panel, i64(0), run, strip, core, sums.nothing, offsets)
            with script.unroll(i64(0), i64(self.rows)) as r, positions(strip, core.lanes) as v:
                channel = output + r
                if self.channels % self.rows:
                    channel = tirx.min(channel, i64(self.channels - 1))
                value = self.between(others, channel, kept[r * i64(strip.wide) + v], script.bind)
                script.buffer_store(made, value, [(output + r) * i64(wide) + v])
        return made
