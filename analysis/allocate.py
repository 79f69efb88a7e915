"""How much each group gives, so that the whole meets a budget with the least error.

Minimises the sum of the groups' error curves plus a price times the cost, one group at a time with the
others fixed, until nothing moves; the price is found by bisection (Everett, "Generalized Lagrange multiplier
method", 1963). Costs are products of sizes of axes, as multiply-accumulates and parameters are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .axes import Axis, find
from .budget import Chooser
from .scores import Ranking
from .selection import Selection

T = TypeVar("T")
Vector = NDArray[np.float64]

LEVELS = 96
_MOST = 0.97  # a group that loses more is better dropped as a block
_SWEEPS = 6
_PRICES = 40
_FINEST = 1e-9
_CLOSE = 1 / 1024  # of a ratio
_FULL = 0.995  # of a budget: as near as one gets


@dataclass(frozen=True)
class Term:
    """``scale`` times the product of the sizes of ``axes``, a part of the cost."""

    scale: float
    axes: tuple[Axis, ...]


class Allocator:
    """Chooses a ratio for each of several sets of groups.

    Args:
        owner: the number of the set each free atom belongs to; others stay whole.
        errors: for each set its error at the ratios of `levels`, rising.
        terms: the cost.
        whole: what the cost is a share of; that of ``terms`` unless given.
    """

    def __init__(
        self,
        owner: dict[Axis, int],
        errors: Sequence[Vector],
        terms: Sequence[Term],
        whole: float | None = None,
    ) -> None:
        self._owner = owner
        self._errors = errors
        self._terms: list[list[Term]] = [[] for _ in errors]
        for term in terms:
            for number in {n for axis in term.axes for n in self._owners(axis)}:
                self._terms[number].append(term)
        self._whole = (
            whole
            or sum(term.scale * np.prod([float(axis.size) for axis in term.axes]) for term in terms)
            or 1.0
        )

    @staticmethod
    def levels() -> Vector:
        """The ratios among which is chosen."""
        return np.linspace(0, _MOST, LEVELS)

    def _owners(self, axis: Axis) -> set[int]:
        axis = find(axis)
        if axis in self._owner:
            return {self._owner[axis]}
        return {n for part in axis.parts for n in self._owners(part)}

    def at_price(self, price: float) -> Vector:
        """The ratios that minimise errors plus ``price`` times the share of the cost that is left."""
        levels = self.levels()
        ratios = np.zeros(len(self._errors))
        for _ in range(_SWEEPS):
            before = ratios.copy()
            for number, terms in enumerate(self._terms):
                cost = sum((self._cost(term, ratios, number, levels) for term in terms), np.zeros(LEVELS))
                total = self._errors[number] + price * cost / self._whole
                ratios[number] = levels[int(np.argmin(total))]
            if np.array_equal(before, ratios):
                break
        return ratios

    def _cost(self, term: Term, ratios: Vector, number: int, levels: Vector) -> Vector:
        out = np.full(len(levels), term.scale)
        for axis in term.axes:
            out = out * self._size(axis, ratios, number, levels)
        return out

    def _size(self, axis: Axis, ratios: Vector, number: int, levels: Vector) -> Any:
        """Positions that stay, at each level of the set ``number``."""
        axis = find(axis)
        if axis.kind in ("atom", "fix"):
            owner = self._owner.get(axis)
            if owner is None:
                return axis.size
            return axis.size * (1 - (levels if owner == number else ratios[owner]))
        parts = [self._size(part, ratios, number, levels) for part in axis.parts]
        if axis.kind == "sum":
            return sum(parts)
        if axis.kind == "prod":
            return np.prod(np.broadcast_arrays(*parts), axis=0)
        if axis.kind == "view":
            return axis.size * parts[0] / axis.parts[0].size
        return sum(parts) / len(parts)  # ragged: the mean of its blocks

    def size(self, axis: Axis, ratios: Vector) -> float:
        """Positions of an axis that stay."""
        return float(self._size(axis, ratios, -1, ratios))


def within(at_price: Callable[[float], T], fits: Callable[[T], bool]) -> T:
    """The choice of the lowest price that ``fits`` accepts, or that of the highest there is."""
    low, high = np.log(_FINEST), np.log(1e6)
    best = at_price(float(np.exp(high)))
    for _ in range(_PRICES):
        middle = (low + high) / 2
        choice = at_price(float(np.exp(middle)))
        if fits(choice):
            best, high = choice, middle
        else:
            low = middle
    return best


def allot(
    chooser: Chooser,
    ranking: Ranking,
    terms: Sequence[Term],
    cost: Callable[[Selection], int],
    fraction: float,
) -> Selection:
    """The choice with the least error that leaves at most ``fraction`` of a cost.

    Args:
        terms: the cost as products of sizes, by which ratios are found.
        cost: the cost itself, which is never exceeded.
    """
    goal = fraction * cost(Selection({}))
    levels = Allocator.levels()
    owner, errors = curves_of(chooser, ranking)

    def left(ratios: Vector) -> int:
        return cost(chooser.at([float(r) for r in ratios]))

    allocator = Allocator(owner, errors, terms)
    ratios = within(allocator.at_price, lambda ratios: left(ratios) <= goal)
    if left(ratios) > goal:  # the levels end before all but one unit goes
        ratios = least_common(left, len(errors), goal)
    return chooser.at([float(r) for r in filled(ratios, errors, levels, left, goal)])


def curves_of(chooser: Chooser, ranking: Ranking) -> tuple[dict[Axis, int], list[Vector]]:
    """Of the sets of a chooser: the number of the set of each atom, and the errors at `Allocator.levels`."""
    levels = Allocator.levels()
    owner = {g.axis: k for k, pools in enumerate(chooser.sets) for pool in pools for g in pool}
    errors = [
        np.sum([_at(ranking.errors[g.axis], levels) for pool in pools for g in pool], axis=0)
        for pools in chooser.sets
    ]
    return owner, errors


def _at(errors: Vector, levels: Vector) -> Vector:
    """An error curve over counts, at ratios."""
    size = len(errors) - 1
    return np.interp(levels * size, np.arange(size + 1), errors)


def least_common(left: Callable[[Vector], int], count: int, goal: float) -> Vector:
    """The smallest ratio of all sets alike that meets the goal, or 1."""
    low, high = 0.0, 1.0
    while high - low > _CLOSE:
        middle = (low + high) / 2
        if left(np.full(count, middle)) <= goal:
            high = middle
        else:
            low = middle
    return np.full(count, high)


def filled(
    ratios: Vector, errors: Sequence[Vector], levels: Vector, left: Callable[[Vector], int], goal: float
) -> Vector:
    """Give units back, the ones that reduce the error most first, for as long as the budget holds."""
    ratios, step = ratios.copy(), levels[1]
    open_ = {k for k, ratio in enumerate(ratios) if ratio > 0}
    while open_ and left(ratios) < _FULL * goal:
        gain = {k: _gain(errors[k], levels, ratios[k], step) for k in sorted(open_)}
        best = max(gain, key=gain.__getitem__)
        more = ratios.copy()
        more[best] = max(0.0, more[best] - step)
        if left(more) <= goal:
            ratios = more
        if left(more) > goal or not more[best]:
            open_.discard(best)
    return ratios


def _gain(errors: Vector, levels: Vector, ratio: float, step: float) -> float:
    now, then = np.interp([ratio, max(0.0, ratio - step)], levels, errors)
    return float(now - then)
