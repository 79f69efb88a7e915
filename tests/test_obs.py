"""The optimal brain surgeon against fitting anew for every candidate."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_prune.analysis.obs import Consumer, Curve, eliminate

Matrix = NDArray[np.float64]
DAMPING = 1e-2


def consumer(
    units: list[int], outputs: int = 4, rank: int | None = None, seed: int = 0, energy: float | None = None
) -> Consumer:
    """Of correlated features, one for each entry of ``units``."""
    rng = np.random.default_rng(seed)
    size = len(units)
    features = rng.standard_normal((60, rank or size)) @ rng.standard_normal((rank or size, size))
    features += 0.1 * rng.standard_normal(features.shape)
    weight = rng.standard_normal((size, outputs))
    gram = features.T @ features / len(features)
    own = float(np.square(features @ weight).sum() / len(features))
    return Consumer(gram, weight, np.array(units), own if energy is None else energy)


def refitted(one: Consumer, gone: NDArray[np.int64]) -> float:
    """The relative error without some units, the other rows fitted anew by least squares."""
    gram = one.gram + DAMPING * np.diag(one.gram).mean() * np.eye(len(one.gram))
    left = ~np.isin(one.units, gone)
    weight = np.zeros_like(one.weight)
    weight[left] = np.linalg.solve(gram[np.ix_(left, left)], gram[left] @ one.weight)
    missing = one.weight - weight
    return float(np.trace(missing.T @ gram @ missing)) / one.energy


def without(consumers: list[Consumer], gone: NDArray[np.int64]) -> float:
    return sum(refitted(one, gone) for one in consumers if one.energy > 0)


def assert_exact(size: int, consumers: list[Consumer]) -> Curve:
    """Each unit that goes is the cheapest of those left, and costs what the curve says."""
    curve = eliminate(size, consumers)
    assert sorted(curve.order.tolist()) == list(range(size))
    assert curve.errors.shape == (size + 1,)
    assert curve.errors[0] == 0
    for k in range(size - 1):
        gone, left = curve.order[:k], curve.order[k:]
        costs = [without(consumers, np.append(gone, unit)) for unit in left]
        assert costs[0] == pytest.approx(min(costs), rel=1e-6)
        assert curve.errors[k + 1] == pytest.approx(costs[0], rel=1e-6)
    assert np.all(np.diff(curve.errors) >= 0)
    return curve


@pytest.mark.parametrize("seed", range(5))
def test_single_rows(seed: int) -> None:
    assert_exact(9, [consumer(list(range(9)), rank=5, seed=seed)])


@pytest.mark.parametrize("outputs", [1, 40])
def test_fewer_and_more_outputs_than_rows(outputs: int) -> None:
    assert_exact(8, [consumer(list(range(8)), outputs=outputs)])


@pytest.mark.parametrize("seed", range(3))
def test_units_of_several_rows_apart_and_together(seed: int) -> None:
    assert_exact(6, [consumer(list(np.repeat(np.arange(6), 4)), rank=8, seed=seed)])
    assert_exact(6, [consumer(list(np.tile(np.arange(6), 3)), rank=8, seed=seed)])


def test_rows_of_no_unit_stay_and_take_over() -> None:
    units = [0, -1, 1, -1, 2, 3, -1, 4]
    assert_exact(5, [consumer(units, rank=4)])


def test_units_of_different_numbers_of_rows_and_of_none() -> None:
    curve = assert_exact(5, [consumer([0, 0, 0, 1, 2, 2, 4])])
    assert curve.order[0] == 3  # nothing reads it
    assert curve.errors[1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_several_consumers_add_up(seed: int) -> None:
    first = consumer(list(range(7)), rank=4, seed=seed)
    second = consumer(list(np.repeat(np.arange(7), 2)), outputs=2, seed=seed + 10)
    partial = consumer([2, 4, 6], seed=seed + 20)  # reads a slice of them
    assert_exact(7, [first, second, partial])


def test_energy_says_how_much_a_consumer_counts() -> None:
    loud, quiet = (consumer(list(range(6)), seed=seed) for seed in (0, 1))
    alone = eliminate(6, [loud]).order.tolist()
    other = eliminate(6, [quiet]).order.tolist()
    assert alone != other
    for first, second, wanted in ((1.0, 1e9, alone), (1e9, 1.0, other)):
        pair = [
            Consumer(loud.gram, loud.weight, loud.units, loud.energy * first),
            Consumer(quiet.gram, quiet.weight, quiet.units, quiet.energy * second),
        ]
        assert eliminate(6, pair).order.tolist() == wanted


def test_a_dead_unit_goes_first_and_a_copy_second() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((500, 6))
    features[:, 3] = 0
    features[:, 5] = features[:, 1]
    weight = rng.choice([-1.0, 1.0], (6, 4))
    weight[1] = weight[5]  # together they weigh twice as much as another unit
    gram = features.T @ features / 500
    curve = eliminate(6, [Consumer(gram, weight, np.arange(6), float(np.square(features @ weight).mean()))])
    assert curve.order[0] == 3
    assert curve.order[1] in (1, 5)
    assert curve.order[-1] in (1, 5)
    assert curve.errors[2] < 0.1 * curve.errors[3]


def test_a_dead_unit_goes_first_whatever_it_would_weigh() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((500, 6))
    features[:, 3] = 0
    weight = rng.choice([-1.0, 1.0], (6, 4))
    weight[3] *= 30
    gram = features.T @ features / 500
    curve = eliminate(6, [Consumer(gram, weight, np.arange(6), 1.0)])
    assert curve.order[0] == 3


def test_many_units_go_in_steps_that_stay_near_the_best() -> None:
    """Above 32 units several go before the others are scored again."""
    one = consumer(list(range(64)), rank=24)
    curve = eliminate(64, [one])
    assert sorted(curve.order.tolist()) == list(range(64))
    assert np.all(np.diff(curve.errors) >= 0)
    rng = np.random.default_rng(0)
    for k in (4, 16, 32, 48):
        exact = refitted(one, curve.order[:k])
        assert curve.errors[k] == pytest.approx(exact, rel=0.05)
        guesses = [refitted(one, rng.permutation(64)[:k]) for _ in range(20)]
        assert exact < 0.7 * min(guesses)


def test_greedy_is_near_the_best_of_all_pairs_and_triples() -> None:
    one = consumer(list(range(8)), rank=5, seed=3)
    curve = eliminate(8, [one])
    for k in (2, 3):
        best = min(refitted(one, np.array(gone)) for gone in combinations(range(8), k))
        assert best <= curve.errors[k] * (1 + 1e-9) <= 1.5 * best


def test_consumers_are_left_as_they_were() -> None:
    one = consumer(list(range(6)))
    before = one.gram.copy(), one.weight.copy(), one.units.copy()
    eliminate(6, [one])
    for old, new in zip(before, (one.gram, one.weight, one.units), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_single_unit_stays() -> None:
    curve = eliminate(1, [consumer([0])])
    assert curve.order.tolist() == [0]
    assert curve.errors.tolist() == [0, 1]


def test_consumers_that_give_nothing_have_no_say() -> None:
    one, silent = consumer(list(range(5))), consumer(list(range(5)), seed=1, energy=0.0)
    assert eliminate(5, [one, silent]).order.tolist() == eliminate(5, [one]).order.tolist()
    curve = eliminate(5, [silent])
    assert sorted(curve.order.tolist()) == list(range(5))
    assert np.isfinite(curve.errors).all()
