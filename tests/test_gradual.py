"""Going there in steps: what is left is ranked again, in one plan for the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import PLAIN, Graph
from onnx_prune import Model, Plan, UsageError, analyze, apply, plan, predict, prune
from onnx_prune.analysis.criteria import Criterion, Setting
from onnx_prune.analysis.scores import Ranking
from onnx_prune.models.digits import FOLDER
from recovering import Real
from test_cli import run


def net(kind: type[Graph] = Real) -> Model:
    g = kind()
    x = g("Relu", g.conv(g.input("N", 3, 6, 6), 3, 16, 3))
    x = g("Relu", g.conv(x, 16, 16, 3))
    return g.model(g.conv(x, 16, 4))


def data() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal((48, 3, 6, 6)).astype(np.float32)}


def turning(seen: list[int]) -> Criterion:
    """Prefers the first units at first, and the last ones once some are gone."""

    def rank(setting: Setting) -> Ranking:
        scores, errors = {}, {}
        for group in setting.analysis.groups:
            seen.append(group.size)
            order = np.arange(group.size, 0.0, -1)
            scores[group.axis] = order if group.size == 16 else order[::-1].copy()
            errors[group.axis] = np.linspace(0, 1, group.size + 1)
        return Ranking(scores, errors)

    return Criterion("turning", "for this test", rank)


def test_what_is_left_is_ranked_again() -> None:
    seen: list[int] = []
    made = plan(net(Graph), ratio=0.75, steps=2, multiple=1, criterion=turning(seen), recover="none")
    assert seen == [16, 16, 8, 8]  # half of the units are gone after the first of two steps
    # The last eight went first; of those that were left, the first four.
    assert {entry.keep for entry in made.entries} == {(4, 5, 6, 7)}


def test_one_step_is_the_plain_plan() -> None:
    one, plain = (plan(net(), macs=0.4, **PLAIN, **extra) for extra in ({"steps": 1}, {}))
    assert one == plain and "steps" not in plain.options


@pytest.mark.parametrize("budget", [{"macs": 0.3}, {"params": 0.3}, {"ratio": 0.6}])
def test_budgets_hold_and_the_certificate_too(budget: dict[str, float]) -> None:
    result = prune(net(), steps=3, calibration=data(), **budget)  # type: ignore[arg-type]
    assert result.verdict is not None and result.verdict.ok
    for name, share in budget.items():
        if name != "ratio":
            assert getattr(result.after, name) <= share * getattr(result.before, name)
    assert result.plan.options["steps"] == 3


def test_the_plan_is_one_for_the_model_as_it_was_given() -> None:
    model = net()
    made = plan(model, macs=0.4, steps=2, calibration=data())
    again = Plan.from_json(made.to_json())
    smaller = apply(model, again, calibration=data())
    assert predict(analyze(model), made).macs <= 0.4 * predict(analyze(model), Plan((), {})).macs
    result = prune(model, macs=0.4, steps=2, calibration=data())
    assert result.model.proto.SerializeToString(deterministic=True) == smaller.proto.SerializeToString(
        deterministic=True
    )


def test_bad_requests() -> None:
    with pytest.raises(UsageError, match="steps 0 is out of range"):
        plan(net(), ratio=0.5, steps=0)
    with pytest.raises(UsageError, match="how far to go"):
        plan(net(), latency="50%", steps=2)


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plain = ("--criterion", "l2", "--recover", "none")
    model = FOLDER / "digits_resnet.onnx"
    assert run("plan", model, "-o", path, "--macs", "50%", "--steps", "2", *plain).returncode == 0
    assert json.loads(path.read_text())["options"]["steps"] == 2
    assert run("plan", model, "-o", path, "--macs", "50%", "--steps", "0", *plain).returncode == 2
