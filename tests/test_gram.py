"""Fitting by least squares, with as much trust in the samples as held-out ones ask for."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_prune.passes.measure.gram import Fit, Gram, ridge

Array = NDArray[np.float64]


def problem(
    rows: int, inputs: int = 6, outputs: int = 3, groups: int = 2, noise: float = 0.0, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Features, the true coefficients, and outputs of them with noise."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((groups, rows, inputs))
    truth = rng.standard_normal((groups, inputs, outputs))
    return features, truth, features @ truth + noise * rng.standard_normal((groups, rows, outputs))


def fitted(features: Array, wanted: Array, batches: int) -> Fit:
    fit = Fit(features.shape[0], features.shape[2], wanted.shape[2])
    parts = zip(np.array_split(features, batches, 1), np.array_split(wanted, batches, 1), strict=True)
    for batch, (x, y) in enumerate(parts):
        fit.add(x.astype(np.float32), y.astype(np.float32), batch)
    return fit


def distance(a: Array, b: Array) -> float:
    return float(np.linalg.norm(a - b))


def test_sums_over_batches_are_those_of_all_rows() -> None:
    x, truth, y = problem(50, noise=0.3)
    gram = fitted(x, y, 7).all
    assert gram.rows == 50
    np.testing.assert_allclose(gram.features, x.transpose(0, 2, 1) @ x, atol=1e-4)
    np.testing.assert_allclose(gram.cross, x.transpose(0, 2, 1) @ y, atol=1e-4)
    assert gram.energy == pytest.approx(np.square(y).sum(), rel=1e-5)
    for weight in (truth, np.zeros_like(truth)):
        assert gram.error(weight) == pytest.approx(np.square(x @ weight - y).sum(), rel=1e-4)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("start", [0.0, 5.0])
def test_plenty_of_samples_give_the_exact_solution(start: float, groups: int) -> None:
    x, truth, y = problem(4000, groups=groups)
    solved = fitted(x, y, 8).solve(truth + start)
    np.testing.assert_allclose(solved, truth, atol=1e-3)


def test_noise_in_plenty_of_samples_averages_out() -> None:
    x, truth, y = problem(20000, noise=1.0)
    solved = fitted(x, y, 8).solve(np.zeros_like(truth))
    exact = np.linalg.solve(x.transpose(0, 2, 1) @ x, x.transpose(0, 2, 1) @ y)
    assert distance(solved, exact) < 0.05 * distance(truth, exact * 0)
    assert distance(solved, truth) < 0.05 * distance(truth, truth * 0)


@pytest.mark.parametrize("seed", range(5))
def test_few_noisy_samples_move_a_good_start_little(seed: int) -> None:
    x, truth, y = problem(32, inputs=24, noise=1.0, seed=seed)
    start = truth + 0.05 * np.random.default_rng(seed).standard_normal(truth.shape)
    solved = fitted(x, y, 4).solve(start)
    free = np.linalg.lstsq(x[0, :24], y[0, :24], rcond=None)[0]
    assert distance(solved[0], start[0]) < 0.5 * distance(free, start[0])


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_held_out_samples_are_never_fitted_worse_than_at_the_start(seed: int, scale: float) -> None:
    """With what is held out and the rest alike, as solve sees them; all samples go into what it returns."""
    x, truth, y = problem(40, inputs=12, noise=1.0, seed=seed)
    start = truth + scale * np.random.default_rng(seed).standard_normal(truth.shape)
    fit = fitted(x, y, 4)
    solved = fit.solve(start)
    held_out = Gram.empty(2, 12, 3)
    held_out.add(x[:, 30:].astype(np.float32), y[:, 30:].astype(np.float32))
    assert held_out.error(solved) <= held_out.error(start) * (1 + 1e-9)
    assert fit.all.error(solved) <= fit.all.error(start) * (1 + 1e-9)


def test_the_start_stays_when_samples_contradict_each_other() -> None:
    x, truth, y = problem(400)
    wanted = y.copy()
    wanted[:, :300] = -y[:, :300]  # only the last batch, which is held out, agrees with the start
    np.testing.assert_array_equal(fitted(x, wanted, 4).solve(truth), truth)


def test_one_batch_is_fitted_with_caution() -> None:
    x, truth, y = problem(4000)
    start = np.zeros_like(truth)
    solved = fitted(x, y, 1).solve(start)
    assert 1e-4 < distance(solved, truth) / distance(start, truth) < 0.1


def test_without_samples_the_start_stays() -> None:
    start = np.ones((1, 3, 2))
    assert Fit(1, 3, 2).solve(start) is start


def test_features_that_never_vary_keep_their_coefficients() -> None:
    x, truth, y = problem(2000)
    x[:, :, 2] = 0
    y = x @ truth
    start = truth + 1
    solved = fitted(x, y, 4).solve(start)
    np.testing.assert_allclose(solved[:, 2], start[:, 2])
    np.testing.assert_allclose(solved[:, [0, 1, 3]], truth[:, [0, 1, 3]], atol=1e-3)
    x[1] = 0  # a group that reads nothing
    solved = fitted(x, x @ truth, 4).solve(start)
    np.testing.assert_allclose(solved[1], start[1])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("damping", [1e-4, 0.1, 10.0])
def test_ridge_is_the_minimum_it_says(damping: float, groups: int) -> None:
    x, truth, y = problem(30, noise=0.5, groups=groups)
    gram = fitted(x, y, 1).all
    start = truth + 1
    solved = ridge(gram, start, damping)
    mean = np.einsum("gkk->gk", gram.features).mean(axis=1)

    def objective(weight: Array) -> float:
        moved = np.square(weight - start).sum(axis=(1, 2))
        return float(np.square(x @ weight - y).sum() + (damping * mean * moved).sum())

    rng = np.random.default_rng(0)
    for _ in range(20):
        assert objective(solved) < objective(solved + 1e-2 * rng.standard_normal(solved.shape))
