"""The shipped models and the zoo."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx_prune import UsageError, load
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, MODELS, accuracy, load_digits

OPERATORS = {
    "digits_resnet": {"Conv", "BatchNormalization", "Relu", "Add", "Gemm"},
    "digits_mobilenet": {"Conv", "HardSwish", "HardSigmoid", "GlobalAveragePool", "Mul"},
    "digits_vit": {"MatMul", "Softmax", "LayerNormalization", "Erf"},
}


@pytest.mark.parametrize("name", MODELS)
def test_digits_models_are_small_and_right(name: str) -> None:
    path = FOLDER / f"{name}.onnx"
    assert path.stat().st_size < 2_000_000
    model = load(path)
    onnx.checker.check_model(model.proto)
    assert {node.op_type for node in model.proto.graph.node} >= OPERATORS[name]
    run = OnnxRuntimeBackend(2).compile(model.proto).run
    assert accuracy(lambda x: run({"x": x})["logits"], load_digits("test")) >= 0.97


def test_the_split_covers_the_data_once() -> None:
    train, test = load_digits("train"), load_digits("test")
    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.shape[1:] == (1, 8, 8) and train.images.max() == 1.0
    assert np.bincount(test.labels).min() > 40


def test_zoo_loads_the_same_numbers_every_time() -> None:
    assert len(zoo.names()) == 79
    once, again = zoo.load("tv_squeezenet1_1", 3), zoo.load("tv_squeezenet1_1", 3)
    assert once.SerializeToString(deterministic=True) == again.SerializeToString(deterministic=True)
    assert zoo.load("tv_squeezenet1_1", 4) != once


def test_an_unknown_zoo_name_suggests_near_ones() -> None:
    with pytest.raises(UsageError, match="tv_resnet50"):
        zoo.load("tv_resnet5")


def test_strip_and_fill_keep_the_graph() -> None:
    model = zoo.load("x_unet")
    stripped = zoo.strip(zoo.load("x_unet"))
    assert stripped.ByteSize() < model.ByteSize() / 50
    assert zoo.fill(stripped) == model
