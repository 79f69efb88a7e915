"""Sparsity patterns, in the terms of a layer's weight as matrices (groups, outputs, K).

Each row is an output, the K columns are the positions the operator reduces over. They come in *runs* of
consecutive columns that belong together: the input channels of one kernel position of a convolution, all K
inputs of a matrix product. No group of N:M and no block reaches from one run into the next.

A *ratio* is the fraction of weights removed. N:M keeps N of M consecutive columns of every row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UsageError
from .grid import largest

Matrix = NDArray[Any]
Mask = NDArray[np.bool_]

_FORMS = "write N:M (2:4), RxC@RATIO (4x1@75%) or RATIO (80%)"
# Of a ratio times a size: what is a whole number may come out a little above it.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Violation:
    """Why a weight does not satisfy a pattern.

    ``count`` is the number of groups or weights too many, ``where`` the (group, output, column) of the first
    one, if there is such a place.
    """

    text: str
    count: int
    where: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class NM:
    """At most ``n`` non-zeros in every ``m`` consecutive columns of a run, in every row.

    Where a run is not a multiple of M long, its last m < M columns keep ceil(N·m/M). That is as near to the
    ratio as can be without a group that loses everything, and never more than N, so that a kernel may fill
    the group up with zeros and treat it as a whole one.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise UsageError(f"{self.n}:{self.m} is no sparsity pattern: N:M keeps N of M weights, 0 < N < M")

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def ratio(self) -> float:
        return 1 - self.n / self.m

    def misfit(self, outputs: int, run: int) -> str | None:
        """Why a matrix with this many rows and columns in a run has to stay dense; None where it has not."""
        if run < self.m:
            return f"{self} needs {self.m} consecutive inputs, and there are {run}"
        return None

    def choose(self, energy: Matrix, run: int | None = None) -> Mask:
        """The mask (true: kept) that keeps most of an energy (groups, outputs, K); of equals, the left."""
        grid = _runs(energy, run)
        last = -(-self.n * (grid.shape[-1] % self.m) // self.m)
        return largest(grid, grid.ndim - 1, self.m, self.n, last).reshape(energy.shape)

    def check(self, weight: Matrix, run: int | None = None) -> Violation | None:
        """None where a weight (groups, outputs, K) satisfies the pattern."""
        grid = _runs(weight, run) != 0
        found = []
        for start, stop, size, kept in self._spans(grid.shape[-1]):
            full = grid[..., start:stop].reshape(*grid.shape[:-1], -1, size).sum(-1) > kept
            places = np.argwhere(full).tolist()
            found += [(g, o, p * grid.shape[-1] + start + i * size) for g, o, p, i in places]
        if not found:
            return None
        text = f"{len(found)} groups have more than {self.n} non-zeros in {self.m} consecutive inputs"
        return Violation(text, len(found), min(found))

    def _spans(self, run: int) -> list[tuple[int, int, int, int]]:
        """The whole groups of a run, and the incomplete one: from and to column, size, how many stay."""
        whole = run - run % self.m
        spans = [(0, whole, self.m), (whole, run, run - whole)]
        return [(start, stop, m, -(-self.n * m // self.m)) for start, stop, m in spans if stop > start]


@dataclass(frozen=True)
class Blocks:
    """``ratio`` of the weights are zero, in blocks of ``rows`` outputs by ``columns`` consecutive columns.

    Blocks at the lower and the right edge may be incomplete. A block of one weight is unstructured sparsity.
    """

    rows: int
    columns: int
    ratio: float

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise UsageError(f"a block of {self.rows}x{self.columns} weights holds none; {_FORMS}")
        if not 0 <= self.ratio < 1:
            raise UsageError(f"a ratio of {self.ratio:.10g} would leave no weight; choose one below 100%")

    def __str__(self) -> str:
        share = f"{100 * self.ratio:.10g}%"
        return share if self.rows == self.columns == 1 else f"{self.rows}x{self.columns}@{share}"

    def at(self, ratio: float) -> Blocks:
        """The same blocks at another ratio."""
        return Blocks(self.rows, self.columns, ratio)

    def misfit(self, outputs: int, run: int) -> str | None:
        """Why a matrix with this many rows and columns in a run has to stay dense; None where it has not."""
        if outputs < self.rows or run < self.columns:
            return f"blocks of {self.rows}x{self.columns} do not fit into {outputs} outputs by {run} inputs"
        return None

    def choose(self, energy: Matrix, run: int | None = None) -> Mask:
        """The mask (true: kept) that keeps most of an energy (groups, outputs, K).

        Blocks go in the order of their energy for each weight until ``ratio`` of all weights is gone, or one
        block is left; of equals, the last goes first.
        """
        sizes = self._sums(np.ones(energy.shape, np.int32), run)
        density = (self._sums(energy, run) / sizes).ravel()
        goal = self.ratio * energy.size - _ROUNDING
        if sizes.min() == sizes.max():
            count = int(np.ceil(goal / sizes.flat[0]))
        else:
            order = len(density) - 1 - np.argsort(density[::-1], kind="stable")
            count = int(np.searchsorted(np.cumsum(sizes.ravel()[order]), goal)) + 1
        keep = ~_smallest(density, min(count, density.size - 1) if goal > 0 else 0)
        return self._spread(keep.reshape(sizes.shape), energy.shape, run)

    def check(self, weight: Matrix, run: int | None = None) -> Violation | None:
        """None where a weight (groups, outputs, K) satisfies the pattern."""
        used = self._sums((weight != 0).astype(np.int32), run) > 0
        sizes = self._sums(np.ones(weight.shape, np.int32), run)
        zeros = int(sizes[~used].sum())
        missing = int(np.ceil(self.ratio * weight.size - _ROUNDING)) - zeros
        if missing <= 0 or used.sum() <= 1:
            return None
        what = (
            "weights"
            if self.rows == self.columns == 1
            else f"weights, in blocks of {self.rows}x{self.columns},"
        )
        return Violation(f"{zeros / weight.size:.2%} of the {what} are zero, not {self.ratio:.2%}", missing)

    def _sums(self, values: Matrix, run: int | None) -> Matrix:
        """The sum of each block: (groups, rows of blocks, runs, blocks of a run)."""
        grid = _runs(values, run)
        grid = np.add.reduceat(grid, np.arange(0, grid.shape[1], self.rows), axis=1)
        return np.asarray(np.add.reduceat(grid, np.arange(0, grid.shape[3], self.columns), axis=3))

    def _spread(self, blocks: Mask, shape: tuple[int, ...], run: int | None) -> Mask:
        """What holds for each block, for each weight."""
        wide = np.repeat(np.repeat(blocks, self.rows, axis=1), self.columns, axis=3)
        return wide[:, : shape[1], :, : run or shape[2]].reshape(shape)


Pattern: TypeAlias = NM | Blocks


def parse_pattern(text: str) -> Pattern:
    """A pattern from its text: "2:4", "4x1@75%", "80%" or "unstructured@80%"; ``str(pattern)`` gives it back.

    Raises:
        UsageError: the text is none of these, or asks for what cannot be.
    """
    if found := re.fullmatch(r"(\d+):(\d+)", text):
        return NM(int(found[1]), int(found[2]))
    if found := re.fullmatch(r"(?:(?:unstructured|(\d+)x(\d+))@)?(\d+(?:\.\d+)?)%", text):
        ratio = float(found[3]) / 100
        if not 0 < ratio < 1:
            raise UsageError(
                f"{found[3]}% of zeros is no sparsity pattern; choose a ratio above 0% and below 100%"
            )
        return Blocks(int(found[1] or 1), int(found[2] or 1), ratio)
    raise UsageError(f"there is no sparsity pattern '{text}'; {_FORMS}")


def _smallest(values: Matrix, count: int) -> Mask:
    """Where the ``count`` smallest of some values are; of equals, the last."""
    if count == 0:
        return np.zeros(values.shape, bool)
    limit = np.partition(values, count - 1)[count - 1]
    found: Mask = values < limit
    found[np.flatnonzero(values == limit)[::-1][: count - int(found.sum())]] = True
    return found


def _runs(values: Matrix, run: int | None) -> Matrix:
    """A matrix (groups, outputs, K) as (groups, outputs, runs, columns of a run)."""
    groups, outputs, columns = values.shape
    run = run or columns
    if columns % run:
        raise ValueError(f"{columns} columns are not made of runs of {run}")
    return values.reshape(groups, outputs, columns // run, run)
