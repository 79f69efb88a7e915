"""Sparse weights by least squares: exact where it can be checked, near the best mask where that is known."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_prune.analysis.patterns.pattern import NM, Blocks, Pattern, parse_pattern
from onnx_prune.passes import sparse_obs
from onnx_prune.passes.sparse_obs import Sparse, error_curve, refit_masked, sparsify_matrix

Floats = NDArray[np.float64]


def layer(
    outputs: int, columns: int, rank: int | None = None, seed: int = 0
) -> tuple[Floats, Floats, Floats]:
    """A weight (outputs, K), correlated inputs (500, K) of some rank, and their Gram matrix."""
    rng = np.random.default_rng(seed)
    rank = rank or columns
    inputs = rng.standard_normal((500, rank)) @ rng.standard_normal((rank, columns))
    return rng.standard_normal((outputs, columns)), inputs, inputs.T @ inputs


def relative(weight: Floats, sparse: Floats, gram: Floats) -> float:
    change = weight - sparse
    return float(np.vdot(change @ gram, change) / np.vdot(weight @ gram, weight))


def test_a_refit_is_the_least_squares_solution_of_each_row() -> None:
    weight, inputs, gram = layer(6, 12)
    keep = np.random.default_rng(1).random(weight.shape) < 0.5
    keep[3] = keep[2]  # solved for together
    keep[5] = False
    fitted = refit_masked(weight, gram, keep)
    assert not fitted[~keep].any()
    for row, kept, dense in zip(fitted, keep, weight, strict=True):
        expected = np.linalg.lstsq(inputs[:, kept], inputs @ dense, rcond=None)[0]
        np.testing.assert_allclose(row[kept], expected, atol=1e-9)


def test_large_refits_descend_to_the_same_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, gram = layer(6, 12)
    keep = np.random.default_rng(1).random(weight.shape) < 0.5
    keep[5] = False
    exact = refit_masked(weight, gram, keep)
    monkeypatch.setattr(sparse_obs, "_FACTORING", 1e9)
    found = refit_masked(weight, gram, keep)
    assert found.tobytes() != exact.tobytes()  # the other way was taken
    np.testing.assert_allclose(found, exact, atol=1e-6)
    np.testing.assert_array_equal(found != 0, keep)


def test_a_descent_that_is_cut_short_is_no_worse_than_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, _, gram = layer(6, 40)
    keep = np.random.default_rng(1).random(weight.shape) < 0.5
    monkeypatch.setattr(sparse_obs, "_FACTORING", 1e9)
    start, errors = np.where(keep, weight, 0), []
    for steps in (0, 1, 3, 9, 40):
        monkeypatch.setattr(sparse_obs, "_STEPS", steps)
        errors.append(relative(weight, refit_masked(weight, gram, keep, start=start), gram))
    assert errors[0] == pytest.approx(relative(weight, start, gram))
    assert all(later < earlier for earlier, later in pairwise(errors))


def test_a_refit_reaches_for_other_outputs() -> None:
    weight, inputs, gram = layer(4, 8)
    outputs = inputs @ weight.T + np.random.default_rng(2).standard_normal((500, 4))
    keep = np.random.default_rng(1).random(weight.shape) < 0.5
    fitted = refit_masked(weight, gram, keep, inputs.T @ outputs)
    residual = outputs - inputs @ fitted.T
    assert np.abs((inputs.T @ residual).T[keep]).max() < 1e-8 * np.abs(inputs.T @ outputs).max()


@pytest.mark.parametrize("text", ["2:4", "1:3", "50%", "90%", "4x1@75%", "1x4@50%", "2x3@60%"])
@pytest.mark.parametrize("shape", [(8, 24), (7, 27)])
def test_the_result_satisfies_the_pattern_and_its_error_is_reported(
    text: str, shape: tuple[int, int]
) -> None:
    weight, _, gram = layer(*shape)
    pattern = parse_pattern(text)
    run = shape[1] // 3
    found = sparsify_matrix(weight, gram, pattern, run=run, damping=1e-6)
    assert pattern.check(found.weight[None], run) is None
    assert not found.weight[~found.mask].any()
    assert found.error == pytest.approx(relative(weight, found.weight, gram))


@pytest.mark.parametrize("text", ["2:4", "75%", "4x1@75%", "1x4@75%"])
def test_the_error_is_well_below_that_of_magnitude_with_the_same_finish(text: str) -> None:
    weight, _, gram = layer(32, 64, rank=40)
    gram += 0.01 * np.eye(64) * np.trace(gram) / 64
    pattern = parse_pattern(text)
    found = sparsify_matrix(weight, gram, pattern, damping=1e-6)
    simple = refit_masked(weight, gram, pattern.choose((weight * weight)[None])[0])
    assert found.error < 0.8 * relative(weight, simple, gram)


def best(weight: Floats, gram: Floats, kept: int) -> float:
    """The smallest error of one row with so many weights, by trying all masks."""
    errors = []
    for columns in combinations(range(weight.shape[1]), kept):
        keep = np.zeros(weight.shape, bool)
        keep[0, list(columns)] = True
        errors.append(relative(weight, refit_masked(weight, gram, keep), gram))
    return min(errors)


def test_the_mask_is_near_the_best_of_all_masks() -> None:
    ratios = []
    for seed in range(12):
        weight, _, gram = layer(1, 10, seed=seed)
        found = sparsify_matrix(weight, gram, Blocks(1, 1, 0.6), damping=1e-8)
        ratios.append(found.error / best(weight, gram, 4))
    assert min(ratios) > 1 - 1e-6
    assert np.median(ratios) < 1.1


def test_columns_that_say_the_same_are_merged_into_one() -> None:
    """Two equal inputs: one of them can go at no cost, and the other takes over its weight."""
    rng = np.random.default_rng(0)
    half = rng.standard_normal((100, 4))
    inputs = np.concatenate([half, half], axis=1)
    weight = rng.standard_normal((3, 8))
    found = sparsify_matrix(weight, inputs.T @ inputs, Blocks(3, 1, 0.5), damping=1e-6)
    np.testing.assert_allclose(inputs @ found.weight.T, inputs @ weight.T, atol=1e-4)


def test_groups_are_fitted_each_on_its_own_inputs_and_share_the_ratio() -> None:
    weights, _, grams = zip(*(layer(4, 9, seed=seed) for seed in range(3)), strict=True)
    weight, gram = np.stack(weights), np.stack(grams)
    weight[0] *= 100  # hardly anything of this group may go
    found = sparsify_matrix(weight, gram, Blocks(1, 1, 0.5), damping=1e-9)
    assert found.mask[0].mean() > 0.8 > found.mask[1:].mean()
    assert found.mask.mean() == pytest.approx(0.5, abs=0.01)
    for g in range(3):
        np.testing.assert_allclose(
            found.weight[g], refit_masked(weight[g], gram[g], found.mask[g]), rtol=1e-4, atol=1e-5
        )


def test_one_group_is_the_same_as_none() -> None:
    weight, _, gram = layer(8, 16)
    plain = sparsify_matrix(weight, gram, NM(2, 4))
    group = sparsify_matrix(weight[None], gram[None], NM(2, 4))
    np.testing.assert_array_equal(plain.weight, group.weight[0])


def test_outputs_of_other_inputs_are_reached_for() -> None:
    """The inputs have been disturbed by what was pruned before: X instead of X + E."""
    weight, inputs, gram = layer(16, 32)
    before = inputs + inputs @ np.random.default_rng(3).standard_normal((32, 32)) * 0.02
    outputs = before @ weight.T

    def loss(found: Sparse) -> float:
        return float(((inputs @ found.weight.T - outputs) ** 2).sum())

    blind = sparsify_matrix(weight, gram, NM(2, 4), damping=1e-4)
    aimed = sparsify_matrix(weight, gram, NM(2, 4), cross=inputs.T @ outputs, damping=1e-4)
    assert loss(aimed) < 0.8 * loss(blind)


@pytest.mark.parametrize("pattern", [NM(2, 4), Blocks(4, 1, 0.5)])
def test_inputs_that_are_always_zero_do_no_harm(pattern: Pattern) -> None:
    weight, inputs, _ = layer(8, 16)
    inputs[:, ::4] = 0
    gram = inputs.T @ inputs
    found = sparsify_matrix(weight, gram, pattern, cross=inputs.T @ (inputs @ weight.T))
    assert np.isfinite(found.weight).all()
    assert pattern.check(found.weight[None]) is None
    kept = found.mask[:, ::4]
    np.testing.assert_allclose(found.weight[:, ::4][kept], weight[:, ::4][kept])


def test_without_any_signal_the_largest_weights_stay() -> None:
    weight = np.array([[4.0, 1, 3, 2], [1, 2, 3, 4]])
    found = sparsify_matrix(weight, np.zeros((4, 4)), NM(2, 4), cross=np.zeros((4, 2)))
    assert found.error == 0
    np.testing.assert_allclose(found.weight, [[4, 0, 3, 0], [0, 0, 3, 4]])


def test_fewer_samples_than_inputs_are_no_obstacle() -> None:
    weight, inputs, _ = layer(8, 40)
    few = inputs[:10]
    found = sparsify_matrix(weight, few.T @ few, Blocks(1, 1, 0.5))
    assert np.abs(found.weight).max() < 10 * np.abs(weight).max()
    assert found.error < 0.05


def test_a_centred_matrix_that_is_mostly_rounding_is_no_obstacle() -> None:
    """Inputs that hardly vary: the rounding of their Gram matrix is of any sign."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((24, 24))
    gram = np.diag(np.full(24, 1e-6)) + 1e-3 * (noise + noise.T)
    assert np.trace(gram) > 0 > np.linalg.eigvalsh(gram)[0]
    weight = rng.standard_normal((8, 24))
    found = sparsify_matrix(weight, gram, parse_pattern("2:4"))
    assert np.isfinite(found.weight).all() and (found.weight != 0).sum() <= weight.size / 2


