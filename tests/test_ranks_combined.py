"""Ranks beside everything else that a plan can be asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import PLAIN
from onnx_prune import (
    Model,
    Plan,
    UsageError,
    analyze,
    apply,
    load,
    measure,
    plan,
    predict,
    prune,
    save,
    sensitivity,
    verify,
)
from onnx_prune.analysis.lowrank import find_layers
from onnx_prune.models.digits import FOLDER, labelled, load_digits
from onnx_prune.passes.clocks import CLOCKS, Time
from onnx_prune.passes.execute import execute
from recovering import Real
from test_cli import run

RESNET = FOLDER / "digits_resnet.onnx"


def net() -> Model:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 6, 6), 3, 16, 3))
    x = g("Relu", g.conv(x, 16, 16, 3))
    return g.model(g.conv(x, 16, 4))


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((48, 3, 6, 6)).astype(np.float32)}


def written(model: Model) -> bytes:
    return model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "budgets",
    [
        {"bytes": 0.4},
        {"macs": 0.5, "params": 0.3},
        {"macs": 0.5, "bytes": 0.4, "memory": 0.8},
        {"macs": 4_000_000, "bytes": 200_000},
    ],
    ids=str,
)
@pytest.mark.parametrize("low_rank", ["compete", "only"])
def test_several_budgets_hold_at_once(budgets: dict[str, Any], low_rank: str) -> None:
    model = load(RESNET)
    if low_rank == "only":
        budgets = {name: amount for name, amount in budgets.items() if name != "memory"}
    result = prune(model, low_rank=low_rank, **budgets, **PLAIN)
    assert result.verdict is not None and result.verdict.ok and result.plan.ranks
    used = []
    for name, asked in budgets.items():
        whole = getattr(result.before, name)
        amount = asked if isinstance(asked, int) else asked * whole
        used.append(getattr(result.after, name) / amount)
    assert max(used) <= 1
    assert max(used) > 0.97


def test_memory_counts_the_channels_between_factors() -> None:
    """Beside input and output of the layer, as an upper bound: never less is told than is used."""
    model = load(RESNET)
    for low_rank in (None, "compete"):
        made = plan(model, macs=0.5, memory=0.6, low_rank=low_rank, **PLAIN)
        told, after = predict(analyze(model), made), measure(apply(model, made))
        assert after.memory <= told.memory
        assert after.memory <= 0.6 * measure(model).memory


@pytest.mark.parametrize("budgets", [{"macs": 0.4}, {"macs": 0.5, "params": 0.3}], ids=str)
def test_an_exact_choice_takes_ranks_too(budgets: dict[str, float]) -> None:
    model = net()
    result = prune(model, low_rank="compete", exact=True, calibration=data(), **budgets)  # type: ignore[arg-type]
    assert result.verdict is not None and result.verdict.ok
    assert result.plan.ranks and result.plan.options["exact"]["gap"] <= 0.01
    for name, share in budgets.items():
        assert getattr(result.after, name) <= share * getattr(result.before, name)


def test_steps_measure_ranks_again_in_what_is_left() -> None:
    model, told = net(), []
    options: dict[str, Any] = {"macs": 0.3, "low_rank": "compete", "steps": 3, "calibration": data()}
    result = prune(model, progress=told.append, **options)
    assert result.verdict is not None and result.verdict.ok
    assert result.plan.ranks and result.after.macs <= 0.3 * result.before.macs
    weights = find_layers(analyze(model))
    for step in ("", "step 1 of 3: ", "step 2 of 3: "):
        assert {f"{step}lower the rank of {name}" for name in weights} <= set(told)
    again = apply(model, Plan.from_json(result.plan.to_json()), calibration=data())
    assert written(again) == written(result.model)


def test_limits_hold_beside_ranks() -> None:
    model = load(RESNET)
    group = max(analyze(model).groups, key=lambda group: group.size)
    made = plan(model, macs=0.3, low_rank="compete", limits={group.id: (0.75, None)}, **PLAIN)
    kept = {entry.group: len(entry.keep) for entry in made.entries}
    assert made.ranks and kept.get(group.id, group.size) >= 0.75 * group.size


def test_blocks_go_first() -> None:
    model = load(RESNET)
    block = analyze(model).blocks[-1].id
    result = prune(model, macs=0.4, low_rank="compete", drop=[block], **PLAIN)
    assert result.plan.blocks == (block,) and result.plan.ranks
    assert result.after.macs <= 0.4 * result.before.macs
    assert result.verdict is not None and result.verdict.ok
    assert verify(model, result.model, result.plan).ok
    with pytest.raises(UsageError, match="macs, params or bytes"):
        plan(model, drop=[block], low_rank="compete", **PLAIN)


def test_ranks_of_convolutions_suit_kernels_unless_asked_otherwise() -> None:
    model = load(RESNET)
    widths = {w: (layer.inner.size, layer.outer.size) for w, layer in find_layers(analyze(model)).items()}

    def odd(**options: Any) -> int:
        ranks = plan(model, macs=0.4, low_rank="only", **options, **PLAIN).ranks
        found = [
            rank
            for weight, each in ranks.items()
            for rank, size in zip((each.inputs, each.outputs), widths[weight], strict=True)
            if rank is not None and size >= 16 and size % 4 == 0
        ]
        return sum(rank not in (1, 2) and rank % 4 != 0 for rank in found)

    assert odd() == 0
    assert odd(multiple=1) > 0


def test_the_same_twice() -> None:
    model = load(RESNET)
    images = {"x": load_digits("train").images[:48]}
    first, second = (plan(model, macs=0.4, low_rank="compete", calibration=images) for _ in range(2))
    assert first.digest == second.digest


# ---------------------------------------------------------------------- what only a run can tell


def test_time_is_that_of_the_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(RESNET)
    whole, seen = measure(model), []

    def clock_for(model: Model) -> Callable[[Model], Time]:
        def clock(made: Model) -> Time:
            share = measure(made).macs / whole.macs
            seen.append(share)
            return Time(5 * share, share)

        return clock

    monkeypatch.setitem(CLOCKS, "fake", clock_for)
    made = plan(model, latency="50%", target="fake", low_rank="compete", **PLAIN)
    left = measure(apply(model, made)).macs / whole.macs
    assert made.ranks and 0.45 <= left <= 0.5
    assert made.options["latency"]["share"] == pytest.approx(left, abs=1e-3)


def test_accuracy_is_that_of_the_fitted_factors() -> None:
    model, given = load(RESNET), labelled(300)
    made = plan(model, accuracy_drop=0.03, low_rank="compete", calibration=given)
    told = made.options["accuracy"]
    assert made.ranks and told["before"] - told["after"] <= 0.03
    smaller = apply(model, made, calibration=given, samples=150)
    (logits,) = execute(smaller.proto, {"x": given["x"][160:]}).values()
    assert float((logits.argmax(1) == given["labels"][160:]).mean()) == pytest.approx(told["after"])


def test_a_sensitivity_knows_no_ranks() -> None:
    model = net()
    curves = sensitivity(model, calibration=data(), ratios=[0.5], jobs=1)
    with pytest.raises(UsageError, match="channels alone"):
        plan(model, macs=0.5, calibration=data(), sensitivity=curves, low_rank="compete")


def test_the_command(tmp_path: Path) -> None:
    source, out, saved = tmp_path / "model.onnx", tmp_path / "out.onnx", tmp_path / "plan.json"
    g = Real()
    x = g("Relu", g.conv(g.input("N", 8, 6, 6), 8, 48, 3))
    save(g.model(g.conv(g("Relu", g.conv(x, 48, 64, 3)), 64, 16, 3)), source)
    budgets = ("--macs", "50%", "--params", "40%", "--bytes", "100KB")
    done = run("prune", source, "-o", out, *budgets, "--low-rank", "--save-plan", saved, "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ranks"] and told["verify"]["ok"] and told["bytes"]["after"] <= 100_000
    assert run("verify", source, out, "--plan", saved).returncode == 0
    done = run("factorize", source, "-o", out, "--bytes", "60%")
    assert done.returncode == 0, done.stderr
    assert run("prune", source, "-o", out, "--memory", "50%", "--low-rank").returncode == 2
