"""Linear nodes as matrices, against what ONNX Runtime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Graph
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Model, analyze
from onnx_prune.analysis.facts import Linear
from onnx_prune.analysis.graph import array_of
from onnx_prune.passes.execute import Arrays, execute, random_inputs
from onnx_prune.passes.measure.layers import Layer, can_be_read

Array = NDArray[Any]


def only(model: Model) -> Linear:
    (fact,) = analyze(model).walk.linears
    return fact


def stored(model: Model, name: str) -> Array:
    return next(array_of(t) for t in model.proto.graph.initializer if t.name == name)


def assert_linear(model: Model, inputs: Arrays | None = None, form: str | None = None) -> None:
    """U W + b is what the runtime gives, row by row, and the weight comes back from W."""
    fact = only(model)
    node, inputs = fact.node, inputs or random_inputs(model.proto, seed=1)
    assert can_be_read(fact)
    assert form is None or fact.form == form
    (y,) = execute(model.proto, inputs).values()
    weight = stored(model, node.inputs[fact.weight])
    layer = Layer(fact, node, weight.shape)
    x = inputs[node.inputs[fact.data]]
    matrix = layer.matrix(weight)
    assert matrix.shape == (layer.groups, layer.inputs, layer.outputs)
    np.testing.assert_allclose(layer.weight(matrix), weight, rtol=1e-12)

    rows = np.arange(layer.count(y))
    wanted = layer.outputs_at(y, rows)
    assert wanted.shape == (layer.groups, len(rows), layer.outputs)
    np.testing.assert_array_equal(np.sort(wanted, axis=None), np.sort(y, axis=None))
    features = layer.features_at(x, rows, y)
    assert features.dtype == np.float32
    got = features @ matrix
    if fact.bias is not None and node.has(fact.bias):
        bias = stored(model, node.inputs[fact.bias]).reshape(layer.groups, 1, -1)
        got = got + layer.bias_scale * bias
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * np.abs(y).max())

    some = np.sort(np.random.default_rng(0).choice(rows, (len(rows) + 1) // 2, replace=False))
    np.testing.assert_array_equal(layer.features_at(x, some, y), features[:, some])
    np.testing.assert_array_equal(layer.outputs_at(y, some), wanted[:, some])


# ---------------------------------------------------------------------- convolutions

CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "dilations": {"dilations": [2, 1]},
    "pads": {"pads": [1, 0, 2, 3]},
    "pads, strides and dilations": {"pads": [2, 1, 1, 2], "strides": [2, 2], "dilations": [2, 2]},
    "the end is never reached": {"strides": [4, 5]},
    "auto_pad upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "auto_pad lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "auto_pad upper, no stride": {"auto_pad": "SAME_UPPER", "kernel": (2, 4)},
    "auto_pad lower, no stride": {"auto_pad": "SAME_LOWER", "kernel": (2, 4)},
    "auto_pad valid": {"auto_pad": "VALID", "strides": [2, 1]},
    "stride larger than the kernel": {"auto_pad": "SAME_UPPER", "strides": [3, 3], "kernel": (1, 1)},
    "groups": {"group": 2, "pads": [1, 1, 1, 1]},
    "depthwise": {"group": 4, "outer": 4},
    "depthwise, multiplied": {"group": 4, "outer": 12, "strides": [2, 1]},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, bias: bool) -> None:
    attrs = dict(CONVOLUTIONS[case])
    kernel, outer, group = attrs.pop("kernel", (3, 2)), attrs.pop("outer", 6), attrs.get("group", 1)
    g = Graph()
    x, w = g.input(2, 4, 9, 8), g.weight(outer, 4 // group, *kernel)
    assert_linear(g.model(g("Conv", x, w, *([g.weight(outer)] if bias else []), **attrs)), form="window")


@pytest.mark.parametrize(
    ("sizes", "attrs"),
    [
        ((11,), {"strides": [2], "pads": [2, 1], "dilations": [2]}),
        ((11,), {"auto_pad": "SAME_LOWER", "strides": [3]}),
        ((5, 4, 6), {"strides": [1, 2, 1], "pads": [1, 0, 2, 0, 1, 1], "dilations": [2, 1, 1], "group": 2}),
        ((4, 5, 6), {"auto_pad": "SAME_UPPER", "strides": [2, 2, 3]}),
    ],
)
def test_convolution_over_one_and_three_axes(sizes: tuple[int, ...], attrs: dict[str, Any]) -> None:
    g = Graph()
    x, w = g.input(2, 4, *sizes), g.weight(6, 4 // attrs.get("group", 1), *(3, 2, 2)[: len(sizes)])
    assert_linear(g.model(g("Conv", x, w, g.weight(6), **attrs)), form="window")


# ---------------------------------------------------------------------- transposed convolutions

TRANSPOSED: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "strides larger than the kernel": {"strides": [4, 3], "output_padding": [1, 2]},
    "dilations": {"dilations": [2, 1]},
    "pads": {"pads": [1, 0, 2, 1]},
    "pads larger than the kernel": {"pads": [3, 2, 0, 2]},
    "output_padding": {"strides": [2, 2], "output_padding": [1, 1], "pads": [1, 1, 1, 1]},
    "all": {"strides": [2, 3], "dilations": [2, 2], "pads": [2, 0, 1, 1], "output_padding": [1, 2]},
    "groups": {"group": 2, "strides": [2, 2]},
    "depthwise": {"group": 4, "per_group": 1, "pads": [1, 1, 0, 0]},
    "depthwise, multiplied": {"group": 4, "strides": [1, 2]},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_transposed_convolution(case: str, bias: bool) -> None:
    attrs = dict(TRANSPOSED[case])
    per_group, group = attrs.pop("per_group", 3), attrs.get("group", 1)
    g = Graph()
    x, w = g.input(2, 4, 5, 6), g.weight(4, per_group, 3, 2)
    biases = [g.weight(per_group * group)] if bias else []
    assert_linear(g.model(g("ConvTranspose", x, w, *biases, **attrs)), form="spread")


@pytest.mark.parametrize("sizes", [(7,), (3, 4, 5)])
def test_transposed_convolution_over_one_and_three_axes(sizes: tuple[int, ...]) -> None:
    g, rank = Graph(), len(sizes)
    x, w = g.input(2, 4, *sizes), g.weight(4, 3, *(3, 2, 2)[:rank])
    attrs = {"strides": [2] * rank, "pads": [1] * rank + [0] * rank, "group": 2}
    assert_linear(g.model(g("ConvTranspose", x, w, g.weight(6), **attrs)), form="spread")


@pytest.mark.parametrize("attrs", [{"auto_pad": "SAME_UPPER"}, {"output_shape": [10, 12]}])
def test_a_transposed_convolution_that_computes_its_pads_is_left_out(attrs: dict[str, Any]) -> None:
    g = Graph()
    out = g("ConvTranspose", g.input(2, 4, 5, 6), g.weight(4, 3, 3, 2), strides=[2, 2], **attrs)
    assert not can_be_read(only(g.model(out)))


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scales", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm(trans_a: int, trans_b: int, scales: dict[str, float], bias: bool) -> None:
    g = Graph()
    x = g.input(*((5, 7) if trans_a else (7, 5)))
    w = g.weight(*((3, 5) if trans_b else (5, 3)))
    biases = [g.weight(3)] if bias else []
    out = g("Gemm", x, w, *biases, transA=trans_a, transB=trans_b, **scales)
    assert_linear(g.model(out), form="gemm")


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 7, 5), (2, 3, 7, 5)])
def test_a_matrix_on_the_right(shape: tuple[int, ...]) -> None:
    g = Graph()
    assert_linear(g.model(g("MatMul", g.input(*shape), g.weight(5, 3))), form="rows")


@pytest.mark.parametrize("shape", [(5,), (5, 7), (2, 5, 7), (2, 3, 5, 7)])
def test_a_matrix_on_the_left(shape: tuple[int, ...]) -> None:
    g = Graph()
    assert_linear(g.model(g("MatMul", g.weight(3, 5), g.input(*shape))), form="columns")


# ---------------------------------------------------------------------- factors and terms


def assert_scales(model: Model) -> None:
    """Weight and bias times a factor, and the bias plus a term, do to rows of the output what they say."""
    fact, inputs = only(model), random_inputs(model.proto, seed=2)
    node = fact.node
    assert fact.form == "scale"
    (y,) = execute(model.proto, inputs).values()
    weight = stored(model, node.inputs[fact.weight])
    layer, rng = Layer(fact, node, weight.shape), np.random.default_rng(0)
    assert (layer.groups, layer.inputs, layer.outputs) == (weight.size, 1, 1)
    factor, term = rng.uniform(0.5, 2, weight.shape), rng.standard_normal(weight.shape)
    changed = {node.inputs[fact.weight]: weight * factor}
    if fact.bias is not None and node.has(fact.bias):
        changed[node.inputs[fact.bias]] = stored(model, node.inputs[fact.bias]) * factor + term
    else:
        term[:] = 0
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in changed:
            new = changed[tensor.name].astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
    (other,) = execute(proto, inputs).values()
    rows = np.arange(0, layer.count(y), 2)
    got = layer.features_at(inputs["x"], rows, y) * factor[:, None, None] + term[:, None, None]
    np.testing.assert_allclose(layer.outputs_at(other, rows), got, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 4), (2, 5, 3, 4)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    g = Graph()
    x, variance = g.input(*shape), "variance"
    names = [g.weight(5) for _ in range(3)]
    g.weights.append(numpy_helper.from_array(np.linspace(0.5, 2, 5, dtype=np.float32), variance))
    assert_scales(g.model(g("BatchNormalization", x, *names, variance)))


@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 5, 3, 4)])
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    g = Graph()
    assert_scales(g.model(g("InstanceNormalization", g.input(*shape), g.weight(5), g.weight(5))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (2, 5, 3, 5)])
def test_layer_normalization(shape: tuple[int, ...], bias: bool) -> None:
    g = Graph()
    biases = [g.weight(5)] if bias else []
    assert_scales(g.model(g("LayerNormalization", g.input(*shape), g.weight(5), *biases)))


def test_rms_normalization() -> None:
    g = Graph()
    assert_scales(g.model(g("RMSNormalization", g.input(2, 4, 5), g.weight(5)), opset=23))


def test_group_normalization() -> None:
    g = Graph()
    out = g("GroupNormalization", g.input(2, 6, 4), g.weight(6), g.weight(6), num_groups=2)
    assert_scales(g.model(out, opset=21, shape=[2, 6, 4]))


@pytest.mark.parametrize("last", [True, False])
def test_a_term_has_no_features(last: bool) -> None:
    g = Graph()
    operands = [g.input(2, 4, 5), g.weight(5)]
    fact = only(model := g.model(g("Add", *(operands if last else operands[::-1]))))
    inputs = random_inputs(model.proto)
    (y,) = execute(model.proto, inputs).values()
    assert fact.form == "shift"
    assert fact.node.inputs[fact.data] == "x"
    layer = Layer(fact, fact.node, (5,))
    assert layer.features_at(inputs["x"], np.arange(3), y).shape == (5, 3, 0)
