"""Fitting what stays, so that a pruned model computes what the dense one did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Graph
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Entry, Model, Plan, analyze, load, open_calibration, verify
from onnx_prune.analysis.graph import array_of
from onnx_prune.analysis.selection import Selection
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.pipeline import refitted, shrunk
from onnx_prune.passes.recover import recover
from recovering import EXACT, OPTIONS, Real, _direct, assert_recovers, error, inputs_of, keeping, recovered
from wrapping import in_if, in_loop

Array = NDArray[Any]

# ---------------------------------------------------------------------- chains, exactly


def test_a_chain_of_convolutions() -> None:
    g = Real()
    x = g("Conv", g.input("N", 3, 6, 6), g.weight(8, 3, 1, 1))
    x = g("Conv", x, g.weight(9, 8, 3, 3), strides=[2, 2], pads=[1] * 4)
    out = g.conv(x, 9, 4)
    (refit,) = assert_recovers(g.model(out), {8: 3}).refits
    assert refit.after < EXACT < refit.before


def test_constant_channels_go_into_the_bias() -> None:
    g = Real()
    x = g.conv(g.input("N", 3, 5, 5), 3, 8)
    assert_recovers(g.model(g.conv(x, 8, 5)), {8: 4})


def test_a_bias_is_made_where_there_was_none() -> None:
    g = Real()
    x = g.conv(g.input("N", 3, 5, 5), 3, 8)
    model = g.model(g("Conv", x, g.weight(5, 8, 1, 1)))
    result = assert_recovers(model, {8: 3})
    assert len(result.model.proto.graph.node[-1].input) == 3


def test_gemm() -> None:
    g = Real()
    x = g("Gemm", g.input("N", 4), g.weight(12, 4), g.weight(12), transB=1, alpha=0.5, beta=2.0)
    x = g("Gemm", x, g.weight(9, 12), g.weight(9), transB=1, alpha=2.0, beta=0.5)
    assert_recovers(g.model(g("Gemm", x, g.weight(9, 6))), {12: 7, 9: 7}, batch=64)


def test_later_layers_know_of_a_bias_that_was_made() -> None:
    g = Real()
    x = g.conv(g.input("N", 3, 5, 5), 3, 8)
    x = g("Conv", x, g.weight(5, 8, 1, 1))
    result = recovered(g.model(g("Sigmoid", g("Conv", g("Tanh", x), g.weight(4, 5, 1, 1)))), {8: 4})
    assert result.before > 1e-2
    assert result.after < EXACT


def test_batch_normalization_folded_and_not() -> None:
    g = Real()
    x = g("Conv", g.input("N", 3, 5, 5), g.weight(8, 3, 1, 1))
    x = g.norm(x, 8)  # goes into the convolution
    x = g("Conv", x, g.weight(9, 8, 1, 1))
    y = g.norm(x, 9)  # stays, since the convolution is read as it is as well
    ends = [g("Conv", z, g.weight(5, 9, 1, 1)) for z in (x, y)]
    result = assert_recovers(g.model(g("Add", *ends)), {8: 4, 9: 5})
    assert [n.op_type for n in result.model.proto.graph.node].count("BatchNormalization") == 1


def test_a_batch_normalization_of_something_fitted_badly_is_fitted_itself() -> None:
    """Nothing before it can be fitted: a Sigmoid of fewer channels, averaged, has another spread."""
    g = Real()
    x = g("Sigmoid", g.conv(g.input("N", 3, 5, 5), 3, 16))
    x = g("Conv", x, g.weight(4, 16, 3, 3), pads=[1] * 4)
    y = g("Relu", g.norm(x, 4))
    out = g("Add", y, g("Tanh", x))
    result = recovered(g.model(out), {16: 6})
    assert result.after < 0.5 * result.before
    assert any("BatchNormalization" in refit.node for refit in result.refits)


def test_grouped_convolution() -> None:
    g = Real()
    x = g("Conv", g.input("N", 2, 6, 6), g.weight(8, 2, 1, 1))
    x = g("Conv", x, g.weight(6, 4, 3, 3), g.weight(6), group=2, pads=[1] * 4)
    assert_recovers(g.model(x), {4: 2})


def test_depthwise_convolution_between_dependent_channels() -> None:
    g = Real()
    x = g("Conv", g.input("N", 3, 6, 6), g.weight(8, 3, 1, 1))
    kernel = np.repeat(g.rng.standard_normal((1, 1, 3, 3)), 8, axis=0).astype(np.float32)
    g.weights.append(numpy_helper.from_array(kernel, "same"))
    x = g("Conv", x, "same", g.weight(8), group=8, pads=[1] * 4)
    result = assert_recovers(g.model(g.conv(x, 8, 5)), {8: 4})
    assert next(a.i for a in result.model.proto.graph.node[1].attribute if a.name == "group") == 4


def test_a_depthwise_convolution_makes_up_for_what_it_reads() -> None:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 6, 6), 3, 24))
    x = g.conv(x, 24, 6)
    out = g("Conv", x, g.weight(6, 1, 3, 3), g.weight(6), group=6, pads=[1] * 4)
    result = recovered(g.model(out), {24: 8})
    assert result.after < 0.5 * result.before
    assert any(refit.node == "Conv 'Conv_3'" for refit in result.refits)


def test_transposed_convolution() -> None:
    g = Real()
    x = g("Conv", g.input("N", 3, 5, 5), g.weight(8, 3, 1, 1))
    x = g("ConvTranspose", x, g.weight(8, 7, 3, 3), strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])
    out = g("ConvTranspose", x, g.weight(7, 4, 2, 2), g.weight(4), strides=[2, 2])
    assert_recovers(g.model(out), {8: 3})


def test_residual_additions() -> None:
    g = Real()
    x = g("Conv", g.input("N", 3, 5, 5), g.weight(6, 3, 1, 1))
    for width in (8, 9):
        branch = g("Conv", x, g.weight(width, 6, 1, 1))
        x = g("Add", x, g("Conv", branch, g.weight(6, width, 3, 3), pads=[1] * 4))
    # Everything after the first 1×1 convolution has rank three, and the 3×3 of the first block more.
    result = assert_recovers(g.model(g.conv(x, 6, 5)), {8: 6, 9: 8})
    assert result.before > 0.1


def test_a_branch_makes_up_for_what_its_skip_path_lost() -> None:
    """The skip path ends in a Relu nothing can be fitted in; the branch is fitted to the sum."""

    def model(added: bool) -> Model:
        g = Real()
        x = g.input("N", 3, 5, 5)
        skip = g("Relu", g("Conv", g("Tanh", g.conv(x, 3, 20)), g.weight(4, 20, 1, 1)))
        wide = g("Relu", g.conv(x, 3, 30))
        branch = g.conv(wide, 30, 4)
        return g.model(g("Add", branch, skip)) if added else g.model(branch, skip)

    together, apart = (recovered(model(added), {20: 5}) for added in (True, False))
    assert len(together.refits) > len(apart.refits)
    assert together.after < 0.8 * together.before


def test_matmul_and_a_bias_added() -> None:
    g = Real()
    x = g.input("N", 4, 5)
    x = g("Add", g("MatMul", x, g.weight(5, 12)), g.weight(12))
    x = g("Add", g.weight(9), g("MatMul", x, g.weight(12, 9)))
    x = g("Add", g("MatMul", x, g.weight(9, 7)), g.weight(7))
    assert_recovers(g.model(x), {12: 6, 9: 6}, batch=64)


def test_a_matrix_on_the_left() -> None:
    g = Real()
    x = g("MatMul", g.weight(12, 5), g.input("N", 5, 4))
    x = g("MatMul", g.weight(9, 12), x)
    assert_recovers(g.model(x), {12: 5}, batch=64)


def test_layer_normalization_around_a_chain() -> None:
    g = Real()
    x = g("LayerNormalization", g.input("N", 4, 5), g.positive(5), g.weight(5))
    x = g("Add", g("MatMul", x, g.weight(5, 12)), g.weight(12))
    x = g("Add", g("MatMul", x, g.weight(12, 6)), g.weight(6))
    x = g("LayerNormalization", x, g.positive(6), g.weight(6))
    result = assert_recovers(g.model(g("MatMul", x, g.weight(6, 3))), {12: 6}, batch=64)
    # What was exact again is left as it is.
    assert all("LayerNormalization" not in refit.node for refit in result.refits)


def test_layer_normalization_of_fewer_channels_is_fitted() -> None:
    g = Real()
    x = g("MatMul", g.input("N", 6, 5), g.weight(5, 16))
    x = g("LayerNormalization", x, g.positive(16), g.weight(16))
    result = recovered(g.model(g("MatMul", x, g.weight(16, 3))), {16: 8}, batch=64)
    assert result.after < 0.3 * result.before
    assert any("LayerNormalization" in refit.node for refit in result.refits)


def test_weights_of_16_bits() -> None:
    g = Real()
    x = g.conv(g.input("N", 3, 5, 5), 3, 8)
    x = g.norm(x, 8)
    x = g("Conv", x, g.weight(5, 8, 3, 3), pads=[1] * 4)
    proto = g.model(g.conv(x, 5, 4)).proto
    for tensor in proto.graph.initializer:
        half = array_of(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    result = recovered(Model(proto), {8: 4})
    assert result.after < 1e-2 * result.before
    assert {t.data_type for t in result.model.proto.graph.initializer} == {TensorProto.FLOAT16}


def two_convolutions(batch: int | str = "N") -> Model:
    g = Real()
    x = g.conv(g.input(batch, 3, 6, 6), 3, 8)
    return g.model(g.conv(x, 8, 5))


@pytest.mark.parametrize("batch", [1, 8])
def test_models_of_a_fixed_batch(batch: int) -> None:
    assert_recovers(two_convolutions(batch), {8: 4}, batches=64 // batch, batch=batch)


def test_a_last_batch_that_is_not_full() -> None:
    model = two_convolutions()
    chosen = keeping(model, {8: 4})
    inputs = inputs_of(model, 0, 37)
    fitted, _ = refitted(model, shrunk(model, chosen), chosen, open_calibration(inputs, model, batch=8))
    assert error(model, fitted, inputs_of(model, 5)) < EXACT


def test_the_same_call_gives_the_same_bytes() -> None:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 24, 24), 3, 16))  # more rows than are drawn
    x = g("Relu", g.conv(x, 16, 8, kernel=3))
    model = g.model(g.conv(x, 8, 4))
    first, second = (recovered(model, {16: 5}, batches=2, batch=40) for _ in range(2))
    assert first.refits == second.refits
    a, b = (r.model.proto.SerializeToString(deterministic=True) for r in (first, second))
    assert a == b


# ---------------------------------------------------------------------- what is told


def _by_convolution(g: Real, x: str) -> str:
    return g.conv(x, 16, 4, kernel=3)


def _by_convolution_without_bias(g: Real, x: str) -> str:
    name: str = g("Conv", x, g.weight(4, 16, 3, 3), strides=[2, 1])
    return name


def _by_grouped_convolution(g: Real, x: str) -> str:
    name: str = g("Conv", g.conv(x, 16, 6), g.weight(4, 3, 3, 3), g.weight(4), group=2)
    return name


def _by_depthwise_convolution(g: Real, x: str) -> str:
    name: str = g("Conv", g.conv(x, 16, 4), g.weight(4, 1, 3, 3), g.weight(4), group=4)
    return name


def _by_transposed_convolution(g: Real, x: str) -> str:
    name: str = g("ConvTranspose", x, g.weight(16, 4, 3, 3), g.weight(4), strides=[2, 2])
    return name


def _by_gemm(g: Real, x: str) -> str:
    x = g("GlobalAveragePool", g("Relu", g.conv(x, 16, 7, kernel=3)))
    name: str = g("Gemm", g("Flatten", x), g.weight(4, 7), g.weight(4), transB=1, alpha=0.5, beta=0.25)
    return name


def _by_batch_normalization(g: Real, x: str) -> str:
    return g.norm(g("Relu", g.conv(x, 16, 4)), 4)


def _by_layer_normalization(g: Real, x: str) -> str:
    x = g("Transpose", g.conv(x, 16, 7), perm=[0, 2, 3, 1])
    name: str = g("LayerNormalization", x, g.positive(7), g.weight(7))
    return name


def _by_product(g: Real, x: str) -> str:
    name: str = g("MatMul", g("Transpose", x, perm=[0, 2, 3, 1]), g.weight(16, 4))
    return name


def _by_product_and_term(g: Real, x: str) -> str:
    name: str = g("Add", _by_product(g, x), g.weight(4))
    return name


def _by_branch(g: Real, x: str) -> str:
    skip = g("Relu", g.conv(x, 16, 4))
    name: str = g("Add", skip, g.conv(x, 16, 4, kernel=3))
    return name


@pytest.mark.parametrize("end", [value for name, value in sorted(vars().items()) if name.startswith("_by_")])
def test_the_last_layer_errs_as_much_as_is_told(
    end: Callable[[Real, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the inputs that were fitted to, all of whose rows are used, and much less than before."""
    monkeypatch.setattr("onnx_prune.passes.pipeline.variants_for", lambda macs, samples: 0)
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 6, 6), 3, 16))
    model = g.model(end(g, x))
    chosen = keeping(model, {16: 6})
    inputs, smaller = inputs_of(model, 0, 64), shrunk(model, chosen)
    fitted, refits = refitted(model, smaller, chosen, open_calibration(inputs, model, batch=16))
    last = fitted.proto.graph.node[-1]
    if end is _by_branch:  # it was the sum that was fitted, and is told of in units of the branch
        assert error(model, fitted, inputs) < 0.8 * error(model, smaller, inputs)
    else:
        assert last.name in refits[-1].node
        assert error(model, fitted, inputs) == pytest.approx(refits[-1].after, rel=2e-2)
        assert refits[-1].after <= refits[-1].before
    assert error(model, fitted, inputs_of(model, 5, 64)) < 0.9 * error(
        model, smaller, inputs_of(model, 5, 64)
    )


