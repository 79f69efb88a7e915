"""Lower rank: what it loses is what is told, and nothing of that rank loses less."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx_prune.analysis import truncation
from onnx_prune.analysis.truncation import Factors, Ranks, Truncation

Matrix = NDArray[np.float64]
CHANNELS, WINDOW, OUTPUTS = 6, 4, 5


def weight(seed: int = 0, channels: int = CHANNELS, window: int = WINDOW, outputs: int = OUTPUTS) -> Matrix:
    return np.random.default_rng(seed).standard_normal((channels * window, outputs))


def gram(size: int, seed: int = 0) -> Matrix:
    """Of features that vary by more in some directions than in others."""
    rng = np.random.default_rng(seed)
    turned = np.linalg.qr(rng.standard_normal((size, size))).Q
    rows = rng.standard_normal((20 * size, size)) * np.geomspace(1, 1e-2, size) @ turned
    return rows.T @ rows


def damped(of: Matrix) -> Matrix:
    return of + truncation._DAMPING * np.trace(of) / len(of) * np.eye(len(of))


def loss(w: Matrix, near: Matrix, of: Matrix) -> float:
    return float(np.trace((w - near).T @ of @ (w - near)))


# ---------------------------------------------------------------------- curves


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("outputs", [3, OUTPUTS, 40])
def test_errors_are_those_of_the_factors(measured: bool, outputs: int) -> None:
    w = weight(outputs=outputs)
    g = gram(len(w)) if measured else None
    made = Truncation(w, CHANNELS, g)
    energy = loss(w, np.zeros_like(w), np.eye(len(w)) if g is None else g)
    assert made.energy == pytest.approx(energy)
    pairs = list(made.errors([4, None, 2, 6], [None, 1, 3]))
    assert {ranks for ranks, _ in pairs} == {Ranks(*p) for p in product((2, 4, 6, None), (1, 3, None))}
    for ranks, error in pairs:
        near = made.factors(ranks).product()
        of = np.eye(len(w)) if g is None else damped(g)
        assert error == pytest.approx(loss(w, near, of) / energy, abs=1e-9), ranks


@pytest.mark.parametrize("measured", [False, True])
def test_errors_fall_as_ranks_rise(measured: bool) -> None:
    w = weight()
    made = Truncation(w, CHANNELS, gram(len(w)) if measured else None)
    steps = range(1, CHANNELS + 1), range(1, OUTPUTS + 1)
    errors = {(r.inputs, r.outputs): e for r, e in made.errors(*map(list, steps))}
    for first, last in product(*steps):
        assert errors[first, last] >= errors.get((first + 1, last), 0) - 1e-9
        assert errors[first, last] >= errors.get((first, last + 1), 0) - 1e-9
    assert errors[CHANNELS, OUTPUTS] == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------------- the nearest


def test_of_a_matrix_the_singular_vectors_are_kept() -> None:
    w = weight(window=1, outputs=9)
    values = np.linalg.svd(w, compute_uv=False)
    made = Truncation(w, CHANNELS)
    for rank in range(1, CHANNELS):
        lost = loss(w, made.factors(Ranks(None, rank)).product(), np.eye(len(w)))
        assert lost == pytest.approx(np.square(values[rank:]).sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ranks", [Ranks(None, 2), Ranks(3, None), Ranks(3, 2)])
def test_what_is_read_often_is_kept(ranks: Ranks, seed: int) -> None:
    """Where inputs are known the output is nearer than by the weight alone, which is nearer in its values."""
    w = weight(seed)
    g = gram(len(w), seed)
    blind, seeing = (Truncation(w, CHANNELS, x).factors(ranks).product() for x in (None, g))
    assert loss(w, seeing, g) < loss(w, blind, g)
    if ranks.inputs is None:
        assert loss(w, blind, np.eye(len(w))) < loss(w, seeing, np.eye(len(w)))


@pytest.mark.parametrize("seed", range(5))
def test_no_matrix_of_that_rank_is_nearer(seed: int) -> None:
    """Against steepest descent over factors, from where it stands and from elsewhere."""
    w, rank = weight(seed, window=1, outputs=4), 2
    g = damped(gram(len(w), seed))
    found = Truncation(w, CHANNELS, gram(len(w), seed)).factors(Ranks(None, rank)).product()
    least = loss(w, found, g)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        right = rng.standard_normal((rank, 4))
        for _ in range(50):  # each factor fitted to the other
            left = w @ np.linalg.pinv(right)
            right = np.linalg.solve(left.T @ g @ left, left.T @ g @ w)
            left = w @ right.T @ np.linalg.inv(right @ right.T)
        assert loss(w, left @ right, g) >= least * (1 - 1e-9)


# ---------------------------------------------------------------------- of that rank already


def spread(first: Matrix, rest: Matrix) -> Matrix:
    return Factors(first, rest, None).product()


def test_a_product_turns_the_channels_of_every_place_of_the_window() -> None:
    rng = np.random.default_rng(0)
    first, core, last = (rng.standard_normal(s) for s in ((CHANNELS, 2), (2 * WINDOW, 3), (3, OUTPUTS)))
    wanted = np.einsum("ir,rqs,so->iqo", first, core.reshape(2, WINDOW, 3), last)
    got = Factors(first, core, last).product()
    np.testing.assert_allclose(got, wanted.reshape(-1, OUTPUTS), atol=1e-12)


@pytest.mark.parametrize("ranks", [Ranks(2, 3), Ranks(2), Ranks(None, 3)])
def test_what_has_the_rank_comes_apart_without_loss(ranks: Ranks) -> None:
    rng = np.random.default_rng(1)
    core = rng.standard_normal(((ranks.inputs or CHANNELS) * WINDOW, ranks.outputs or OUTPUTS))
    first = None if ranks.inputs is None else rng.standard_normal((CHANNELS, ranks.inputs))
    last = None if ranks.outputs is None else rng.standard_normal((ranks.outputs, OUTPUTS))
    w = Factors(first, core, last).product()
    factors = Truncation(w, CHANNELS).factors(ranks)
    np.testing.assert_allclose(factors.product(), w, atol=1e-9 * np.abs(w).max())
    assert (factors.first is None, factors.last is None) == (first is None, last is None)


def test_factors_are_as_large_as_each_other() -> None:
    factors = Truncation(1e6 * weight(window=1), CHANNELS).factors(Ranks(None, 3))
    assert factors.last is not None
    lengths = np.linalg.norm(factors.core, axis=0), np.linalg.norm(factors.last, axis=1)
    np.testing.assert_allclose(*lengths)


@pytest.mark.parametrize("measured", [False, True])
def test_nothing_at_all_stays_nothing(measured: bool) -> None:
    w = np.zeros((CHANNELS * WINDOW, OUTPUTS))
    made = Truncation(w, CHANNELS, np.zeros((len(w), len(w))) if measured else None)
    factors = made.factors(Ranks(2, 2))
    assert np.isfinite(factors.core).all() and not factors.product().any()
    assert [error for _, error in made.errors([2], [2])] == [0.0]


@pytest.mark.parametrize("ranks", [Ranks(None, 4), Ranks(3, None), Ranks(3, 4)])
def test_ranks_are_written_and_read(ranks: Ranks) -> None:
    assert Ranks.from_json(ranks.to_json()) == ranks


def test_a_number_is_the_rank_of_a_matrix() -> None:
    assert Ranks.from_json(4) == Ranks(None, 4)
    assert Ranks(None, 4).to_json() == 4
