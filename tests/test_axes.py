"""The algebra by itself."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_prune.analysis.axes import (
    AxisMismatch,
    atom,
    cut,
    factor,
    find,
    fix,
    pin,
    prod,
    ragged,
    reason,
    tie,
    total,
    unify,
    view,
)
from onnx_prune.analysis.selection import Selection


def kept(axis, keep):
    return Selection({find(a): np.array(k) for a, k in keep.items()}).positions(axis)


def test_a_late_reshape_refines_what_was_typed_before() -> None:
    axis = atom(6)
    high, low = factor(axis, 3)
    assert kept(axis, {low: [0, 2]}).tolist() == [0, 2, 3, 5]
    assert kept(axis, {high: [1]}).tolist() == [3, 4, 5]


def test_cut_makes_segments_of_one_pool() -> None:
    axis = atom(5)
    head, tail = cut(axis, 2)
    assert kept(axis, {head: [1], tail: [0, 2]}).tolist() == [1, 2, 4]


def test_cut_inside_a_product_splits_off_the_row() -> None:
    axis = prod([atom(3), atom(4)])
    head, tail = cut(axis, 6)
    assert (head.size, tail.size) == (6, 6)


def test_unify_aligns_segments_and_factors() -> None:
    a, b, c = atom(4), atom(8), atom(12)
    unify(total([a, b]), c)
    assert find(c).kind == "sum"
    x, y = atom(6), atom(4)
    unify(prod([x, y]), prod([atom(3), atom(8)]))
    assert find(x).kind == "prod"


def test_products_without_common_factors_are_tied() -> None:
    four, six = atom(4), atom(6)
    left, right = prod([four, six]), prod([six, four])
    unify(left, right)
    selection = Selection({})
    assert selection.count(left) == selection.count(right) == 24


def test_tie_joins_positions_that_must_go_together() -> None:
    base = atom(4)
    tie(view(base, [0, 1, 2, 3]), view(base, [1, 0, 3, 2]))
    inner = find(base)
    assert inner.kind == "view" and inner.index.tolist() == [0, 0, 1, 1]


def test_tie_pins_only_what_meets_a_pinned_position() -> None:
    free = atom(4)
    tie(free, total([fix(1, "held"), view(atom(6), [0, 2, 4])]))
    assert reason(free) is None
    unit = next(iter(_atoms(free)))
    assert kept(free, {unit: [1]}).tolist() == [0, 2]


def _atoms(axis):
    from onnx_prune.analysis.axes import atoms

    return list(dict.fromkeys(atoms(axis)))


def test_pins_say_why() -> None:
    axis = atom(3)
    pin(axis, "because")
    assert reason(axis) == "because"


def test_different_sizes_cannot_be_the_same() -> None:
    with pytest.raises(AxisMismatch):
        unify(atom(3), atom(4))


def test_ragged_axes_collapse_where_they_meet_a_plain_one() -> None:
    a, b, plain = atom(4), atom(4), atom(4)
    unify(ragged([a, b]), plain)
    assert find(a) is find(b) is find(plain)
