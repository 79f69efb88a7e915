"""The kernels that are worth tuning: what each computes, and the ways to compute it.

A workload knows its kernel for any of its choices, so that choices can be timed by themselves and taken from
a database when a model is compiled. Which of them are tried is decided by a static model (registers, loads
for each multiply-add, padding); its favourite is what is taken where nothing was measured.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, ClassVar, TypeAlias

from numpy.typing import NDArray
from tvm import s_tir

from .bytewise import ByteConvolution, ByteProduct
from .chain import Chain
from .computed import MOST, Choice, Computed, Operand, placeholder, shown
from .schedules import attention, conv, gemm, winograd, written
from .schedules.common import LANES, Core, Rule, ceil_div
from .schedules.tile import Tile, choose_chunk, divisor_tile, tiles
from .sparse import Sparse

VERSION = 15  # of kernels and schedules: times of another one say nothing about these

# The static model of a core, in cycles.
_FMAS = 2.0  # multiply-adds of vectors
_BYTES = {False: 8.0, True: 6.0}  # of weights, from the last cache or from memory
# Where elements of vectors multiply instructions were counted; costs are those that `sparse` has for them.
_COUNTED_FMAS, _COUNTED_BYTES = 2.5, {False: 24.0, True: 6.0}
_TURN = 6.0  # to turn a vector of eight lanes of a patch to Winograd's basis, or back
_CLEARLY = 0.8  # of the time of the direct way, to be preferred
_SURELY = 1.1  # the estimated gain that is taken for one


def _multiplied(core: Core) -> float:
    """Multiply-adds in a cycle, at best."""
    return (_COUNTED_FMAS if core.elements else _FMAS) * core.lanes


def _reading(weights: float, core: Core, far: bool) -> float:
    """Cycles that so many weights take to come from the last cache or from memory."""
    return 4 * weights / (_COUNTED_BYTES if core.elements else _BYTES)[far]


@dataclass(frozen=True)
class Convolution(Computed):
    """A convolution of (n, channels, height, width) to ``out`` channels.

    Attributes:
        inner, outer: channels that each section reads and makes; see `conv.conv2d`.
        thin: whether the data is not packed.
    """

    name: ClassVar[str] = "conv2d"
    rules: ClassVar[tuple[type[Rule], ...]] = (winograd.Winograd, conv.ChunkedConv, conv.Conv)

    data: tuple[int, int, int, int]
    out: int
    inner: int
    outer: int
    window: conv.Window
    sections: int = 1
    thin: bool = False

    @property
    def blocks(self) -> int:
        return ceil_div(self.out, LANES)

    @property
    def description(self) -> str:
        sections = f", {self.sections} sections" if self.sections > 1 else ""
        return f"convolution {shown(self.data, self.window)}, {self.data[1]} to {self.out} channels{sections}"

    @property
    def flops(self) -> float:
        rows, columns = self.window.out(self.data[2:])
        return 2.0 * self.data[0] * self.out * rows * columns * self.inner * math.prod(self.window.kernel)

    def chunk(self, tile: Tile) -> int:
        """Blocks of input channels that are summed at a time, 0 for all: where channels are outermost."""
        alike = self.sections == 1 and not self.thin and not tile.outer and not tile.patch
        return choose_chunk(self.inner, self.window.kernel, tile) if alike else 0

    def cycles(self, choice: Choice, core: Core, far: bool) -> float:
        """What a choice takes, by the static model."""
        return self._cycles(Tile(*choice), core, far)

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        direct = self._direct(core)
        short = sorted(self._short(core), key=lambda tile: self._cycles(tile, core, far))
        short = short[: MOST // 3]
        direct = direct[: MOST - len(short)]
        if short and self._cycles(short[0], core, far) < _CLEARLY * self._cycles(direct[0], core, far):
            return [astuple(tile) for tile in (*short, *direct)]
        return [astuple(tile) for tile in (*direct, *short)]

    def _direct(self, core: Core) -> list[Tile]:
        found = tiles(ceil_div(self.blocks, self.sections), *self._area(), self._depth, core)
        if self.sections > 1:
            found = list(dict.fromkeys(divisor_tile(tile, self.outer // LANES) for tile in found))
        # Weights of so few channels would be read before a loop over positions, and spill.
        first = int(core.elements and self._depth <= LANES)
        return [replace(tile, outer=outer) for tile in found for outer in (first, 1 - first)]

    @property
    def _depth(self) -> int:
        """Multiply-adds of a sum."""
        return ceil_div(self.inner, LANES) * LANES * math.prod(self.window.kernel)

    def _area(self) -> tuple[int, int]:
        """Rows and columns that direct tiles cover: one row where positions may be in a line."""
        rows, columns = self.window.out(self.data[2:])
        widest = Tile(4, 1, 1)
        if self.thin or not conv.is_pointwise(self.window) or self.chunk(widest):
            return rows, columns
        return 1, rows * columns

    def _short(self, core: Core) -> list[Tile]:
        """Winograd's algorithms, where there are any."""
        if self.sections > 1 or self.thin or not winograd.fits(self.window):
            return []
        found = []
        for patch in winograd.patches(self.window.kernel[0]):
            shapes = tiles(self.blocks, 1, self._patches(patch), self.inner, core)[:3]
            found += [replace(tile, outer=outer, patch=patch) for tile in shapes for outer in (0, 1)]
        return found

    def _patches(self, patch: int) -> int:
        rows, columns = self.window.out(self.data[2:])
        return self.data[0] * ceil_div(rows, patch) * ceil_div(columns, patch)

    def _cycles(self, tile: Tile, core: Core, far: bool) -> float:
        weights, macs = _reading(self.out * self.inner, core, far), _multiplied(core)
        if not tile.patch:
            blocks = ceil_div(self.blocks, self.sections)
            overhead = tile.overhead(blocks, *self._area(), self._depth, core)
            taps = math.prod(self.window.kernel)
            return self.flops / 2 / macs * overhead + weights * taps
        patches = self._patches(tile.patch)
        taps = (tile.patch + self.window.kernel[0] - 1) ** 2
        work = taps * self.out * self.inner * patches
        turns = patches * (ceil_div(self.inner, LANES) + self.blocks) * taps * _TURN
        overhead = tile.overhead(self.blocks, 1, patches, self.inner, core)
        return work / macs * overhead + turns + weights * taps

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        tile = Tile(*choice)
        n, c, h, w = self.data
        shape = (n, c, h, w) if self.thin else (n, ceil_div(c, LANES), h, w, LANES)
        x, k = placeholder(shape, "x"), placeholder(self.packed_shape(tile), "w")
        return x, k, self.compute(x, k, tile, line=True)

    def packed_shape(self, tile: Tile) -> tuple[int, ...]:
        """Shape of the weights that `pack` gives."""
        width = tile.channels * LANES
        lanes, chunk = self.data[1] if self.thin else LANES, max(1, self.chunk(tile))
        outer = ceil_div(self.sections * self.outer, width)
        inner = ceil_div(ceil_div(self.inner, lanes), chunk) * chunk
        if tile.patch:
            side = tile.patch + self.window.kernel[0] - 1
            return (side, side, outer, inner, lanes, width)
        return (outer, inner, *self.window.kernel, lanes, width)

    def pack(self, weights: NDArray[Any], tile: Tile) -> NDArray[Any]:
        """Weights (O, I/sections, KH, KW) as `compute` reads them."""
        if tile.patch:
            return winograd.pack_weights(weights, tile)
        return conv.pack_weights(
            weights, tile, self.data[1] if self.thin else LANES, max(1, self.chunk(tile))
        )

    def compute(self, x: Any, weights: Any, tile: Tile, line: bool = False) -> Any:
        """The kernel in TE; ``line`` is as `conv.conv2d` takes it."""
        if tile.patch:
            return winograd.conv2d(x, weights, self.window, self.data[2:], self.blocks, tile)
        size, chunk = self.data[2:], self.chunk(tile)
        return conv.conv2d(x, weights, self.window, size, self.blocks, tile, self.sections, chunk, line)


