"""Weights trained elsewhere, taken back into the pruned model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Graph, shapes
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, ModelError, Plan, apply, load, plan
from onnx_prune.analysis.graph import array_of, walk_graphs
from onnx_prune.models.digits import FOLDER, MODELS
from onnx_prune.passes.execute import execute, random_inputs
from onnx_prune.passes.fold import FoldConstants
from onnx_prune.passes.shrink import shrink
from onnx_prune.passes.weights import take_weights
from wrapping import in_function, in_if


def halved(model: Model) -> Plan:
    return plan(model, ratio=0.5, criterion="l2", recover="none")


def renamed(model: Model) -> Model:
    """The same network with other names for all but its inputs and outputs."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    kept_names = {info.name for info in (*proto.graph.input, *proto.graph.output)} | {""}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in kept_names else names.setdefault(name, f"onnx::T_{len(names)}")

    for graph in walk_graphs(proto.graph):
        for tensor in graph.initializer:
            tensor.name = new(tensor.name)
        for info in graph.value_info if graph is proto.graph else (*graph.input, *graph.output):
            info.name = new(info.name)
        for k, node in enumerate(graph.node):
            node.name = f"node_{k}"
            node.input[:] = map(new, node.input)
            node.output[:] = map(new, node.output)
    return Model(proto)


def trained(model: Model, seed: int = 0) -> Model:
    """Other values for every float of more than one element."""
    rng = np.random.default_rng(seed)
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for graph in walk_graphs(proto.graph):
        for tensor in graph.initializer:
            value = array_of(tensor)
            if value.dtype.kind == "f" and value.size > 1:
                factors = rng.uniform(0.8, 1.2, value.shape)  # variances stay positive
                moved = (value * factors).astype(value.dtype)
                tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return Model(proto)


def assert_takes(pruned: Model, other: Model, tolerance: float = 0.0) -> Model:
    """The result computes what ``other`` does, and ``pruned`` something else."""
    result = take_weights(pruned, other)
    inputs = random_inputs(pruned.proto)
    before, wanted, got = (execute(m.proto, inputs) for m in (pruned, other, result))
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        atol = tolerance * float(np.abs(value).max())
        np.testing.assert_allclose(got[name], value, rtol=0, atol=atol)
        assert not np.allclose(before[name], value, rtol=1e-3)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_found_whatever_they_are_called(name: str) -> None:
    model = load(FOLDER / f"{name}.onnx")
    pruned = apply(model, halved(model))
    before = pruned.proto.SerializeToString(deterministic=True)
    result = assert_takes(pruned, renamed(trained(pruned)))
    assert shapes(result) == shapes(pruned)
    assert [n.name for n in result.proto.graph.node] == [n.name for n in pruned.proto.graph.node]
    assert pruned.proto.SerializeToString(deterministic=True) == before


def test_weights_of_the_model_itself_change_nothing() -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    pruned = apply(model, halved(model))
    assert take_weights(pruned, pruned).proto == pruned.proto


@pytest.mark.parametrize("name", MODELS)
def test_batch_norm_may_be_folded_in_one_of_them(name: str) -> None:
    model = load(FOLDER / f"{name}.onnx")
    chosen = halved(model)
    raw, clean = shrink(model, chosen), apply(model, chosen)
    other = trained(raw)
    folded = assert_takes(clean, renamed(other), 1e-5)
    assert shapes(folded) == shapes(clean)
    back = assert_takes(raw, apply(other, Plan((), {})), 1e-5)
    assert "BatchNormalization" not in {node.op_type for node in back.proto.graph.node}


def test_transposed_weights_are_taken_as_they_stand() -> None:
    model = load(FOLDER / "digits_vit.onnx")
    raw = shrink(model, halved(model))
    assert_takes(FoldConstants()(raw), renamed(trained(raw)))


def chain(activation: str = "Relu", epsilon: float | None = None, shared: bool = False) -> Graph:
    g = Graph()
    x = g.conv(g.input("N", 3, 4, 4), 3, 8)
    attrs = {} if epsilon is None else {"epsilon": epsilon}
    names = [g.weight(8, name=f"norm{k}") for k in range(2)]
    x = g("InstanceNormalization", x, names[0], names[0 if shared else 1], **attrs)
    x = g(activation, x)
    g("Conv", x, g.weight(2, 8, 1, 1, name="last"))
    return g


def built(g: Graph) -> Model:
    if "norm1" not in {name for node in g.nodes for name in node.input}:
        g.weights = [t for t in g.weights if t.name != "norm1"]
    return g.model(g.nodes[-1].output[0])


def test_an_attribute_at_its_default_is_as_good_as_left_out() -> None:
    assert_takes(built(chain()), trained(built(chain(epsilon=1e-5))))


def test_a_weight_that_was_shared_comes_apart() -> None:
    """Two norm parameters were equal, and one tensor, before they were trained."""
    pruned = built(chain(shared=True))
    result = assert_takes(pruned, renamed(trained(built(chain()))), 1e-6)
    assert len(shapes(result)) == len(shapes(pruned)) + 1


