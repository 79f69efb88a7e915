"""Every graph of the zoo, and the trained models, at ratio 0.5 without settings."""

from __future__ import annotations

import pytest
from graphs import PLAIN
from onnx_prune import Model, load, prune
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, MODELS

# Least fraction of parameters that must go.
REMOVED = {
    "tv_resnet50": 0.70,
    "tv_mobilenet_v2": 0.62,
    "hf_bert": 0.70,
    "timm_vit_tiny_patch16_224": 0.70,
    "tv_densenet121": 0.70,
    "x_unet": 0.70,
}


def check(model: Model, least: float) -> None:
    result = prune(model, ratio=0.5, **PLAIN)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    assert result.model.proto.graph.output == model.proto.graph.output
    assert 1 - result.after.params / result.before.params >= least
    assert result.after.macs < result.before.macs or not result.before.macs
    # What the analysis predicts for budgets is what the smaller model has.
    chosen = {entry.group for entry in result.plan.entries}
    assert chosen <= {group.id for group in result.analysis.groups}


@pytest.mark.parametrize("name", zoo.names())
def test_zoo_graph(name: str) -> None:
    check(Model(zoo.load(name)), REMOVED.get(name, 0.1))


@pytest.mark.parametrize("name", MODELS)
def test_trained_model(name: str) -> None:
    check(load(FOLDER / f"{name}.onnx"), 0.7)
