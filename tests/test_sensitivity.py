"""Sensitivity: what is measured is what happens, wherever it is measured, and budgets follow it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import PLAIN
from onnx import numpy_helper
from onnx_prune import (
    Model,
    ModelError,
    PlanError,
    Sensitivity,
    UsageError,
    analyze,
    load_sensitivity,
    measure,
    plan,
    predict,
    prune,
    sensitivity,
)
from onnx_prune.analysis.criteria import L2, Setting
from onnx_prune.analysis.report import heat
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute
from recovering import Real
from test_cli import RESNET, assert_one_line, run

ONE_PROCESS: dict[str, Any] = {"jobs": 1}
RATIOS = (0.25, 0.5, 0.75)


def weight(model: Model, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == name))


def changed(model: Model, **values: np.ndarray) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    return Model(proto)


def net() -> Model:
    """Two hidden layers of eight units, whose weights are w0, w2 and w4."""
    g = Real(seed=1)
    x = g.input("n", 6)
    for inner, outer in ((6, 8), (8, 8)):
        x = g("Relu", g("Gemm", x, g.weight(inner, outer), g.weight(outer)))
    return g.model(g("Gemm", x, g.weight(8, 3), g.weight(3)))


def inputs(samples: int = 64, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((samples, 6)).astype(np.float32)


def relative(wanted: np.ndarray, got: np.ndarray, batch: int = 32) -> float:
    """The error of an output by definition: each sample is compared with the one before it in its batch."""
    apart = 0.0
    for part in np.split(wanted.astype(np.float64), range(batch, len(wanted), batch)):
        apart += np.square(part - np.roll(part, 1, axis=0)).sum() / 2
    return float(np.square(got.astype(np.float64) - wanted).sum() / apart)


def measured(model: Model, **options: Any) -> Sensitivity:
    return sensitivity(model, **({"calibration": inputs_of(model), "ratios": RATIOS} | ONE_PROCESS | options))


def inputs_of(model: Model) -> dict[str, np.ndarray]:
    return {model.proto.graph.input[0].name: inputs()}


# ------------------------------------------------------------------ what is measured


def test_the_error_of_a_removed_channel_is_that_of_a_direct_computation() -> None:
    model = net()
    found = measured(model, ratios=(1 / 8,), **PLAIN)
    curve = found.curves[0]
    assert curve.groups == ("w0:1",) and curve.removed == (0, 1)
    # The unit with the smallest squares of all weights that make or read it goes.
    w0, b0, w2 = (weight(model, name) for name in ("w0", "w1", "w2"))
    gone = int(np.argmin(np.square(w0).sum(0) + np.square(b0) + np.square(w2).sum(1)))
    w2 = w2.copy()
    w2[gone] = 0
    x = {model.proto.graph.input[0].name: inputs()}
    wanted, got = (execute(m.proto, x) for m in (model, changed(model, w2=w2)))
    (output,) = wanted
    assert curve.measured[1] == pytest.approx(relative(wanted[output], got[output]), rel=1e-4)


def test_the_error_after_fitting_is_that_of_the_best_reader() -> None:
    """With many more samples than units, the fitted reader is the least-squares one."""
    model = net()
    x = inputs(512)
    found = measured(model, ratios=(0.5,), calibration={"x": x}, samples=512)
    plain = measured(model, ratios=(0.5,), calibration={"x": x}, samples=512, criterion="obs", recover="none")
    curve, before = found.curves[1], plain.curves[1]
    assert curve.groups == ("w2:1",)
    w0, b0, w2, b2, w4, b4 = (weight(model, f"w{k}") for k in range(6))
    hidden = np.maximum(np.maximum(x @ w0 + b0, 0) @ w2 + b2, 0)
    wanted = hidden @ w4 + b4
    kept = plan(model, ratio=0.5, calibration={"x": x}, samples=512)
    units = next(entry.keep for entry in kept.entries if entry.group == "w2:1")
    features = np.hstack([hidden[:, list(units)], np.ones((len(x), 1))])
    best = features @ np.linalg.lstsq(features, wanted, rcond=None)[0]
    least = relative(wanted, best)
    assert least * 0.999 <= curve.measured[1] <= least * 1.2
    assert curve.measured[1] < 0.5 * before.measured[1]


def test_curves_start_at_nothing_and_rise() -> None:
    for curve in measured(net()).curves:
        assert curve.removed == (0, 2, 4, 6)
        assert curve.measured[0] == 0 and curve.predicted[0] == 0
        assert list(curve.measured) == sorted(curve.measured)
        assert curve.measured[-1] > 1e-3


def test_a_group_that_does_not_matter_has_no_error() -> None:
    g = Real(seed=2)
    x = g.input("n", 6)
    branches = [g("MatMul", g("Relu", g("MatMul", x, g.weight(6, 8))), g.weight(8, 3)) for _ in range(2)]
    model = g.model(g("Add", *branches))
    model = changed(model, w1=weight(model, "w1") * 0)  # what the first branch makes is not read
    for options in (PLAIN, {}):
        idle, busy = measured(model, **options).curves
        assert idle.groups == ("w0:1",) and busy.groups == ("w2:1",)
        assert max(idle.measured) < 1e-9 < 1e-3 < busy.measured[-1]


def test_only_what_reads_a_group_is_fitted() -> None:
    """Else the second layer would make up for what the first could not."""
    from onnx_prune.passes import sensitivity as module

    refits: list[tuple[str, ...]] = []
    refit = module.refit

    def noted(*args: Any, **options: Any) -> Any:
        result = refit(*args, **options)
        refits.append(tuple(each.node for each in result[1]))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "refit", noted)
        measured(net(), ratios=(0.5,))
    assert refits == [("Gemm 'Gemm_2'",), ("Gemm 'Gemm_4'",)]


def test_groups_that_shrink_together_are_one_curve() -> None:
    g = Real(seed=3)
    h = g.conv(g("Relu", g.conv(g.input("n", 3, 4, 4), 3, 16)), 16, 8, 3, group=2)
    model = g.model(g.conv(g("Relu", h), 8, 2))
    data = {"x": np.random.default_rng(0).standard_normal((16, 3, 4, 4)).astype(np.float32)}
    found = measured(model, calibration=data)
    together = [curve for curve in found.curves if len(curve.groups) > 1]
    assert together and sum(len(curve.groups) for curve in found.curves) == len(analyze(model).groups)
    for curve in together:
        assert all(n % len(curve.groups) == 0 for n in curve.removed)


def test_rounding_that_removes_nothing_is_no_error() -> None:
    curve = measured(net(), ratios=(0.05, 0.1, 0.5)).curves[0]
    assert curve.removed == (0, 0, 0, 4)
    assert curve.measured[:3] == (0, 0, 0) and curve.measured[3] > 0


def test_accuracy_is_measured_with_labels(tmp_path: Path) -> None:
    model = net()
    x = inputs()
    (logits,) = execute(model.proto, {"x": x}).values()
    labels = logits.argmax(1)
    labels[:16] = (labels[:16] + 1) % 3
    np.save(tmp_path / "labels.npy", labels)
    found = measured(model, labels=labels)
    assert found.accuracy == 0.75
    assert all(curve.accuracy is not None and curve.accuracy[0] == 0.75 for curve in found.curves)
    assert min(min(curve.accuracy or ()) for curve in found.curves) < 0.75
    assert measured(model, labels=tmp_path / "labels.npy") == found
    inside = {"x": x, "labels": labels}
    assert measured(model, calibration=inside).accuracy == 0.75
    assert measured(model).accuracy is None and measured(model).curves[0].accuracy is None


def test_synthetic_inputs_do_without_data() -> None:
    found = sensitivity(net(), ratios=(0.5,), samples=32, **ONE_PROCESS)
    assert (found.criterion, found.recover) == ("obs", "least-squares")
    assert found.curves[0].measured[1] > 0


# ------------------------------------------------------------------ what is made of it


def test_curves_survive_json() -> None:
    found = measured(net(), labels=np.zeros(64, np.int64))
    assert Sensitivity.from_json(found.to_json()) == found
    assert Sensitivity.from_json(found.to_json()).digest == found.digest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "onnx-prune sensitivity", "version": 99}',
        '{"format": "onnx-prune sensitivity", "version": 1}',
    ],
)
def test_what_are_no_curves_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="sensitivity file"):
        Sensitivity.from_json(text)


@pytest.mark.parametrize(
    "change",
    [
        {"measured": [0.0]},
        {"measured": [0.0, float("nan"), 0.1, 0.1]},
        {"removed": [0, 4, 2, 6]},
        {"removed": [0, 2, 4, 600]},
        {"removed": [1, 2, 4, 6]},
        {"groups": []},
    ],
)
def test_edited_curves_that_are_none_are_refused(change: dict[str, Any]) -> None:
    data = json.loads(measured(net(), **PLAIN).to_json())
    data["curves"][0].update(change)
    with pytest.raises(PlanError, match="malformed"):
        Sensitivity.from_json(json.dumps(data))


def costly(found: Sensitivity, group: str) -> Sensitivity:
    """The same curves, but one group costs a hundred times as much."""
    return replace(
        found,
        curves=tuple(
            replace(curve, measured=tuple(100 * e for e in curve.measured))
            if group in curve.groups
            else curve
            for curve in found.curves
        ),
    )


def test_budgets_follow_the_curves() -> None:
    model, data = net(), {"x": inputs()}
    found = measured(model)
    whole = measure(model).macs
    left = {}
    for group in ("w0:1", "w2:1"):
        chosen = plan(model, macs=0.5, calibration=data, sensitivity=costly(found, group))
        assert predict(analyze(model), chosen).macs <= 0.5 * whole
        kept = {entry.group: len(entry.keep) for entry in chosen.entries}
        left[group] = kept.get(group, 8)
        assert chosen.options["sensitivity"] == costly(found, group).digest
    other = {"w0:1": "w2:1", "w2:1": "w0:1"}
    for group, count in left.items():
        chosen = plan(model, macs=0.5, calibration=data, sensitivity=costly(found, other[group]))
        kept = {entry.group: len(entry.keep) for entry in chosen.entries}
        assert count > kept.get(group, 8)


def test_the_ranking_holds_the_measured_errors() -> None:
    model = net()
    analysis, found = analyze(model), measured(model)
    ranking = found.ranking(analysis, L2.rank(Setting(analysis)))
    for group, curve in zip(analysis.groups, found.curves, strict=True):
        errors = ranking.errors[group.axis]
        assert errors.shape == (9,) and (np.diff(errors) >= 0).all()
        assert errors[list(curve.removed)] == pytest.approx(curve.measured)


def test_prune_takes_a_file_and_keeps_the_budget(tmp_path: Path) -> None:
    model, path = net(), tmp_path / "curves.json"
    path.write_text(measured(model).to_json())
    assert load_sensitivity(path) == measured(model)
    result = prune(model, macs=0.5, calibration={"x": inputs()}, sensitivity=path)
    assert result.after.macs <= 0.5 * result.before.macs
    assert result.verdict is not None and result.verdict.ok


def test_curves_of_another_model_or_criterion_are_refused() -> None:
    model, data = net(), {"x": inputs()}
    found = measured(model)
    other = changed(model, w4=weight(model, "w4") * 2)
    with pytest.raises(PlanError, match="another model"):
        plan(other, macs=0.5, calibration=data, sensitivity=found)
    with pytest.raises(PlanError, match="--criterion obs, not l2"):
        plan(model, macs=0.5, sensitivity=found, **PLAIN)
    with pytest.raises(PlanError, match=r"w2:1.*not measured"):
        plan(model, macs=0.5, calibration=data, sensitivity=replace(found, curves=found.curves[:1]))
    with pytest.raises(UsageError, match="budgets"):
        plan(model, ratio=0.5, calibration=data, sensitivity=found)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ratios": (0.5, 1.0)}, "1.0"),
        ({"ratios": ()}, "no ratios"),
        ({"criterion": "magic"}, "magic"),
        ({"recover": "magic"}, "magic"),
        ({"labels": np.zeros(3, np.int64)}, "3, for 64 samples"),
        ({"labels": np.zeros(64)}, "one integer a sample"),
        ({"labels": "missing.npy"}, "missing.npy"),
        ({"labels": "no.such.module:function"}, "no.such.module"),
        ({"jobs": 0}, "jobs 0"),
        ({"jobs": 2, "cluster": "tcp://127.0.0.1:1"}, "not both"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        measured(net(), **options)


def test_a_model_without_groups_is_refused() -> None:
    g = Real()
    with pytest.raises(PlanError, match="no group"):
        measured(g.model(g("Gemm", g.input("n", 6), g.weight(6, 3), g.weight(3))))


def test_outputs_that_never_differ_are_refused() -> None:
    model = changed(net(), w4=np.zeros((8, 3)))
    with pytest.raises(ModelError, match="same for every sample"):
        measured(model, **PLAIN)


# ------------------------------------------------------------------ what people see


def test_the_picture_shows_every_group() -> None:
    found = measured(net(), labels=np.zeros(64, np.int64))
    markup = replace(found, curves=(replace(found.curves[0], groups=("<b>&",)), *found.curves[1:]))
    text = heat.svg(markup, "a & b")
    assert "&lt;b&gt;&amp;" in text and "a &amp; b" in text and "<b>" not in text
    assert text.count("<rect") == 1 + 2 * (2 * len(RATIOS) + 1)  # paper, then cells and a legend twice
    assert text == heat.svg(markup, "a & b")
    assert text in heat.page(markup, "a & b")


def test_the_darker_the_worse() -> None:
    cells = heat.draw(measured(net(), **PLAIN), "net").panels[0].rows[0]
    light = [sum(int(cell.fill[i : i + 2], 16) for i in (1, 3, 5)) for cell in cells]
    assert light == sorted(light, reverse=True) and light[0] > light[-1]


def test_the_command_measures_draws_and_feeds_the_plan(tmp_path: Path) -> None:
    images, labels = tmp_path / "images.npz", tmp_path / "labels.npy"
    digits = load_digits("train")
    np.savez(images, x=digits.images[:48])
    np.save(labels, digits.labels[:48])
    curves, picture, chosen = (tmp_path / name for name in ("curves.json", "picture.svg", "plan.json"))
    data = ("--calibration", images)
    options = (*data, "--ratios", "0.3,0.8", "--labels", labels, "--jobs", "2", "--plot", picture)
    done = run("sensitivity", RESNET, *options, "--json", curves)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "accuracy" in done.stderr and "0.weight:0" in done.stderr
    found = load_sensitivity(curves)
    assert found.ratios == (0, 0.3, 0.8) and found.accuracy is not None
    assert picture.read_text().startswith("<svg")
    budget = ("--macs", "50%", "--sensitivity", curves)
    done = run("plan", RESNET, "-o", chosen, *budget, *data, "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["macs"]["after"] <= 0.5 * told["macs"]["before"]
    assert told["plan"]["options"]["sensitivity"] == found.digest
    other = FOLDER / "digits_vit.onnx"
    done = run("plan", other, "-o", chosen, *budget, *data)
    assert done.returncode == 1 and "another model" in done.stderr
    assert_one_line(done)


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--plot", "picture.bmp"], 2, ".svg or .html"),
        (["--ratios", "half"], 2, "half"),
        (["--ratios", "0.5,1.5"], 2, "1.5"),
        (["--criterion", "magic"], 2, "magic"),
        (["--json", "none/curves.json"], 1, "no folder"),
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], status: int, told: str) -> None:
    done = run("sensitivity", RESNET, *arguments)
    assert done.returncode == status and told in done.stderr, done.stderr
    assert_one_line(done)


def test_help_has_an_example() -> None:
    done = run("sensitivity", "--help")
    assert done.returncode == 0 and "Example" in done.stdout
