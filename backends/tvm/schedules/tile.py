"""Register tiles of convolutions, and the static model that orders them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .common import LANES, Core, ceil_div

_NEAR_BYTES = 1 << 15  # of a core's first cache
_FAR_BYTES = 3 << 16  # of its second that weights of one tile may take
_LATENCY = 8.0  # independent sums that hide the latency of a multiply-add
# Instructions: of half a vector of weights, of an element that it is multiplied by; of half a vector of sums
# besides its multiply-adds (begun, followed by an activation, stored); of a position where tiles are cut.
_WEIGHT, _READ, _KEPT, _CUT = 0.5, 0.51, 4.0, 1.0


@dataclass(frozen=True)
class Tile:
    """Output positions kept in registers at once: blocks of eight channels × rows × columns.

    Attributes:
        outer: 0 where the outermost loop is over channels, which keeps weights in the cache, 1 where it is
            over positions, which keeps the image there.
        patch: 0, or how many rows and columns of results a patch of Winograd's gives; then the tile has one
            row, and its columns are patches.
    """

    channels: int
    rows: int
    columns: int
    outer: int = 0
    patch: int = 0

    def vectors(self, core: Core) -> int:
        """How many vectors the channels take: half empty ones, where they fill no wide ones."""
        wide = core.lanes // LANES
        return self.channels if self.channels % wide else self.channels // wide

    def overhead(self, blocks: int, height: int, width: int, depth: int, core: Core) -> float:
        """Estimated time over that of the multiply-adds alone: padding, loads, latency.

        Args:
            depth: multiply-adds of each sum.
        """
        if core.elements:
            return self._instructions(blocks, height, width, depth) / (2 * blocks * height * width * depth)
        vectors = self.vectors(core)
        sums = vectors * self.rows * self.columns
        padded = vectors * core.lanes / (self.channels * LANES)
        for size, step in ((blocks, self.channels), (height, self.rows), (width, self.columns)):
            padded *= ceil_div(size, step) * step / size
        loads = (vectors + self.rows * self.columns) / sums
        return padded * max(1.0, _LATENCY / sums, loads) * (1 + 0.25 * loads)

    def _instructions(self, blocks: int, height: int, width: int, depth: int) -> float:
        """Of NEON, by counts of twenty pointwise convolutions with 16 tiles each: none was timed."""
        positions = self.rows * self.columns
        sums, cut = 2 * self.channels * positions, height % self.rows or width % self.columns
        tiles = ceil_div(blocks, self.channels) * ceil_div(height, self.rows) * ceil_div(width, self.columns)
        each = depth * (sums + _WEIGHT * 2 * self.channels + _READ * positions) + _KEPT * sums
        return tiles * (each + _CUT * positions * bool(cut))


def tiles(blocks: int, height: int, width: int, depth: int, core: Core) -> list[Tile]:
    """Tiles that fit the registers, those of the least `Tile.overhead` first."""
    # Elements of vectors of one block of channels are read at once, with no loop over channels: they and sums
    # take twice the registers.
    registers = core.registers // 2 if core.elements and depth <= LANES else core.registers
    found = []
    for channels in range(1, min(4 * core.lanes // LANES, blocks) + 1):
        for rows in range(1, min(4, height) + 1):
            for columns in range(1, min(core.registers - 2, width) + 1):
                tile = Tile(channels, rows, columns)
                vectors = tile.vectors(core)
                # Elements of vectors multiply where these are read for all positions: half registers.
                read = ceil_div(rows * columns, 2) if core.elements else 1
                taken = vectors * rows * columns + vectors + read
                if taken <= registers and (rows == 1 or columns < core.registers // 2):
                    found.append(tile)
    return sorted(found, key=lambda tile: tile.overhead(blocks, height, width, depth, core))


def divisor_tile(tile: Tile, blocks: int) -> Tile:
    """The tile with fewer blocks of channels, so that none holds blocks of two groups."""
    return replace(tile, channels=max(c for c in range(1, tile.channels + 1) if blocks % c == 0))


def choose_chunk(inner: int, kernel: tuple[int, int], tile: Tile) -> int:
    """Blocks of input channels whose weights for a tile fit the first cache; 0 if all fit the second."""
    blocks, each = ceil_div(inner, LANES), kernel[0] * kernel[1] * LANES * tile.channels * LANES * 4
    return max(1, _NEAR_BYTES // each) if blocks * each > _FAR_BYTES else 0