def test_weights_that_stay_equal_stay_shared() -> None:
    pruned = built(chain(shared=True))
    result = assert_takes(pruned, renamed(trained(pruned)))
    assert shapes(result) == shapes(pruned)


def test_equal_weights_that_an_exporter_merged_are_written_out() -> None:
    other = trained(built(chain(shared=True)))
    assert_takes(built(chain()), other)
    assert_takes(built(chain()), renamed(other))


def replaced(model: Model, change: Callable[[onnx.GraphProto], None]) -> Model:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    change(proto.graph)
    return Model(proto)


def with_float_attribute(graph: onnx.GraphProto) -> None:
    """y becomes scale * y, the scale in a Constant node."""
    last = graph.node[-1]
    name, last.output[0] = last.output[0], "unscaled"
    graph.node.append(helper.make_node("Constant", [], ["scale"], value_float=3.0))
    graph.node.append(helper.make_node("Mul", ["unscaled", "scale"], [name]))


def test_numbers_in_constant_nodes_are_taken() -> None:
    pruned = replaced(built(chain()), with_float_attribute)
    other = replaced(trained(pruned), lambda graph: setattr(graph.node[-2].attribute[0], "f", 5.0))
    assert_takes(pruned, other)


@pytest.mark.parametrize("wrap", [in_if, in_function])
def test_weights_inside_bodies_and_functions(wrap: Callable[[onnx.ModelProto], Any]) -> None:
    model = Model(wrap(built(chain()).proto))
    assert_takes(model, renamed(trained(model)) if wrap is in_if else trained(model))


def flattened_otherwise(graph: onnx.GraphProto) -> None:
    """y becomes y + 0, as another exporter might leave it."""
    last = graph.node[-1]
    name, last.output[0] = last.output[0], "before"
    graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    graph.node.append(helper.make_node("Add", ["before", "zero"], [name]))


def test_another_structure_is_taken_by_name_when_it_computes_the_same() -> None:
    pruned = built(chain())
    assert_takes(pruned, replaced(trained(pruned), flattened_otherwise))
    with pytest.raises(ModelError, match=r"has Conv '.*has Add '.*the trained model has no 'w0'"):
        take_weights(pruned, renamed(replaced(trained(pruned), flattened_otherwise)))


def test_another_function_under_the_same_names_is_refused() -> None:
    with pytest.raises(ModelError, match=r"Relu .*Sigmoid .*not what the trained model computes"):
        take_weights(built(chain()), trained(built(chain("Sigmoid"))))


def test_another_attribute_is_refused() -> None:
    with pytest.raises(ModelError, match=r"attribute 'epsilon' of InstanceNormalization"):
        take_weights(built(chain()), trained(built(chain(epsilon=0.5))))


def resized(name: str, *shape: int) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(np.ones(shape, np.float32), name))

    return change


def test_a_weight_of_another_shape_is_named() -> None:
    with pytest.raises(ModelError, match=r"'last' is float32 \[2, 8, 1, 1\].*'last' float32 \[2, 6, 1, 1\]"):
        take_weights(built(chain()), replaced(built(chain()), resized("last", 2, 6, 1, 1)))


def test_a_weight_of_another_type_is_named() -> None:
    def half(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            if tensor.name == "last":
                tensor.CopyFrom(numpy_helper.from_array(array_of(tensor).astype(np.float16), "last"))

    with pytest.raises(ModelError, match=r"'last' is float32 .*'last' float16"):
        take_weights(built(chain()), replaced(built(chain()), half))


def softmax_of_rows(*shape: int) -> Model:
    g = Graph()
    rows = g("Softmax", g("Reshape", g.input(2, 12), g.ints(*shape)), axis=-1)
    return g.model(g("Mul", g("Reshape", rows, g.ints(2, 12)), g.weight(12)))


def test_shape_constants_must_be_equal() -> None:
    with pytest.raises(ModelError, match=r"no floats and have different values.*not what the trained model"):
        take_weights(softmax_of_rows(2, 3, 4), softmax_of_rows(2, 4, 3))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda graph: setattr(graph.input[0], "name", "image"), "inputs x, the trained one image"),
        (lambda graph: graph.output.append(graph.input[0]), "outputs"),
        (
            lambda graph: graph.input[0].CopyFrom(
                helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])
            ),
            r"input 'x' is float \[\?, 3, 4, 4\].*float \[1, 3, 4, 4\]",
        ),
        (
            lambda graph: graph.input[0].CopyFrom(
                helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["N", 3, 4, 4])
            ),
            "float16",
        ),
    ],
)
def test_another_signature_is_refused(change: Callable[[onnx.GraphProto], None], told: str) -> None:
    with pytest.raises(ModelError, match=told):
        take_weights(built(chain()), replaced(built(chain()), change))
