"""Rank again what is left after a part of the way, since what a unit is worth changes as others go.

The plan is still one for the whole model. In each step but the last it is made for a part of the way and
carried out, layers are fitted again where that is asked for, and the units that stayed are ranked once more
in what came out. Those that went keep their place below them. Ranks are not lowered on the way, and what they
lose is measured anew as well, in the layers that are left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..analysis.goal import Goal
from ..analysis.groups import Analysis, analyze
from ..analysis.plan import Plan, make_plan, select
from ..analysis.scores import Ranking
from .base import run_passes
from .data.calibrate import Calibration
from .losses import Losses, measure_losses
from .options import Request
from .pipeline import refitted
from .rank_curves import FOLD, Places
from .shrink import shrink


def measured_in_steps(
    left: Analysis,
    request: Request,
    losses: Losses,
    amounts: dict[str, float],
    inputs: Calibration | None,
    progress: Callable[[str], None] = lambda step: None,
) -> Losses:
    """``losses``, measured again after each of the first ``request.steps - 1`` parts of the way.

    Args:
        left: analysis of the model, without the blocks that go.
        amounts: of the budgets of the request.

    Raises:
        ModelError: ONNX Runtime cannot run the model on the calibration inputs.
    """
    whole = request.goal.spent(left)
    for step in range(1, request.steps):
        part = step / request.steps
        told = f"step {step} of {request.steps}: "

        def say(text: str, told: str = told) -> None:
            progress(told + text)

        goal = _part(request.goal, part)
        some = {name: whole[name] * (amount / whole[name]) ** part for name, amount in amounts.items()}
        plan = make_plan(left, goal, losses.ranking, {"recover": request.recover}, some, losses.curves)
        plan = replace(plan, ranks={})
        smaller = shrink(left.model, plan, left)
        if inputs is not None and request.recover != "none":
            smaller = refitted(left.model, smaller, plan, inputs, left, say)[0]
        analysis = analyze(smaller)
        places = None
        if goal.low_rank is not None:
            places = Places.of(left, run_passes(smaller, FOLD), goal.ignore)
        again = measure_losses(analysis, goal, request.criterion, inputs, say, places)
        ranking = _continued(left, plan, losses.ranking, analysis, again.ranking)
        losses = Losses(ranking, again.curves)
    return losses


def _part(goal: Goal, part: float) -> Goal:
    return goal if goal.ratio is None else replace(goal, ratio=1 - (1 - goal.ratio) ** part)


def _continued(left: Analysis, plan: Plan, ranking: Ranking, smaller: Analysis, again: Ranking) -> Ranking:
    """A ranking of all units: as before for those that went, and as measured again for those that stayed.

    A group that the smaller model does not have as it was cut keeps what it had.
    """
    selection = select(left, plan)
    measured = {group.id: group for group in smaller.groups}
    scores, errors = dict(ranking.scores), dict(ranking.errors)
    for group in left.groups:
        kept = selection.positions(group.axis)
        stayed = np.arange(group.size) if kept is None else kept
        found = measured.get(group.id)
        if found is None or found.size != len(stayed):
            continue
        gone = group.size - len(stayed)
        lost = float(ranking.errors[group.axis][gone])
        scores[group.axis] = np.minimum(ranking.scores[group.axis], lost)
        scores[group.axis][stayed] = lost + again.scores[found.axis]
        errors[group.axis] = np.concatenate(
            [ranking.errors[group.axis][: gone + 1], lost + again.errors[found.axis][1:]]
        )
    return Ranking(scores, errors)
