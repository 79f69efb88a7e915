"""Shares of groups under a budget, against trying them all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from graphs import PLAIN, Graph
from numpy.typing import NDArray
from onnx_prune import Model, analyze, load, plan
from onnx_prune.analysis.allocate import LEVELS, Allocator, allot
from onnx_prune.analysis.axes import Axis, atom, fix, prod, total
from onnx_prune.analysis.budget import Chooser
from onnx_prune.analysis.goal import Goal
from onnx_prune.analysis.groups import Analysis
from onnx_prune.analysis.plan import select
from onnx_prune.analysis.problem import Ladder, Problem
from onnx_prune.analysis.resources import RESOURCES, Term
from onnx_prune.analysis.scores import Ranking
from onnx_prune.analysis.selection import Selection
from onnx_prune.models.digits import FOLDER

Vector = NDArray[np.float64]


def curve(size: int, rng: np.random.Generator) -> Vector:
    """Convex, rising from 0, of its own height and steepness."""
    power, height = rng.uniform(1.2, 4), 10 ** rng.uniform(-2, 0)
    return np.asarray(height * np.linspace(0, 1, size + 1) ** power)


def chain(*sizes: int, first: int = 3, last: int = 4) -> Model:
    """1×1 convolutions; the sizes are those of the groups."""
    g = Graph()
    x, before = g.input(1, first, 4, 4), first
    for size in sizes:
        x, before = g("Relu", g.conv(x, before, size)), size
    return g.model(g.conv(x, before, last))


def ranked(analysis: Analysis, seed: int = 0) -> Ranking:
    rng = np.random.default_rng(seed)
    scores = {group.axis: rng.permutation(group.size).astype(float) for group in analysis.groups}
    return Ranking(scores, {group.axis: curve(group.size, rng) for group in analysis.groups})


def within(analysis: Analysis, ranking: Ranking, multiple: int | None = 1, **budgets: float) -> Selection:
    """The choice under budgets by name, as shares of the whole."""
    goal = Goal(budgets=budgets)
    limits = goal.limits_on(analysis, goal.amounts(analysis))
    chooser = Chooser(analysis, ranking.scores, multiple=multiple)
    return chooser.at(allot(Problem(chooser, ranking, limits)))


def by_macs(analysis: Analysis, ranking: Ranking, fraction: float, multiple: int = 1) -> Selection:
    return within(analysis, ranking, multiple, macs=fraction)


def share(analysis: Analysis, selection: Selection, resource: str) -> float:
    cost = RESOURCES[resource].cost(analysis)
    return cost(selection) / cost(Selection({}))


def error(analysis: Analysis, ranking: Ranking, selection: Selection) -> float:
    return sum(float(ranking.errors[g.axis][g.size - selection.count(g.axis)]) for g in analysis.groups)


# ---------------------------------------------------------------------- the choice


@pytest.mark.parametrize("fraction", [0.7, 0.5, 0.25])
@pytest.mark.parametrize("seed", range(4))
def test_the_choice_is_near_the_best_of_all(seed: int, fraction: float) -> None:
    sizes = (16, 24, 20)
    analysis = analyze(chain(*sizes))
    ranking = ranked(analysis, seed)
    first, *_ = groups = analysis.groups
    assert [g.size for g in groups] == list(sizes)
    goal = fraction * analysis.macs(Selection({}))
    counts = [np.arange(1, size + 1) for size in sizes]
    a, b, c = np.meshgrid(*counts, indexing="ij")
    macs = 16 * (3 * a + a * b + b * c + 4 * c)
    some = Selection({first.axis: np.arange(7)})
    assert analysis.macs(some) == macs[6, -1, -1]
    losses = [ranking.errors[g.axis][::-1][1:] for g in groups]  # of 1, 2, ... units that stay
    lost = losses[0][:, None, None] + losses[1][None, :, None] + losses[2][None, None, :]
    best = float(lost[macs <= goal].min())
    common = least_common(analysis, ranking, goal)
    chosen = by_macs(analysis, ranking, fraction)
    assert analysis.macs(chosen) <= goal
    found = error(analysis, ranking, chosen)
    assert best <= found + 1e-12
    assert found <= 1.15 * best + 0.02 * common
    assert found < common


def least_common(analysis: Analysis, ranking: Ranking, goal: float) -> float:
    """The least error when all groups give the same ratio."""
    chooser = Chooser(analysis, ranking.scores)
    selections = [chooser.at_ratio(ratio) for ratio in np.linspace(0, 0.95, 96)]
    return min(error(analysis, ranking, s) for s in selections if analysis.macs(s) <= goal)


def rungs(axis: Axis, errors: Vector) -> Ladder:
    ratios = np.linspace(0, 0.97, len(errors))
    return Ladder(ratios, errors, {axis: axis.size * (1 - ratios)})


@pytest.mark.parametrize("seed", range(4))
def test_rungs_at_a_price_are_the_best_of_the_grid(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes = [atom(40), atom(30)]
    ladders = [rungs(axis, curve(LEVELS - 1, rng)) for axis in axes]
    terms = [Term(2, (axes[0],)), Term(5, (axes[1], fix(3, "test"))), Term(1, tuple(axes))]
    whole = 2 * 40 + 15 * 30 + 1200
    allocator = Allocator(ladders, terms, np.array([float(whole)]))
    a, b = ladders[0].sizes[axes[0]][:, None], ladders[1].sizes[axes[1]][None, :]
    cost = (2 * a + 15 * b + a * b) / whole
    for price in (1e-3, 1e-2, 0.1, 1.0):
        grid = ladders[0].errors[:, None] + ladders[1].errors[None, :] + price * cost
        i, j = allocator.at_price(price)
        assert grid[i, j] <= grid.min() * 1.02 + 1e-12
        assert allocator.usage([i, j]) == pytest.approx([cost[i, j]])


def test_costs_of_composed_axes_follow_their_parts() -> None:
    """A sum shrinks by the parts that do, a product by each factor, and what has no owner stays."""
    a, b = atom(10), atom(6)
    rising = np.linspace(0, 0.97e-3, LEVELS)
    composed = total([a, b, fix(4, "test")])
    grid = prod([a, b])

    def chosen(term: Term, price: float) -> list[float]:
        whole = np.array([float(np.prod([axis.size for axis in term.axes]))])
        allocator = Allocator([rungs(a, rising), rungs(b, rising * 1e4)], [term], whole)
        return allocator.ratios(allocator.at_price(price))

    # The share of a in a sum of 20 is one half, so that its price is 0.5 * 0.01 a level > 0.001.
    assert chosen(Term(1, (composed,)), 0.01) == [pytest.approx(0.97), 0.0]
    assert chosen(Term(1, (composed,)), 0.0019) == [0.0, 0.0]
    assert chosen(Term(1, (total([b, a]),)), 0.01) == [pytest.approx(0.97), 0.0]
    assert chosen(Term(1, (grid,)), 0.0019) == [pytest.approx(0.97), 0.0]
    assert chosen(Term(1, (fix(4, "test"),)), 100.0) == [0.0, 0.0]


def test_rows_count_only_the_terms_in_them() -> None:
    """Three moments: a and b alive, b alone, b and c. Only where a row is over its limit does anything go."""
    a, b, c = atom(10), atom(20), atom(40)
    terms = [Term(1, (a,), 0, 0), Term(1, (b,), 0, 2), Term(1, (c,), 2, 2)]
    rising = np.linspace(0, 1, LEVELS) ** 2
    allocator = Allocator([rungs(x, rising) for x in (a, b, c)], terms, np.array([40.0] * 3))
    assert allocator.usage([0, 0, 0]) == pytest.approx([30 / 40, 20 / 40, 60 / 40])
    found = allocator.within(lambda choice: bool(allocator.usage(choice).max() <= 1))
    assert found is not None and found[0] <= 1
    assert 0.9 <= allocator.usage(found).max() <= 1


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.2, 0.05])
@pytest.mark.parametrize("what", ["macs", "params", "bytes"])
@pytest.mark.parametrize("seed", range(2))
def test_budgets_are_met_and_never_exceeded(seed: int, what: str, fraction: float) -> None:
    analysis = analyze(chain(128, 200, 160, 96))
    chosen = within(analysis, ranked(analysis, seed), **{what: fraction})
    assert 0.99 * fraction <= share(analysis, chosen, what) <= fraction


@pytest.mark.parametrize("fraction", [0.8, 0.65, 0.5, 0.35, 0.25])
@pytest.mark.parametrize("name", ["resnet", "mobilenet", "vit"])
def test_budgets_of_small_nets_are_met_although_channels_are_aligned(name: str, fraction: float) -> None:
    analysis = analyze(load(FOLDER / f"digits_{name}.onnx"))
    chosen = select(analysis, plan(analysis, macs=fraction, **PLAIN))
    assert 0.99 * fraction <= share(analysis, chosen, "macs") <= fraction


@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.2])
@pytest.mark.parametrize("seed", range(2))
def test_a_budget_of_memory_takes_only_what_is_in_the_peak(seed: int, fraction: float) -> None:
    """The widest two tensors in a row are the peak: the narrow ones at the ends stay whole."""
    analysis = analyze(chain(32, 128, 200, 160, 32))
    chosen = within(analysis, ranked(analysis, seed), memory=fraction)
    assert 0.99 * fraction <= share(analysis, chosen, "memory") <= fraction
    first, *_, last = analysis.groups
    if fraction >= 0.5:
        assert chosen.count(first.axis) == 32 == chosen.count(last.axis)


@pytest.mark.parametrize(
    "budgets",
    [
        {"macs": 0.5, "params": 0.3},
        {"macs": 0.3, "params": 0.5},
        {"macs": 0.5, "memory": 0.4},
        {"macs": 0.5, "params": 0.6, "bytes": 0.5, "memory": 0.5},
    ],
)
def test_several_budgets_hold_at_once(budgets: dict[str, float]) -> None:
    analysis = analyze(chain(128, 200, 160, 96))
    ranking = ranked(analysis, 1)
    chosen = within(analysis, ranking, **budgets)
    used = {name: share(analysis, chosen, name) / asked for name, asked in budgets.items()}
    assert max(used.values()) <= 1
    assert max(used.values()) >= 0.99  # at least one of them is what limits
    alone = [error(analysis, ranking, within(analysis, ranking, **{k: v})) for k, v in budgets.items()]
    together = error(analysis, ranking, chosen)
    assert max(alone) * 0.95 <= together
    uniform = Chooser(analysis, ranking.scores)
    selections = [uniform.at_ratio(ratio) for ratio in np.linspace(0, 0.95, 96)]
    common = [
        error(analysis, ranking, s)
        for s in selections
        if all(share(analysis, s, name) <= asked for name, asked in budgets.items())
    ]
    assert together < min(common)


@pytest.mark.parametrize("sizes", [(4, 5), (2, 2, 2), (1, 8)])
def test_budgets_hold_where_units_are_few(sizes: tuple[int, ...]) -> None:
    analysis = analyze(chain(*sizes))
    least = analysis.macs(Chooser(analysis, ranked(analysis).scores).at_ratio(1.0))
    whole = analysis.macs(Selection({}))
    for fraction in np.linspace(least / whole, 1, 15):
        chosen = by_macs(analysis, ranked(analysis), float(fraction))
        assert analysis.macs(chosen) <= fraction * whole


def test_a_whole_budget_keeps_all() -> None:
    analysis = analyze(chain(16, 24))
    chosen = by_macs(analysis, ranked(analysis), 1.0)
    assert analysis.macs(chosen) == analysis.macs(Selection({}))


def test_more_budget_is_never_a_larger_error() -> None:
    analysis = analyze(chain(60, 80, 70))
    ranking = ranked(analysis, 3)
    found = [error(analysis, ranking, by_macs(analysis, ranking, f)) for f in np.linspace(0.1, 1, 10)]
    assert all(a >= b - 0.01 * found[0] for a, b in pairwise(found))
    assert found[-1] == 0 < found[0]


def test_the_cheap_group_gives_and_the_dear_one_stays() -> None:
    analysis = analyze(chain(50, 50))
    low, high = analysis.groups
    scores = {g.axis: np.arange(50.0) for g in analysis.groups}
    errors = {low.axis: np.linspace(0, 1e-3, 51), high.axis: np.linspace(0, 1, 51)}
    chosen = by_macs(analysis, Ranking(scores, errors), 0.5)
    assert chosen.count(high.axis) == 50
    assert chosen.count(low.axis) < 30
    kept = chosen.positions(low.axis)
    assert kept is not None
    assert kept.tolist() == list(range(50 - len(kept), 50))  # by score


def test_kept_counts_are_multiples() -> None:
    analysis = analyze(chain(64, 96))
    chosen = by_macs(analysis, ranked(analysis), 0.4, multiple=8)
    assert [chosen.count(g.axis) % 8 for g in analysis.groups] == [0, 0]
    assert analysis.macs(chosen) <= 0.4 * analysis.macs(Selection({}))


# ---------------------------------------------------------------------- constraints


def test_blocks_of_a_grouped_convolution_keep_equal_counts() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 32)
    x = g.conv(x, 32, 32, group=4)
    analysis = analyze(g.model(g.conv(x, 32, 4)))
    for seed, fraction in product(range(2), (0.7, 0.4)):
        chosen = by_macs(analysis, ranked(analysis, seed), fraction)
        assert analysis.macs(chosen) <= fraction * analysis.macs(Selection({}))
        assert any(chosen.shrinks(axis) for axes, _ in analysis.same_counts() for axis in axes)
        for axes, _ in analysis.same_counts():
            assert len({chosen.count(axis) for axis in axes}) == 1


def test_layers_that_share_a_weight_keep_the_same_units() -> None:
    g = Graph()
    x = g.input(1, 5)
    weight, last = g.weight(5, 40), [g.weight(40, 4) for _ in range(2)]
    inputs = (x, g("Relu", x))
    sides = [g("MatMul", g("Relu", g("MatMul", y, weight)), w) for y, w in zip(inputs, last, strict=True)]
    analysis = analyze(g.model(g("Add", *sides)))
    ((a, b),) = analysis.twins()
    chosen = by_macs(analysis, ranked(analysis), 0.5)
    first, second = chosen.positions(a), chosen.positions(b)
    assert first is not None
    assert second is not None
    assert first.tolist() == second.tolist()


def test_pieces_of_one_axis_share_in_proportion() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 48)
    sides = g("Split", x, g.ints(12, 36), outputs=2, axis=1)
    ends: Sequence[str] = [g.conv(g("Relu", side), n, 4) for side, n in zip(sides, (12, 36), strict=True)]
    analysis = analyze(g.model(g("Add", *ends)))
    chosen = by_macs(analysis, ranked(analysis), 0.5)
    assert analysis.macs(chosen) <= 0.5 * analysis.macs(Selection({}))
    kept = {group.size: chosen.count(group.axis) for group in analysis.groups}
    assert kept[36] / 36 == pytest.approx(kept[12] / 12, abs=1 / 12)
