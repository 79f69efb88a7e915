"""Layers as chains of factors: to the last bit what one layer with their product as its weight computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Graph, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import CheckError, Model, PlanError, analyze
from onnx_prune.analysis.graph import array_of
from onnx_prune.analysis.truncation import Factors, Ranks
from onnx_prune.passes.base import run_passes
from onnx_prune.passes.contract import certify_factors, certify_same, contracted
from onnx_prune.passes.execute import execute, random_inputs
from onnx_prune.passes.factorize import Factorize, channels, factorable
from onnx_prune.passes.measure.layers import Layer
from wrapping import in_loop

Array = NDArray[Any]


class Whole:
    """Integer factors for a layer, as `Factorize.split` gives them."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, weight: NDArray[np.float64], inputs: int, ranks: Ranks) -> Factors:
        window = len(weight) // inputs
        read, given = ranks.inputs or inputs, ranks.outputs or weight.shape[1]
        first = None if ranks.inputs is None else self._drawn(inputs, read)
        last = None if ranks.outputs is None else self._drawn(given, weight.shape[1])
        return Factors(first, self._drawn(read * window, given), last)

    def _drawn(self, *shape: int) -> NDArray[np.float64]:
        return self.rng.integers(-2, 3, shape).astype(np.float64)


def of_rank(model: Model, weight: str, ranks: Ranks) -> tuple[Model, Factors]:
    """The model with a product of integers as its weight, and the factors of that."""
    fact, constant = factorable(analyze(model), weight)
    layer = Layer(fact, fact.node, constant.shape)
    factors = Whole()(layer.matrix(constant.value)[0], channels(fact, constant.shape), ranks)
    value = layer.weight(factors.product()[None]).astype(constant.dtype)
    return with_weight(model, weight, value), factors


def with_weight(model: Model, weight: str, value: Array) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name == weight:
            tensor.CopyFrom(numpy_helper.from_array(value, weight))
    return Model(proto)


def assert_bit_exact(model: Model, weight: str, ranks: Ranks) -> Model:
    """Factors of integers compute exactly what the product of them does; every link of the chain is new."""
    whole, factors = of_rank(model, weight, ranks)
    made = run_passes(whole, [Factorize({weight: ranks}, lambda *_: factors)])
    inputs = random_integers(whole)
    for name, wanted in execute(whole.proto, inputs).items():
        assert np.any(wanted)
        np.testing.assert_array_equal(execute(made.proto, inputs)[name], wanted)
    merged = contracted(made, whole, [weight])
    assert shapes(merged) == shapes(whole)
    for name, value in stored(whole).items():
        np.testing.assert_array_equal(stored(merged)[name], value)
    verdict = certify_factors(made, whole, [weight])
    assert verdict.ok, verdict.message
    links = 1 + (ranks.inputs is not None) + (ranks.outputs is not None)
    assert len(made.proto.graph.node) == len(model.proto.graph.node) + links - 1
    assert weight not in stored(made)
    return made


def random_integers(model: Model) -> dict[str, Array]:
    drawn = random_inputs(model.proto, seed=3)
    return {name: np.round(2 * value).astype(value.dtype) for name, value in drawn.items()}


def stored(model: Model) -> dict[str, Array]:
    return {tensor.name: array_of(tensor) for tensor in model.proto.graph.initializer}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


# ---------------------------------------------------------------------- matrices


@pytest.mark.parametrize("shape", [(7, 6), (2, 7, 6), (2, 3, 7, 6), (6,)])
def test_a_matrix_on_the_right(shape: tuple[int, ...]) -> None:
    g = Graph()
    made = assert_bit_exact(g.model(g("MatMul", g.input(*shape), g.weight(6, 5))), "w0", Ranks(None, 2))
    assert shapes(made) == {"w0.core": (6, 2), "w0.last": (2, 5)}


@pytest.mark.parametrize("shape", [(6, 7), (2, 6, 7), (6,)])
def test_a_matrix_on_the_left(shape: tuple[int, ...]) -> None:
    g = Graph()
    made = assert_bit_exact(g.model(g("MatMul", g.weight(5, 6), g.input(*shape))), "w0", Ranks(None, 3))
    assert shapes(made) == {"w0.core": (3, 6), "w0.last": (5, 3)}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scales", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("trans_a", [0, 1])
def test_gemm(trans_a: int, trans_b: int, scales: dict[str, float], bias: bool) -> None:
    g = Graph()
    x = g.input(*((6, 7) if trans_a else (7, 6)))
    w = g.weight(*((5, 6) if trans_b else (6, 5)))
    biases = [g.weight(5)] if bias else []
    out = g("Gemm", x, w, *biases, transA=trans_a, transB=trans_b, **scales)
    made = assert_bit_exact(g.model(out), w, Ranks(None, 2))
    first, last = made.proto.graph.node
    assert (first.op_type, last.op_type) == ("MatMul", "Gemm")
    assert list(last.input[2:]) == biases


