"""Budgets are met by the model that comes out, of which cleanup folds a little more away than a plan says."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..analysis.cost import Cost, measure, predict
from ..analysis.groups import Analysis
from ..analysis.model import Model
from ..analysis.plan import Plan
from .factorize import Factorize, of_shape
from .pipeline import ranks_in, shrunk

_ROUNDS = 4
_FULL, _NEAR = 0.997, 0.98  # of a budget: used up, and what limits the choice
_FOLDED = frozenset(["params", "bytes", "memory"])  # what cleanup changes; it leaves arithmetic as it is


def used_up(
    model: Model,
    analysis: Analysis,
    amounts: Mapping[str, float],
    make: Callable[[Mapping[str, float]], Plan],
) -> Plan:
    """A plan whose result uses budgets up: it aims as much higher as cleanup takes away.

    Args:
        analysis: of what the plan's channels are chosen in, ``model`` without the blocks that go.
        amounts: of the budgets, by name.
        make: a plan for such amounts.
    """
    chosen = make(amounts)
    if _FOLDED.isdisjoint(amounts):
        return chosen
    aims = dict(amounts)
    left = _left(model, chosen)
    room = _room(amounts, aims, predict(analysis, chosen), left)
    for _ in range(_ROUNDS):
        if not room:
            break
        higher = {name: aim + room.get(name, 0.0) for name, aim in aims.items()}
        more = make(higher)
        left = _left(model, more)
        if any(_used(left, name) > amount for name, amount in amounts.items()):
            room = {name: gap / 2 for name, gap in room.items()}
        else:
            chosen, aims = more, higher
            room = _room(amounts, aims, predict(analysis, chosen), left)
    return chosen


def _left(model: Model, plan: Plan) -> Cost:
    """What a plan leaves of a model."""
    smaller = shrunk(model, plan)
    ranks = ranks_in(model, smaller, plan)
    return measure(Factorize(ranks, of_shape)(smaller))


def _room(
    amounts: Mapping[str, float], aims: Mapping[str, float], promised: Cost, left: Cost
) -> dict[str, float]:
    """What the result of a plan leaves of each budget that limits it."""
    return {
        name: amount - _used(left, name)
        for name, amount in amounts.items()
        if name in _FOLDED
        and _used(left, name) < _FULL * amount
        and _used(promised, name) > _NEAR * aims[name]
    }


def _used(cost: Cost, name: str) -> int:
    return int(getattr(cost, name))
