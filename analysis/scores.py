"""Importance of channels by the values of their weights: a registry of criteria."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import Axis, find
from .errors import UsageError
from .groups import Analysis

Scores = NDArray[np.float64]
# The importance of each element of a weight; a channel's is the sum over its group's members.
Criterion = Callable[[NDArray[np.float32]], NDArray[np.float32]]

CRITERIA: dict[str, Criterion] = {
    # Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, with the squared norm so that
    # members of a group add up.
    "l2": np.square,
    "l1": np.abs,
}


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


def rank(analysis: Analysis, criterion: str) -> Ranking:
    """Rank by the values of weights alone; the error is the fraction of a group's importance that goes.

    Raises:
        UsageError: there is no criterion of that name.
    """
    scores = score(analysis, criterion)
    errors = {}
    for axis, values in scores.items():
        lost = np.concatenate([[0.0], np.cumsum(np.sort(values))])
        errors[axis] = lost / lost[-1] if lost[-1] > 0 else np.linspace(0, 1, len(lost))
    return Ranking(scores, errors)


def score(analysis: Analysis, criterion: str) -> dict[Axis, Scores]:
    """Importance of each unit of each group: shape (units,), larger is more important.

    Raises:
        UsageError: there is no criterion of that name.
    """
    if criterion not in CRITERIA:
        raise UsageError(f"there is no criterion '{criterion}'; choose one of {', '.join(sorted(CRITERIA))}")
    importance = CRITERIA[criterion]
    scores = {group.axis: np.zeros(group.size) for group in analysis.groups}
    for constant, _, axes in analysis.weight_uses():
        typed = [find(axis) for axis in axes]
        if all(axis.kind == "fix" for axis in typed):
            continue
        energy = importance(constant.value.astype(np.float32, copy=False))
        for k, axis in enumerate(typed):
            if axis.kind == "ragged":
                for part, block in zip(axis.parts, np.split(energy, len(axis.parts)), strict=True):
                    _spread(scores, part, _along(block, k))
            elif axis.kind != "fix":
                _spread(scores, axis, _along(energy, k))
    return scores


def _along(energy: NDArray[np.float32], k: int) -> Scores:
    """The sum for each position of axis ``k``."""
    return np.asarray(np.add.reduce(energy, axis=_others(energy.ndim, k), dtype=np.float64))


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