@dataclass(frozen=True)
class Depthwise(Computed):
    """A depthwise convolution of (n, channels, height, width)."""

    name: ClassVar[str] = "depthwise"
    rules: ClassVar[tuple[type[Rule], ...]] = (conv.Depthwise,)

    data: tuple[int, int, int, int]
    window: conv.Window

    @property
    def description(self) -> str:
        return f"depthwise convolution {shown(self.data, self.window)}, {self.data[1]} channels"

    @property
    def flops(self) -> float:
        return (
            2.0
            * math.prod(self.data[:2])
            * math.prod(self.window.out(self.data[2:]))
            * math.prod(self.window.kernel)
        )

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        height, width = self.window.out(self.data[2:])
        taps = math.prod(self.window.kernel)
        if not core.elements:
            return [astuple(tile) for tile in tiles(1, height, width, taps, Core())[:MOST]]
        most = conv.most_sums(taps, core)
        found = tiles(1, height, width, taps, Core(registers=2 * core.registers) if most else Core())
        most = most or core.registers // 2

        def cost(tile: Tile) -> tuple[bool, float]:
            sums, reach = tile.rows * tile.columns, conv.reach(self.window, (tile.rows, tile.columns))
            turns = ceil_div(height, tile.rows) * ceil_div(width, tile.columns)
            return sums > most, turns * (sums * taps + math.prod(reach))

        return [astuple(tile) for tile in sorted(found, key=cost)[:MOST]]

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        n, c, h, w = self.data
        blocks = ceil_div(c, LANES)
        x, k = (
            placeholder((n, blocks, h, w, LANES), "x"),
            placeholder((blocks, *self.window.kernel, LANES), "w"),
        )
        return x, k, conv.depthwise(x, k, self.window, (h, w), Tile(*choice))


