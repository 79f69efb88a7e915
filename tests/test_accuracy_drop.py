"""Budgets of accuracy: labelled data, what of it layers are fitted on, and the largest cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import PLAIN
from onnx_prune import Model, PlanError, UsageError, analyze, apply, load, measure, plan, prune
from onnx_prune.models.digits import FOLDER, labelled
from onnx_prune.passes.accuracy import Judge, judge_for, largest_cut
from onnx_prune.passes.execute import execute
from onnx_prune.passes.options import Request
from onnx_prune.passes.planner import Planner

RESNET = FOLDER / "digits_resnet.onnx"


def accuracy(model: Model, data: dict[str, Any]) -> float:
    (logits,) = execute(model.proto, {"x": data["x"]}).values()
    return float((logits.argmax(1) == data["labels"]).mean())


# ---------------------------------------------------------------------- the data


@pytest.mark.parametrize(
    ("count", "samples", "fitted", "judged", "apart"),
    [
        (500, 256, 256, 244, True),  # what follows
        (300, 256, 150, 140, True),  # half of all, from the next whole batch on
        (150, 256, 256, 150, False),  # too few to part
    ],
)
def test_accuracy_is_measured_apart_where_there_is_enough(
    count: int, samples: int, fitted: int, judged: int, apart: bool
) -> None:
    data = labelled(count)
    judge, left = judge_for(load(RESNET), data, None, samples)
    assert (left, len(judge.labels), judge.apart) == (fitted, judged, apart)
    rest = {name: value[count - judged :] for name, value in data.items()}
    assert judge.labels.tolist() == rest["labels"].tolist()
    assert judge.accuracy(load(RESNET)) == accuracy(load(RESNET), rest)


def test_labels_come_with_the_data_or_beside_it(tmp_path: Path) -> None:
    data = labelled(300)
    np.savez(tmp_path / "both.npz", **data)
    np.savez(tmp_path / "x.npz", x=data["x"])
    np.save(tmp_path / "y.npy", data["labels"])
    model = load(RESNET)
    found = [
        judge_for(model, str(tmp_path / "both.npz"), None, 100),
        judge_for(model, str(tmp_path / "x.npz"), tmp_path / "y.npy", 100),
        judge_for(model, {"x": data["x"]}, data["labels"], 100),
        judge_for(model, lambda: {**data}, None, 100),
    ]
    assert len({tuple(judge.labels.tolist()) for judge, _ in found}) == 1
    assert {samples for _, samples in found} == {100}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"accuracy_drop": 0.01}, "give --calibration"),
        ({"accuracy_drop": 0.01, "calibration": {"x": labelled(120)["x"]}}, "have no labels"),
        ({"accuracy_drop": -0.01, "calibration": labelled(120)}, "out of range"),
        ({"accuracy_drop": 0.01, "ratio": 0.5, "calibration": labelled(120)}, "ratio"),
        ({"macs": 0.5, "labels": np.arange(120), "calibration": labelled(120)}, "labels are of use"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plan(load(RESNET), **options)


# ---------------------------------------------------------------------- the cut


def test_the_drop_is_kept_and_more_drop_is_a_larger_cut() -> None:
    data, model = labelled(400), load(RESNET)
    rest = {name: value[128:] for name, value in data.items()}
    left = []
    for drop in (0.01, 0.6):
        chosen = plan(model, accuracy_drop=drop, calibration=data, samples=100, **PLAIN)
        smaller, told = apply(model, chosen), chosen.options["accuracy"]
        before, after = accuracy(model, rest), accuracy(smaller, rest)
        assert told == {
            "asked": drop,
            "before": before,
            "after": after,
            "samples": len(rest["x"]),
            "apart": True,
        }
        assert before - after <= drop
        left.append(measure(smaller).macs / measure(model).macs)
    assert left[1] < left[0] < 0.95


def test_prune_gives_the_model_that_was_judged() -> None:
    """Layers are fitted on the first samples, with every cut that is tried."""
    data = labelled(140)
    result = prune(load(RESNET), accuracy_drop=0.05, calibration=data, criterion="l2", samples=32)
    told = result.plan.options["accuracy"]
    assert result.verdict is not None and result.verdict.ok
    rest = {name: value[32:] for name, value in data.items()}
    assert told["after"] == accuracy(result.model, rest) >= told["before"] - 0.05
    assert result.calibration is not None and "32 samples" in result.calibration


class Strict(Judge):
    """Only the dense model is any good."""

    def accuracy(self, model: Model) -> float:
        return float(measure(model).macs == measure(load(RESNET)).macs)


def test_that_every_cut_loses_more_is_said() -> None:
    request = Request.of({"accuracy_drop": 0.1, **PLAIN})
    planner = Planner.of(analyze(load(RESNET)), request)
    with pytest.raises(PlanError, match=r"every cut that was tried loses more than 10.00%"):
        largest_cut(planner, 0.1, Strict(np.zeros(1, np.int64), True, lambda: iter(())), lambda step: None)
