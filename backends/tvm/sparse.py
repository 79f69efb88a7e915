"""Layers whose weights are mostly zero: the kernels that skip zeros, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .computed import MOST, Operand
from .schedules import sparse
from .schedules.blocks import Blocks, Strip, blocks_of
from .schedules.common import LANES, Core, Rule, ceil_div
from .schedules.image import Image
from .schedules.lifted import Lifted, lifted
from .schedules.sources import FEW, Pixels, Tokens
from .schedules.windows import windows_of

_BLOCKS = (1, 2, 4, 8, 16)  # outputs
_ALIKE = 1.05  # density of higher blocks over that of lower ones, where the pattern is of the higher ones
_PARTS = (1, 2, 4, 8, 16, 32, 64)  # of the columns
_LEAST = 16  # columns of a part
_CACHES = (34 << 10, 1 << 19)  # bytes of a panel that stay in the first and the second cache

# The static model of a core, in cycles: multiply-adds and loads follow each other. By measured times it takes
# fewer of them than of those of the model of dense kernels, which counts multiply-adds alone.
_SHARE = 0.5
_FMAS, _LOADS = 2.0, 1.8  # of vectors
_READ = (1.0, 2.7, 8.0)  # of a vector of the source, in loads: from the first cache, the second, the last
_WAITS = 0.28  # of a load from further away, where multiply-adds take longer than all loads
_SPLIT = 1.8  # loads more of a vector that lies in two lines of the cache, at any place of an image
_GATHER = {False: 1.2, True: 0.8}  # of an element into its lane, in loads, one by one or together
_SPREAD = 1.0  # of a vector over all outputs or positions, in multiply-adds
_WHERE = 0.85  # of an offset, in loads: several are one word
_ADDRESS = 2.5  # of an offset that vectors of positions are at, in loads
_LATENCY, _HIDDEN = 4.0, 0.05  # of a multiply-add; how much of it is felt where there are chains enough
_BEGIN = 30.0  # a block of chains: its loop, its registers
_UNEVEN = 0.5  # columns of a window for which outputs wait for others, by every doubling of these
_CARRIED, _CARRIED_FAR = 2.0, 3.0  # of a vector of sums, to memory or from it; more beyond the second cache
_LIFT = 0.08  # of an element brought to its lane, or back from it
_PACK, _TURN, _STORE, _LAST = 0.5, 0.2, 0.4, 0.02  # of an element packed, turned, stored, or picked at last
_INSTRUCTION = 0.4  # in cycles
_OFFSET, _LOOP, _AROUND = 2.0, 3.0, 10.0  # instructions of a non-zero, of a turn of the loop, of a run
_ROW = 20.0  # a row of an image in a tile
_NEAR = 20.0  # bytes of weights in a cycle, where tiles read again what the second cache does not hold
_FAR = 1.5  # times as long where they are more than the second cache holds
_BYTES = {False: 24.0, True: 6.0}  # of weights in a cycle, from the last cache or from memory


@dataclass(frozen=True)
class Pattern:
    """Where a matrix of weights has zeros.

    Attributes:
        rows: outputs that share their zeros: the largest blocks that fit.
        density: of such blocks, in hundredths.
    """

    rows: int
    density: int

    def share(self, rows: int) -> float:
        """How many blocks of so many outputs are not all zero, of all."""
        density = self.density / 100
        return density if rows <= self.rows else 1 - (1 - density) ** (rows / self.rows)

    def __str__(self) -> str:
        blocks = f"{self.rows}x1" if self.rows > 1 else "single"
        return f"{100 - self.density}% zeros, {blocks}"


def pattern_of(weights: NDArray[Any]) -> Pattern:
    """The pattern of weights (outputs, columns)."""
    nonzero = weights != 0
    density, rows = float(nonzero.mean()), 1
    for size in _BLOCKS[1:]:
        share = _share(nonzero, size)
        if share > _ALIKE * density:
            break
        rows = size
    return Pattern(rows, min(100, math.ceil(100 * _share(nonzero, rows))))


def _share(nonzero: NDArray[Any], rows: int) -> float:
    outputs, columns = nonzero.shape
    padded = np.zeros((ceil_div(outputs, rows) * rows, columns), bool)
    padded[:outputs] = nonzero
    return float(padded.reshape(-1, rows, columns).any(1).mean())


@dataclass(frozen=True)
class Sparse:
    """A layer by kernels that skip its zeros.

    Attributes:
        source: what it reads.
        pattern: of its weights; times hold for all weights of the pattern.
        groups: of channels; the columns of an output are those of its group.
        halves: whether half precision holds all of them; blocks of few positions are kept so, for there
            reading weights takes the time.
        blocked: whether channels of the result are in blocks of eight, those that fill the last one zero.
    """

    name: ClassVar[str] = "sparse"
    rules: ClassVar[tuple[type[Rule], ...]] = (sparse.Sparse,)

    source: Pixels | Image | Tokens
    outputs: int
    pattern: Pattern
    groups: int = 1
    halves: bool = False
    blocked: bool = False

    @property
    def description(self) -> str:
        match self.source:
            case Tokens():
                what = f"product {self.source.positions} x {self.source.channels} by {self.outputs}"
            case Pixels():
                what = f"convolution 1 x 1, {self.source.channels} to {self.outputs} channels"
            case Image():
                kernel = " x ".join(map(str, self.source.window.kernel))
                what = f"convolution {kernel}, {self.source.channels} to {self.outputs} channels"
        return f"sparse {what}, {self.pattern}"

    @property
    def columns(self) -> int:
        """Of the weights."""
        taps = math.prod(self.source.window.kernel) if isinstance(self.source, Image) else 1
        return self.source.channels // self.groups * taps

    @property
    def flops(self) -> float:
        """Of the weights that are not zero."""
        return 2.0 * self.outputs * self.columns * self.source.positions * self.pattern.density / 100

    @property
    def result(self) -> sparse.Result:
        if isinstance(self.source, Tokens):
            return sparse.rows_of(self.source, self.outputs)
        kind = sparse.blocks_of_channels if self.blocked else sparse.image_of
        return kind(self.source, self.outputs)

    @property
    def made(self) -> int:
        """Outputs with those that fill the last block of the result."""
        return ceil_div(self.outputs, LANES) * LANES if self.blocked else self.outputs

    def in_rows(self) -> Sparse:
        """The same on tokens that are not arranged in any way: it takes as long."""
        if not isinstance(self.source, Tokens):
            return self
        return replace(self, source=Tokens((self.source.positions,), self.source.channels))

    def choices(self, core: Core, far: bool) -> Sequence[tuple[int, ...]]:
        """The best by the static model first."""
        found = sorted(self.strips(core), key=lambda strip: self.cycles(astuple(strip), core, far))
        return [astuple(strip) for strip in found[:MOST]]

    def strips(self, core: Core) -> list[Strip]:
        positions = self.source.positions
        found, ways = self._windows(core), self._lifted(core)
        splits = [parts for parts in _PARTS if self._splits(parts)]
        for rows in _BLOCKS:
            if rows > 2 * max(self.pattern.rows, 1) or rows > max(1, self.outputs):
                break
            if self.groups > 1 and self.outputs // self.groups % rows:
                break
            if positions < FEW:
                for wide in range(1, min(positions, 4) + 1):
                    if rows == 1:
                        found += [Strip(1, wide, 1, count * LANES) for count in (1, 2)]
                        continue
                    for chains in (1, 2, 4, 8, 16):
                        strip = Strip(rows, wide, 1, chains)
                        sums = 1 if strip.crossed(core) else wide * _lanes(rows, core)
                        fits = chains <= 8 and chains * sums <= core.registers - 4
                        if fits or strip.gathers(core):
                            found.append(strip)
            if rows > 8 or positions < FEW // 2:
                continue
            if core.elements and positions >= FEW and rows >= LANES // 2 and len(self.result.turns) > 1:
                # Elements of vectors of positions multiply outputs in the lanes: results need no turning.
                for wide, chains in product((8, 16), (1, 2)):
                    if wide * _lanes(rows, core) * chains <= core.registers - 4:
                        found.append(Strip(rows, wide, 1, chains))
            for vectors in range(1, ceil_div(positions, LANES) + 1):
                wide = ceil_div(vectors, self._in_one(vectors, core))
                read = wide if rows > 1 else 0  # that several rows multiply, and no memory operands
                if wide > core.registers - 2:
                    break
                if rows * wide + read + 1 <= core.registers:
                    size = vectors * LANES
                    fitting = [way for way in ways if size % way.lanes == 0 and size <= way.line]
                    cuts = [0, *(way.cuts[0] for way in fitting)]
                    found += [Strip(rows, vectors, parts, cuts=each) for parts, each in product(splits, cuts)]
        return found

    def _lifted(self, core: Core) -> list[Lifted]:
        """The ways in which parts of an image may be in the lanes."""
        if not isinstance(self.source, Image) or core.elements or self.blocked or self.source.positions < FEW:
            return []
        return lifted(self.source, core.lanes)

    def _source(self, strip: Strip, core: Core) -> Pixels | Image | Tokens | Lifted:
        """The source, as the kernel of a choice reads it."""
        if strip.cuts and isinstance(self.source, Image):
            return Lifted(self.source, (strip.cuts, core.lanes // strip.cuts))
        return self.source

    def _splits(self, parts: int) -> bool:
        """Whether there are so many parts of the columns, each of whole channels."""
        channels = self.source.channels
        enough = self.columns >= _LEAST * parts and (parts - 1) * ceil_div(channels, parts) < channels
        return parts == 1 or enough

    def _windows(self, core: Core) -> list[Strip]:
        """Of which outputs may have columns of their own: these follow each other in the source. Blocks read
        fewer weights where what they multiply can be gathered.
        """
        alike, found = self.pattern.rows, []
        follow = not isinstance(self.source, Image) and self.groups == 1
        fits = alike == 1 if core.gathers else alike < core.lanes
        if not core.picks or not follow or not fits or self.source.positions >= FEW:
            return []
        for vectors, sums, pairs in product((2, 4), (4, 8), (1, 2)):
            rows, window = vectors * core.lanes, 2 * pairs * core.lanes
            if rows <= self.outputs and window <= self.columns:
                found.append(Strip(rows, 1, 1, sums // vectors, window, alike))
        return found

    def _in_one(self, vectors: int, core: Core) -> int:
        """How many blocks of eight lanes are one vector of the core."""
        return Strip(1, vectors).vector(core.lanes) // LANES

    def cycles(self, choice: tuple[int, ...], core: Core, far: bool) -> float:
        """What a choice takes, by the static model."""
        strip = Strip(*choice)
        source = self._source(strip, core)
        blocks, last = ceil_div(self.outputs, strip.rows), strip.last(source.line, core.lanes)
        took = (source.line // strip.wide) * self._tile(strip, core)
        took = blocks * (took + (self._tile(last, core) if last else 0)) * (source.positions // source.line)
        tiles = sparse.count_tiles(source, strip)
        passes = self.packing(strip, core) + self.storing(strip, core)
        size = np.dtype(self._dtype(strip)).itemsize
        picks = strip.rows / strip.alike if strip.window else 0.0
        weights = blocks * self._nonzeros(strip) * (size * strip.rows + picks + 2)
        again = (tiles - 1) * weights / _NEAR if weights > _CACHES[1] else 0.0
        return _SHARE * (took + again) + passes + weights / _BYTES[far]

    def packing(self, strip: Strip, core: Core) -> float:
        """Cycles of the passes over what is read."""
        source = self._source(strip, core)
        took = _pass(source.packed(strip.wide), _PACK + _LIFT * (strip.cuts > 0))
        blocked = isinstance(self.source, Pixels) and self.source.blocked
        return _SHARE * (took + self._pages(strip, 0 if blocked else self.source.channels, core))

    def storing(self, strip: Strip, core: Core) -> float:
        """Cycles of the passes over results."""
        results, turns = self.source.positions * self.made, len(self.result.turns) > 1 and not strip.chains
        took = _pass(results, _STORE + _TURN * turns + _LIFT * (strip.cuts > 0))
        if not self._source(strip, core).exact:
            took += _pass(results, _LAST)
        return _SHARE * (took + self._pages(strip, 0 if self.blocked else self.outputs, core))

    def _pages(self, strip: Strip, channels: int, core: Core) -> float:
        """Rows of images lie on pages of their own."""
        if core.elements or not isinstance(self.source, Pixels):
            return 0.0
        return _ROW * sparse.count_tiles(self.source, strip) * channels

    def _nonzeros(self, strip: Strip) -> float:
        """Of a block, filled to whole turns."""
        if strip.window:
            waits = _UNEVEN * math.log2(strip.rows / strip.alike) / strip.window
            return self.columns * (self.pattern.density / 100 + waits) + (strip.turn - 1) / 2
        return self.columns * self.pattern.share(strip.rows) + strip.parts * (strip.turn - 1) / 2

    def _tile(self, strip: Strip, core: Core) -> float:
        """Cycles of a block of a tile."""
        if core.elements:
            return _INSTRUCTION * self._instructions(strip, core)
        nonzeros = self._nonzeros(strip)
        if strip.chains:
            lanes = _lanes(strip.rows, core)
            multiplies, loads = lanes * strip.wide, lanes + _factors(strip.wide, core) + _WHERE
            if strip.window:
                vectors, picks = strip.rows / core.lanes, max(1.0, strip.rows / strip.alike / core.lanes)
                pairs = strip.window / (2 * core.lanes)  # of vectors to pick from
                multiplies = vectors + picks * 3 * pairs * _SPREAD
                loads = vectors + picks + 2 * pairs + _WHERE
            elif strip.crossed(core):
                multiplies, loads = 1.0 + _SPREAD, 2.0 + _WHERE
            elif strip.gathers(core):
                share = strip.rows / core.lanes  # of a vector
                multiplies, loads = (1.0 + _SPREAD) * share, share + _GATHER[True] + _WHERE
            if strip.rows == 1:
                multiplies, loads = strip.wide / LANES, strip.wide * _GATHER[core.gathers] + _WHERE
            waits = _LATENCY / strip.chains
            each = max(multiplies / _FMAS + loads / _LOADS, waits) + _HIDDEN * waits
            return nonzeros * each + _BEGIN + multiplies
        vectors = strip.vectors / self._in_one(strip.vectors, core)
        unaligned = isinstance(self.source, Image) and not strip.cuts
        sums, split = strip.rows * vectors, _SPLIT if unaligned else 0.0
        reads = self._reads(strip, core)
        loads = _factors(strip.rows, core) + vectors * (reads + split) + _ADDRESS
        least = sums / (_FMAS * _SHARE) + vectors * (reads - _READ[0]) * _WAITS
        each = max(sums / _FMAS + loads / _LOADS, least, _LATENCY)
        far = 0.0 if strip.parts == 1 else _beyond(4 * self.outputs * strip.wide)
        return nonzeros * each + _carried(strip) * (_CARRIED + far * _CARRIED_FAR) * sums

    def _instructions(self, strip: Strip, core: Core) -> float:
        """Of a block of a tile: none of the processors whose elements multiply was measured, so those of
        vectors of four floats are counted. What they read is as far as on others.
        """
        if strip.chains:
            half, sets = LANES // 2, strip.chains
            sums, reads = float(strip.wide * ceil_div(strip.rows, half)), float(ceil_div(strip.wide, LANES))
            if strip.rows == 1:
                sums, reads = strip.wide / half, 2.0 * strip.wide
        else:
            sums, sets = 2 * strip.rows * strip.vectors, 1
            reads = strip.vectors * self._reads(strip, core)
        each = sums + reads + strip.rows / LANES + _OFFSET + _LOOP / strip.turn
        return self._nonzeros(strip) * each + strip.parts * _AROUND + (sets + _carried(strip)) * sums

    def _reads(self, strip: Strip, core: Core) -> float:
        """Loads that a vector of the source is worth: all blocks read of a part, one after the other."""
        panel = 4 * self._source(strip, core).span(strip.wide) * self.source.channels / strip.parts
        return _read(panel, self.pattern.share(strip.rows))

    def blocks(self, weights: NDArray[Any], choice: tuple[int, ...], core: Core) -> Blocks:
        """Weights (outputs, columns) as the kernel of a choice reads them."""
        strip = Strip(*choice)
        weights = np.pad(weights, ((0, self.made - self.outputs), (0, 0)))
        if strip.window:
            return windows_of(weights, strip, core.lanes, self._dtype(strip))
        offsets = self._source(strip, core).columns(strip).reshape(self.groups, -1)
        taps = self.columns * self.groups // self.source.channels
        each = ceil_div(self.source.channels, strip.parts) * taps
        parts = (np.arange(offsets.size) // each).reshape(offsets.shape)
        return blocks_of(weights, offsets, strip, self._dtype(strip), self._unit(offsets, strip, core), parts)

    def _unit(self, offsets: NDArray[Any], strip: Strip, core: Core) -> int:
        """Elements that offsets count: of vectors of positions that lie one after the other, these."""
        if strip.cuts:
            return core.lanes
        vectors = core.elements and strip.chains and strip.rows > 1 and strip.wide in (2, 4)
        return strip.wide if vectors and not (offsets % strip.wide).any() else 1

    def _dtype(self, strip: Strip) -> str:
        few = self.source.positions < FEW and strip.rows > 1
        return "float16" if self.halves and few and strip.chains else "float32"

    def kernel(self, blocks: Blocks, choice: tuple[int, ...], core: Core) -> Any:
        """A PrimFunc of the operand and of the arrays of ``blocks``."""
        strip = Strip(*choice)
        return sparse.kernel(self._source(strip, core), self.made, blocks, strip, self.result, core)

    def function(self, choice: tuple[int, ...], core: Core) -> Any:
        """A kernel for weights of the pattern."""
        return self.kernel(self.blocks(self.drawn, choice, core), choice, core)

    def operands(self, choice: tuple[int, ...], core: Core) -> list[Operand]:
        """What it takes: shapes of random tensors, or arrays; the result last."""
        return [self.source.shape, *self.blocks(self.drawn, choice, core).arrays, self.result.shape]

    @cached_property
    def drawn(self) -> NDArray[Any]:
        """Weights of the pattern."""
        rng, rows = np.random.default_rng(0), self.pattern.rows
        present = rng.random((ceil_div(self.outputs, rows), self.columns)) < self.pattern.density / 100
        return np.repeat(present, rows, 0)[: self.outputs].astype(np.float32)


def _read(panel: float, density: float) -> float:
    """Loads that a vector of a panel of so many bytes is worth, of which a block reads so much."""
    first, second = (_hits(size / panel, density) for size in _CACHES)
    return first * _READ[0] + (second - first) * _READ[1] + (1 - second) * _READ[2]


def _hits(share: float, density: float) -> float:
    """How much of what blocks read, one after the other, a cache holds with room for a share of the panel.

    A column that was last read k blocks ago is there if what was read since fits: 1 - (1 - density)ᵏ of all.
    """
    density = max(density, 0.01)
    if share >= 1 or density >= 1:
        return float(share >= 1)
    return 1 - (1 - density) ** math.floor(math.log(1 - share) / math.log(1 - density))


def _beyond(size: int) -> float:
    """The share of so many bytes that the second cache does not hold."""
    return max(0.0, 1 - _CACHES[1] / size)


def _carried(strip: Strip) -> int:
    """How often the sums of a block are brought to memory, or back."""
    return 1 if strip.parts == 1 else 2 * strip.parts  # these are set to zero before the first part


def _lanes(rows: int, core: Core) -> float:
    """Vectors that so many outputs fill: registers that count in pairs may be half one."""
    return ceil_div(rows, LANES // 2) / 2 if core.elements else ceil_div(rows, LANES)


def _factors(count: int, core: Core) -> float:
    """Loads of so many factors of vectors that are beside each other."""
    return _lanes(count, core) if core.elements and count % 2 == 0 else count


def _pass(elements: int, each: float) -> float:
    """Cycles of a pass over so many elements."""
    return elements * each * (1.0 if 4 * elements <= _CACHES[1] else _FAR)
