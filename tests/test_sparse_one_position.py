"""Layers of one position whose weights are mostly zero: what their non-zeros multiply is put together."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from test_backends import Net
from test_sparse_kernels import MASKS, blocks, built, results, with_zeros

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
PATTERNS = {**MASKS, "2x1": blocks(2, 0.3), "8x1": blocks(8, 0.3)}
KINDS: dict[str, Callable[[Any, Any], bool]] = {
    "gathered": lambda strip, core: bool(strip.rows == 1 and core.gathers),
    "put together": lambda strip, core: bool(strip.rows == 1 and not core.gathers),
    "spread": lambda strip, core: bool(strip.gathers(core)),
    "picked": lambda strip, core: strip.window == 32 and strip.rows == 32,
    "picked of four": lambda strip, core: strip.window == 64 and strip.rows == 32,
    "picked for four": lambda strip, core: strip.window == 32 and strip.rows == 64,
    "picked of four for four": lambda strip, core: strip.window == 64 and strip.rows == 64,
}


@pytest.mark.parametrize(
    ("kind", "pattern", "seed"),
    [
        ("gathered", "single", 1),
        ("put together", "single", 1),
        ("spread", "4x1", 0),
        ("spread", "4x1", 1),
        ("spread", "2x1", 0),
        ("spread", "8x1", 1),
        ("picked", "single", 0),
        ("picked", "single", 1),
        ("picked", "4x1", 0),
        ("picked", "8x1", 1),
        ("picked", "empty rows", 0),
        ("picked", "one", 1),
        ("picked of four", "single", 0),
        ("picked of four", "4x1", 1),
        ("picked for four", "single", 0),
        ("picked for four", "4x1", 1),
        ("picked of four for four", "single", 1),
    ],
)
def test_it_computes_what_the_dense_layer_does(kind: str, pattern: str, seed: int) -> None:
    from onnx_prune.backends.tvm.machine import core_of, host_target
    from onnx_prune.backends.tvm.schedules.blocks import Strip
    from tvm.target import Target

    feature = "+fast-gather" if kind in ("gathered", "spread") else "-fast-gather"
    core = core_of(Target(host_target(1) | {"mattr": [feature]}))
    if kind != "put together" and not (core.picks if "picked" in kind else core.gathers):
        pytest.skip("this processor has no such instruction")
    net, outputs = Net(1, 70), 69 if kind.endswith("for four") else 45
    model = with_zeros(net.model(net.op("MatMul", "x", net.weight(70, outputs))), PATTERNS[pattern], seed)
    (layer,) = built(model, 0, 1, feature)[1]
    strips = [Strip(*choice) for choice in layer.sparse.choices(core, False)]
    found = [number for number, strip in enumerate(strips) if KINDS[kind](strip, core)]
    assert found
    artifact, _ = built(model, found[seed % len(found)], 1 + seed, feature)
    got, wanted = results(artifact, model, seed=2)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("columns", "window", "rows", "alike"), [(32, 32, 16, 1), (70, 64, 32, 1), (70, 32, 32, 4)]
)
def test_windows_hold_the_weights(columns: int, window: int, rows: int, alike: int) -> None:
    from onnx_prune.backends.tvm.schedules.blocks import Strip
    from onnx_prune.backends.tvm.schedules.windows import windows_of

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((69, columns)).astype(np.float32) * blocks(alike, 0.8)(rng, 69, columns)
    weights[32:64] = 0
    strip = Strip(rows, 1, 1, 4, window, alike)
    found, beside = windows_of(weights, strip, 16), min(16, rows // alike)
    values = found.values.reshape(-1, rows // alike // beside, alike, beside).swapaxes(2, 3).reshape(-1, rows)
    picks = found.picks.reshape(-1, rows // alike).repeat(alike, 1)
    assert picks.max() < window and found.offsets.max() + window <= columns
    back = np.zeros((-(-69 // rows) * rows, columns), np.float32)
    for block, (start, end) in enumerate(pairwise(found.starts)):
        place = block * rows
        assert (start == end) == (32 <= place < 64)
        for k in range(start * strip.turn, end * strip.turn):
            for row in range(rows):
                back[place + row, found.offsets[k] + picks[k, row]] += values[k, row]
    assert np.array_equal(back[:69], weights) and not back[69:].any()
    assert len(found.starts) == len(back) // rows + 1
