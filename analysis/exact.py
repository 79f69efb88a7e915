"""The best choice there is among rungs, as a mixed-integer linear program solved by HiGHS.

Each set of groups takes one of its rungs, a binary each. A cost that depends on one set is linear in those.
For the product of two sets there is a variable for each pair of rungs, whose sums over one side are the other
side's binaries (the local polytope of Wainwright and Jordan, 2008), which is tight. A product of more sets is
built up one by one: a value times the rung of a set is that value where the binary is one, and zero elsewhere
(McCormick, Mathematical Programming 10, 1976).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import scipy  # a part of it loads where it is used first
from numpy.typing import NDArray

from .allocate import allot, merged, refined
from .axes import Axis, find
from .errors import PlanError
from .problem import Ladder, Problem, stacked
from .resources import Term
from .selection import Selection

Vector = NDArray[np.float64]
# What a sum of products is made of: a factor, and for each set that has a part in it a value at each rung.
_Monomial: TypeAlias = tuple[float, dict[int, Vector]]

SECONDS = 60.0
RUNGS = 17
_NEAR = (-3, -2, -1, 0, 1, 2, 3)  # rungs of single units around the first choice
_FINE = 512
_GAP = 1e-4


@dataclass(frozen=True)
class Exact:
    """The best choice that was found.

    Attributes:
        ratios: of the sets.
        gap: by what share another choice among the rungs could be better, at most; 0 where none is.
        seconds: the time limit it was found in.
    """

    ratios: list[float]
    gap: float
    seconds: float


def allot_exactly(problem: Problem, seconds: float = SECONDS) -> Exact:
    """The best choice among about 25 rungs of each set, and never a worse one than `allot` finds.

    Raises:
        PlanError: no choice was found within the time: the model has too many sets for it.
    """
    first = allot(problem)
    ladders = [problem.ladder(k, RUNGS, _around(problem, k, ratio)) for k, ratio in enumerate(first)]
    program = _Program(ladders)
    terms, amounts = stacked(problem.limits)
    program.limit(merged(terms), amounts - _uncounted(problem, len(amounts)))
    choice, bound = program.solve(seconds)
    candidates = [first]
    if choice is not None:
        found = [float(ladder.ratios[i]) for ladder, i in zip(ladders, choice, strict=True)]
        if problem.fits(found):
            candidates.append(refined(problem, found, tolerated=0.0))
    best = min(candidates, key=problem.errors)
    error = problem.errors(best)
    gap = max(0.0, (error - bound) / error) if error > 0 else 0.0
    return Exact(best, gap, seconds)


def _around(problem: Problem, number: int, ratio: float) -> list[float]:
    """Ratios a few units from one, that one among them."""
    ratios = problem.ratios(number, _FINE)
    at = int(np.searchsorted(ratios, ratio - 1e-9))
    return sorted({ratios[at + by] for by in _NEAR if 0 <= at + by < len(ratios)})


def _uncounted(problem: Problem, count: int) -> Vector:
    """What each row of the limits uses beyond its terms: of a single sum, what never shrinks."""
    found: list[float] = []
    for limit in problem.limits:
        total = sum(term.scale * prod(find(axis).size for axis in term.axes) for term in limit.terms)
        here = 1 + max((term.last for term in limit.terms), default=0)
        found += [limit.cost(Selection({})) - total] if here == 1 else [0.0] * here
    assert len(found) == count
    return np.array(found)


class _Program:
    """Variables, their costs, and rows of constraints."""

    def __init__(self, ladders: Sequence[Ladder]) -> None:
        self._ladders = ladders
        self._owner = {axis: k for k, ladder in enumerate(ladders) for axis in ladder.sizes}
        self._upper: list[float] = []
        self._rows: list[tuple[dict[int, float], float, float]] = []
        self._pairs: dict[tuple[int, int], int] = {}
        self._costs: list[float] = []
        self._binaries: list[int] = []
        for ladder in ladders:
            start = self._variables(len(ladder.ratios), 1.0)
            self._binaries.append(start)
            self._costs[start:] = [float(error) for error in ladder.errors]
            self._row({start + i: 1.0 for i in range(len(ladder.ratios))}, 1.0, 1.0)

    def _variables(self, count: int, upper: float) -> int:
        start = len(self._upper)
        self._upper += [upper] * count
        self._costs += [0.0] * count
        return start

    def _row(self, row: dict[int, float], low: float, high: float) -> None:
        self._rows.append((row, low, high))

    # ------------------------------------------------------------------ costs as linear functions

    def limit(self, terms: Sequence[Term], amounts: Vector) -> None:
        """In every row the terms that count there must not exceed its amount."""
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for i, term in enumerate(terms):
            starts.setdefault(term.first, []).append(i)
            ends.setdefault(term.last, []).append(i)
        parts: dict[int, tuple[dict[int, float], float]] = {}
        alive: set[int] = set()
        for row, amount in enumerate(amounts):
            alive.update(starts.get(row, ()))
            whole = sum(terms[i].scale * prod(find(a).size for a in terms[i].axes) for i in alive)
            if whole > amount:
                for i in alive - parts.keys():
                    parts[i] = self._linear(terms[i])
                self._limit([parts[i] for i in sorted(alive)], amount)
            alive.difference_update(ends.get(row, ()))

    def _limit(self, parts: Sequence[tuple[dict[int, float], float]], amount: float) -> None:
        total: dict[int, float] = {}
        constant = 0.0
        for part, fixed in parts:
            constant += fixed
            for column, value in part.items():
                total[column] = total.get(column, 0.0) + value
        scale = max(amount, 1.0)
        self._row({c: v / scale for c, v in total.items()}, -np.inf, (amount - constant) / scale)

    def _linear(self, term: Term) -> tuple[dict[int, float], float]:
        """A term as a function of the variables: coefficients and a constant."""
        monomials: list[_Monomial] = [(float(term.scale), {})]
        for axis in term.axes:
            monomials = _times(monomials, self._polynomial(axis))
        total: dict[int, float] = {}
        constant = 0.0
        for factor, values in monomials:
            if not values:
                constant += factor
                continue
            for column, value in self._product(values).items():
                total[column] = total.get(column, 0.0) + factor * value
        return total, constant

    def _polynomial(self, axis: Axis) -> list[_Monomial]:
        """The positions of an axis that stay, as a sum of products."""
        axis = find(axis)
        if axis.kind in ("atom", "fix"):
            owner = self._owner.get(axis)
            if owner is None:
                return [(float(axis.size), {})]
            return [(1.0, {owner: self._ladders[owner].sizes[axis]})]
        parts = [self._polynomial(part) for part in axis.parts]
        if axis.kind == "prod":
            product: list[_Monomial] = [(1.0, {})]
            for part in parts:
                product = _times(product, part)
            return product
        scale = {"sum": 1.0, "view": axis.size / axis.parts[0].size, "ragged": 1 / len(parts)}[axis.kind]
        return [(scale * factor, values) for part in parts for factor, values in part]

    def _product(self, values: dict[int, Vector]) -> dict[int, float]:
        """Coefficients of the product of what several sets have at their rungs."""
        (first, mine), *others = sorted(values.items())
        if not others:
            return {self._binaries[first] + i: float(v) for i, v in enumerate(mine)}
        (second, theirs), *others = others
        start = self._pair(first, second)
        grid = np.outer(mine, theirs)
        expression = {start + i: float(v) for i, v in enumerate(grid.ravel())}
        low, high = float(grid.min()), float(grid.max())
        for number, sizes in others:
            expression = self._times_rung(expression, low, high, number, sizes)
            low, high = low * float(sizes.min()), high * float(sizes.max())
        return expression

    def _pair(self, first: int, second: int) -> int:
        """Variables that are one where two sets take two rungs, row by row."""
        if (first, second) not in self._pairs:
            rows, columns = (len(self._ladders[k].ratios) for k in (first, second))
            start = self._pairs[first, second] = self._variables(rows * columns, 1.0)
            for i in range(rows):
                row = {start + i * columns + j: 1.0 for j in range(columns)}
                self._row(row | {self._binaries[first] + i: -1.0}, 0.0, 0.0)
            for j in range(columns):
                row = {start + i * columns + j: 1.0 for i in range(rows)}
                self._row(row | {self._binaries[second] + j: -1.0}, 0.0, 0.0)
        return self._pairs[first, second]

    def _times_rung(
        self, expression: dict[int, float], low: float, high: float, number: int, sizes: Vector
    ) -> dict[int, float]:
        """An expression from ``low`` to ``high`` times what a set has at its rung."""
        start, binaries = self._variables(len(sizes), high), self._binaries[number]
        for i in range(len(sizes)):
            self._row({start + i: 1.0, binaries + i: -high}, -np.inf, 0.0)
            self._row({start + i: 1.0, binaries + i: -low}, 0.0, np.inf)
        whole = {start + i: 1.0 for i in range(len(sizes))}
        self._row(whole | {column: -value for column, value in expression.items()}, 0.0, 0.0)
        return {start + i: float(size) for i, size in enumerate(sizes)}

    # ------------------------------------------------------------------ solving

    def solve(self, seconds: float) -> tuple[list[int] | None, float]:
        """The rung of each set, None if no choice is within the limits; and what the error is at least.

        Raises:
            PlanError: no choice was found within the time.
        """

        count = len(self._upper)
        entries = [
            (i, column, value) for i, (row, _, _) in enumerate(self._rows) for column, value in row.items()
        ]
        at, columns, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix = scipy.sparse.csr_array((values, (at, columns)), shape=(len(self._rows), count))
        bounds = [np.array([row[k] for row in self._rows]) for k in (1, 2)]
        whole = np.zeros(count)
        for start, ladder in zip(self._binaries, self._ladders, strict=True):
            whole[start : start + len(ladder.ratios)] = 1
        result: Any = scipy.optimize.milp(
            np.array(self._costs),
            integrality=whole,
            bounds=scipy.optimize.Bounds(np.zeros(count), np.array(self._upper)),
            constraints=scipy.optimize.LinearConstraint(matrix, *bounds),
            options={"time_limit": seconds, "mip_rel_gap": _GAP},
        )
        if result.status == 2:
            return None, -np.inf
        if result.x is None:
            raise PlanError(
                f"the model is too large for an exact choice: none was found for its {len(self._ladders)}"
                f" sets of groups ({count:,} variables) within {seconds:.0f} s; leave --exact away"
            )
        bound = result.mip_dual_bound if result.mip_dual_bound is not None else -np.inf
        choice = [
            int(np.argmax(result.x[start : start + len(ladder.ratios)]))
            for start, ladder in zip(self._binaries, self._ladders, strict=True)
        ]
        return choice, float(bound)


def _times(left: Sequence[_Monomial], right: Sequence[_Monomial]) -> list[_Monomial]:
    found = []
    for a, mine in left:
        for b, theirs in right:
            both = {k: mine.get(k, 1.0) * theirs.get(k, 1.0) for k in mine.keys() | theirs.keys()}
            found.append((a * b, {k: np.asarray(v) for k, v in both.items()}))
    return found
