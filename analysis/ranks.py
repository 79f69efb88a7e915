"""Channels and ranks together: which of them meet budgets with the least error.

Each layer that could be factors of lower rank is one more set beside those of channels, whose rungs are its
options: its ladder has sizes for the axes of `lowrank.Widths`, and what it adds to a cost are more terms. So
prices, refinement and the integer program take them as they take channels. The errors add up: what lower rank
loses lies within what the kept channels can say, and is no more there than it is at full width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from .activations import Activation, activations, peak
from .errors import PlanError
from .groups import Analysis
from .lowrank import LowRankLayer, RankCurve
from .problem import Ladder, Limit, Problem, Vector
from .resources import RESOURCES
from .selection import Selection
from .truncation import Ranks

_CLOSE = 1e-9
# Layers and the ranks they have.
Lowered: TypeAlias = Iterable[tuple[LowRankLayer, Ranks]]


def cost_with_ranks(analysis: Analysis, name: str) -> Callable[[Selection, Lowered], int]:
    """How much of a resource the model of an analysis uses with a selection and ranks."""
    if name == "memory":
        tensors = activations(analysis.walk)
        return lambda selection, lowered: peak([*tensors, *_between(lowered)], selection)
    cost = RESOURCES[name].cost(analysis)
    return lambda selection, lowered: round(
        cost(selection) + sum(layer.extra(ranks, name, selection) for layer, ranks in lowered)
    )


def _between(lowered: Lowered) -> list[Activation]:
    """The channels between factors."""
    found = []
    for layer, ranks in lowered:
        sizes = layer.widths.of(ranks)
        for term in layer.terms("memory"):
            width = term.scale * sizes[term.axes[-1]]
            found.append(Activation(list(term.axes[:-1]), width, term.first, term.last))
    return found


def least_with_ranks(
    analysis: Analysis, furthest: Selection, layers: Iterable[LowRankLayer], name: str
) -> int:
    """How little of a resource may be left.

    Args:
        furthest: what is left when all channels go that may.
    """
    lowered = []
    for layer in layers:
        inputs, outputs = layer.candidates(1)
        smallest = layer.fitting(Ranks(inputs[0], outputs[0]), furthest)
        if layer.extra(smallest, name, furthest) < 0:
            lowered.append((layer, smallest))
    return cost_with_ranks(analysis, name)(furthest, lowered)


@dataclass(frozen=True)
class RankedProblem(Problem):
    """A problem with layers that may get lower ranks, as sets that come after those of channels.

    The ratio of such a set is how far down its options a layer goes.
    """

    curves: Sequence[RankCurve] = ()
    costs: Mapping[str, Callable[[Selection, Lowered], int]] = field(default_factory=dict)

    @staticmethod
    def of(analysis: Analysis, problem: Problem, curves: Sequence[RankCurve]) -> RankedProblem:
        """A problem of channels, and what layers lose by lower ranks."""
        limits = [_with_terms(limit, curves) for limit in problem.limits]
        costs = {limit.name: cost_with_ranks(analysis, limit.name) for limit in limits}
        return RankedProblem(problem.chooser, problem.ranking, limits, curves, costs)

    @property
    def count(self) -> int:
        return super().count + len(self.curves)

    def orders(self) -> list[list[int]]:
        """From dense layers, and from whole widths: a narrow layer gains little by a lower rank."""
        channels = super().count
        orders = [list(range(self.count)), [*range(channels, self.count), *range(channels)]]
        return orders if self.curves else orders[:1]

    def ratios(self, number: int, most: int) -> list[float]:
        curve = self._curve(number)
        if curve is None:
            return super().ratios(number, most)
        count = len(curve.options)
        spread = range(count) if count <= most else np.linspace(0, count - 1, most).round()
        return [int(k) / count for k in spread]

    def usage(self, ratios: Sequence[float]) -> Vector:
        selection, ranks = self.choice(ratios)
        lowered = [(curve.layer, r) for curve in self.curves if (r := ranks.get(curve.layer.weight))]
        return np.array([self.costs[limit.name](selection, lowered) / limit.amount for limit in self.limits])

    def error(self, number: int, ratio: float) -> float:
        curve = self._curve(number)
        return super().error(number, ratio) if curve is None else float(curve.errors[_option(curve, ratio)])

    def ladder(self, number: int, rungs: int, more: Sequence[float] = ()) -> Ladder:
        curve = self._curve(number)
        if curve is None:
            return super().ladder(number, rungs, more)
        ratios = sorted({*self.ratios(number, rungs), *more})
        options = [_option(curve, ratio) for ratio in ratios]
        sizes = [curve.layer.widths.of(curve.options[k]) for k in options]
        return Ladder(
            np.array(ratios),
            curve.errors[options],
            {axis: np.array([float(size[axis]) for size in sizes]) for axis in sizes[0]},
        )

    def choice(self, ratios: Sequence[float]) -> tuple[Selection, dict[str, Ranks]]:
        """The channels that stay, and the ranks of layers by the name of their weight."""
        channels = super().count
        selection = self.chooser.at(ratios[:channels])
        ranks = {}
        for curve, ratio in zip(self.curves, ratios[channels:], strict=True):
            fitting = curve.layer.fitting(curve.options[_option(curve, ratio)], selection)
            if fitting:
                ranks[curve.layer.weight] = fitting
        return selection, ranks

    def check(self, ratios: Sequence[float]) -> None:
        """After the search.

        Raises:
            PlanError: these ratios are not within the limits, since none are that were found.
        """
        for limit, used in zip(self.limits, self.usage(ratios), strict=True):
            if used > 1:
                raise PlanError(
                    f"{limit.amount:,.0f} {RESOURCES[limit.name].what} cannot be reached by the channels and"
                    f" ranks there are: {used * limit.amount:,.0f} are left"
                )

    def _curve(self, number: int) -> RankCurve | None:
        channels = super().count
        return self.curves[number - channels] if number >= channels else None


def _option(curve: RankCurve, ratio: float) -> int:
    count = len(curve.options)
    return min(int(ratio * count + _CLOSE), count - 1)


def _with_terms(limit: Limit, curves: Sequence[RankCurve]) -> Limit:
    more = [term for curve in curves for term in curve.layer.terms(limit.name)]
    return replace(limit, terms=[*limit.terms, *more])
