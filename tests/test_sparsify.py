"""Zeros by a pattern: where they are, where they cannot be, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import shapes
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Model, PlanError, Sparsified, UsageError, load, open_calibration, sparsify
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute
from recovering import Real
from test_cli import run

RESNET = FOLDER / "digits_resnet.onnx"


def inputs(model: Model, samples: int = 64, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    shape = [d.dim_value or samples for d in model.proto.graph.input[0].type.tensor_type.shape.dim]
    return {model.proto.graph.input[0].name: rng.standard_normal(shape).astype(np.float32)}


def sparse(model: Model, pattern: str, **options: object) -> Sparsified:
    return sparsify(model, pattern, calibration=inputs(model), **options)  # type: ignore[arg-type]


def value(model: Model, name: str) -> NDArray[np.float32]:
    return numpy_helper.to_array(next(t for t in model.proto.graph.initializer if t.name == name))


def test_two_of_four_input_channels_at_every_kernel_position() -> None:
    g = Real()
    x = g("Conv", g.input("N", 8, 6, 6), g.weight(6, 8, 3, 3, name="w"), pads=[1] * 4)
    result = sparse(g.model(g("Relu", x)), "2:4")
    weight = value(result.model, "w")
    kept = (weight.reshape(6, 2, 4, 3, 3) != 0).sum(2)
    assert kept.max() == 2 and result.ratio == 0.5
    assert [str(layer.pattern) for layer in result.layers] == ["2:4"]


@pytest.mark.parametrize("transposed", [False, True])
def test_gemm_counts_along_what_it_reduces_over(transposed: bool) -> None:
    g = Real()
    weight = g.weight(*((6, 8) if transposed else (8, 6)), name="w")
    model = g.model(g("Gemm", g.input("N", 8), weight, g.weight(6), transB=int(transposed)))
    found = value(sparse(model, "2:4").model, "w")
    by_output = found if transposed else found.T
    assert (by_output.reshape(6, 2, 4) != 0).sum(2).max() == 2


def test_a_transposed_constant_is_the_weight_of_a_matrix_product() -> None:
    g = Real()
    weight = g("Transpose", g.weight(6, 8, name="w"), perm=[1, 0])
    model = g.model(g("Add", g("MatMul", g.input("N", 5, 8), weight), g.weight(6)))
    result = sparse(model, "2:4")
    (layer,) = result.layers
    assert (
        layer.shape == (8, 6)
        and (value(result.model, layer.weight).T.reshape(6, 2, 4) != 0).sum(2).max() == 2
    )


def test_zeros_that_cost_nothing_cost_nothing() -> None:
    """Half of the inputs are never there: with them gone the outputs are what they were."""
    g = Real()
    model = g.model(g("Gemm", g.input("N", 8), g.weight(5, 8, name="w"), g.weight(5), transB=1))
    data = inputs(model)
    data["x"][:, ::2] = 0
    result = sparsify(model, "2:4", calibration=data)
    (wanted,), (got,) = (execute(m.proto, data).values() for m in (model, result.model))
    assert result.ratio == 0.5 and np.square(got - wanted).sum() < 1e-2 * np.square(wanted).sum()


def test_a_share_goes_where_it_costs_least() -> None:
    """One layer is of rank one: it can give nearly everything, the other nothing without loss."""
    g = Real()
    x = g("Gemm", g.input("N", 16), g.weight(16, 16, name="full"), g.weight(16), transB=1)
    model = g.model(g("Gemm", g("Relu", x), g.weight(16, 16, name="poor"), g.weight(16), transB=1))
    for tensor in model.proto.graph.initializer:
        if tensor.name == "poor":
            poor = numpy_helper.to_array(tensor) * (np.arange(16) < 2)
            tensor.CopyFrom(numpy_helper.from_array(poor.astype(np.float32), "poor"))
    density = {layer.weight: layer.density for layer in sparse(model, "60%").layers}
    assert density["poor"] < 0.15 < 0.6 < density["full"]
    assert abs(sum(density.values()) / 2 - 0.4) < 0.01


def test_blocks_of_outputs_go_together() -> None:
    g = Real()
    x = g("Conv", g.input("N", 8, 5, 5), g.weight(8, 8, 3, 3, name="w"), g.weight(8), pads=[1] * 4)
    result = sparse(g.model(x), "4x1@75%")
    used = (value(result.model, "w").reshape(2, 4, 8, 3, 3) != 0).any(1)
    assert 0.2 < used.mean() <= 0.25 and abs(result.ratio - 0.75) < 0.02


def test_the_rest_is_fitted_again() -> None:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 8, 6, 6), 8, 16, 3))
    model = g.model(g.conv(x, 16, 6))
    result = sparse(model, "2:4")
    new = inputs(model, seed=1)
    (wanted,) = execute(model.proto, new).values()
    (got,) = execute(result.model.proto, new).values()
    naive = onnx.ModelProto()
    naive.CopyFrom(model.proto)
    for tensor in naive.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.ndim == 4:
            grid = np.abs(weight).reshape(weight.shape[0], -1, 4, *weight.shape[2:])
            kept = np.argsort(np.argsort(-grid, axis=2), axis=2) < 2
            tensor.CopyFrom(numpy_helper.from_array(weight * kept.reshape(weight.shape), tensor.name))
    (plain,) = execute(naive, new).values()
    assert np.square(got - wanted).sum() < 0.7 * np.square(plain - wanted).sum()


def test_what_stays_dense_says_why() -> None:
    g = Real()
    x = g.conv(g.input("N", 3, 6, 6), 3, 8)  # three inputs are less than four
    shared = g.weight(8, 8, 1, 1, name="shared")
    x = g("Conv", g("Relu", g("Conv", x, shared)), shared)
    x = g("Conv", x, g.weight(8, 8, 1, 1, name="kept"))
    result = sparse(g.model(g("Conv", x, g.weight(8, 8, 1, 1, name="thin"))), "2:4", ignore=["kept"])
    reasons = {layer.weight: layer.reason for layer in result.layers}
    assert "needs 4 consecutive inputs" in reasons.pop("w0")
    assert reasons == {"shared": "", "kept": "it is to be ignored", "thin": ""}
    assert (value(result.model, "kept") != 0).all()


def test_layers_that_share_a_weight_share_its_zeros() -> None:
    """By N:M; a ratio is met by other layers. What an addition reads as well stays dense."""
    g = Real()
    w = g.weight(8, 8, name="shared")
    x = g("Relu", g("Gemm", g.input("N", 8), w, transB=1))
    x = g("Relu", g("Gemm", x, w))  # along the other axis
    added = g.weight(8, 8, name="added")
    x = g("Gemm", x, g("Add", added, g.scalar(0.0)))
    model = g.model(g("Gemm", g("Gemm", x, added), g.weight(8, 8, name="own")))
    result = sparse(model, "2:4")
    grid = value(result.model, "shared") != 0
    assert (grid.reshape(8, 2, 4).sum(-1) <= 2).all() and (grid.reshape(2, 4, 8).sum(1) <= 2).all()
    assert (value(result.model, "added") != 0).all()
    reasons = {layer.weight: layer.reason for layer in result.layers}
    assert reasons["shared"] == reasons["own"] == "" and reasons["added"] == "several nodes read it"
    assert (value(sparse(model, "50%").model, "shared") != 0).all()


def test_shapes_and_the_signature_stay() -> None:
    model = load(RESNET)
    images = load_digits("train").images[:32]
    result = sparsify(model, "80%", calibration={"x": images})
    assert result.verdict.ok and abs(result.ratio - 0.8) < 0.01
    assert [o.name for o in result.model.proto.graph.output] == [o.name for o in model.proto.graph.output]
    before, after = ([s for s in shapes(m).values() if len(s) > 1] for m in (model, result.model))
    assert sorted(before) == sorted(after)


def test_the_same_inputs_give_the_same_bytes() -> None:
    g = Real()
    model = g.model(g.conv(g("Relu", g.conv(g.input("N", 8, 5, 5), 8, 8, 3)), 8, 8, 3))
    data = open_calibration(inputs(model), model)
    one, two = (sparsify(model, "4x1@50%", calibration=data).model.proto for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)


def test_bad_requests() -> None:
    g = Real()
    model = g.model(g.conv(g.input("N", 3, 5, 5), 3, 8))
    with pytest.raises(UsageError, match="no sparsity pattern '2/4'"):
        sparse(model, "2/4")
    with pytest.raises(UsageError, match="cannot ignore 'nothing'"):
        sparse(model, "80%", ignore=["nothing"])
    with pytest.raises(PlanError, match=r"no weight can take the pattern 2:4: .*needs 4 consecutive"):
        sparse(model, "2:4")
    with pytest.raises(PlanError, match="cannot go"):
        sparse(model, "99.9%")


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "sparse.onnx"
    np.savez(tmp_path / "few.npz", load_digits("train").images[:16])
    done = run(
        "sparsify",
        RESNET,
        "-o",
        out,
        "--pattern",
        "2:4",
        "--calibration",
        tmp_path / "few.npz",
        "--json",
        "-",
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["pattern"] == "2:4" and told["ratio"] == 0.5 and told["verify"]["ok"] is True
    assert "needs 4 consecutive inputs" in done.stderr and out.exists()
    assert {layer["pattern"] for layer in told["layers"]} == {"2:4", None}


def test_nothing_is_written_for_a_wrong_pattern(tmp_path: Path) -> None:
    done = run("sparsify", RESNET, "-o", tmp_path / "x.onnx", "--pattern", "4:2")
    assert done.returncode == 2 and not (tmp_path / "x.onnx").exists()