def test_the_bias_stays_on_the_last() -> None:
    g = Graph()
    out = g("Gemm", g.input(3, 6), g.weight(6, 5), g.weight(5))
    first, last = assert_bit_exact(g.model(out), "w0", Ranks(None, 2)).proto.graph.node
    assert list(last.input) == [first.output[0], "w0.last", "w1"]
    assert list(last.output) == [out]
    assert last.name == "Gemm_0" and first.name == "Gemm_0.core"


# ---------------------------------------------------------------------- windows

PAIRS = [Ranks(2, None), Ranks(None, 3), Ranks(2, 3)]
SLIDING: dict[str, dict[str, Any]] = {
    "plain": {},
    "strides": {"strides": [2, 3]},
    "dilations": {"dilations": [2, 1]},
    "pads": {"pads": [1, 0, 2, 3]},
    "pads, strides and dilations": {"pads": [2, 1, 1, 2], "strides": [2, 2], "dilations": [2, 2]},
    "auto_pad upper": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    "auto_pad lower": {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    "auto_pad valid": {"auto_pad": "VALID", "strides": [2, 1]},
    "kernel_shape": {"kernel_shape": [3, 2], "pads": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("ranks", PAIRS, ids=str)
@pytest.mark.parametrize("case", SLIDING)
def test_convolution(case: str, ranks: Ranks, bias: bool) -> None:
    g = Graph()
    x, w = g.input(2, 4, 9, 8), g.weight(6, 4, 3, 2)
    model = g.model(g("Conv", x, w, *([g.weight(6)] if bias else []), **SLIDING[case]))
    made = assert_bit_exact(model, w, ranks)
    slides = [node for node in made.proto.graph.node if attributes(node).get("kernel_shape") != [1, 1]]
    assert len(slides) == 1
    for name, value in SLIDING[case].items():
        assert attributes(slides[0])[name] == (value.encode() if isinstance(value, str) else value)
    assert [len(node.input) for node in made.proto.graph.node[:-1]] == [2] * (len(made.proto.graph.node) - 1)
    assert len(made.proto.graph.node[-1].input) == 2 + bias


@pytest.mark.parametrize("ranks", PAIRS, ids=str)
@pytest.mark.parametrize("sizes", [(11,), (5, 4, 6)])
def test_convolution_over_one_and_three_axes(sizes: tuple[int, ...], ranks: Ranks) -> None:
    g, rank = Graph(), len(sizes)
    w = g.weight(6, 4, *(3, 2, 2)[:rank])
    out = g("Conv", g.input(2, 4, *sizes), w, g.weight(6), strides=[2] * rank, pads=[1] * 2 * rank)
    assert_bit_exact(g.model(out), w, ranks)


def test_a_window_of_one_place_is_a_matrix() -> None:
    g = Graph()
    out = g("Conv", g.input(1, 6, 9, 9), g.weight(8, 6, 1, 1), g.weight(8), strides=[2, 2])
    made = assert_bit_exact(g.model(out), "w0", Ranks(None, 3))
    first, last = made.proto.graph.node
    assert attributes(first)["strides"] == [2, 2]  # sooner fewer places
    assert "strides" not in attributes(last)
    assert shapes(made) == {"w0.core": (3, 6, 1, 1), "w0.last": (8, 3, 1, 1), "w1": (8,)}


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_any_convolution(data: st.DataObject) -> None:
    def sizes(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))

    axes = data.draw(st.integers(1, 2))
    inner, outer = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    kernel, steps, gaps = sizes(1, 3), sizes(1, 3), sizes(1, 2)
    pads = sizes(0, 2) + sizes(0, 2)
    window = int(np.prod(kernel))
    first = data.draw(st.none() | st.integers(1, inner)) if window > 1 else None
    last = data.draw(
        (st.none() if first else st.nothing()) | st.integers(1, min(outer, (first or inner) * window))
    )
    g = Graph()
    out = g(
        "Conv",
        g.input(2, inner, *[7] * axes),
        g.weight(outer, inner, *kernel),
        strides=steps,
        dilations=gaps,
        pads=pads,
    )
    model = g.model(out)
    whole, factors = of_rank(model, "w0", Ranks(first, last))
    made = run_passes(whole, [Factorize({"w0": Ranks(first, last)}, lambda *_: factors)])
    inputs = random_integers(whole)
    np.testing.assert_array_equal(execute(made.proto, inputs)[out], execute(whole.proto, inputs)[out])


# ---------------------------------------------------------------------- what stays


def test_several_layers_at_once_and_all_else_as_it_was() -> None:
    g = Graph()
    x = g("Relu", g.conv(g.input(1, 3, 6, 6), 3, 8, 3))
    y = g("Relu", g.conv(x, 8, 8, 3))
    model = g.model(g("Add", x, g.conv(y, 8, 8)))
    ranks = {"w0": Ranks(2, 4), "w4": Ranks(None, 3)}
    made = run_passes(model, [Factorize(ranks)])
    assert certify_factors(made, model, list(ranks)).ok
    before = {node.output[0]: node for node in model.proto.graph.node}
    after = {node.output[0]: node for node in made.proto.graph.node}
    assert before.keys() <= after.keys()
    assert list(made.proto.graph.output) == list(model.proto.graph.output)
    touched = {node.output[0] for node in model.proto.graph.node if set(ranks) & set(node.input)}
    for name in before.keys() - touched:
        assert after[name] == before[name]


def test_names_that_are_taken_are_left_alone() -> None:
    g = Graph()
    x = g("MatMul", g.input(3, 6), g.weight(6, 5))
    taken = g.weight(5, 5, name="w0.core")
    model = g.model(g("MatMul", x, taken))
    model.proto.graph.node[1].name = "MatMul_0.core"
    made = run_passes(model, [Factorize({"w0": Ranks(None, 2)})])
    assert shapes(made) == {"w0.core": (5, 5), "w0.core.1": (6, 2), "w0.last": (2, 5)}
    assert [node.name for node in made.proto.graph.node] == ["MatMul_0.core.1", "MatMul_0", "MatMul_0.core"]
    assert certify_factors(made, model, ["w0"]).ok


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_the_type_of_the_weight_is_kept(dtype: int) -> None:
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    value = np.random.default_rng(0).standard_normal((6, 5)).astype(kind)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    infos = [helper.make_tensor_value_info(n, dtype, s) for n, s in (("x", [3, 6]), ("y", [3, 5]))]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:], [numpy_helper.from_array(value, "w")])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    made = run_passes(model, [Factorize({"w": Ranks(None, 3)})])
    assert {v.dtype for v in stored(made).values()} == {np.dtype(kind)}
    verdict = certify_factors(made, model, ["w"])
    assert verdict.ok, verdict.message


