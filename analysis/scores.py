"""Scores of units: added up over the weights they live on, and what is lost with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .axes import Axis, find
from .groups import Analysis

Scores: TypeAlias = NDArray[np.float64]
Weight: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """How much is lost with the units of each group.

    Attributes:
        scores: of each unit, shape (units,); larger is more important, and comparable within a pool.
        errors: of each group without its least important k units, shape (units + 1,), rising from 0;
            comparable between groups.
    """

    scores: dict[Axis, Scores]
    errors: dict[Axis, Scores]

    def updated(self, other: Ranking) -> Ranking:
        """``other`` for the groups it has, and this one for all others."""
        return Ranking(self.scores | other.scores, self.errors | other.errors)


def by_share(scores: dict[Axis, Scores]) -> Ranking:
    """Groups compared by the share of their importance that goes."""
    errors = {}
    for axis, values in scores.items():
        lost = _lost(values)
        errors[axis] = lost / lost[-1] if lost[-1] > 0 else np.linspace(0, 1, len(lost))
    return Ranking(scores, errors)


def by_sum(scores: dict[Axis, Scores]) -> Ranking:
    """Groups compared by the importance that goes, for scores that mean the same in each."""
    return Ranking(scores, {axis: _lost(values) for axis, values in scores.items()})


def _lost(values: Scores) -> Scores:
    return np.concatenate([[0.0], np.cumsum(np.sort(values))])


class Tally:
    """Importance of the units of each group, added up from positions of axes.

    Attributes:
        scores: the sums so far, shape (units,) for each group's axis.
    """

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self.scores: dict[Axis, Scores] = {group.axis: np.zeros(group.size) for group in analysis.groups}
        self._counts: dict[Axis, Scores] = {axis: np.zeros(axis.size) for axis in self.scores}

    def add(self, axis: Axis, values: NDArray[Any]) -> None:
        """Add the importance of each position of ``axis`` to the units it needs."""
        _spread(self.scores, axis, values)
        _spread(self._counts, axis, np.ones(len(values)))

    def add_weight(
        self, axes: list[Axis], k: int, weight: Weight, along: Callable[[Weight, int], Scores]
    ) -> None:
        """Add what ``along(weight, k)`` finds for each position of axis ``k``, shape (positions,).

        Of a weight of a grouped operator it is asked block by block, since each has units of its own there.
        """
        axis = find(axes[k])
        if axis.kind == "ragged":
            for part, block in zip(axis.parts, np.split(weight, len(axis.parts)), strict=True):
                self.add(part, along(block, k))
        elif axis.kind != "fix":
            self.add(axis, along(weight, k))

    def or_else(self, others: dict[Axis, Scores]) -> dict[Axis, Scores]:
        """The sums, and ``others`` for groups with a unit that nothing was added to.

        Groups of one pool, whose scores are compared, have all the ones or all the others.
        """
        found = dict(self.scores)
        for pool in self._analysis.pools():
            if not all(self._counts[group.axis].all() for group in pool):
                found.update((group.axis, others[group.axis]) for group in pool)
        return found


def by_elements(analysis: Analysis, importance: Callable[[Weight], Weight]) -> dict[Axis, Scores]:
    """The importance of each unit: that of all elements of all weights of its group, added up.

    Args:
        importance: of each element of a weight.
    """
    tally = Tally(analysis)
    for constant, _, axes in analysis.weight_uses():
        if any(find(axis).kind != "fix" for axis in axes):
            each = importance(constant.value.astype(np.float32, copy=False))
            for k in range(len(axes)):
                tally.add_weight(axes, k, each, _sums)
    return tally.scores


def _sums(values: Weight, k: int) -> Scores:
    """The sum for each position of axis ``k``."""
    return np.asarray(np.add.reduce(values, axis=_others(values.ndim, k), dtype=np.float64))


@cache
def _others(rank: int, k: int) -> tuple[int, ...]:
    return tuple(j for j in range(rank) if j != k)


def _spread(scores: dict[Axis, Scores], axis: Axis, values: NDArray[Any]) -> None:
    """Hand the importance of the positions of an axis down to the units they need."""
    axis = find(axis)
    if axis.kind == "atom":
        if axis in scores:
            scores[axis] += values
    elif axis.kind == "sum":
        offset = 0
        for part in axis.parts:
            _spread(scores, part, values[offset : offset + part.size])
            offset += part.size
    elif axis.kind == "prod":
        grid = values.reshape([part.size for part in axis.parts])
        for i, part in enumerate(axis.parts):
            _spread(scores, part, grid.sum(tuple(j for j in range(grid.ndim) if j != i)))
    elif axis.kind == "view":
        assert axis.index is not None
        base = np.zeros(axis.parts[0].size)
        np.add.at(base, axis.index, values)
        _spread(scores, axis.parts[0], base)
