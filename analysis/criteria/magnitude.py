"""Criteria by the magnitude of weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..axes import Axis
from ..groups import Analysis
from ..scores import Ranking, Scores, by_elements, by_share, by_sum
from .criterion import Criterion, Setting


def energies(analysis: Analysis) -> dict[Axis, Scores]:
    """The squared norm of all weights of each unit."""
    return by_elements(analysis, np.square)


def _l1(setting: Setting) -> Ranking:
    return by_share(by_elements(setting.analysis, np.abs))


def _l2(setting: Setting) -> Ranking:
    return by_share(energies(setting.analysis))


def _lamp(setting: Setting) -> Ranking:
    found = energies(setting.analysis)
    scores: dict[Axis, Scores] = {}
    for pool in setting.analysis.pools():
        axes = [group.axis for group in pool]
        scores.update(zip(axes, _adapted([found[axis] for axis in axes]), strict=True))
    return by_sum(scores)


def _adapted(energies: Sequence[Scores]) -> list[Scores]:
    """Each energy as a share of itself and all that are larger; of equal ones the first goes first."""
    values = np.concatenate(energies)
    order = np.argsort(values, kind="stable")
    left = np.cumsum(values[order][::-1])[::-1]
    shares = np.empty(len(values))
    shares[order] = np.divide(values[order], left, out=np.zeros(len(values)), where=left > 0)
    return np.split(shares, np.cumsum([len(part) for part in energies])[:-1])


# Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017.
L1 = Criterion("l1", "the sum of the magnitudes of its weights", _l1)
# Squared, so that the members of a group add up.
L2 = Criterion("l2", "the squared norm of its weights", _l2)
# Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021.
LAMP = Criterion("lamp", "the squared norm of its weights over that of all units with larger ones", _lamp)