def test_a_run_is_repeated_to_the_bit_and_changes_nothing_given() -> None:
    weight, _, gram = layer(8, 16)
    copies = weight.copy(), gram.copy()
    first = sparsify_matrix(weight, gram, Blocks(2, 1, 0.7))
    second = sparsify_matrix(weight, gram, Blocks(2, 1, 0.7))
    assert first.weight.tobytes() == second.weight.tobytes()
    assert (weight == copies[0]).all()
    assert (gram == copies[1]).all()


@pytest.mark.parametrize("blocks", [Blocks(1, 1, 0), Blocks(4, 1, 0)])
def test_an_error_curve_is_near_the_errors(blocks: Blocks) -> None:
    weight, _, gram = layer(160, 24)
    ratios = [0, 0.3, 0.6, 0.9]
    curve = error_curve(weight, gram, blocks, ratios)
    exact = [sparsify_matrix(weight, gram, blocks.at(ratio)).error for ratio in ratios]
    assert curve[0] < 1e-12
    assert curve == sorted(curve)
    np.testing.assert_allclose(curve[1:], exact[1:], rtol=0.35)


def test_the_error_curve_of_groups_and_of_no_signal() -> None:
    weights, _, grams = zip(*(layer(1, 9, seed=seed) for seed in range(200)), strict=True)
    curve = error_curve(np.stack(weights), np.stack(grams), Blocks(1, 1, 0), [0.2, 0.5])
    assert 0 < curve[0] < curve[1] < 1
    assert error_curve(np.ones((4, 4)), np.zeros((4, 4)), Blocks(1, 1, 0), [0.2, 0.5]) == [0, 0]
