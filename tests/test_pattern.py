"""Sparsity patterns: their text, the masks they choose, and what satisfies them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_prune.analysis.errors import UsageError
from onnx_prune.analysis.patterns.pattern import NM, Blocks, Pattern, parse_pattern

EIGHT = np.array([[[8.0, 7, 6, 5, 1, 2, 3, 4]]])


@pytest.mark.parametrize(
    ("text", "pattern", "written"),
    [
        ("2:4", NM(2, 4), "2:4"),
        ("1:16", NM(1, 16), "1:16"),
        ("4x1@75%", Blocks(4, 1, 0.75), "4x1@75%"),
        ("1x4@50%", Blocks(1, 4, 0.5), "1x4@50%"),
        ("80%", Blocks(1, 1, 0.8), "80%"),
        ("unstructured@80%", Blocks(1, 1, 0.8), "80%"),
        ("1x1@62.5%", Blocks(1, 1, 0.625), "62.5%"),
    ],
)
def test_text_goes_both_ways(text: str, pattern: Pattern, written: str) -> None:
    assert parse_pattern(text) == pattern
    assert str(pattern) == written
    assert parse_pattern(written) == pattern


@pytest.mark.parametrize(
    "text",
    "|2:|4:4|0:4|5:4|4x1|4x@75%|0x4@50%|4x1@100%|0%|100%|80|0.8|-5%|dense|2:4@50%|80%x|x4@5%|² : 4".split(
        "|"
    ),
)
def test_any_other_text_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(UsageError, match=r"pattern|block|ratio"):
        parse_pattern(text)


def test_the_ratio_is_what_goes() -> None:
    assert NM(1, 4).ratio == 0.75
    assert parse_pattern("4x1@75%").ratio == 0.75


def test_nm_keeps_the_largest_of_each_group() -> None:
    keep = NM(2, 4).choose(EIGHT)
    assert keep.astype(int).tolist() == [[[1, 1, 0, 0, 0, 0, 1, 1]]]


def test_a_group_does_not_reach_into_the_next_run() -> None:
    """Runs of three channels: each is one incomplete group of 2:4, which keeps two."""
    energy = np.array([[[1.0, 2, 3, 9, 8, 7]]])
    assert NM(2, 4).choose(energy, run=3).astype(int).tolist() == [[[0, 1, 1, 1, 1, 0]]]


@pytest.mark.parametrize(("left", "kept"), [(1, 1), (2, 1), (3, 2)])
def test_an_incomplete_group_keeps_its_share_rounded_up(left: int, kept: int) -> None:
    keep = NM(2, 4).choose(np.ones((1, 1, 4 + left)))
    assert keep[0, 0, 4:].sum() == kept


def test_a_block_goes_as_a_whole() -> None:
    energy = np.array([[[9.0, 1, 1], [0, 2, 1], [5, 5, 5], [0, 0, 4]]])
    keep = Blocks(2, 1, 0.5).choose(energy)
    assert keep.astype(int).tolist() == [[[1, 0, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1]]]


def test_blocks_along_the_inputs_stay_in_a_run() -> None:
    energy = np.array([[[1.0, 1, 9, 2, 2, 0]]])
    assert Blocks(1, 2, 0.5).choose(energy, run=3).astype(int).tolist() == [[[0, 0, 1, 1, 1, 0]]]


def test_at_least_the_ratio_goes_but_never_everything() -> None:
    assert Blocks(1, 1, 0.8).choose(np.arange(9.0)[None, None]).sum() == 1
    assert Blocks(1, 1, 0.99).choose(np.ones((1, 1, 9))).sum() == 1
    assert Blocks(1, 1, 0.0).choose(np.zeros((1, 2, 3))).all()


def test_a_ratio_holds_for_all_groups_together() -> None:
    energy = np.array([[[1.0, 2]], [[3, 4]]])
    assert Blocks(1, 1, 0.5).choose(energy).tolist() == [[[False, False]], [[True, True]]]


def test_what_is_too_small_stays_dense() -> None:
    assert "4 consecutive inputs, and there are 3" in (NM(2, 4).misfit(8, 3) or "")
    assert NM(2, 4).misfit(1, 4) is None
    assert "do not fit into 1 outputs" in (Blocks(4, 1, 0.5).misfit(1, 9) or "")
    assert "by 3 inputs" in (Blocks(1, 4, 0.5).misfit(8, 3) or "")
    assert Blocks(4, 1, 0.5).misfit(4, 1) is None


def test_nm_says_where_a_group_is_too_full() -> None:
    weight = np.zeros((1, 2, 8))
    weight[0, 1, 4:7] = 1
    found = NM(2, 4).check(weight)
    assert found is not None
    assert (found.count, found.where) == (1, (0, 1, 4))
    assert NM(3, 4).check(weight) is None
    assert NM(2, 4).check(weight, run=2) is not None  # of two columns one is kept


def test_zeros_that_lie_in_no_whole_block_do_not_count() -> None:
    weight = np.array([[[1.0, 0, 0, 1], [0, 1, 1, 0]]])
    assert Blocks(1, 1, 0.5).check(weight) is None
    found = Blocks(2, 1, 0.5).check(weight)
    assert found is not None
    assert found.count == 4
    assert "0.00%" in found.text
    assert Blocks(2, 1, 0.5).check(np.array([[[1.0, 0, 0, 1], [1, 0, 0, 0]]])) is None


def test_columns_have_to_be_whole_runs() -> None:
    with pytest.raises(ValueError, match="runs of 3"):
        NM(1, 2).choose(np.ones((1, 1, 8)), run=3)


PATTERNS = st.one_of(
    st.integers(2, 8).flatmap(lambda m: st.builds(NM, st.integers(1, m - 1), st.just(m))),
    st.builds(Blocks, st.integers(1, 5), st.integers(1, 5), st.floats(0, 0.99)),
)


@settings(max_examples=150, deadline=None)
@given(PATTERNS, st.tuples(*[st.integers(1, 7)] * 4), st.integers(0, 999))
def test_a_chosen_mask_satisfies_the_pattern_and_one_more_weight_does_not(
    pattern: Pattern, shape: tuple[int, int, int, int], seed: int
) -> None:
    groups, outputs, runs, run = shape
    energy = np.random.default_rng(seed).integers(0, 4, (groups, outputs, runs * run)).astype(float)
    keep = pattern.choose(energy, run)
    assert pattern.check(keep, run) is None
    removed = np.argwhere(~keep)
    if isinstance(pattern, NM) and len(removed):
        more = keep.copy()
        more[tuple(removed[0])] = True
        assert pattern.check(more, run) is not None
    if isinstance(pattern, Blocks) and keep.sum() > pattern.rows * pattern.columns:
        excess = (~keep).sum() - pattern.ratio * keep.size
        assert 0 - 1e-6 <= excess < pattern.rows * pattern.columns
