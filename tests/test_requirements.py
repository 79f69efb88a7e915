"""What a weight has to be: planted faults are found where they are, and no others."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_prune.analysis.patterns.grid import INPUTS, OUTPUTS, counts, pooled
from onnx_prune.analysis.patterns.requirement import AtLeast, Either, Groups, Multiple, Runs, Zeros

GROUPS = [
    Groups(2, 4),
    Groups(1, 2),
    Groups(1, 4),
    Groups(8, 16),
    Groups(2, 4, last="free"),
    Groups(2, 4, last="none"),
    Groups(2, 4, shared=4),
    Groups(1, 2, along="outputs"),
    Groups(2, 4, along="outputs"),
]


def crowded(want: Groups, mask: np.ndarray) -> set[tuple[int, ...]]:
    """The non-zeros of each group with too many, one weight after the other as the definition says."""
    axis = INPUTS if want.along == "inputs" else OUTPUTS
    groups: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    lanes: dict[tuple[int, ...], set[int]] = {}
    for cell in product(*map(range, mask.shape)):
        group = list(cell)
        group[axis] //= want.of
        if want.shared > 1:
            group[OUTPUTS] //= want.shared
        last = mask.shape[axis] // want.of * want.of
        if mask[cell] and not (want.last == "free" and cell[axis] >= last):
            groups.setdefault(tuple(group), []).append(cell)
            lanes.setdefault(tuple(group), set()).add(cell[axis])
    return {tuple(cells) for group, cells in groups.items() if len(lanes[group]) > want.nonzeros}  # type: ignore[misc]


def test_planted_faults_are_found_and_no_others() -> None:
    """10,000 weights that satisfy a pattern, with up to three non-zeros more."""
    rng = np.random.default_rng(0)
    cases = found = 0
    while cases < 10_000:
        want = GROUPS[int(rng.integers(len(GROUPS)))]
        low = [1, 1, 1, 1]
        low[INPUTS if want.along == "inputs" else OUTPUTS] = want.of
        sizes = (
            int(rng.integers(low[0], 3)),
            int(rng.integers(low[1], low[1] + 6)),
            int(rng.integers(1, 4)),
            int(rng.integers(low[3], low[3] + 10)),
        )
        if want.misfit(sizes) is not None:
            continue
        cases += 1
        mask = want.choose(rng.random(sizes) + 0.5)
        assert want.check(mask, 10**9) is None
        planted = mask.copy()
        planted.reshape(-1)[rng.integers(mask.size, size=rng.integers(1, 4))] = True
        expected = crowded(want, planted)
        missed = want.check(planted, 10**9)
        assert (missed is None) == (not expected)
        if missed is not None:
            assert missed.count == len(expected) and {tuple(cells) for cells in missed.first} == expected
            assert missed.total == want.groups(sizes)
            new = {tuple(cell) for cell in np.argwhere(planted & ~mask).tolist()}
            assert all(new & set(cells) for cells in missed.first)  # each holds one that was planted
            assert want.check(planted, 1).first == missed.first[:1]  # type: ignore[union-attr]
            found += missed.count
    assert found > 5_000  # the others were planted where zeros are allowed


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 4, 8, 16]), st.sampled_from([1, 3]))
@settings(max_examples=200, deadline=None)
def test_counts_are_the_same_in_every_layout(seed: int, size: int, axis: int) -> None:
    """Whether groups lie in a row, where words are summed, or apart."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 9, 4)
    shape[axis] *= size
    mask = rng.random(shape) < 0.5
    expected = np.add.reduceat(mask.astype(int), np.arange(0, mask.shape[axis], size), axis=axis)
    for order in ((0, 1, 2, 3), (3, 0, 2, 1), (2, 3, 1, 0)):
        laid = np.ascontiguousarray(mask.transpose(order)).transpose(np.argsort(order))
        assert np.array_equal(counts(laid, axis, size), expected)
    ragged = mask.take(range(mask.shape[axis] - 1), axis)
    if ragged.size:
        sums = pooled(ragged.astype(np.int64), axis, size, np.add)
        assert sums.sum() == ragged.sum()