# ---------------------------------------------------------------------- what is left alone


def values(model: Model) -> dict[str, Array]:
    return {tensor.name: array_of(tensor) for tensor in model.proto.graph.initializer}


def test_shared_weights_keep_their_values() -> None:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 5, 5), 3, 12))
    shared = g.weight(4, 12, 1, 1, name="shared")
    y = g("Relu", g.conv(x, 12, 12))
    ends = [g("Conv", z, shared) for z in (x, y)]
    model = g.model(g.conv(g("Relu", g("Add", *ends)), 4, 3))
    (group, *_) = analyze(model).groups
    chosen = Plan(
        tuple(Entry(g.id, 12, tuple(range(5))) for g in analyze(model).groups if g.size == 12), OPTIONS
    )
    assert group.size == 12
    smaller = shrunk(model, chosen)
    calibration = open_calibration(inputs_of(model, 0, 128), model)
    fitted, refits = refitted(model, smaller, chosen, calibration)
    before, after = values(smaller), values(fitted)
    kept = [name for name in before if name.startswith("shared")]
    assert len(kept) == 1
    np.testing.assert_array_equal(after["shared"], before["shared"])
    assert refits
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_a_model_without_anything_to_fit_is_returned_as_it_is(tmp_path: Path) -> None:
    g = Graph()
    weight, x = g.weight(6, 6), g.input("N", 6)
    model = g.model(g("MatMul", g("Relu", g("MatMul", x, weight)), weight))
    fitted, refits = recover(
        analyze(model), model, Selection({}), lambda: iter([inputs_of(model, 0)]), tmp_path
    )
    assert refits == ()
    assert fitted.proto == model.proto


