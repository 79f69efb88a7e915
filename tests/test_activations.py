"""Peak memory of activations on graphs small enough to count by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import PLAIN, Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, analyze, apply, measure, plan, predict
from onnx_prune.analysis.activations import activations
from onnx_prune.analysis.dtypes import bits, dtypes


def memory(model: Model) -> int:
    return measure(model).memory


def test_what_a_node_reads_is_there_while_it_writes() -> None:
    g = Graph()
    x = g.conv(g.input(1, 2, 4, 4), 2, 10)  # 32 in, 160 out
    x = g.conv(x, 10, 6)  # 160 in, 96 out
    assert memory(g.model(g.conv(x, 6, 2))) == 4 * (160 + 96)


def test_a_skip_path_stays_alive() -> None:
    g = Graph()
    x = g.conv(g.input(1, 2, 4, 4), 2, 8)  # 128
    y = g("Relu", g.conv(x, 8, 4))  # 64 twice, while x waits
    y = g.conv(y, 4, 8)  # 128 + 64 + 128
    assert memory(g.model(g("Add", x, y))) == 4 * 3 * 128  # both sides and the sum


def test_another_shape_of_a_tensor_is_no_other_memory() -> None:
    g = Graph()
    x = g("MatMul", g.input(1, 10), g.weight(10, 64))
    x = g("Reshape", g("Flatten", x), g.ints(1, 8, 8))
    assert memory(g.model(g("Relu", x))) == 4 * (64 + 64)


def test_an_output_is_kept_to_the_end() -> None:
    g = Graph()
    first = g.conv(g.input(1, 2, 4, 4), 2, 10)
    x = g.conv(g("Relu", first), 10, 10)
    assert memory(g.model(first, g.conv(x, 10, 2))) == 4 * 3 * 160


def test_a_size_known_only_at_run_time_counts_as_one() -> None:
    g = Graph()
    x = g.conv(g.input("batch", 2, 4, 4), 2, 10)
    assert memory(g.model(g.conv(g("Relu", x), 10, 2))) == 4 * 2 * 160


@pytest.mark.parametrize(("to", "width"), [(TensorProto.FLOAT16, 2), (TensorProto.DOUBLE, 8)])
def test_elements_have_the_size_of_their_type(to: int, width: int) -> None:
    """No type is written down between the nodes."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=to),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 100]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert memory(model) == 100 * max(2 * width, width + 4)


def test_types_follow_the_operators() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("ConvInteger", ["q", "w", "zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["f", "limit"], ["y"]),
    ]
    weights = [
        numpy_helper.from_array(np.ones((4, 3, 1, 1), np.int8), "w"),
        numpy_helper.from_array(np.float32(0), "limit"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.BOOL, [1, 4, 4, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    onnx.checker.check_model(model.proto)
    found = dtypes(analyze(model).walk)
    assert [found[name].name for name in "xqify"] == ["float32", "uint8", "int32", "float32", "bool"]
    assert bits(np.dtype(np.float64)) == 64


def test_types_below_eight_bits_are_packed() -> None:
    for name, width in (("int4", 4), ("uint4", 4), ("uint2", 2), ("float4e2m1", 4), ("float8e4m3fn", 8)):
        code = getattr(TensorProto, name.upper(), None)
        if code is not None:
            assert bits(helper.tensor_dtype_to_np_dtype(code)) == width, name


def test_a_plan_predicts_the_memory_it_leaves() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 8, 8), 3, 40)
    y = g("Relu", g.conv(x, 40, 20, 3))
    model = g.model(g.conv(g("Add", x, g.conv(y, 20, 40)), 40, 2))
    chosen = plan(model, ratio=0.4, **PLAIN)
    smaller = apply(model, chosen)
    assert predict(analyze(model), chosen).memory == memory(smaller) < memory(model)


def test_every_tensor_of_a_model_is_there() -> None:
    g = Graph()
    x = g.conv(g.input(1, 2, 4, 4), 2, 10)
    analysis = analyze(g.model(g.conv(g("Relu", x), 10, 2)))
    spans = [(t.first, t.last) for t in activations(analysis.walk)]
    assert sorted(spans) == [(0, 0), (0, 1), (1, 2), (2, 3)]
