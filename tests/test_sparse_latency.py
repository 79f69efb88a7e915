"""Zeros by layer for a budget of time: the cheapest options, and a model that meets it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper
from onnx_prune import Model, PlanError, UsageError, load, sparsify
from onnx_prune.analysis.patterns.pattern import Blocks
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.clocks import CLOCKS, LAYER_CLOCKS, Time
from onnx_prune.passes.latency import Latency
from onnx_prune.passes.sparse_latency import Option, cheapest, fitting

MODEL = FOLDER / "digits_mobilenet.onnx"
BLOCKS = Blocks(4, 1, 0.5)


def drawn(seed: int) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(3):
        dense = Option(None, 10.0, 0.0)
        others = [Option(BLOCKS, float(rng.uniform(1, 9)), float(rng.uniform(1, 9))) for _ in range(4)]
        layers.append([dense, *others])
    return layers


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_is_as_fast_and_costs_less(seed: int) -> None:
    """On the hulls: of all choices that take as long as the one found, it has the least error."""
    layers = drawn(seed)
    for ms in (25.0, 18.0, 12.0):
        try:
            found = cheapest(layers, ms)
        except PlanError:
            assert sum(min(option.ms for option in layer) for layer in layers) > ms
            continue
        time, error = (sum(getattr(option, what) for option in found) for what in ("ms", "error"))
        assert time <= ms
        every = [(sum(o.ms for o in some), sum(o.error for o in some)) for some in product(*layers)]
        assert error <= min(e for t, e in every if t <= time) + 1e-9


def test_what_cannot_be_met_is_refused() -> None:
    with pytest.raises(PlanError, match=r"take 2\.000 ms at best; 1\.000 ms are left"):
        cheapest([[Option(None, 5.0, 0.0), Option(BLOCKS, 2.0, 1.0)]], 1.0)


def test_what_the_times_of_layers_do_not_tell_is_found_out() -> None:
    """In the model layers take more than alone, and a fifth of its time is outside of them."""
    options = [Option(None, 10.0, 0.0)]
    options += [Option(BLOCKS.at(ratio), 10 * (1 - ratio), ratio**2) for ratio in np.arange(0.1, 0.96, 0.01)]
    asked: list[float] = []

    def timed(patterns: Mapping[str, Blocks]) -> Time:
        (pattern,) = patterns.values()
        asked.append(pattern.ratio)
        ms = 4 + 16 * (1 - pattern.ratio)
        return Time(ms, ms / 20)

    patterns, time = fitting({"w": options}, Latency.of("70%"), Time(20.0, 1.0), timed, lambda step: None)
    assert 0.65 <= time.share <= 0.7 and asked[-1] == patterns["w"].ratio
    assert len(asked) > 1
    with pytest.raises(PlanError, match="a latency of 20% is not met"):
        fitting({"w": options}, Latency.of("20%"), Time(20.0, 1.0), timed, lambda step: None)


class Densities:
    """A model takes what its non-zero weights do; single zeros save half as much."""

    def __init__(self, model: Model) -> None:
        self.sizes = {
            tensor.name: numpy_helper.to_array(tensor).size
            for tensor in model.proto.graph.initializer
            if len(tensor.dims) > 1
        }

    def ms(self, weight: str, rows: int, density: float) -> float | None:
        share = density if rows == 4 else (1 + density) / 2
        return self.sizes[weight] * share / 1e3 if weight in self.sizes else None


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    def clock(dense: Model) -> Callable[[Model], Time]:
        def count(model: Model) -> int:
            tensors = [t for t in model.proto.graph.initializer if len(t.dims) > 1]
            return sum(int(np.count_nonzero(numpy_helper.to_array(tensor))) for tensor in tensors)

        whole = count(dense)
        return lambda model: Time(count(model) / 1e3, count(model) / whole)

    @contextmanager
    def layers(model: Model, report: Any) -> Iterator[Densities]:
        yield Densities(model)

    monkeypatch.setitem(CLOCKS, "fake", clock)
    monkeypatch.setitem(LAYER_CLOCKS, "fake", layers)


def test_layers_get_zeros_until_the_time_is_met(fake: None) -> None:
    result = sparsify(load(MODEL), "auto", latency="60%", target="fake", samples=32)
    assert result.time is not None and 0.5 < result.time.share <= 0.6
    kinds = {(layer.pattern.rows, layer.pattern.columns) for layer in result.layers if layer.pattern}  # type: ignore[union-attr]
    assert (4, 1) in kinds
    ratios = {layer.pattern.ratio for layer in result.layers if layer.pattern is not None}
    assert len(ratios) > 1


def test_wrong_usage(fake: None) -> None:
    for options in ({"pattern": "auto"}, {"pattern": "2:4", "latency": "60%"}):
        with pytest.raises(UsageError, match="belong together"):
            sparsify(load(MODEL), **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no target 'moon'"):
        sparsify(load(MODEL), "auto", latency=0.5, target="moon")
    with pytest.raises(UsageError, match="'onnxruntime' has no kernels that skip zeros"):
        sparsify(load(MODEL), "auto", latency=0.5, target="onnxruntime", samples=16)
