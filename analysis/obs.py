"""The optimal brain surgeon for whole units: what their removal costs after the rest has been fitted again.

Hassibi and Stork, "Second order derivatives for network pruning: Optimal brain surgeon", NIPS 1992, on the
layer-wise least-squares error of Dong et al. 2017 and of Frantar and Alistarh, "Optimal brain compression",
NeurIPS 2022: for a layer y = U W with H = U'U, removing the rows S of W and fitting the others again adds
tr(W_S' [H^-1]_SS^-1 W_S) to the error.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .components import Index

Matrix = NDArray[np.float64]

# The share of the units that are left which goes in one step, before the others are scored again.
_STEP = 1 / 16
_DAMPING = 1e-2  # of the mean of the diagonal
_DEAD = 1e-12


@dataclass
class Consumer:
    """A linear function of the units of a group.

    Attributes:
        gram: H = U'U of what it reads, shape (K, K).
        weight: W, shape (K, O); only WW' matters to `eliminate`.
        units: the unit each of the K positions belongs to, -1 for none of the group's.
        energy: of its outputs, for which errors are taken relative to it.
    """

    gram: Matrix
    weight: Matrix
    units: Index
    energy: float


class _Elimination:
    """The state of one consumer: the inverse Hessian and fitted weights of the positions that are left."""

    def __init__(self, consumer: Consumer) -> None:
        gram = np.asarray(consumer.gram, np.float64)
        diagonal = np.diag(gram)
        damping = _DAMPING * float(diagonal.mean()) or 1.0
        self.inverse = np.linalg.inv(gram + damping * np.eye(len(gram)))
        self.inverse = (self.inverse + self.inverse.T) / 2
        weight = np.array(consumer.weight, np.float64)
        weight[diagonal <= _DEAD * diagonal.mean()] = 0  # what is never there costs nothing
        self.weight = _narrow(weight)
        self.units = consumer.units.copy()
        self.energy = consumer.energy

    def scores(self, size: int) -> Matrix:
        """The relative error that each unit's removal adds, shape (size,)."""
        added = np.zeros(size)
        present = np.flatnonzero(self.units >= 0)
        order = present[np.argsort(self.units[present], kind="stable")]
        names, starts, counts = np.unique(self.units[order], return_index=True, return_counts=True)
        for count in np.unique(counts):
            some = counts == count
            rows = order[starts[some][:, None] + np.arange(count)]  # (units, count)
            blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
            weights = self.weight[rows]
            fitted = np.linalg.solve(blocks, weights)
            added[names[some]] = np.einsum("uro,uro->u", weights, fitted)
        return added / self.energy

    def remove(self, units: Index) -> float:
        """Take units away and fit the rest; the relative error this adds."""
        gone = np.flatnonzero(np.isin(self.units, units))
        if not len(gone):
            return 0.0
        kept = np.flatnonzero(~np.isin(self.units, units))
        weight = self.weight[gone]
        fitted = np.linalg.solve(
            self.inverse[np.ix_(gone, gone)], np.hstack([weight, self.inverse[gone][:, kept]])
        )
        columns = self.inverse[np.ix_(kept, gone)]
        added = float(np.einsum("ro,ro->", weight, fitted[:, : weight.shape[1]]))
        self.weight = self.weight[kept] - columns @ fitted[:, : weight.shape[1]]
        self.inverse = self.inverse[np.ix_(kept, kept)] - columns @ fitted[:, weight.shape[1] :]
        self.units = self.units[kept]
        return added / self.energy


def _narrow(weight: Matrix) -> Matrix:
    """A matrix with the same WW' and no more columns than rows."""
    if weight.shape[1] <= weight.shape[0]:
        return weight
    return np.asarray(np.linalg.qr(weight.T).R.T)


@dataclass(frozen=True)
class Curve:
    """The order in which units of a group go, and the error after each.

    Attributes:
        order: units, the first to go first.
        errors: ``errors[k]`` is the sum over consumers of the relative error without the first k units.
    """

    order: Index
    errors: Matrix


def eliminate(size: int, consumers: list[Consumer]) -> Curve:
    """Take the units of a group away, the cheapest first; see the module.

    Args:
        size: number of units, at least one of which always stays.
    """
    states = [_Elimination(consumer) for consumer in consumers if consumer.energy > 0]
    alive = np.arange(size)
    order: list[int] = []
    errors = [0.0]
    while len(alive) > 1:
        scores = sum((state.scores(size) for state in states), np.zeros(size))[alive]
        count = max(1, int(len(alive) * _STEP))
        going = np.argsort(scores, kind="stable")[:count]
        added = sum(state.remove(alive[going]) for state in states)
        # Within a step the error grows as the scores do.
        shares = np.cumsum(scores[going])
        total = shares[-1] if shares[-1] > 0 else 1.0
        errors += list(errors[-1] + np.maximum.accumulate(shares / total) * max(0.0, added))
        order += alive[going].tolist()
        alive = np.delete(alive, going)
    order += alive.tolist()
    errors.append(errors[-1] + 1.0)
    return Curve(np.array(order), np.array(errors))
