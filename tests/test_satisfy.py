"""The nearest model that satisfies profiles: what changes, and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from graphs import Graph
from onnx import numpy_helper
from onnx_prune import Model, all_profiles, load, satisfy, sparsify, validate
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute
from plugging import command

# About numbers of channels; all others are about zeros.
ALIGNED = {"axis-artpec", "axis-artpec-8", "qualcomm-htp", "ti-npu"}
SPARSE = sorted(set(all_profiles()) - ALIGNED)
# No change of a weight makes a layer larger.
SIZES = {"large-enough", "features"}


def value(model: Model, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in model.proto.graph.initializer if t.name == name)


def missed(result) -> list[str]:  # type: ignore[no-untyped-def]
    return [
        f"{f.rule.id}: {f.weight.name}: {f.shortfall.text}"
        for f in result.findings
        if f.shortfall is not None and f.rule.id not in SIZES
    ]


def test_the_smallest_weights_of_crowded_groups_go() -> None:
    g = Graph()
    before = np.array([[4, 1, -2, 3, 0, 0, 9, 9], [1, 0, 0, 1, 5, -6, 7, -8]], np.float32)
    g.weights.append(numpy_helper.from_array(before, "w"))
    result = satisfy(g.model(g("Gemm", g.input(2, 8), "w", transB=1)), ["nvidia-2:4"])
    after = [[4, 0, 0, 3, 0, 0, 9, 9], [1, 0, 0, 1, 0, 0, 7, -8]]
    assert value(result.model, "w").tolist() == after and result.zeroed == {"w": 4}
    assert result.after.ok and not result.before.ok and not result.aligned


def test_what_satisfies_already_is_left_as_it_is() -> None:
    model = satisfy(load(FOLDER / "digits_vit.onnx"), ["nvidia-2:4"]).model
    again = satisfy(model, ["nvidia-2:4"])
    assert again.model.proto.SerializeToString() == model.proto.SerializeToString() and not again.zeroed


def test_zeros_are_written_where_they_are_stored() -> None:
    """Behind a transpose, quantised with a zero point that is not 0: the zero point is what a zero is."""
    rng = np.random.default_rng(0)
    g = Graph()
    stored = rng.integers(10, 60, (8, 12)).astype(np.uint8)
    g.weights.append(numpy_helper.from_array(stored, "w"))
    g.weights.append(numpy_helper.from_array(np.float32(0.25), "scale"))
    g.weights.append(numpy_helper.from_array(np.uint8(3), "zero"))
    w = g("Transpose", g("DequantizeLinear", "w", "scale", "zero"), perm=[1, 0])
    model = g.model(g("Gemm", g.input(2, 12), w))
    result = satisfy(model, ["ethos-u"])
    after = value(result.model, "w")
    assert result.after.ok and after.dtype == np.uint8 and set(after[after != stored]) == {3}
    assert ((after.reshape(8, 3, 4) != 3).sum(-1) == 2).all()
    assert result.zeroed == {"w": 48}


def test_a_weight_that_two_nodes_read_along_different_axes() -> None:
    g = Graph()
    w = g.weight(8, 8, name="w")
    h = g("MatMul", g.input(2, 8), w)
    y = g("MatMul", h, g("Transpose", w, perm=[1, 0]))
    result = satisfy(g.model(y), ["nvidia-2:4"])
    grid = value(result.model, "w") != 0
    assert result.after.ok
    assert (grid.reshape(8, 2, 4).sum(-1) <= 2).all() and (grid.reshape(2, 4, 8).sum(1) <= 2).all()


def test_a_cluster_gets_what_is_missing_where_it_costs_least() -> None:
    g = Graph()
    h = g("Relu", g("Conv", g.input(1, 3, 8, 8), g.weight(8, 3, 3, 3), strides=[2, 2], pads=[1] * 4))
    small = np.random.default_rng(0).integers(1, 3, (8, 8, 1, 1)).astype(np.float32)
    small[:, :4] = 50
    g.weights.append(numpy_helper.from_array(small, "first"))
    g.weights.append(numpy_helper.from_array(np.ones((8, 8, 1, 1), np.float32), "second"))
    h = g("Relu", g("Conv", h, "first"))
    model = g.model(g("GlobalAveragePool", g("Conv", h, "second")))
    result = satisfy(model, ["xnnpack"])
    assert not validate(model, ["xnnpack"]).ok and result.after.ok
    assert sum(result.zeroed.values()) == 86  # the first number of 128 above two thirds
    assert (value(result.model, "first")[:, :4] == 50).all()


@pytest.mark.parametrize(
    "name", ["hf_gpt2_tied", "timm_efficientvit_m0", "tv_shufflenet_v2_x0_5", "x_lstm_gru"]
)
def test_graphs_of_the_zoo_satisfy_all_sparse_profiles(name: str) -> None:
    """make profiles does so for all graphs and each profile."""
    model = Model(zoo.load(name))
    result = satisfy(model, SPARSE)
    assert not missed(result.after)
    shapes = [(t.name, list(t.dims)) for t in model.proto.graph.initializer]
    assert [(t.name, list(t.dims)) for t in result.model.proto.graph.initializer] == shapes


def test_fitting_loses_less_than_taking_the_smallest() -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    plain = satisfy(model, ["nvidia-2:4"])
    fitted = satisfy(model, ["nvidia-2:4"], calibration="onnx_prune.models.digits:unlabelled", samples=128)
    assert plain.after.ok and fitted.after.ok and fitted.refits and not plain.refits
    data = {model.proto.graph.input[0].name: load_digits("test").images[:100]}
    (dense,) = execute(model.proto, data).values()
    errors = [
        float(np.square(next(iter(execute(one.model.proto, data).values())) - dense).sum())
        for one in (plain, fitted)
    ]
    assert errors[1] < errors[0] / 2


def test_what_sparsify_makes_is_what_runtimes_take() -> None:
    """Every weight that the rule is about satisfies it, in all layers that were not left dense."""
    sparse = sparsify(load(FOLDER / "digits_vit.onnx"), "2:4", samples=16)
    left = {layer.weight for layer in sparse.layers if layer.pattern is None}
    found = validate(sparse.model, ["nvidia-2:4"]).findings
    eligible = [finding for finding in found if finding.eligible and finding.rule.id == "two-of-four"]
    assert eligible and all(f.satisfied or f.weight.name in left for f in eligible)


def test_the_command_writes_the_model_and_says_what_it_did(tmp_path: Path) -> None:
    made = tmp_path / "fixed.onnx"
    source = (
        FOLDER / "digits_mlp.onnx" if (FOLDER / "digits_mlp.onnx").exists() else FOLDER / "digits_vit.onnx"
    )
    line = ["validate", source, "--profile", "nvidia-2:4", "--fix", "-o", made, "--json", "-"]
    done = command(*line, site=tmp_path)
    data = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert data["ok"] and data["fix"]["missed_before"] > 0 and data["fix"]["zeroed"]
    assert validate(made, ["nvidia-2:4"]).ok
