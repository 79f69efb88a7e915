"""Distance to the other filters of a layer (He et al., "Filter Pruning via Geometric Median", CVPR 2019)."""

from __future__ import annotations

import numpy as np

from ..axes import find
from ..scores import Ranking, Scores, Tally, Weight, by_share
from ..walk import Walk
from .criterion import Criterion, Setting
from .magnitude import energies

_ROWS = 1024  # of the matrix of distances that are held at once


def _rank(setting: Setting) -> Ranking:
    analysis, tally = setting.analysis, Tally(setting.analysis)
    summed = _summed(analysis.walk)
    for constant, _, axes in analysis.weight_uses():
        for k, axis in enumerate(axes):
            if id(axis) not in summed and find(axis).kind != "fix":
                tally.add_weight(axes, k, constant.value.astype(np.float32, copy=False), distances)
    return by_share(tally.or_else(energies(analysis)))


def distances(weight: Weight, k: int) -> Scores:
    """For each position of axis ``k``, the sum of its slice's Euclidean distances to all the others."""
    rows = np.moveaxis(weight, k, 0).reshape(weight.shape[k], -1).astype(np.float64)
    squares = np.einsum("ij,ij->i", rows, rows)
    out = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        some = slice(start, start + _ROWS)
        apart = squares[some, None] + squares - 2 * rows[some] @ rows.T
        np.fill_diagonal(apart[:, some], 0)  # not what rounding leaves of it
        out[some] = np.sqrt(np.maximum(apart, 0)).sum(axis=1)
    return out


def _summed(walk: Walk) -> set[int]:
    """Axes, by identity, over which an operator sums products with a weight: they read units.

    Identity tells the two axes of a square weight apart, which can be the same units.
    """
    known = set(walk.constants)
    for node in walk.nodes:
        if node.inputs and all(name in known for name in node.inputs if name):
            known.update(node.outputs)
    return {
        id(walk.axes(contraction.node, i)[k])
        for contraction in walk.contractions
        for i, k in contraction.places
        if contraction.node.inputs[i] in known
    }


FPGM = Criterion("fpgm", "how far its filters are from the others of their layers", _rank)
