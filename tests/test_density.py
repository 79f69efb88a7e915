"""Density by layer: the total is met, and no other allocation has a smaller sum of errors."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_prune.analysis.errors import PlanError
from onnx_prune.passes.density import MOST, ErrorCurve, allocate

GRID = tuple(float(r) for r in np.linspace(0, 1, 101))


def power(size: int, scale: float, exponent: float) -> ErrorCurve:
    return ErrorCurve(size, GRID, tuple(scale * r**exponent for r in GRID))


def test_equal_layers_lose_the_same() -> None:
    found = allocate([power(100, 1, 3), power(100, 1, 3)], 0.5)
    assert found == pytest.approx([0.5, 0.5], abs=0.011)


def test_the_layer_that_feels_it_less_loses_more() -> None:
    """Errors r² and 4r²: the slopes are equal at four times the ratio."""
    assert allocate([power(100, 1, 2), power(100, 4, 2)], 0.5) == pytest.approx([0.8, 0.2], abs=0.011)


def test_slopes_are_for_each_weight() -> None:
    """The same curve over four times as many weights: a fourth of the slope."""
    found = allocate([power(400, 1, 2), power(100, 1, 2)], 0.4)
    assert found == pytest.approx([8 / 17, 2 / 17], abs=0.011)


def test_a_curve_that_is_not_convex_is_read_by_its_hull() -> None:
    """The first weights cost most, the rest nothing: either none of them goes or all that may."""
    first = ErrorCurve(100, (0.0, 0.1, 0.98), (0.0, 1.0, 1.0))
    assert allocate([first, power(100, 1.5, 1)], 0.49) == pytest.approx([0.98, 0.0])
    assert allocate([first, power(100, 0.5, 1)], 0.49) == pytest.approx([0.0, 0.98])


def test_a_layer_that_stays_dense_leaves_its_part_to_the_others() -> None:
    fixed = ErrorCurve(50, (0.0,), (0.0,))
    assert allocate([fixed, power(100, 1, 2)], 0.5) == pytest.approx([0, 0.75])


def test_no_layer_loses_everything() -> None:
    found = allocate([power(100, 0, 2), power(100, 1, 2)], 0.6)
    assert found == pytest.approx([MOST, 1.2 - MOST])


def test_a_falling_piece_of_a_curve_is_noise() -> None:
    noisy = ErrorCurve(100, (0.0, 0.5, 0.7, 0.9), (0.0, 0.3, 0.2, 0.6))
    assert allocate([noisy], 0.6) == pytest.approx([0.6])


def test_what_cannot_be_reached_is_refused() -> None:
    fixed = ErrorCurve(100, (0.0,), (0.0,))
    with pytest.raises(PlanError, match="at most 49"):
        allocate([fixed, power(100, 1, 2)], 0.8)


def test_nothing_asked_nothing_taken() -> None:
    assert allocate([power(10, 1, 2), power(20, 1, 2)], 0.0) == [0.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(0.001, 10), st.floats(0.5, 6)), min_size=1, max_size=5),
    st.floats(0.01, 0.97),
)
def test_the_total_is_met(layers: list[tuple[int, float, float]], ratio: float) -> None:
    found = allocate([power(*layer) for layer in layers], ratio)
    total = sum(layer[0] for layer in layers)
    assert all(0 <= part <= MOST for part in found)
    gone = sum(part * layer[0] for part, layer in zip(found, layers, strict=True))
    assert gone == pytest.approx(ratio * total, rel=1e-6)


def test_no_allocation_on_a_grid_is_better() -> None:
    sizes, scales, exponents = (100, 300, 50), (1.0, 0.5, 2.0), (2.0, 3.0, 4.0)
    curves = [power(*layer) for layer in zip(sizes, scales, exponents, strict=True)]

    def loss(ratios: tuple[float, ...]) -> float:
        return sum(s * r**e for s, r, e in zip(scales, ratios, exponents, strict=True))

    found = allocate(curves, 0.6)
    grid = np.linspace(0, 0.98, 50)
    wanted = 0.6 * sum(sizes)
    enough = (c for c in product(grid, repeat=3) if np.dot(c, sizes) >= wanted)
    assert loss(tuple(found)) <= min(map(loss, enough)) + 1e-3
