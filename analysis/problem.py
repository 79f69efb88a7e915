"""What is to be solved when budgets are shared out: what each set of groups can give, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .axes import Axis
from .budget import Chooser
from .resources import Cost, Term, rows
from .scores import Ranking

Vector = NDArray[np.float64]

_MOST = 0.97  # a group that loses more is better dropped as a block


@dataclass(frozen=True, eq=False)
class Ladder:
    """What one set of groups can give, rung by rung.

    Attributes:
        ratios: of units that go, rising from 0; shape (rungs,).
        errors: what that does, shape (rungs,).
        sizes: units that stay of each group, shape (rungs,).
    """

    ratios: Vector
    errors: Vector
    sizes: dict[Axis, Vector]


@dataclass(frozen=True)
class Limit:
    """A cost that must not exceed ``amount``: its name, the cost itself, and the terms it is estimated by."""

    name: str
    cost: Cost
    terms: Sequence[Term]
    amount: float


@dataclass(frozen=True)
class Problem:
    """Ratios of sets of groups are sought that give the least error within limits."""

    chooser: Chooser
    ranking: Ranking
    limits: Sequence[Limit]

    @property
    def count(self) -> int:
        """How many sets there are."""
        return len(self.chooser.sets)

    def ratios(self, number: int, most: int) -> list[float]:
        """About so many ratios of a set, rising from 0, that differ in what they do."""
        return self.chooser.ratios(number, most)

    def orders(self) -> list[list[int]]:
        """In which orders sets are worth visiting when one is chosen with the others fixed."""
        return [list(range(self.count))]

    def usage(self, ratios: Sequence[float]) -> Vector:
        """Each cost over its limit, shape (limits,)."""
        selection = self.chooser.at(ratios)
        return np.array([limit.cost(selection) / limit.amount for limit in self.limits])

    def fits(self, ratios: Sequence[float]) -> bool:
        return bool(self.usage(ratios).max() <= 1)

    def error(self, number: int, ratio: float) -> float:
        """The error of one set."""
        lost = 0.0
        for axis, count in self.chooser.counts(number, ratio).items():
            errors = self.ranking.errors[axis]
            lost += float(np.interp(len(errors) - 1 - count, np.arange(len(errors)), errors))
        return lost

    def errors(self, ratios: Sequence[float]) -> float:
        """The error of all sets."""
        return sum(self.error(number, ratio) for number, ratio in enumerate(ratios))

    def ladder(self, number: int, rungs: int, more: Sequence[float] = ()) -> Ladder:
        """What a set can give, at about so many ratios and those of ``more``."""
        found = {r for r in self.ratios(number, rungs) if r <= _MOST} | set(more)
        ratios = sorted(found)
        counts = [self.chooser.counts(number, ratio) for ratio in ratios]
        errors = np.array([self.error(number, ratio) for ratio in ratios])
        sizes = {axis: np.array([count[axis] for count in counts]) for axis in counts[0]}
        return Ladder(np.array(ratios), errors, sizes)


def stacked(limits: Sequence[Limit]) -> tuple[list[Term], Vector]:
    """The terms of several limits, each with rows of its own, and what each row must not exceed."""
    terms: list[Term] = []
    amounts: list[float] = []
    for limit in limits:
        start = len(amounts)
        terms += [Term(t.scale, t.axes, t.first + start, t.last + start) for t in limit.terms]
        amounts += [max(limit.amount, 1.0)] * rows(limit.terms)
    return terms, np.array(amounts)
