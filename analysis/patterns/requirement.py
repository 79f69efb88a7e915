"""What a runtime wants of a weight: non-zeros of groups, zeros, sizes.

Weights are seen as masks of what is not zero, (groups, outputs, positions of a kernel, inputs): see
`analysis.facts.Operand`. A requirement is data, and reads from a profile as it is.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable
from math import prod
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .grid import INPUTS, OUTPUTS, Cell, Energy, Mask, Sizes, any_of, counts, largest, pooled
from .pattern import Blocks

# Of a ratio times a count: what is a whole number may come out a little above it.
_ROUNDING = 1e-9


class Shortfall(msgspec.Struct, frozen=True):
    """How a weight misses a requirement.

    Attributes:
        text: what is wrong.
        count: groups with too many non-zeros, weights that would have to be zero, sizes that do not fit.
        total: of all groups, weights or sizes.
        first: cells of the first groups, all that are not zero in each.
    """

    text: str
    count: int
    total: int
    first: tuple[tuple[Cell, ...], ...] = ()

    @property
    def share(self) -> float:
        """``count`` of ``total``."""
        return self.count / self.total


class Groups(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="groups"):
    """At most ``nonzeros`` of ``of`` consecutive weights along an axis are not zero.

    Attributes:
        along: "inputs", what an output sums over, at each position of a kernel by itself; or "outputs".
        shared: so many consecutive outputs have their zeros at the same inputs.
        last: what holds for a last group of fewer: "filled" up with zeros, it may have as many non-zeros;
            "none" is one where the size has to be a multiple; "free" may have any.
    """

    nonzeros: int
    of: int
    along: Literal["inputs", "outputs"] = "inputs"
    shared: int = 1
    last: Literal["filled", "none", "free"] = "filled"

    def __post_init__(self) -> None:
        if not 0 < self.nonzeros < self.of:
            raise ValueError(f"{self.nonzeros} non-zeros of {self.of} is no pattern")
        if self.shared < 1 or (self.shared > 1 and self.along == "outputs"):
            raise ValueError(f"{self.shared} outputs cannot share groups along {self.along}")

    def __str__(self) -> str:
        shared = f", the same inputs in {self.shared} outputs" if self.shared > 1 else ""
        return f"{self.nonzeros} non-zeros in {self.of} {self.along}{shared}"

    def misfit(self, sizes: Sizes) -> str | None:
        """Why the pattern means nothing for a weight of these sizes; None where it does."""
        size = sizes[self._axis]
        if size < self.of:
            return f"it has {size} {self.along}, fewer than a group of {self.of}"
        if self.last == "none" and size % self.of:
            return f"its {size} {self.along} are no multiple of {self.of}"
        return None

    def check(self, mask: Mask, most: int) -> Shortfall | None:
        """What is wrong with a weight, with the first ``most`` groups; None where nothing is."""
        axis = self._axis
        used = any_of(mask, self.shared, 1)
        crowded = counts(used, axis, self.of) > self.nonzeros
        if self.last == "free" and mask.shape[axis] % self.of:
            crowded.swapaxes(0, axis)[-1] = False
        count = int(np.count_nonzero(crowded))
        if not count:
            return None
        found = np.flatnonzero(crowded)[:most]
        places = np.stack(np.unravel_index(found, crowded.shape), axis=-1).tolist()
        first = tuple(self._cells(mask, tuple(place)) for place in places)
        text = f"{count} of {crowded.size} groups have more than {self}"
        return Shortfall(text, count, crowded.size, first)

    def groups(self, sizes: Sizes) -> int:
        """How many groups there are in a weight of these sizes."""
        across = [-(-size // self.shared) if axis == OUTPUTS else size for axis, size in enumerate(sizes)]
        across[self._axis] = -(-across[self._axis] // self.of)
        return prod(across)

    def choose(self, energy: Energy) -> Mask:
        """What stays, true, of a weight so that most of an energy does."""
        blocks = pooled(energy, OUTPUTS, self.shared, np.add)
        size = energy.shape[self._axis]
        last = size % self.of if self.last == "free" else min(self.nonzeros, size % self.of)
        kept = largest(blocks, self._axis, self.of, self.nonzeros, last)
        return np.repeat(kept, self.shared, axis=OUTPUTS)[:, : energy.shape[OUTPUTS]]

    def _cells(self, mask: Mask, place: Cell) -> tuple[Cell, ...]:
        """The non-zeros of a group."""
        start = list(place)
        extent = [1, 1, 1, 1]
        for axis, size in ((OUTPUTS, self.shared), (self._axis, self.of)):
            start[axis] *= size
            extent[axis] *= size
        part = mask[tuple(slice(s, s + e) for s, e in zip(start, extent, strict=True))]
        return tuple(_cell(start, offset) for offset in np.argwhere(part).tolist())

    @property
    def _axis(self) -> int:
        return INPUTS if self.along == "inputs" else OUTPUTS


class Zeros(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="zeros"):
    """At least ``ratio`` of the weights are zero, or, ``above``, more than that.

    Attributes:
        outputs, inputs: of blocks; only blocks all of whose weights are zero count. Those at the edge may be
            incomplete.
    """

    ratio: float
    above: bool = False
    outputs: int = 1
    inputs: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"a ratio of {self.ratio:g} is none: it is above 0 and below 1")
        if self.outputs < 1 or self.inputs < 1:
            raise ValueError(f"a block of {self.outputs}x{self.inputs} weights holds none")

    def __str__(self) -> str:
        blocks = f" in blocks of {self.outputs}x{self.inputs}" if self.outputs * self.inputs > 1 else ""
        return f"{'more than' if self.above else 'at least'} {self.ratio:.4g} zeros{blocks}"

    def misfit(self, sizes: Sizes) -> str | None:
        """Why the pattern means nothing for a weight of these sizes; None where it does."""
        if sizes[OUTPUTS] < self.outputs or sizes[INPUTS] < self.inputs:
            return (
                f"blocks of {self.outputs}x{self.inputs} do not fit into {sizes[OUTPUTS]} outputs by"
                f" {sizes[INPUTS]} inputs"
            )
        return None

    def check(self, mask: Mask, most: int) -> Shortfall | None:
        """What is wrong with a weight; None where nothing is."""
        return self.judge(self.zeros(mask), mask.size)

    def choose(self, energy: Energy) -> Mask:
        """What stays, true, of a weight so that most of an energy does."""
        groups, outputs, _, inputs = energy.shape
        blocks = Blocks(
            self.outputs, self.inputs, min(self.least(energy.size), energy.size - 1) / energy.size
        )
        return blocks.choose(energy.reshape(groups, outputs, -1), inputs).reshape(energy.shape)

    def zeros(self, mask: Mask) -> int:
        """Weights in blocks of zeros."""
        if self.outputs * self.inputs == 1:
            return mask.size - int(np.count_nonzero(mask))
        used = any_of(mask, self.outputs, self.inputs)
        rows = _lengths(mask.shape[OUTPUTS], self.outputs)
        columns = _lengths(mask.shape[INPUTS], self.inputs)
        return int(((~used).sum((0, 2)) * rows[:, None] * columns).sum())

    def judge(self, zeros: int, size: int) -> Shortfall | None:
        """What is wrong when so many of ``size`` weights are zero."""
        missing = self.least(size) - zeros
        if missing <= 0:
            return None
        return Shortfall(f"{zeros / size:.4g} of the weights are zero, not {self}", missing, size)

    def least(self, size: int) -> int:
        """Of so many weights that many are zero at least."""
        goal = self.ratio * size
        return int(np.floor(goal + _ROUNDING)) + 1 if self.above else int(np.ceil(goal - _ROUNDING))


class Runs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="runs"):
    """At least ``ratio`` of the zeros stand in rows of at least ``length`` along the inputs."""

    length: int
    ratio: float

    def __post_init__(self) -> None:
        if self.length < 2 or not 0 < self.ratio <= 1:
            raise ValueError(f"{self.ratio:g} of the zeros in rows of {self.length} is no requirement")

    def __str__(self) -> str:
        return f"at least {self.ratio:.4g} of the zeros in rows of {self.length}"

    def misfit(self, sizes: Sizes) -> str | None:
        """Why the pattern means nothing for a weight of these sizes; None where it does."""
        if sizes[INPUTS] < self.length:
            return f"it has {sizes[INPUTS]} inputs, fewer than a row of {self.length}"
        return None

    def check(self, mask: Mask, most: int) -> Shortfall | None:
        """What is wrong with a weight; None where nothing is."""
        zeros = mask.size - int(np.count_nonzero(mask))
        if not zeros:
            return Shortfall("no weight is zero", 1, mask.size)
        inside = self._in_rows(mask)
        missing = int(np.ceil(self.ratio * zeros - _ROUNDING)) - inside
        if missing <= 0:
            return None
        return Shortfall(f"{inside / zeros:.4g} of the zeros stand in rows, not {self}", missing, zeros)

    def choose(self, energy: Energy) -> Mask:
        """What stays, true, of a weight so that most of an energy does.

        Rows are the windows of least energy: as many as it takes, which hold all zeros that stood alone.
        """
        grid = energy.reshape(-1, energy.shape[INPUTS])
        lost = sliding_window_view(grid, self.length, axis=1).sum(-1)
        rows, columns = np.unravel_index(np.argsort(lost, axis=None, kind="stable"), lost.shape)

        def without(count: int) -> Mask:
            kept = grid > 0
            for offset in range(self.length):
                kept[rows[:count], columns[:count] + offset] = False
            return kept.reshape(energy.shape)

        enough = bisect_left(range(lost.size), True, key=lambda n: self.check(without(n), 0) is None)
        return without(enough)

    def _in_rows(self, mask: Mask) -> int:
        edges = np.pad(mask, [(0, 0)] * 3 + [(1, 1)], constant_values=True).reshape(-1)
        starts = np.flatnonzero(edges[:-1] & ~edges[1:])
        stops = np.flatnonzero(~edges[:-1] & edges[1:])
        lengths = stops - starts
        return int(lengths[lengths >= self.length].sum())


class Either(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="either"):
    """One of several requirements."""

    of: tuple[Groups | Zeros, ...]

    def __post_init__(self) -> None:
        if len(self.of) < 2:
            raise ValueError("either of fewer than two is no choice")

    def __str__(self) -> str:
        return " or ".join(map(str, self.of))

    def misfit(self, sizes: Sizes) -> str | None:
        """Why no pattern means anything for a weight of these sizes; None where one does."""
        found = [one.misfit(sizes) for one in self.of]
        return found[0] if all(found) else None

    def choose(self, energy: Energy) -> Mask:
        """What stays, true, of a weight so that most of an energy does."""
        groups, outputs, positions, inputs = energy.shape
        fitting = [one for one in self.of if one.misfit((groups, outputs, positions, inputs)) is None]
        return max((one.choose(energy) for one in fitting), key=lambda mask: float(energy[mask].sum()))

    def check(self, mask: Mask, most: int) -> Shortfall | None:
        """What is wrong with a weight by the pattern it is nearest to; None where it satisfies one."""
        sizes = mask.shape[0], mask.shape[1], mask.shape[2], mask.shape[3]
        found = [one.check(mask, most) for one in self.of if one.misfit(sizes) is None]
        missed = [shortfall for shortfall in found if shortfall is not None]
        if len(missed) < len(found):
            return None
        nearest = min(missed, key=lambda shortfall: shortfall.share)
        return msgspec.structs.replace(nearest, text=f"it satisfies none of {self}: {nearest.text}")


class Multiple(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="multiple"):
    """Numbers of channels are multiples."""

    outputs: int = 1
    inputs: int = 1

    def __str__(self) -> str:
        return _each("a multiple of", self.inputs, self.outputs)

    def sizes(self, channels: tuple[int, int]) -> Shortfall | None:
        """What is wrong with (inputs, outputs) so many channels."""
        limits = self.inputs, self.outputs
        return _odd(channels, limits, "no multiple of", lambda size, wanted: size % wanted == 0)


class AtLeast(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="at-least"):
    """Numbers of channels are not below these."""

    outputs: int = 1
    inputs: int = 1

    def __str__(self) -> str:
        return _each("at least", self.inputs, self.outputs)

    def sizes(self, channels: tuple[int, int]) -> Shortfall | None:
        """What is wrong with (inputs, outputs) so many channels."""
        return _odd(channels, (self.inputs, self.outputs), "fewer than", operator.ge)


Sparse: TypeAlias = Groups | Zeros | Runs | Either
Sized: TypeAlias = Multiple | AtLeast
Requirement: TypeAlias = Sparse | Sized

_CHANNELS = "input channels", "output channels"


def _odd(
    channels: tuple[int, int], limits: tuple[int, int], what: str, holds: Callable[[int, int], bool]
) -> Shortfall | None:
    """Which numbers of (inputs, outputs) do not hold to their limits."""
    found = [
        f"{size} {name} are {what} {limit}"
        for size, limit, name in zip(channels, limits, _CHANNELS, strict=True)
        if not holds(size, limit)
    ]
    return Shortfall(" and ".join(found), len(found), len(channels)) if found else None


def _each(what: str, inputs: int, outputs: int) -> str:
    wanted = [(size, name) for size, name in zip((inputs, outputs), _CHANNELS, strict=True) if size > 1]
    return " and ".join(f"{what} {size} {name}" for size, name in wanted)


def _lengths(size: int, block: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of blocks along an axis."""
    starts = np.arange(0, size, block)
    return np.minimum(starts + block, size) - starts


def _cell(start: list[int], offset: list[int]) -> Cell:
    group, output, position, column = (s + o for s, o in zip(start, offset, strict=True))
    return group, output, position, column
