"""Budgets that only a run can tell: time on a target and accuracy on labelled data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

from ..analysis.groups import Analysis
from ..analysis.plan import Plan
from .accuracy import judge_for, largest_cut
from .clocks import clock_for
from .latency import Latency
from .options import Request
from .planner import Planner

Progress: TypeAlias = Callable[[str], None]
Search: TypeAlias = Callable[[Planner, Progress], Plan]


def prepared(request: Request, whole: Analysis) -> tuple[Request, Search]:
    """How a plan for a request is found, and the request with the samples that are left to fit layers on.

    Comes before channels are ranked, so that a missing runtime or missing labels are told early.

    Raises:
        UsageError: there is no such target, or the data has no labels.
        BackendError: the target's runtime is missing, or cannot take the model; or its latency table cannot
            be used for the model.
    """
    if request.latency is not None:
        table, target = request.latency_table, request.target
        budget, clock = Latency.of(request.latency), clock_for(target, whole.model, table)
        told = {"target": target, "predicted": table is not None}
        return request, lambda planner, progress: budget.plan(planner, clock, told, progress)
    drop = request.accuracy_drop
    if drop is not None:
        judge, samples = judge_for(whole.model, request.calibration, request.labels, request.samples)
        allowed = drop
        measures = request.criterion.measures or request.recover != "none"
        fitted = replace(request, samples=samples, calibration=request.calibration if measures else None)
        return fitted, lambda planner, progress: largest_cut(planner, allowed, judge, progress)
    return request, lambda planner, progress: planner.plan()