def test_a_ratio_is_held_to_the_last_weight() -> None:
    mask = np.ones((1, 4, 1, 12), bool)
    for want, least in (
        (Zeros(0.75), 36),
        (Zeros(2 / 3, above=True), 33),
        (Zeros(0.0625), 3),
        (Zeros(0.1), 5),
    ):
        some = mask.copy().reshape(-1)
        some[: least - 1] = False
        missed = want.check(some.reshape(mask.shape), 0)
        assert missed is not None and missed.count == 1
        some[least - 1] = False
        assert want.check(some.reshape(mask.shape), 0) is None


def test_blocks_at_the_edge_are_smaller() -> None:
    mask = np.ones((1, 5, 1, 5), bool)
    mask[:, 4:, :, :] = False  # the last row of blocks is one output high
    assert Zeros(0.2, outputs=2, inputs=2).zeros(mask) == 5
    mask[0, 0, 0, 0] = False  # one zero makes no block
    assert Zeros(0.2, outputs=2, inputs=2).zeros(mask) == 5
    assert Zeros(0.2, outputs=1, inputs=1).zeros(mask) == 6


def test_rows_of_zeros() -> None:
    want = Runs(2, 0.5)
    alone = np.array([1, 0, 1, 0, 1, 0], bool).reshape(1, 1, 1, 6)
    half = np.array([0, 0, 1, 0, 1, 0, 1], bool).reshape(1, 1, 1, 7)
    assert want.check(alone, 0) is not None
    assert want.check(half, 0) is None
    across = np.array([[1, 0], [0, 1]], bool).reshape(1, 2, 1, 2)  # they touch in memory, not in a row
    assert want.check(across, 0) is not None
    assert want.check(np.ones((1, 1, 1, 4), bool), 0) is not None


def test_one_of_several() -> None:
    want = Either((Groups(2, 4), Groups(2, 4, along="outputs")))
    rows = np.tile(np.array([1, 1, 0, 0], bool), (8, 2)).reshape(1, 8, 1, 8)
    columns = rows.transpose(0, 3, 2, 1)
    assert want.check(rows, 0) is None and want.check(columns, 0) is None
    missed = want.check(rows | columns, 0)
    assert missed is not None and "none of" in missed.text
    assert want.misfit((1, 3, 1, 8)) is None and want.misfit((1, 3, 1, 3)) is not None


def test_sizes() -> None:
    want = Multiple(inputs=16, outputs=32)
    assert want.sizes((48, 64)) is None
    missed = want.sizes((40, 60))
    assert missed is not None and missed.text.startswith("40 input channels") and missed.count == 2
    assert AtLeast(inputs=256).sizes((256, 1)) is None and AtLeast(inputs=256).sizes((255, 1)) is not None


WANTS = [*GROUPS, Zeros(0.75), Zeros(0.5, outputs=2), Zeros(0.3, outputs=4, inputs=2), Runs(2, 0.5)]


@given(st.integers(0, 2**32 - 1), st.sampled_from(WANTS))
@settings(max_examples=400, deadline=None)
def test_what_is_chosen_satisfies(seed: int, want: Groups | Zeros | Runs) -> None:
    """And a weight that satisfies already stays as it is."""
    rng = np.random.default_rng(seed)
    sizes = tuple(int(n) for n in rng.integers((1, 8, 1, 16), (3, 13, 4, 25)))
    if want.misfit(sizes) is not None:  # type: ignore[arg-type]
        return
    weight = rng.standard_normal(sizes) * (rng.random(sizes) < rng.random())
    kept = (weight != 0) & want.choose(weight**2)
    assert want.check(kept, 0) is None
    assert np.array_equal(kept, kept & want.choose(np.where(kept, weight, 0) ** 2)) or isinstance(want, Runs)


@pytest.mark.parametrize(
    "make", [lambda: Groups(4, 4), lambda: Groups(0, 4), lambda: Zeros(1.0), lambda: Runs(1, 0.5)]
)
def test_nonsense_is_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError):
        make()
