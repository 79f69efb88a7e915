"""Numbers of channels that become multiples: which units go, and that no choice is better."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
from graphs import Graph
from onnx_prune import Validation, satisfy
from onnx_prune.analysis.axes import Axis, atom
from onnx_prune.passes.align import Size, Want, best_sizes


def missed(result: Validation) -> list[str]:
    return [f"{f.weight.name}: {f.shortfall.text}" for f in result.findings if f.shortfall is not None]


def worth(
    chosen: Mapping[Axis, int], worths: Mapping[Axis, float], wants: Mapping[Want, int]
) -> tuple[int, int, float]:
    """How many hard wants hold, how many others, and what stays is worth."""
    held = [0, 0]
    for want, count in wants.items():
        size = want.size.constant + sum(chosen[axis] * factor for axis, factor in want.size.factors)
        held[want.hard] += count * (size % want.step == 0)
    return held[1], held[0], sum(worths[axis] * n for axis, n in chosen.items())


def test_channels_become_multiples_by_pruning() -> None:
    g = Graph()
    h = g("Relu", g.conv(g.input(1, 16, 8, 8), 16, 37))
    h = g("Relu", g.conv(h, 37, 21, kernel=3))
    y = g.conv(h, 21, 16)
    result = satisfy(g.model(y), ["axis-artpec"])
    shapes = [tuple(t.dims) for t in result.model.proto.graph.initializer if len(t.dims) == 4]
    assert shapes == [(32, 16, 1, 1), (16, 32, 3, 3), (16, 16, 1, 1)]
    (pruned,) = result.aligned
    assert pruned.verdict is not None and pruned.verdict.ok
    assert not missed(result.after)


def test_too_few_channels_stay_and_are_told() -> None:
    g = Graph()
    y = g.conv(g("Relu", g.conv(g.input(1, 16, 8, 8), 16, 9)), 9, 16)
    result = satisfy(g.model(y), ["axis-artpec"])
    assert len(missed(result.after)) == 2 and not result.aligned


def test_parts_of_a_concatenation_shrink_together() -> None:
    """Each of the parts that a layer reads becomes a multiple, and the one that none reads has to follow."""
    g = Graph()
    h = g("Relu", g.conv(g.input(1, 16, 8, 8), 16, 104))
    parts = g("Split", h, g.ints(26, 26, 26, 26), outputs=4, axis=1)
    h = g("Concat", *(g("Relu", g.conv(part, 26, 26, 3)) for part in parts[:3]), parts[3], axis=1)
    result = satisfy(g.model(g.conv(h, 104, 16)), ["ti-npu"])
    assert result.after.ok and len(result.aligned) == 1 and not missed(result.after)
    assert max(t.dims[0] for t in result.model.proto.graph.initializer if len(t.dims) == 4) == 96


def test_parts_too_small_for_a_multiple_make_one_together() -> None:
    g = Graph()
    h = g("Relu", g.conv(g.input(1, 32, 8, 8), 32, 104))
    parts = g("Split", h, g.ints(26, 26, 26, 26), outputs=4, axis=1)
    h = g("Concat", *(g("Relu", g.conv(part, 26, 26, 3)) for part in parts), axis=1)
    result = satisfy(g.model(g.conv(h, 104, 32)), ["qualcomm-htp"])
    shapes = [tuple(t.dims) for t in result.model.proto.graph.initializer if len(t.dims) == 4]
    assert (96, 32, 1, 1) in shapes and (32, 96, 1, 1) in shapes and len(missed(result.after)) == 4


def test_as_many_rules_hold_as_can_and_as_much_stays() -> None:
    """Compared with all choices there are."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        axes = [atom(int(size)) for size in rng.integers(2, 9, 3)]
        worths = {axis: float(rng.integers(1, 20)) for axis in axes}
        wants: dict[Want, int] = {}
        for _ in range(rng.integers(1, 6)):
            some = rng.choice(3, rng.integers(1, 4), replace=False)
            size = Size(tuple((axes[i], float(rng.integers(1, 4))) for i in some), float(rng.integers(0, 4)))
            wants[Want(size, int(rng.integers(2, 6)), bool(rng.integers(2)))] = int(rng.integers(1, 3))
        siblings = [[axes[0], axes[1]]] if axes[0].size == axes[1].size and rng.integers(2) else []
        every = (dict(zip(axes, n, strict=True)) for n in product(*(range(1, a.size + 1) for a in axes)))
        allowed = (one for one in every if all(one[a] == one[b] for a, b in siblings))
        found = best_sizes(worths, wants, siblings)
        assert all(found[a] == found[b] for a, b in siblings)
        assert worth(found, worths, wants) == max(worth(one, worths, wants) for one in allowed)
