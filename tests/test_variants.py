"""Models as other tools write them prune like the models they were made from, at ratio 0.5."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import PLAIN
from onnx_prune import Model, load, prune
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.passes.execute import random_inputs
from variants import VARIANTS, net, weights
from wrapping import FLAG

SHARE = 0.8  # of the fraction of parameters that the untransformed net loses

CASES = [(variant, name) for variant, made in VARIANTS.items() for name in made.nets]


def removed(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    return 1 - weights(after) / weights(before)


@functools.cache
def plain(name: str) -> float:
    """The fraction that goes from a net as it is."""
    proto = net(name.split(".")[0])
    return removed(proto, prune(Model(proto), ratio=0.5, check=False, **PLAIN).model.proto)


@pytest.mark.parametrize(("variant", "name"), CASES, ids=lambda value: value.replace(" ", "-"))
def test_a_variant_prunes_like_its_net(variant: str, name: str, tmp_path: Path) -> None:
    made = VARIANTS[variant]
    onnx.save(made.make(net(name)), tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx")
    result = prune(model, ratio=0.5, **PLAIN)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    smaller = result.model.proto
    if made.runs:
        assert_runs(model.proto, smaller)
    assert removed(model.proto, smaller) >= SHARE * plain(name)


def assert_runs(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """In ONNX Runtime as people use it, with its optimisations; whatever the branch that is chosen."""
    inputs = random_inputs(before)
    wanted = OnnxRuntimeBackend().compile(before).run(inputs)
    artifact = OnnxRuntimeBackend().compile(after)
    got = artifact.run(inputs)
    assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in wanted.items()}
    if FLAG in inputs:
        other = artifact.run({**inputs, FLAG: np.array(False)})
        assert all(np.array_equal(value, other[k]) for k, value in got.items())