@dataclass(frozen=True)
class Product(Computed):
    """(rows, depth) times a constant matrix (depth, columns)."""

    name: ClassVar[str] = "gemm"
    rules: ClassVar[tuple[type[Rule], ...]] = (gemm.Gemm,)

    rows: int
    depth: int
    columns: int

    @property
    def description(self) -> str:
        return f"product {self.rows} x {self.depth} by {self.depth} x {self.columns}"

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.depth * self.columns

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        found = gemm.tiles(self.rows, self.columns, core)
        return [(*tile, outer) for tile in found for outer in (0, 1)][:MOST]

    def cycles(self, choice: Choice, core: Core, far: bool) -> float:
        """What a choice takes, by the static model."""
        work = gemm.overhead(self.rows, self.columns, choice, core) * self.flops / 2
        return work / _multiplied(core) + _reading(self.depth * self.columns, core, far)

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        panels = ceil_div(self.columns, choice[1])
        x, k = placeholder((self.rows, self.depth), "x"), placeholder((panels, self.depth, choice[1]), "w")
        made = gemm.matmul_packed(lambda at: x(*at), (self.rows,), self.depth, k, self.columns, choice)
        return x, k, made


@dataclass(frozen=True)
class Batched(Computed):
    """(batch, rows, depth) times (batch, depth, columns), both computed."""

    name: ClassVar[str] = "batched"
    rules: ClassVar[tuple[type[Rule], ...]] = (gemm.Gemm,)

    batch: int
    rows: int
    depth: int
    columns: int

    @property
    def description(self) -> str:
        return f"{self.batch} products {self.rows} x {self.depth} by {self.depth} x {self.columns}"

    @property
    def flops(self) -> float:
        return 2.0 * self.batch * self.rows * self.depth * self.columns

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        return [(r, c, 0) for r, c in gemm.tiles(self.rows, self.columns, core)]

    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""
        x = placeholder((self.batch, self.rows, self.depth), "x")
        y = placeholder((self.batch, self.depth, self.columns), "w")
        sizes = (self.rows, self.depth, self.columns)
        made = gemm.matmul_batched(
            lambda at: x(*at), lambda at: y(*at), (self.batch,), sizes, (0, 1, 2), choice
        )
        return x, y, made


@dataclass(frozen=True)
class Attention:
    """The softmax of (batch, rows, depth) times (batch, keys, depth) turned, times (batch, keys, columns)."""

    name: ClassVar[str] = "attention"
    rules: ClassVar[tuple[type[Rule], ...]] = (written.Written,)

    batch: int
    rows: int
    keys: int
    depth: int
    columns: int

    @property
    def description(self) -> str:
        heads = f"attention of {self.batch} x {self.rows} to {self.keys}"
        return f"{heads}, {self.depth} and {self.columns} wide"

    @property
    def flops(self) -> float:
        """Of its products."""
        return 2.0 * self.batch * self.rows * self.keys * (self.depth + self.columns)

    def choices(self, core: Core, far: bool) -> Sequence[Choice]:
        """The best by the static model first."""
        scores, sums = (gemm.tiles(self.rows, n, core) for n in (self.keys, self.columns))
        pairs = [(r, a, b) for r, a in scores for rows, b in sums if rows == r <= self.rows]
        return sorted(pairs, key=lambda pair: self._work(pair, core))[:MOST]

    def _work(self, choice: Choice, core: Core) -> float:
        rows, *widths = choice
        each = zip((self.keys, self.columns), widths, (self.depth, self.keys), strict=True)
        wholes = ((max(wide, ceil_div(n, core.lanes) * core.lanes), wide, k) for n, wide, k in each)
        work = sum(n * k * gemm.penalty((rows, wide), core) for n, wide, k in wholes)
        return ceil_div(self.rows, rows) * rows * work

    def function(self, choice: Choice, core: Core) -> Any:
        """The kernel of a choice."""
        sizes = attention.Sizes((self.batch,), self.rows, self.keys, self.depth, self.columns)

        def at(buffer: Any, place: Sequence[Any]) -> Any:
            return buffer[tuple(place)]

        def turned(buffer: Any, place: Sequence[Any]) -> Any:
            return buffer[place[0], place[2], place[1]]

        def score(buffers: Any, place: Sequence[Any], product: Any) -> Any:
            return product

        operands = attention.Operands(self._shapes, (0, at), (1, turned), (2, at), score, list)
        return attention.kernel(sizes, operands, choice, core)

    def operands(self, choice: Choice, core: Core) -> list[Operand]:
        """What it takes, the result last."""
        return list(self._shapes)

    @property
    def _shapes(self) -> tuple[tuple[int, ...], ...]:
        widths = [(self.rows, self.depth), (self.keys, self.depth), (self.keys, self.columns)]
        return tuple((self.batch, *size) for size in (*widths, (self.rows, self.columns)))


