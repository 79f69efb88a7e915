"""Budgets of time, with clocks that tell what the model's size makes of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graphs import PLAIN, Graph
from onnx_prune import Model, PlanError, UsageError, analyze, apply, load, measure, plan, prune
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.clocks import CLOCKS, Time
from onnx_prune.passes.latency import Latency

RESNET = FOLDER / "digits_resnet.onnx"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Puts a clock for the target "fake" in place: 1 ms overhead, then in proportion to the MACs."""

    def install(overhead: float = 1.0, dense: float = 5.0, noise: float = 0.0) -> list[float]:
        seen: list[float] = []

        def clock_for(model: Model) -> Callable[[Model], Time]:
            whole = measure(model).macs

            def clock(made: Model) -> Time:
                share = measure(made).macs / whole
                seen.append(share)
                jitter = 1 + noise * (-1) ** len(seen)
                ms = (overhead + (dense - overhead) * share) * jitter
                return Time(ms, ms / dense)

            return clock

        monkeypatch.setitem(CLOCKS, "fake", clock_for)
        return seen

    return install


@pytest.mark.parametrize(("asked", "ms"), [("60%", 3.0), (0.6, 3.0), ("2ms", 2.0), ("1500us", 1.5)])
def test_time_is_met_from_below(fake, asked, ms: float) -> None:
    probes = fake()
    model = load(RESNET)
    chosen = plan(model, latency=asked, target="fake", **PLAIN)
    left = measure(apply(model, chosen)).macs / measure(model).macs
    assert 0.95 * ms <= 1 + 4 * left <= ms
    assert len(probes) <= 8
    told = chosen.options["latency"]
    assert told["target"] == "fake" and told["ms"] == pytest.approx(1 + 4 * left, abs=1e-3)
    assert chosen.options["macs"] == pytest.approx(left, rel=0.05)


def test_a_noisy_clock_is_met_too(fake) -> None:
    fake(noise=0.03)
    chosen = plan(load(RESNET), latency="50%", target="fake", **PLAIN)
    assert chosen.options["latency"]["share"] <= 0.5


def test_a_model_that_is_fast_enough_stays(fake) -> None:
    probes = fake()
    chosen = plan(load(RESNET), latency="9ms", target="fake", **PLAIN)
    assert not chosen.entries and len(probes) == 1


def test_what_no_cut_reaches_is_said_with_what_does(fake) -> None:
    probes = fake(overhead=4.0)
    with pytest.raises(PlanError, match=r"50% cannot be reached: the fastest .* 4[.\d]* ms, 8\d% of"):
        plan(load(RESNET), latency="50%", target="fake", **PLAIN)
    assert min(probes) < 0.01


def test_other_budgets_hold_beside_it(fake) -> None:
    fake()
    model = load(RESNET)
    chosen = plan(model, latency="80%", params=0.3, target="fake", **PLAIN)
    before, after = measure(model), measure(apply(model, chosen))
    assert after.params <= 0.3 * before.params
    assert 1 + 4 * after.macs / before.macs <= 4


def test_a_budget_of_macs_is_where_the_search_begins(fake) -> None:
    probes = fake()
    plan(load(RESNET), latency="90%", macs=0.4, target="fake", **PLAIN)
    assert len(probes) == 1 and probes[0] <= 0.4


def test_prune_takes_it_with_blocks_dropped(fake) -> None:
    fake()
    model = load(RESNET)
    block = analyze(model).blocks[-1].id
    result = prune(model, latency="50%", target="fake", drop=[block], **PLAIN)
    assert result.verdict is not None and result.verdict.ok
    assert 1 + 4 * result.after.macs / result.before.macs <= 2.5


def test_a_runtime_is_timed() -> None:
    """A generous time: what is tested is that dense and pruned models run."""
    g = Graph()
    x = g.conv(g.input("batch", 3, 8, 8), 3, 16)
    model = g.model(g.conv(g("Relu", x), 16, 4))
    chosen = plan(model, latency="100s", macs=0.5, target="onnxruntime", **PLAIN)
    assert chosen.entries and chosen.options["latency"]["ms"] > 0


@pytest.mark.parametrize("asked", ["0%", "150%", "fast", "4", "-4ms", "", 0.0, 1.5, "1.2.3ms"])
def test_what_is_no_latency(asked) -> None:
    with pytest.raises(UsageError, match="latency"):
        Latency.of(asked)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": "abacus"}, "abacus"),
        ({"target": "onnxruntime", "ratio": 0.5}, "ratio"),
        ({"target": "onnxruntime", "accuracy_drop": 0.1}, "either"),
    ],
)
def test_what_makes_no_sense_with_it(options, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plan(load(RESNET), latency="50%", **options, **PLAIN)
