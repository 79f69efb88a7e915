"""Plans: budgets, names, replay, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from graphs import PLAIN, Graph, pruned
from onnx_prune import Model, Plan, PlanError, UsageError, analyze, apply, load, measure, plan, verify
from onnx_prune.analysis.plan import select
from onnx_prune.models.digits import FOLDER

RESNET = FOLDER / "digits_resnet.onnx"


def small() -> Model:
    g = Graph()
    h = g.conv(g.conv(g.input(1, 3, 4, 4), 3, 16), 16, 8, 3, group=2)
    return g.model(g.conv(g("Relu", h), 8, 2))


def test_a_plan_replays_to_the_same_bytes() -> None:
    model = load(RESNET)
    chosen = plan(model, ratio=0.4, **PLAIN)
    again = Plan.from_json(chosen.to_json())
    assert again == chosen and again.digest == chosen.digest
    first, second = apply(model, chosen), apply(load(RESNET), again)
    deterministic = [m.proto.SerializeToString(deterministic=True) for m in (first, second)]
    assert deterministic[0] == deterministic[1]


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("fraction", [0.9, 0.5, 0.25])
def test_budgets_are_met_and_not_far_undershot(budget: str, fraction: float) -> None:
    model = load(RESNET)
    smaller = apply(model, plan(model, **{budget: fraction}, **PLAIN))
    left = getattr(measure(smaller), budget) / getattr(measure(model), budget)
    assert fraction - 0.04 <= left <= fraction


def test_the_least_important_channels_go() -> None:
    model = small()
    chosen = plan(model, ratio=0.5, **PLAIN)
    entry = next(e for e in chosen.entries if e.group.startswith("w0:0"))
    assert entry.size == 8 and len(entry.keep) == 4  # a block of the grouped convolution


def test_multiple_rounds_up() -> None:
    model = load(RESNET)
    assert all(len(e.keep) % 8 == 0 for e in plan(model, ratio=0.3, multiple=8, **PLAIN).entries)


def test_ignored_names_stay_whole() -> None:
    model = small()
    ids = {e.group for e in plan(model, ratio=0.5, **PLAIN).entries}
    without = {e.group for e in plan(model, ratio=0.5, ignore=["w2"], **PLAIN).entries}
    assert without < ids
    smaller, _, verdict = pruned(model, ignore=["w2"])
    weight = next(t for t in smaller.proto.graph.initializer if t.name == "w2")
    assert verdict.ok and list(weight.dims) == [8, 8, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"ratio": 1.0}, "ratio 1.0"),
        ({"ratio": -0.1}, "ratio -0.1"),
        ({"macs": 0.0}, "macs"),
        ({}, "exactly one"),
        ({"ratio": 0.5, "macs": 0.5}, "exactly one"),
        ({"ratio": 0.5, "multiple": 0}, "multiple"),
        ({"ratio": 0.5, "criterion": "magic"}, "l2"),
        ({"ratio": 0.5, "recover": "magic"}, "none"),
        ({"ratio": 0.5, "ignore": ["Conv_9"]}, "Conv_"),
    ],
)
def test_wrong_arguments(arguments, told) -> None:
    with pytest.raises(UsageError, match=told):
        plan(small(), **(PLAIN | arguments))


def test_budgets_out_of_reach_say_what_is_reachable() -> None:
    with pytest.raises(PlanError, match="leaves"):
        plan(small(), params=0.01, **PLAIN)


def test_a_model_without_groups_says_why() -> None:
    g = Graph()
    with pytest.raises(PlanError, match="output of the model"):
        plan(g.model(g.conv(g.input(1, 3, 4, 4), 3, 8)), ratio=0.5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "onnx-prune plan", "version": 99}',
        '{"format": "onnx-prune plan", "version": 1}',
    ],
)
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def edited(change) -> Plan:
    data = json.loads(plan(small(), ratio=0.5, **PLAIN).to_json())
    change(data["groups"])
    return Plan.from_json(json.dumps(data))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: g[0].update(group="nobody"), "nobody"),
        (lambda g: g[0].update(size=99), "99"),
        (lambda g: g[0].update(keep=[]), "at least one"),
        (lambda g: g[0].update(keep=[3, 2]), "ascending"),
        (lambda g: g[0].update(keep=[-1]), "from 0"),
        (lambda g: g[0].update(keep=[0]), "equal numbers"),
    ],
)
def test_edited_plans_that_break_the_model_are_refused(change, told) -> None:
    with pytest.raises(PlanError, match=told):
        apply(small(), edited(change))


def test_the_plan_predicts_the_cost_of_the_result() -> None:
    model = load(RESNET)
    analysis, chosen = analyze(model), plan(model, ratio=0.5, **PLAIN)
    selection = select(analysis, chosen)
    after = measure(apply(model, chosen))
    assert analysis.macs(selection) == after.macs


def test_the_certificate_notices_wrong_weights_and_wrong_channels() -> None:
    model = load(RESNET)
    chosen = plan(model, ratio=0.5, **PLAIN)
    smaller = apply(model, chosen)
    assert verify(model, smaller, chosen).ok
    tensor = next(t for t in smaller.proto.graph.initializer if len(t.dims) == 4)
    value = np.frombuffer(tensor.raw_data, np.float32).copy()
    value[0] += 0.01
    tensor.raw_data = value.tobytes()
    assert not verify(model, smaller, chosen).ok
    other = plan(model, ratio=0.5, criterion="l1")
    assert other.entries != chosen.entries
    assert not verify(model, apply(model, other), chosen).ok