Dense: TypeAlias = Convolution | Depthwise | Product | Batched | Attention
Workload: TypeAlias = Dense | Sparse | Chain | ByteConvolution | ByteProduct


def scheduled(workload: Workload, function: Any, core: Core) -> Any:
    """The schedule of a kernel by itself.

    Raises:
        ScheduleError: the rule does not fit it.
    """
    rules = (rule(core).schedule(s_tir.Schedule(function)) for rule in workload.rules)
    return next(schedule for schedule in rules if schedule is not None)


def key(workload: Workload, far: bool) -> str:
    """A name that tells all that matters of a workload in a model whose weights are ``far`` or near."""
    about = {"kernel": workload.name, "version": VERSION, "far": far, **asdict(workload)}
    return json.dumps(about, sort_keys=True)


@dataclass(frozen=True)
class Measured:
    """The fastest choice that is known of a workload, and seconds of a call.

    Attributes:
        estimated: whether these are no times, but costs on an emulated processor.
    """

    choice: Choice
    seconds: float
    estimated: bool = False


@dataclass(frozen=True)
class Skipped:
    """A layer with zeros, and whether they are skipped.

    Attributes:
        weights: as the layer has them.
        gain: time of the dense kernel over that of the sparse one.
        measured: whether that was, or estimated.
    """

    weights: NDArray[Any]
    sparse: Sparse
    dense: Convolution | Product
    taken: bool
    gain: float
    measured: bool

    @property
    def description(self) -> str:
        """Of the kernel that skips them."""
        return self.sparse.description


@dataclass
class Choices:
    """What is taken for each workload: what is known of it, or else its first choice.

    Attributes:
        known: by `key`.
        seen: workloads that were asked for, and how often.
        core: the processor they are for.
        far: whether the model's weights are more than the last cache holds between two runs.
        layers: those with zeros.
    """

    known: Mapping[str, Measured] = field(default_factory=dict)
    seen: Counter[Workload] = field(default_factory=Counter)
    core: Core = field(default_factory=Core)
    far: bool = False
    layers: list[Skipped] = field(default_factory=list)

    def options(self, workload: Workload) -> Sequence[Choice]:
        """All that is there to choose from, the best by the static model first."""
        return workload.choices(self.core, self.far)

    def of(self, workload: Workload) -> Choice:
        """The choice for a workload, which is noted."""
        self.seen[workload] += 1
        return self._best(workload)

    def _best(self, workload: Workload) -> Choice:
        options = self.options(workload)
        found = self.known.get(key(workload, self.far))
        return found.choice if found is not None and found.choice in options else options[0]

    def joins(self, chain: Chain) -> bool:
        """Whether two layers that skip zeros are one kernel; by what was measured, or else estimated. The way
        that is not taken is noted; the other is when `of` is asked for it.
        """
        if not self.options(chain):
            return False
        layers = (chain.first, chain.second)
        known = [self.known.get(key(workload, self.far)) for workload in (chain, *layers)]
        times = [found.seconds for found in known if found is not None]
        if len(times) < len(known) or len({found.estimated for found in known if found is not None}) > 1:
            times = [w.cycles(self._best(w), self.core, self.far) for w in (chain, *layers)]
        taken = times[0] < sum(times[1:])
        self.seen[chain.second if taken else chain] += 1  # the first was asked for by itself
        return taken

    def skips(self, weights: NDArray[Any], sparse: Sparse, dense: Convolution | Product) -> bool:
        """Whether a layer is to skip the zeros of its weights; by what was measured of both ways, or else by
        what is estimated. The way that is not taken is noted; the other is when `of` is asked for it.
        """
        times = [self.known.get(key(workload, self.far)) for workload in (dense, sparse)]
        choices = [self._best(workload) for workload in (dense, sparse)]
        before, after = times
        if before is not None and after is not None and before.estimated == after.estimated:
            gain, measured = before.seconds / after.seconds, not before.estimated
        else:
            guess = dense.cycles(choices[0], self.core, self.far)
            gain, measured = guess / sparse.cycles(choices[1], self.core, self.far), False
        taken = gain > (1.0 if measured else _SURELY)
        self.seen[dense if taken else sparse] += 1
        self.layers.append(Skipped(weights, sparse, dense, taken, gain, measured))
        return taken
