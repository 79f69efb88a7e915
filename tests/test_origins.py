"""An element of an operand is followed back to where it is stored, through whatever made the operand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import Graph
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model
from onnx_prune.analysis.patterns.weights import Survey, survey
from onnx_prune.analysis.storage import Storage
from onnx_prune.passes.execute import execute

STORAGE = Storage(Path())


def surveyed(g: Graph, *outputs: str, **options: Any) -> Survey:
    return survey(g.model(*outputs, **options), STORAGE)


def stored(g: Graph, value: np.ndarray, name: str = "w") -> str:
    g.weights.append(numpy_helper.from_array(value, name))
    return name


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=150, deadline=None)
def test_through_random_chains(seed: int) -> None:
    """Transposes of any order, reshapes, casts and dequantisation, in any sequence."""
    rng = np.random.default_rng(seed)
    shape = (*(int(n) for n in rng.integers(1, 5, 3)), int(rng.integers(2, 6)))
    value = rng.integers(-3, 4, shape)
    g = Graph()
    quantised = bool(rng.integers(2))
    name = stored(g, value.astype(np.int8 if quantised else np.float32))
    if quantised:
        g.weights.append(numpy_helper.from_array(np.float32(0.5), "scale"))
        g.weights.append(numpy_helper.from_array(np.int8(rng.integers(-2, 3)), "zero"))
        name = g("DequantizeLinear", name, "scale", "zero")
    sizes = list(shape)
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(4)
        if kind == 0:
            order = [int(k) for k in rng.permutation(len(sizes))]
            name, sizes = g("Transpose", name, perm=order), [sizes[k] for k in order]
        elif kind == 1:
            factors = rng.permutation([int(f) for f in _split(rng, int(np.prod(sizes)))])
            sizes = [int(f) for f in factors]
            name = g("Reshape", name, g.ints(*sizes))
        elif kind == 2:
            name = g("Cast", name, to=TensorProto.FLOAT)
        else:
            name = g("Unsqueeze", name, g.ints(0))
            sizes = [1, *sizes]
    k = sizes[-1]
    rows = int(np.prod(sizes)) // k
    name = g("Reshape", name, g.ints(rows, k))
    y = g("MatMul", g.input(2, rows), name)
    model = g.model(y)
    (weight,) = survey(model, STORAGE).weights
    assert weight.name == "w" and weight.sizes == (1, k, 1, rows)
    made = execute(_with_output(model.proto, name), {"x": np.zeros((2, rows), np.float32)})[name]
    mask = weight.mask(STORAGE)
    assert np.array_equal(mask[0, :, 0, :].T, made != 0)
    zero = 0.0 if not quantised else float(numpy_helper.to_array(g.weights[2]))
    for cell in np.argwhere(mask | True).tolist():
        place = weight.place(tuple(cell))
        assert (value[place] != zero) == mask[tuple(cell)]


def test_every_element_has_a_place_of_its_own() -> None:
    """Behind an order of axes that is not undone by itself, as by (2, 0, 3, 1)."""
    g = Graph()
    name = stored(g, np.arange(1, 241, dtype=np.float32).reshape(4, 5, 2, 6))
    y = g("Conv", g.input(1, 4, 7, 7), g("Transpose", name, perm=[3, 0, 1, 2]))
    model = g.model(y)
    (weight,) = survey(model, STORAGE).weights
    assert weight.sizes == (1, 6, 10, 4) and weight.kernel == (5, 2)
    values = weight.origin.values(STORAGE)  # type: ignore[union-attr]
    for cell in np.ndindex(weight.sizes):
        assert values[cell] == numpy_helper.to_array(g.weights[0])[weight.place(cell)]


def _split(rng: np.random.Generator, number: int) -> list[int]:
    """Factors of a number."""
    found = []
    divisor = 2
    while number > 1:
        while number % divisor == 0:
            found.append(divisor)
            number //= divisor
        divisor += 1
    while len(found) > 3:
        found.append(found.pop(0) * found.pop(0))
    return found or [1]


def _with_output(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    copy.graph.output.append(onnx.ValueInfoProto(name=name))
    return copy


@pytest.mark.parametrize(
    ("axis", "shape", "zeros"),
    [(0, (4,), [0, 1, 2, 3]), (1, (6,), [0, 1, 0, 1, 0, 1])],
    ids=["of outputs", "of inputs"],
)
def test_zero_points_of_an_axis(axis: int, shape: tuple[int, ...], zeros: list[int]) -> None:
    g = Graph()
    value = np.tile(
        np.array(zeros, np.uint8).reshape([-1, 1] if axis == 0 else [1, -1]), (1, 6) if axis == 0 else (4, 1)
    )
    value[2, 3] = 9
    stored(g, value)
    g.weights.append(numpy_helper.from_array(np.full(shape, 0.5, np.float32), "scale"))
    g.weights.append(numpy_helper.from_array(np.array(zeros, np.uint8), "zero"))
    y = g("Gemm", g.input(2, 6), g("DequantizeLinear", "w", "scale", "zero", axis=axis), transB=1)
    (weight,) = surveyed(g, y).weights
    assert np.argwhere(weight.mask(STORAGE)).tolist() == [[0, 2, 0, 3]]
    assert weight.origin is not None and weight.origin.precision == np.uint8


def test_small_numbers_that_are_quantised_to_zero_are_zero() -> None:
    g = Graph()
    stored(g, np.array([[0.1, 1.0], [-0.4, 0.6]], np.float32))
    g.weights.append(numpy_helper.from_array(np.float32(1), "scale"))
    g.weights.append(numpy_helper.from_array(np.int8(0), "zero"))
    w = g("DequantizeLinear", g("QuantizeLinear", "w", "scale", "zero"), "scale", "zero")
    (weight,) = surveyed(g, g("MatMul", g.input(3, 2), w)).weights
    assert weight.mask(STORAGE)[0, :, 0, :].tolist() == [[False, False], [True, True]]


def test_operators_on_integers_have_zero_points_of_their_own() -> None:
    g = Graph()
    stored(g, np.array([[5, 7], [5, 6], [9, 7]], np.uint8))
    g.weights.append(numpy_helper.from_array(np.array([5, 7], np.uint8), "zero"))
    g.inputs.append(helper.make_tensor_value_info("x", TensorProto.UINT8, [2, 3]))
    y = g("MatMulInteger", "x", "w", "", "zero")
    (weight,) = surveyed(g, y).weights
    assert np.argwhere(weight.mask(STORAGE)).tolist() == [[0, 0, 0, 2], [0, 1, 0, 1]]
    assert [weight.place((0, 0, 0, 2)), weight.place((0, 1, 0, 1))] == [(2, 0), (1, 1)]


@pytest.mark.parametrize(
    "dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e4m3fn, ml_dtypes.int4]
)
def test_zeros_of_any_sign_and_type(dtype: Any) -> None:
    g = Graph()
    value = np.array([[0, 1], [-1, 0]]).astype(dtype)
    value = -value if dtype is not ml_dtypes.int4 else value  # floats: -0 is zero as well
    stored(g, value)
    w = g("Cast", "w", to=TensorProto.FLOAT)
    (weight,) = surveyed(g, g("MatMul", g.input(3, 2), w), opset=21).weights
    assert weight.mask(STORAGE)[0, :, 0, :].tolist() == [[False, True], [True, False]]


def test_what_is_not_looked_through_says_so() -> None:
    g = Graph()
    w = g("Add", g.weight(4, 3, name="w"), g.weight(4, 3))
    (weight,) = surveyed(g, g("MatMul", g.input(2, 4), w)).weights
    assert weight.origin is None and "made by Add" in weight.reason


def test_data_is_no_weight() -> None:
    g = Graph()
    x = g.input(2, 3, 4)
    assert surveyed(g, g("MatMul", x, g("Transpose", x, perm=[0, 2, 1]))).weights == ()


def test_what_is_computed_once_has_no_weights() -> None:
    """A product of two constants, as of positions that an exporter wrote down: runtimes fold it."""
    g = Graph()
    once = g("MatMul", g.weight(8, 16), g.weight(16, 8))
    (weight,) = surveyed(g, g("Add", g("MatMul", g.input(4, 8), once), g.weight(8))).weights
    assert weight.origin is None and "made by MatMul" in weight.reason


def test_shapes_that_the_graph_computes() -> None:
    """A weight that is reshaped to the size of an input is still the weight."""
    g = Graph()
    x = g.input(2, 12)
    sizes = g("Concat", g("Slice", g("Shape", x), g.ints(1), g.ints(2)), g.ints(-1), axis=0)
    (weight,) = surveyed(g, g("MatMul", x, g("Reshape", g.weight(3, 4, 10, name="w"), sizes))).weights
    assert weight.name == "w" and weight.place((0, 3, 0, 5)) == (1, 1, 3)


def test_nodes_that_share_a_weight_are_counted() -> None:
    g = Graph()
    w = g.weight(4, 4, name="w")
    first = g("MatMul", g.input(2, 4), w)
    y = g("MatMul", first, g("Transpose", w, perm=[1, 0]))
    weights = surveyed(g, y).weights
    assert [(weight.name, weight.readers) for weight in weights] == [("w", 2), ("w", 2)]
    ids = g("Cast", g("ReduceSum", y, g.ints(1)), to=TensorProto.INT64)
    table = g("Gather", w, ids)
    assert surveyed(g, table).weights[0].readers == 3  # a table of embeddings that is tied to two layers
    assert weights[0].place((0, 1, 0, 2)) == (2, 1) and weights[1].place((0, 1, 0, 2)) == (1, 2)


def test_weights_inside_branches_are_found() -> None:
    inside = helper.make_graph(
        [helper.make_node("MatMul", ["x", "inner"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2, 5])],
        [numpy_helper.from_array(np.ones((3, 5), np.float32), "inner")],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=inside, else_branch=inside)],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 5])],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    weights = survey(Model(proto), STORAGE).weights
    assert [weight.sizes for weight in weights] == [(1, 5, 1, 3)] * 2
