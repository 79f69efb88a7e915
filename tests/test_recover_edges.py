"""Recovery where a layer adds something besides, and whole runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Model, load, prune
from onnx_prune.models.digits import FOLDER, accuracy, load_digits
from onnx_prune.passes.execute import execute
from recovering import EXACT, Real, assert_recovers, inputs_of, recovered

Array = NDArray[Any]

# ---------------------------------------------------------------------- what a layer adds besides


def test_a_bias_that_cannot_be_fitted_is_not_fitted_into_the_weight() -> None:
    """One output: its bias has one element."""
    g = Real()
    x = g("Gemm", g("Abs", g.input("N", 4)), g.weight(4, 12))
    g.weights.append(numpy_helper.from_array(np.array([5], np.float32), "five"))
    assert_recovers(g.model(g("Gemm", x, g.weight(12, 1), "five")), {12: 5}, batch=64)


def test_a_bias_that_two_layers_share_is_not_fitted_into_the_weights() -> None:
    g = Real()
    x = g("Conv", g("Abs", g.input("N", 3, 5, 5)), g.weight(12, 3, 1, 1))
    bias = g.weight(4)
    ends = [g("Conv", x, g.weight(4, 12, 1, 1), bias) for _ in range(2)]
    assert_recovers(g.model(g("Concat", *ends, axis=1)), {12: 3})


def test_a_term_with_axes_of_its_own_is_added_once() -> None:
    """A bias of shape (1, C, 1, 1) between a convolution and the sum with its skip path."""
    g = Real()
    x = g("Conv", g("Abs", g.input("N", 3, 5, 5)), g.weight(4, 3, 1, 1))
    branch = g("Conv", g("Conv", x, g.weight(12, 4, 1, 1)), g.weight(4, 12, 1, 1))
    branch = g("Add", branch, g.weight(1, 4, 1, 1))
    assert_recovers(g.model(g("Add", branch, x)), {12: 6})


def test_a_scalar_between_a_product_and_a_sum_is_added_once() -> None:
    g = Real()
    x = g("MatMul", g("Abs", g.input("N", 3, 5)), g.weight(5, 6))
    branch = g("MatMul", g("MatMul", x, g.weight(6, 12)), g.weight(12, 6))
    branch = g("Add", branch, g.scalar(20))
    assert_recovers(g.model(g("Add", branch, x)), {12: 8}, batch=64)


def test_a_sum_that_broadcasts_the_branch() -> None:
    """A vector for each sample is added to every token."""
    g = Real()
    x = g.input("N", 7, 5)
    tokens = g("Relu", x)
    pooled = g("ReduceMean", x, axes=[1], keepdims=1)
    branch = g("MatMul", g("MatMul", pooled, g.weight(5, 12)), g.weight(12, 5))
    assert_recovers(g.model(g("Add", branch, tokens)), {12: 5}, batch=64)


def test_a_branch_that_is_an_output_as_well_is_fitted_to_itself() -> None:
    g = Real()
    x = g.input("N", 3, 5, 5)
    skip = g("Relu", g("Conv", g("Tanh", g.conv(x, 3, 20)), g.weight(4, 20, 1, 1)))
    branch = g("Conv", g("Conv", x, g.weight(12, 3, 1, 1)), g.weight(4, 12, 1, 1))
    model = g.model(branch, g("Add", branch, skip))
    result = recovered(model, {20: 4, 12: 3})
    inputs = inputs_of(model, 7)
    wanted, got = (execute(m.proto, inputs)[branch] for m in (model, result.model))
    assert np.square(wanted - got).sum() < EXACT * np.square(wanted).sum()


def test_normalizations_that_stand_in_another_order_than_what_they_are_folded_into() -> None:
    g = Real()
    x = g.input("N", 3, 5, 5)
    first, second = (g("Conv", x, g.weight(8, 3, 1, 1)) for _ in range(2))
    late = g("Relu", g.norm(second, 8))
    early = g("Relu", g.norm(first, 8))
    ends = [g("Relu", g.conv(y, 8, 5)) for y in (early, late)]
    last = g.conv(g("Add", *ends), 5, 3)
    result = recovered(g.model(last), {8: 5})
    assert result.after < result.before


def test_a_term_that_is_itself_a_product_of_weights() -> None:
    """Data that no input has a say in, too large to be folded."""
    g = Real()
    table = g("MatMul", g.weight(16, 1), g.weight(1, 16))
    x = g("Add", g("MatMul", g.input("N", 16, 5), g.weight(5, 16)), table)
    x = g("MatMul", g("Relu", x), g.weight(16, 12))
    result = recovered(g.model(g("MatMul", x, g.weight(12, 3))), {12: 6})
    assert result.after < result.before


# ---------------------------------------------------------------------- whole runs


def test_a_model_with_an_early_output() -> None:
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 5, 5), 3, 12))
    early = g.conv(x, 12, 2)
    y = g("Relu", g.conv(g("Relu", g.conv(x, 12, 10)), 10, 8))
    model = g.model(early, g.conv(y, 8, 4))
    result = prune(model, ratio=0.3, calibration=inputs_of(model, 0, 64))
    assert result.verdict is not None
    assert result.verdict.ok


def test_a_branch_that_does_nothing() -> None:
    """Its consumers move no output: they are dead behind a Relu."""
    g = Real()
    x = g("Relu", g.conv(g.input("N", 3, 5, 5), 3, 12))
    g.weights.append(numpy_helper.from_array(np.full(6, -1e6, np.float32), "never"))
    dead = g("Relu", g("Conv", x, g.weight(6, 12, 1, 1), "never"))
    live = g("Relu", g.conv(x, 12, 10))
    model = g.model(g("Add", g.conv(dead, 6, 4), g.conv(live, 10, 4)))
    result = prune(model, ratio=0.3, calibration=inputs_of(model, 0, 64))
    assert result.verdict is not None
    assert result.verdict.ok


def test_consumers_that_are_zero() -> None:
    """As the last layer of a branch is before training."""
    g = Real()
    x = g.conv(g.input("N", 3, 5, 5), 3, 4)
    branch = g("Relu", g.conv(x, 4, 12))
    g.weights.append(numpy_helper.from_array(np.zeros((4, 12, 1, 1), np.float32), "zero"))
    model = g.model(g("Add", x, g("Conv", branch, "zero", g.weight(4))))
    result = prune(model, ratio=0.3, calibration=inputs_of(model, 0, 64))
    assert result.verdict is not None
    assert result.verdict.ok


def test_half_a_trained_network_keeps_its_accuracy() -> None:
    model, test = load(FOLDER / "digits_resnet.onnx"), load_digits("test")
    images = load_digits("train").images[:64]

    def right(one: Model) -> float:
        session = onnxruntime.InferenceSession(
            one.proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        return accuracy(lambda x: session.run(None, {name: x})[0], test)

    name = model.proto.graph.input[0].name
    fitted = prune(model, macs=0.5, calibration={name: images})
    plain = prune(model, macs=0.5, criterion="l2", recover="none")
    dense, with_recovery, without = right(model), right(fitted.model), right(plain.model)
    assert fitted.after.macs <= 0.5 * fitted.before.macs
    assert plain.after.macs <= 0.5 * plain.before.macs
    assert dense - with_recovery < 0.03
    assert dense - without > 0.2
    assert with_recovery > without + 0.2
    assert fitted.refits
    assert all(refit.after <= refit.before for refit in fitted.refits)
