"""The exact choice, against trying all there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from graphs import PLAIN, Graph, pruned
from onnx_prune import Model, PlanError, UsageError, analyze, load, plan
from onnx_prune.analysis.allocate import allot
from onnx_prune.analysis.exact import allot_exactly
from onnx_prune.analysis.goal import Goal
from onnx_prune.analysis.groups import Analysis
from onnx_prune.analysis.problem import Problem
from onnx_prune.analysis.scores import Ranking
from onnx_prune.models.digits import FOLDER
from test_allocate import chain, ranked

RESNET = FOLDER / "digits_resnet.onnx"


def problem_of(analysis: Analysis, ranking: Ranking, **budgets: float) -> Problem:
    goal = Goal(budgets=budgets, multiple=1)
    chooser = goal.chooser(analysis, ranking.scores)
    return Problem(chooser, ranking, goal.limits_on(analysis, goal.amounts(analysis)))


def least_error(problem: Problem) -> float:
    """Of all choices there are."""
    ladders = [problem.ladder(k, 99) for k in range(len(problem.chooser.sets))]
    found = np.inf
    for choice in product(*(range(len(ladder.ratios)) for ladder in ladders)):
        lost = sum(ladder.errors[i] for ladder, i in zip(ladders, choice, strict=True))
        ratios = [float(ladder.ratios[i]) for ladder, i in zip(ladders, choice, strict=True)]
        if lost < found and problem.fits(ratios):
            found = lost
    return float(found)


def jagged(analysis: Analysis, seed: int) -> Ranking:
    """Errors that rise in steps, as far from convex as can be."""
    rng = np.random.default_rng(seed)
    scores = {group.axis: rng.permutation(group.size).astype(float) for group in analysis.groups}
    steps = {group.axis: rng.choice([0.01, 0.01, 1.0], group.size) for group in analysis.groups}
    errors = {axis: np.concatenate([[0.0], np.cumsum(step)]) for axis, step in steps.items()}
    return Ranking(scores, errors)


@pytest.mark.parametrize("budgets", [{"macs": 0.5}, {"macs": 0.6, "params": 0.4}, {"memory": 0.6}])
@pytest.mark.parametrize("seed", range(3))
def test_no_choice_is_better(seed: int, budgets: dict[str, float]) -> None:
    analysis = analyze(chain(8, 12, 10))
    problem = problem_of(analysis, jagged(analysis, seed), **budgets)
    found = allot_exactly(problem)
    assert problem.fits(found.ratios)
    assert problem.errors(found.ratios) == pytest.approx(least_error(problem), rel=1e-3)
    assert found.gap <= 1e-3


def test_some_jagged_errors_are_too_much_for_prices() -> None:
    """Else the exact choice would have no use."""
    worse = []
    for seed in range(6):
        analysis = analyze(chain(8, 12, 10))
        problem = problem_of(analysis, jagged(analysis, seed), macs=0.5)
        worse.append(problem.errors(allot(problem)) - problem.errors(allot_exactly(problem).ratios))
    assert min(worse) >= 0 and max(worse) > 0.05


def attention() -> Model:
    """Heads of widths, which projections make and read: products of three sizes."""
    g = Graph()
    x = g("MatMul", g.input(1, 5, 8), g.weight(8, 6))

    def heads(perm: list[int]) -> str:
        y = g("Reshape", g("MatMul", x, g.weight(6, 12)), g.ints(1, 5, 3, 4))
        return str(g("Transpose", y, perm=perm))

    scores = g("Softmax", g("MatMul", heads([0, 2, 1, 3]), heads([0, 2, 3, 1])), axis=-1)
    h = g("Transpose", g("MatMul", scores, heads([0, 2, 1, 3])), perm=[0, 2, 1, 3])
    return g.model(g("MatMul", g("Reshape", h, g.ints(1, 5, 12)), g.weight(12, 6)))


def concatenated() -> Model:
    g = Graph()
    x = g.input(1, 3, 4, 4)
    sides = [g("Relu", g.conv(x, 3, n)) for n in (6, 9)]
    x = g("Relu", g.conv(g("Concat", *sides, axis=1), 15, 7, 3))
    return g.model(g.conv(x, 7, 4))


@pytest.mark.parametrize("build", [attention, concatenated])
@pytest.mark.parametrize("fraction", [0.7, 0.4])
def test_composed_axes(build, fraction: float) -> None:
    analysis = analyze(build())
    assert len(analysis.groups) >= 3
    problem = problem_of(analysis, ranked(analysis, 2), macs=fraction)
    found = allot_exactly(problem)
    assert problem.fits(found.ratios)
    assert problem.errors(found.ratios) == pytest.approx(least_error(problem), rel=1e-3)


@pytest.mark.parametrize("budgets", [{"macs": 0.5}, {"bytes": 0.3, "memory": 0.6}])
def test_it_is_never_worse_than_prices(budgets: dict[str, float]) -> None:
    analysis = analyze(load(RESNET))
    problem = problem_of(analysis, ranked(analysis, 3), **budgets)
    found = allot_exactly(problem)
    assert problem.errors(found.ratios) <= problem.errors(allot(problem))
    assert problem.usage(found.ratios).max() <= 1


def test_a_model_too_large_for_the_time_is_said() -> None:
    analysis = analyze(load(RESNET))
    with pytest.raises(PlanError, match=r"too large for an exact choice: .* within 0 s"):
        allot_exactly(problem_of(analysis, ranked(analysis), macs=0.5), seconds=0.0)


def test_a_plan_says_how_exact_it_is() -> None:
    model = load(RESNET)
    _, chosen, verdict = pruned(model, ratio=None, macs=0.5, exact=True)
    assert verdict.ok
    assert 0 <= chosen.options["exact"]["gap"] < 0.5 and chosen.options["exact"]["seconds"] == 60
    again = plan(model, macs=0.5, exact=True, **PLAIN)
    assert again.entries == chosen.entries


def test_a_ratio_leaves_nothing_to_choose() -> None:
    with pytest.raises(UsageError, match="give a budget"):
        plan(load(RESNET), ratio=0.5, exact=True, **PLAIN)
