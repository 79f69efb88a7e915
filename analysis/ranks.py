"""Channels and ranks together: which of them meet a budget with the least error.

Each layer that could be factors of lower rank is one more choice beside the ratios of `analysis.allocate`:
at the widths that are left it costs its dense product or that of its factors, with the error of its curve.
The two errors add up: what lower rank loses lies within what the kept channels can say, and is no more there
than it is at full width. Ratios and ranks are found in turn until neither moves, once from dense layers and
once from whole widths, and the better of the two is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np

from .allocate import Allocator, Term, Vector, curves_of, filled, least_common, within
from .axes import Axis
from .budget import Chooser
from .errors import PlanError
from .groups import Analysis
from .lowrank import Kind, LowRankLayer, RankCurve, extra
from .scores import Ranking
from .selection import Selection
from .truncation import Ranks

_TURNS = 4
_Picks = tuple[int, ...]
_State = tuple[Vector, _Picks]

_WHAT: dict[Kind, str] = {"macs": "multiply-accumulates", "params": "parameters"}


def allot_with_ranks(
    analysis: Analysis,
    chooser: Chooser,
    ranking: Ranking,
    curves: Sequence[RankCurve],
    kind: Kind,
    fraction: float,
) -> tuple[Selection, dict[str, Ranks]]:
    """The channels and ranks with the least error that leave at most ``fraction`` of a cost.

    Args:
        ranking: what is lost with channels.
        curves: what layers lose by lower ranks.

    Raises:
        PlanError: they cannot leave as little.
    """
    joint = _Joint(analysis, chooser, ranking, curves, kind)
    goal = fraction * _total(analysis, kind, Selection({}))
    state = within(joint.at_price, lambda state: joint.left(state) <= goal)
    if joint.left(state) > goal:
        picks = joint.smallest()
        ratios = least_common(lambda r: joint.left((r, picks)), len(joint.errors), goal)
        state = ratios, picks
    if joint.left(state) > goal:
        raise PlanError(f"{fraction:.1%} of the {_WHAT[kind]} cannot be reached by channels and ranks")
    ratios, picks = state
    ratios = filled(ratios, joint.errors, Allocator.levels(), lambda r: joint.left((r, picks)), goal)
    picks = joint.raised(ratios, picks, goal)
    selection = joint.selection(ratios)
    ranks = {
        curve.layer.weight: fitting
        for curve, k in zip(curves, picks, strict=True)
        if (fitting := curve.layer.fitting(curve.options[k], selection))
    }
    return selection, ranks


class _Joint:
    """Ratios of sets of groups, and for each layer which of its options is picked."""

    def __init__(
        self,
        analysis: Analysis,
        chooser: Chooser,
        ranking: Ranking,
        curves: Sequence[RankCurve],
        kind: Kind,
    ) -> None:
        self._analysis, self._chooser, self._curves, self._kind = analysis, chooser, curves, kind
        self._owner, self.errors = curves_of(chooser, ranking)
        self._fixed = _terms(analysis, [curve.layer for curve in self._curves], kind)
        self._terms = [[c.layer.terms(ranks, kind) for ranks in c.options] for c in self._curves]
        self._whole = float(_total(analysis, kind, Selection({})))
        self._sizes = Allocator(self._owner, self.errors, [])

    def selection(self, ratios: Vector) -> Selection:
        return self._chooser.at([float(ratio) for ratio in ratios])

    def left(self, state: _State) -> int:
        """The cost of a choice, exactly."""
        ratios, picks = state
        selection = self.selection(ratios)
        cost = _total(self._analysis, self._kind, selection)
        for curve, k in zip(self._curves, picks, strict=True):
            fitting = curve.layer.fitting(curve.options[k], selection)
            cost += extra(curve.layer, fitting, self._kind, selection)
        return cost

    def at_price(self, price: float) -> _State:
        """The choice that minimises errors plus ``price`` times the share of the cost that is left."""
        dense = (0,) * len(self._curves)
        starts = [dense, self._picks(np.zeros(len(self.errors)), price)]
        found = [self._settle(picks, price) for picks in dict.fromkeys(starts)]
        return min(found, key=lambda state: self._value(state, price))

    def _settle(self, picks: _Picks, price: float) -> _State:
        for _ in range(_TURNS):
            terms = [*self._fixed, *(t for n, k in enumerate(picks) for t in self._terms[n][k])]
            ratios = Allocator(self._owner, self.errors, terms, self._whole).at_price(price)
            before, picks = picks, self._picks(ratios, price)
            if picks == before:
                break
        return ratios, picks

    def _picks(self, ratios: Vector, price: float) -> _Picks:
        size = self._size_at(ratios)
        costs = [np.array([_cost(terms, size) for terms in options]) for options in self._terms]
        return tuple(
            int(np.argmin(curve.errors + price * cost / self._whole))
            for curve, cost in zip(self._curves, costs, strict=True)
        )

    def _value(self, state: _State, price: float) -> float:
        ratios, picks = state
        size, levels = self._size_at(ratios), Allocator.levels()
        error = sum(float(np.interp(r, levels, e)) for r, e in zip(ratios, self.errors, strict=True))
        error += sum(float(curve.errors[k]) for curve, k in zip(self._curves, picks, strict=True))
        cost = _cost(self._fixed, size) + sum(_cost(self._terms[n][k], size) for n, k in enumerate(picks))
        return error + price * cost / self._whole

    def _size_at(self, ratios: Vector) -> Callable[[Axis], float]:
        known: dict[Axis, float] = {}

        def size(axis: Axis) -> float:
            if axis not in known:
                known[axis] = self._sizes.size(axis, ratios)
            return known[axis]

        return size

    def smallest(self) -> _Picks:
        """The cheapest option of each layer."""
        return tuple(len(curve.options) - 1 for curve in self._curves)

    def raised(self, ratios: Vector, picks: _Picks, goal: float) -> _Picks:
        """Higher ranks, where they reduce the error most first, for as long as the budget holds."""
        open_ = {n for n, k in enumerate(picks) if k}
        while open_:
            best = max(sorted(open_), key=lambda n: self._curves[n].errors[picks[n]])
            for k in range(picks[best]):
                more = (*picks[:best], k, *picks[best + 1 :])
                if self.left((ratios, more)) <= goal:
                    picks = more
                    break
            open_.discard(best)
        return picks


def _cost(terms: Sequence[Term], size: Callable[[Axis], float]) -> float:
    return sum(term.scale * prod(size(axis) for axis in term.axes) for term in terms)


def _terms(analysis: Analysis, layers: Sequence[LowRankLayer], kind: Kind) -> list[Term]:
    """The cost of all but the layers."""
    nodes, weights = {layer.node.index for layer in layers}, {layer.weight for layer in layers}
    if kind == "macs":
        return [Term(w.scale, w.axes) for w in analysis.walk.work if w.node.index not in nodes]
    uses = analysis.parameter_uses
    return [Term(1, tuple(axes)) for constant, _, axes in uses if constant.name not in weights]


def check_reach(
    analysis: Analysis, furthest: Selection, layers: Sequence[LowRankLayer], kind: Kind, fraction: float
) -> None:
    """Before any long work.

    Args:
        furthest: what is left when all channels go that may.

    Raises:
        PlanError: the lowest ranks leave more than ``fraction`` of a cost.
    """
    whole = _total(analysis, kind, Selection({}))
    least = _total(analysis, kind, furthest)
    for layer in layers:
        inputs, outputs = layer.candidates(1)
        smallest = layer.fitting(Ranks(inputs[0], outputs[0]), furthest)
        least += min(0, extra(layer, smallest, kind, furthest))
    if least > fraction * whole:
        raise PlanError(
            f"{fraction:.1%} of the {_WHAT[kind]} cannot be reached: channels and ranks as low as they go"
            f" leave {least / whole:.1%}"
        )


def _total(analysis: Analysis, kind: Kind, selection: Selection) -> int:
    """The cost of a selection, every layer dense."""
    return analysis.macs(selection) if kind == "macs" else analysis.params(selection)
