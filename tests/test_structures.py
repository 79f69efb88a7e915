"""What a model may be made of beside plain nodes: functions, bodies, recurrent cells, other ways to store."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Graph, assert_bit_exact, pruned, shapes
from onnx import TensorProto, helper, numpy_helper


def test_weights_given_as_inputs_with_defaults() -> None:
    g = Graph()
    model = g.model(g.conv(g("Relu", g.conv(g.input(1, 3, 4, 4), 3, 8)), 8, 2))
    for name, shape in shapes(model).items():
        model.proto.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    model.proto.graph.input.append(helper.make_tensor_value_info("spare", TensorProto.FLOAT, [1]))
    model.proto.graph.initializer.append(helper.make_tensor("spare", TensorProto.FLOAT, [1], [3.0]))
    smaller = assert_bit_exact(model)
    declared = {
        i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in smaller.proto.graph.input
    }
    assert declared.pop("x") == (1, 3, 4, 4)
    assert declared == shapes(smaller)
    assert shapes(smaller)["w0"] == (4, 3, 1, 1) and shapes(smaller)["spare"] == (1,)


def test_branches_of_an_if() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 8, 4, 4]) for n in ("then", "other")]
    then = helper.make_graph([helper.make_node("Relu", [h], ["then"])], "t", [], outputs[:1])
    other = helper.make_graph([helper.make_node("Neg", [h], ["other"])], "e", [], outputs[1:])
    flag = g("Greater", g("ReduceSum", g("Abs", "x"), keepdims=0), g.weight(name="zero"))
    chosen = g("If", flag, then_branch=then, else_branch=other)
    smaller = assert_bit_exact(g.model(g.conv(chosen, 8, 2)))
    assert shapes(smaller)["w0"][0] == 4


def test_a_sparse_initializer_is_pruned_as_a_dense_one() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    model = g.model(g.conv(h, 8, 2))
    graph = model.proto.graph
    (dense,) = (t for t in graph.initializer if t.name == "w2")
    value = numpy_helper.to_array(dense).copy()
    where = np.flatnonzero(value)
    values = numpy_helper.from_array(value.reshape(-1)[where], "w2")
    indices = numpy_helper.from_array(where.astype(np.int64), "w2.indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(value.shape)))
    graph.initializer.remove(dense)
    smaller = assert_bit_exact(model)
    assert shapes(smaller)["w2"] == (2, 4, 1, 1) and not smaller.proto.graph.sparse_initializer


def test_a_function_is_pruned_through() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["s"]), helper.make_node("Relu", ["s"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    model = g.model(g.conv(g("Neg", h), 8, 2))
    model.proto.graph.node[1].op_type, model.proto.graph.node[1].domain = "Twice", "local"
    model.proto.functions.append(twice)
    model.proto.opset_import.append(helper.make_opsetid("local", 1))
    smaller = assert_bit_exact(model)
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_names_that_two_branches_share() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    info = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 8, 4, 4])
    bodies = [
        helper.make_graph(
            [helper.make_node(op, [h], ["t"]), helper.make_node("Relu", ["t"], ["out"])], op, [], [info]
        )
        for op in ("Abs", "Neg")
    ]
    flag = g("Greater", g("ReduceSum", g("Abs", "x"), keepdims=0), g.weight(name="zero"))
    chosen = g("If", flag, then_branch=bodies[0], else_branch=bodies[1])
    smaller = assert_bit_exact(g.model(g.conv(chosen, 8, 2)))
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_a_loop_that_captures_weights() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    inner, outer = g.weight(8, 6, 1, 1), g.weight(6, 8, 1, 1)
    state = [1, 8, 4, 4]
    body = helper.make_graph(
        [
            helper.make_node("Conv", ["state", outer], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", inner], ["c"]),
            helper.make_node("Add", ["c", "state"], ["next"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, state),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, state),
        ],
    )
    g.weights.append(numpy_helper.from_array(np.array(True), "true"))
    g.weights.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    h = g("Loop", "two", "true", h, body=body)
    smaller = assert_bit_exact(g.model(g.conv(h, 8, 2), shape=[1, 2, 4, 4]))
    assert shapes(smaller)[inner] == (4, 3, 1, 1) and shapes(smaller)[outer] == (3, 4, 1, 1)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_lose_hidden_units(op: str, directions: int) -> None:
    g = Graph()
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    h = g("MatMul", g.input(5, 1, 6), g.weight(6, 8))
    w, r = g.weight(directions, gates * 8, 8), g.weight(directions, gates * 8, 8)
    b = g.weight(directions, 2 * gates * 8)
    direction = "bidirectional" if directions == 2 else "forward"
    y, _ = g(op, h, w, r, b, outputs=2, hidden_size=8, direction=direction)
    y = g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
    smaller, _, verdict = pruned(g.model(g("MatMul", y, g.weight(directions * 8, 3))))
    assert verdict.ok and verdict.kind == "exact"
    assert shapes(smaller)[w] == (directions, gates * 4, 4)
    assert shapes(smaller)[r] == (directions, gates * 4, 4)
    assert shapes(smaller)[b] == (directions, 2 * gates * 4)


def test_half_floats_are_certified_in_float32() -> None:
    g = Graph()
    model = g.model(g.conv(g("Relu", g.conv(g.input(1, 3, 4, 4), 3, 8)), 8, 2))
    for tensor in model.proto.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for info in (*model.proto.graph.input, *model.proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    smaller, _, verdict = pruned(model)
    assert verdict.ok and verdict.max_relative_error < 1e-6
    assert smaller.proto.graph.initializer[0].data_type == TensorProto.FLOAT16