def test_a_model_that_lost_nothing_is_returned_as_it_is(tmp_path: Path) -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    batches = [{"input": load_digits("train").images[:16]}]
    name = model.proto.graph.input[0].name
    fitted, refits = recover(
        analyze(model), model, Selection({}), lambda: iter([{name: batches[0]["input"]}]), tmp_path
    )
    assert refits == ()
    assert fitted.proto == model.proto


def in_constant_nodes(proto: onnx.ModelProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in proto.graph.initializer]
    everything = [*nodes, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend(everything)
    return proto


def square_convolutions() -> Model:
    g = Real()
    x = g.conv(g.input(8, 3, 4, 4), 3, 6)
    for _ in range(4):
        x = g("Relu", g.conv(x, 6, 6))
    return g.model(g.conv(x, 6, 4))


def with_convolution(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Another convolution at the end."""
    weight = np.random.default_rng(1).standard_normal((3, 4, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "outermost"))
    proto.graph.node.append(helper.make_node("Conv", [proto.graph.output[0].name, "outermost"], ["end"]))
    del proto.graph.output[:]
    proto.graph.output.append(helper.make_tensor_value_info("end", TensorProto.FLOAT, [8, 3, 4, 4]))
    return proto


@pytest.mark.parametrize("wrap", [in_constant_nodes, in_if, in_loop])
def test_weights_out_of_reach_do_no_harm(wrap: Callable[[onnx.ModelProto], onnx.ModelProto]) -> None:
    """Nor do they keep others from being fitted, such as a convolution after a body."""
    model = Model(with_convolution(wrap(square_convolutions().proto)))
    chosen = keeping(model, {6: 4})
    smaller = shrunk(model, chosen)
    made = [inputs_of(model, k) for k in range(4)]
    result = _direct(model, chosen, smaller, made)
    assert result.after <= result.before
    assert result.refits


def test_the_certificate_of_a_recovered_model_sees_other_changes() -> None:
    model = two_convolutions()
    chosen = keeping(model, {8: 4})
    fitted = recovered(model, {8: 4}).model
    assert verify(model, fitted, chosen).ok
    proto = onnx.ModelProto()
    proto.CopyFrom(fitted.proto)
    proto.graph.node[0].op_type = "ConvTranspose"
    assert not verify(model, Model(proto), chosen).ok
