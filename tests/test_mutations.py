"""Rules broken on purpose: the patterns must notice, or the tests prove nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import test_patterns as patterns
from onnx_prune.analysis.axes import atom, total, view
from onnx_prune.analysis.rules import RULES, Rule


def transpose_of_equal_axes_ignored(walk, node):
    x = walk.axes(node, 0)
    perm = node.attrs["perm"]
    return [[x[k] if x[k].size != x[j].size else x[j] for j, k in enumerate(perm)]]


def gather_in_order(walk, node):
    return [walk.axes(node, 0)]


def concat_backwards(walk, node):
    parts = [walk.axes(node, i) for i in range(len(node.inputs))]
    return [[parts[0][0], total([p[1] for p in parts[::-1]]), *parts[0][2:]]]


def slice_off_by_one(walk, node):
    (out,) = RULES_BEFORE["Slice"](walk, node)
    return [[out[0], view(out[1], np.roll(np.arange(out[1].size), 1)), *out[2:]]]


def product_without_a_tie(walk, node):
    x, y = walk.axes(node, 0), walk.axes(node, 1)
    return [[atom(a.size) if k == 1 else a for k, (a, _) in enumerate(zip(x, y, strict=True))]]


def softmax_called_exact(walk, node):
    return [walk.axes(node, 0)]


def contraction_forgotten(walk, node):
    before = len(walk.contractions)
    out = RULES_BEFORE[node.op](walk, node)
    del walk.contractions[before:]
    return out


def flatten_inside_out(walk, node):
    x = walk.axes(node, 0)
    from onnx_prune.analysis.axes import prod

    return [[x[0], prod([*x[2:], x[1]])]]


RULES_BEFORE: dict[str, Rule] = dict(RULES)
MUTANTS: list[tuple[str, Callable[..., object]]] = [
    ("Transpose", transpose_of_equal_axes_ignored),
    ("Gather", gather_in_order),
    ("Concat", concat_backwards),
    ("Slice", slice_off_by_one),
    ("Mul", product_without_a_tie),
    ("Softmax", softmax_called_exact),
    ("Conv", contraction_forgotten),
    ("MatMul", contraction_forgotten),
    ("Einsum", contraction_forgotten),
    ("Flatten", flatten_inside_out),
]


@pytest.mark.parametrize(("operator", "mutant"), MUTANTS)
def test_a_broken_rule_is_noticed(monkeypatch, operator, mutant) -> None:
    monkeypatch.setitem(RULES, operator, mutant)
    killers = []
    for name, test in vars(patterns).items():
        if not name.startswith("test_") or name == "test_slices":
            continue
        try:
            test()
        except Exception as error:
            killers.append((name, type(error).__name__))
    if operator == "Slice":
        with pytest.raises(AssertionError):
            patterns.test_slices(2, 7, 1)
    else:
        assert killers