def test_a_layer_in_the_body_of_a_loop() -> None:
    g = Graph()
    x = g("Relu", g.conv(g.input(1, 3, 5, 5), 3, 6))
    for _ in range(4):
        x = g("Relu", g.conv(x, 6, 6, 3))
    model = Model(in_loop(g.model(x).proto))
    loop = next(node for node in model.proto.graph.node if node.op_type == "Loop")
    weight = next(node.input[1] for node in loop.attribute[0].g.node if node.op_type == "Conv")
    made = run_passes(model, [Factorize({weight: Ranks(3, None)})])
    assert certify_factors(made, model, [weight]).ok
    assert shapes(made)[f"{weight}.first"] == (3, 6, 1, 1)


def test_nothing_asked_is_nothing_done() -> None:
    g = Graph()
    model = g.model(g("MatMul", g.input(3, 6), g.weight(6, 5)))
    assert Factorize({"w0": Ranks()})(model) is model


# ---------------------------------------------------------------------- by singular values


@pytest.mark.parametrize("ranks", [Ranks(3, 4), Ranks(3, None), Ranks(None, 4)], ids=str)
def test_a_product_comes_apart_again(ranks: Ranks) -> None:
    """Factors are found from the weight alone where it has that rank."""
    g = Graph()
    model = g.model(g("Conv", g.input(1, 6, 7, 7), g.weight(8, 6, 3, 3), g.weight(8), pads=[1] * 4))
    whole, _ = of_rank(model, "w0", ranks)
    made = run_passes(whole, [Factorize({"w0": ranks})])
    verdict = certify_same(made, whole)
    assert verdict.ok and verdict.max_relative_error < 2e-6, verdict.message


def test_the_same_bytes_each_time() -> None:
    g = Graph()
    model = g.model(g.conv(g.input(1, 6, 7, 7), 6, 8, 3))
    first, second = (
        run_passes(model, [Factorize({"w0": Ranks(2, 3)})]).proto.SerializeToString(deterministic=True)
        for _ in range(2)
    )
    assert first == second


# ---------------------------------------------------------------------- the certificate


