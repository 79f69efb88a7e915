"""How much each set of groups gives, so that the whole meets its budgets with the least error.

Minimises the sum of the sets' error curves plus a price times the cost, one set at a time with the others
fixed, until nothing moves; the price is found by bisection (Everett, "Generalized Lagrange multiplier
method", 1963). Costs are sums of products of sizes of axes. Where there are several at once (several budgets,
or the moments at which activations are alive), each has a weight in the price, which is multiplied by how
near it is to its limit, round after round (multiplicative weights: Arora, Hazan and Kale, Theory of
Computing 8, 2012).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .axes import Axis, find
from .problem import Ladder, Problem, stacked
from .refine import RUNGS, TOLERATED, Refinement
from .resources import Term, rows

Vector = NDArray[np.float64]

LEVELS = 96
_SWEEPS = 6
_PRICES = 24
_PRICE_RANGE = (1e-9, 1e6)
_ROUNDS = 12  # of weights, and how many without a better choice are enough
_PATIENCE = 6
_CLOSE = 1 / 1024  # of a ratio
_FULL = 0.997  # of a budget: as near as one gets


class Allocator:
    """Chooses a rung for each of several sets of groups.

    Args:
        ladders: of the sets.
        terms: the costs, as sums of products.
        limits: for each row the terms count in, what the sum is to stay below.
        orders: in which the sets are visited; the best of what they come to is taken. As they are numbered
            if not given.
    """

    def __init__(
        self,
        ladders: Sequence[Ladder],
        terms: Sequence[Term],
        limits: Vector,
        orders: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.ladders = ladders
        self._orders = orders or [range(len(ladders))]
        self.limits = limits
        self.terms = merged(terms)
        self._owner = {axis: k for k, ladder in enumerate(ladders) for axis in ladder.sizes}
        self._mine: list[list[int]] = [[] for _ in ladders]
        for i, term in enumerate(self.terms):
            for number in {n for axis in term.axes for n in self._owners(axis)}:
                self._mine[number].append(i)
        self._factors = [self._taken_apart(term) for term in self.terms]
        self._first = np.array([term.first for term in self.terms], np.int64)
        self._last = np.array([term.last for term in self.terms], np.int64)

    def _taken_apart(self, term: Term) -> tuple[float, list[tuple[int, Vector]], list[Axis]]:
        """What a term has that never changes, sizes of single sets with their numbers, and all other axes."""
        scale, single, composed = float(term.scale), [], []
        for axis in map(find, term.axes):
            if axis in self._owner:
                owner = self._owner[axis]
                single.append((owner, self.ladders[owner].sizes[axis]))
            elif self._owners(axis):
                composed.append(axis)
            else:
                scale *= axis.size
        return scale, single, composed

    def _owners(self, axis: Axis) -> set[int]:
        axis = find(axis)
        if axis in self._owner:
            return {self._owner[axis]}
        return {n for part in axis.parts for n in self._owners(part)}

    def at_price(self, price: float, weights: Vector | None = None) -> list[int]:
        """The rungs that minimise errors plus ``price`` times the weighted costs over their limits.

        Args:
            weights: of each row; equal ones if not given.
        """
        if weights is None:
            weights = np.full(len(self.limits), 1 / len(self.limits))
        summed = np.concatenate([[0.0], np.cumsum(weights / self.limits)])
        prices = price * (summed[self._last + 1] - summed[self._first])
        found = [self._settled(order, prices) for order in self._orders]
        return found[0] if len(found) == 1 else min(found, key=lambda choice: self._paid(choice, prices))

    def _settled(self, order: Sequence[int], prices: Vector) -> list[int]:
        choice = [0] * len(self.ladders)
        for _ in range(_SWEEPS):
            before = list(choice)
            for number in order:
                total = self.ladders[number].errors.copy()
                for i in self._mine[number]:
                    total += prices[i] * self._value(i, choice, number)
                choice[number] = int(np.argmin(total))
            if before == choice:
                break
        return choice

    def _paid(self, choice: Sequence[int], prices: Vector) -> float:
        values = [self._value(i, choice, None) for i in range(len(self.terms))]
        return self.error(choice) + float(np.dot(prices, values))

    def usage(self, choice: Sequence[int]) -> Vector:
        """The costs over their limits, of each row."""
        change = np.zeros(len(self.limits) + 1)
        for i, term in enumerate(self.terms):
            value = self._value(i, choice, None)
            change[term.first] += value
            change[term.last + 1] -= value
        return np.asarray(np.cumsum(change)[:-1] / self.limits)

    def error(self, choice: Sequence[int]) -> float:
        return sum(float(ladder.errors[i]) for ladder, i in zip(self.ladders, choice, strict=True))

    def ratios(self, choice: Sequence[int]) -> list[float]:
        return [float(ladder.ratios[i]) for ladder, i in zip(self.ladders, choice, strict=True)]

    def _value(self, i: int, choice: Sequence[int], number: int | None) -> Any:
        scale, single, composed = self._factors[i]
        out: Any = scale
        for owner, sizes in single:
            out = out * (sizes if owner == number else sizes[choice[owner]])
        for axis in composed:
            out = out * self.size(axis, choice, number)
        return out

    def size(self, axis: Axis, choice: Sequence[int], number: int | None) -> Any:
        """Positions that stay: one number, or one for each rung of the set ``number`` where it has a part."""
        axis = find(axis)
        if axis.kind in ("atom", "fix"):
            owner = self._owner.get(axis)
            if owner is None:
                return axis.size
            sizes = self.ladders[owner].sizes[axis]
            return sizes if owner == number else sizes[choice[owner]]
        parts = [self.size(part, choice, number) for part in axis.parts]
        if axis.kind == "sum":
            return sum(parts)
        if axis.kind == "prod":
            return np.prod(np.broadcast_arrays(*parts), axis=0)
        if axis.kind == "view":
            return axis.size * parts[0] / axis.parts[0].size
        return sum(parts) / len(parts)  # ragged: the mean of its blocks

    def within(self, fits: Callable[[list[int]], bool]) -> list[int] | None:
        """The rungs of the least error among those found that ``fits`` accepts, if there are any."""
        weights = np.full(len(self.limits), 1 / len(self.limits))
        best: list[int] | None = None
        waiting = 0
        for turn in range(_ROUNDS if len(self.limits) > 1 else 1):
            choice = self._cheapest(weights, fits)
            if choice is None:
                break
            waiting += 1
            if best is None or self.error(choice) < self.error(best):
                best, waiting = choice, 0
            if waiting == _PATIENCE:
                break
            weights = weights * np.maximum(self.usage(choice), 1e-3) ** (1 + turn) ** -0.5
            weights /= weights.sum()
        return best

    def _cheapest(self, weights: Vector, fits: Callable[[list[int]], bool]) -> list[int] | None:
        """The rungs of the lowest price that ``fits`` accepts."""
        low, high = np.log(_PRICE_RANGE)
        best = self.at_price(float(np.exp(high)), weights)
        if not fits(best):
            return None
        for _ in range(_PRICES):
            middle = (low + high) / 2
            choice = self.at_price(float(np.exp(middle)), weights)
            if fits(choice):
                best, high = choice, middle
            else:
                low = middle
        return best


def allot(problem: Problem) -> list[float]:
    """The ratios of the sets that give the least error of those found within all limits."""
    ladders = [problem.ladder(k, LEVELS) for k in range(problem.count)]
    allocator = Allocator(ladders, *stacked(problem.limits), problem.orders())
    choice = allocator.within(lambda choice: problem.fits(allocator.ratios(choice)))
    # The rungs end before all but one unit goes.
    ratios = _least_common(len(ladders), problem.fits) if choice is None else allocator.ratios(choice)
    return refined(problem, ratios)


def refined(problem: Problem, ratios: Sequence[float], tolerated: float = TOLERATED) -> list[float]:
    """Ratios within the limits, changed a little to use them up.

    Args:
        tolerated: by what share of it the error may rise where that leaves a limit all but used up.
    """
    single = all(rows(limit.terms) == 1 for limit in problem.limits) and len(problem.limits) == 1
    choices = [problem.ratios(k, RUNGS) for k in range(problem.count)]
    refinement = Refinement(choices, ratios, problem.usage, problem.error)
    # Where there are several sums, units that are in none of the largest come back free.
    refinement.fill(_FULL if single else np.inf)
    refinement.exchange(_FULL, tolerated)
    return refinement.ratios


def merged(terms: Sequence[Term]) -> list[Term]:
    """The same sums with one term for all that count the same positions in the same rows."""
    scales: dict[tuple[tuple[Axis, ...], int, int], float] = {}
    for term in terms:
        key = (tuple(find(axis) for axis in term.axes), term.first, term.last)
        scales[key] = scales.get(key, 0.0) + term.scale
    return [Term(scale, *key) for key, scale in scales.items()]


def _least_common(count: int, fits: Callable[[list[float]], bool]) -> list[float]:
    low, high = 0.0, 1.0
    while high - low > _CLOSE:
        middle = (low + high) / 2
        if fits([middle] * count):
            high = middle
        else:
            low = middle
    return [high] * count