def test_a_window_at_the_wrong_place_is_found() -> None:
    g = Graph()
    model = g.model(g("Conv", g.input(1, 4, 9, 9), g.weight(6, 4, 3, 3), strides=[2, 2], pads=[1] * 4))
    made = Factorize({"w0": Ranks(2, 3)})(model)
    first, core, _ = made.proto.graph.node
    moved = next(a for a in core.attribute if a.name == "strides")
    first.attribute.append(moved)
    core.attribute.remove(moved)
    assert not certify_factors(made, model, ["w0"]).ok


def test_pads_that_are_gone_are_found() -> None:
    g = Graph()
    model = g.model(g("Conv", g.input(1, 4, 9, 9), g.weight(6, 4, 3, 3), pads=[1] * 4))
    made = Factorize({"w0": Ranks(2, 3)})(model)
    pads = next(a for a in made.proto.graph.node[1].attribute if a.name == "pads")
    pads.ints[:] = [2, 2, 0, 0]
    assert not certify_factors(made, model, ["w0"]).ok


def test_something_between_the_factors_is_found() -> None:
    g = Graph()
    model = g.model(g("MatMul", g.input(3, 6), g.weight(6, 5)))
    made = Factorize({"w0": Ranks(None, 2)})(model)
    first, last = made.proto.graph.node
    del made.proto.graph.node[:]
    relu = helper.make_node("Relu", [first.output[0]], ["between"])
    last.input[0] = "between"
    made.proto.graph.node.extend([first, relu, last])
    with pytest.raises(CheckError, match="no chain"):
        certify_factors(made, model, ["w0"])


def test_a_bias_that_is_lost_is_found() -> None:
    g = Graph()
    model = g.model(g.conv(g.input(1, 4, 5, 5), 4, 6, 3))
    made = Factorize({"w0": Ranks(2, None)})(model)
    del made.proto.graph.node[-1].input[2:]
    assert not certify_same(made, contracted(Factorize({"w0": Ranks(2, None)})(model), model, ["w0"])).ok


# ---------------------------------------------------------------------- refused


def refused(model: Model, weight: str, ranks: Ranks, told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Factorize({weight: ranks})(model)


def test_a_shared_weight_is_refused() -> None:
    g = Graph()
    w = g.weight(6, 6)
    model = g.model(g("MatMul", g("MatMul", g.input(3, 6), w), w))
    refused(model, w, Ranks(None, 2), "read 2 times")


def test_a_weight_that_can_be_fed_is_refused() -> None:
    g = Graph()
    w = g.weight(6, 6)
    model = g.model(g("MatMul", g.input(3, 6), w))
    model.proto.graph.input.append(helper.make_tensor_value_info(w, TensorProto.FLOAT, [6, 6]))
    refused(model, w, Ranks(None, 2), "can be fed")


@pytest.mark.parametrize(("group", "outer"), [(2, 6), (4, 4)])
def test_a_convolution_in_groups_is_refused(group: int, outer: int) -> None:
    g = Graph()
    model = g.model(g.conv(g.input(1, 4, 5, 5), 4, outer, 3, group=group))
    refused(model, "w0", Ranks(1, None), "in groups")


def test_what_is_no_matrix_is_refused() -> None:
    g = Graph()
    x = g.conv(g.input(1, 4, 5, 5), 4, 6)
    x = g("ConvTranspose", x, g.weight(6, 3, 2, 2))
    model = g.model(g("MatMul", x, g.weight(1, 3, 6, 5)))
    refused(model, "w1", Ranks(None, 1), "no layer is known")  # a bias
    refused(model, "w2", Ranks(None, 1), "no product with a matrix")
    refused(model, "w3", Ranks(None, 1), "stack of matrices")
    refused(model, "w9", Ranks(None, 1), "no weight 'w9'")


@pytest.mark.parametrize(
    ("ranks", "told"),
    [
        (Ranks(5, None), "1 to 4"),
        (Ranks(None, 7), "1 to 6"),
        (Ranks(0, None), "not 0"),
        (Ranks(1, 6), "1 to 2"),
    ],
)
def test_ranks_there_are_not_are_refused(ranks: Ranks, told: str) -> None:
    g = Graph()
    model = g.model(g("Conv", g.input(1, 4, 5, 5), g.weight(6, 4, 1, 2)))
    refused(model, "w0", ranks, told)


def test_a_matrix_has_one_rank() -> None:
    g = Graph()
    model = g.model(g("MatMul", g.input(3, 6), g.weight(6, 5)))
    refused(model, "w0", Ranks(2, 2), "one rank")


def test_the_options_are_the_fields() -> None:
    assert replace(Factorize({}), ranks={"w": Ranks(1)}).ranks == {"w": Ranks(1)}
