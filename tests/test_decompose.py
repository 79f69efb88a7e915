"""Operators written as others before import: the same numbers in ONNX Runtime; what stays is named."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import onnx.compose
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_prune.analysis.errors import BackendError
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.passes.execute import execute, random_inputs

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")

STEPS, BATCH, FEATURES, HIDDEN = 5, 2, 3, 4
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
    outputs: dict[str, int],
    opset: int = 17,
) -> onnx.ModelProto:
    """A model whose inputs are like the given arrays; outputs by name and element type."""
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in inputs.items()
    ]
    results = [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()]
    tensors = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    graph = helper.make_graph(nodes, "net", infos, results, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def recurrent(
    kind: str,
    direction: str = "forward",
    given: str = "b",
    **attributes: object,
) -> onnx.ModelProto:
    """Letters of ``given``: bias, sequence lengths, h and c at the start, peepholes."""
    rng = np.random.default_rng(0)
    ways, gates = 2 if direction == "bidirectional" else 1, GATES[kind]

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    constants = {
        "W": draw(ways, gates * HIDDEN, FEATURES),
        "R": draw(ways, gates * HIDDEN, HIDDEN),
        "b": draw(ways, 2 * gates * HIDDEN),
        "s": np.full(BATCH, STEPS, np.int32),
        "h": draw(ways, BATCH, HIDDEN),
        "c": draw(ways, BATCH, HIDDEN),
        "p": draw(ways, 3 * HIDDEN),
    }
    names = ["x", "W", "R", *(letter if letter in given else "" for letter in "bshcp")]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    node = helper.make_node(
        kind,
        names[: 8 if kind == "LSTM" else 6],
        outputs,
        hidden_size=HIDDEN,
        direction=direction,
        **attributes,
    )
    used = {name: value for name, value in constants.items() if name in node.input}
    x = {"x": draw(STEPS, BATCH, FEATURES)}
    model = model_of([node], x, used, dict.fromkeys(outputs, TensorProto.FLOAT))
    return onnx.shape_inference.infer_shapes(model)


def same(before: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, atol: float = 1e-5) -> None:
    """The decomposed model has none of the operators left and gives the same numbers."""
    from onnx_prune.backends.tvm.decompose import decompose
    from onnx_prune.backends.tvm.frontend import unsupported

    after, reasons = decompose(before)
    assert not reasons
    assert not unsupported(after)
    assert {node.op_type for node in before.graph.node}.isdisjoint(n.op_type for n in after.graph.node)
    feed = inputs or random_inputs(before)
    wanted, got = execute(before, feed), execute(after, feed)
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert wanted[name].dtype == got[name].dtype
        np.testing.assert_allclose(got[name].astype(float), wanted[name], atol=atol, rtol=1e-5)


def compiled_like_onnxruntime(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, atol: float = 0
) -> None:
    inputs = inputs or random_inputs(model)
    wanted, got = execute(model, inputs), CpuBackend().compile(model).run(inputs)
    for name in wanted:
        np.testing.assert_allclose(got[name].astype(float), wanted[name], atol=atol, rtol=1e-5)


def together(*models: onnx.ModelProto) -> onnx.ModelProto:
    """One model of several, whose inputs, outputs and weights get names of their own."""
    merged = models[0]
    merged = onnx.compose.add_prefix(merged, "m0.")
    for number, model in enumerate(models[1:], 1):
        merged = onnx.compose.merge_models(merged, onnx.compose.add_prefix(model, f"m{number}."), io_map=[])
    return merged


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_recurrent_nodes_agree_in_every_direction(kind: str) -> None:
    models = [
        recurrent(kind, direction, given)
        for direction, given in [("forward", ""), ("reverse", "b"), ("bidirectional", "bshc")]
    ]
    compiled_like_onnxruntime(together(*models), atol=1e-5)


def test_variants_of_cells_agree() -> None:
    models = [
        recurrent("LSTM", given="bhcp"),
        recurrent("LSTM", activations=["HardSigmoid", "Softsign", "Relu"]),
        recurrent("LSTM", activations=["Sigmoid", "LeakyRelu", "Elu"]),
        recurrent("GRU", given="bh", linear_before_reset=1),
        recurrent("GRU", given="", linear_before_reset=1),
        recurrent("GRU", activations=["Sigmoid", "Relu"]),
        recurrent("RNN", activations=["Relu"]),
    ]
    compiled_like_onnxruntime(together(*models), atol=1e-5)


def test_an_initial_state_may_be_computed() -> None:
    model = recurrent("GRU", "bidirectional", "bh")
    start = next(tensor for tensor in model.graph.initializer if tensor.name == "h")
    model.graph.initializer.remove(start)
    model.graph.input.append(helper.make_tensor_value_info("h", start.data_type, start.dims))
    compiled_like_onnxruntime(model, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"clip": 1.0}, "clip"),
        ({"input_forget": 1}, "coupled gates"),
        ({"activations": ["ScaledTanh", "Tanh", "Tanh"]}, "ScaledTanh"),
    ],
)
def test_a_cell_that_cannot_be_unrolled_is_named(attributes: dict[str, object], reason: str) -> None:
    with pytest.raises(BackendError, match=f"LSTM with .*{reason}"):
        CpuBackend().compile(recurrent("LSTM", **attributes))


def test_sequences_of_different_lengths_are_named() -> None:
    model = recurrent("GRU", given="bs")
    lengths = next(tensor for tensor in model.graph.initializer if tensor.name == "s")
    lengths.CopyFrom(numpy_helper.from_array(np.array([5, 3], np.int32), "s"))
    with pytest.raises(BackendError, match="GRU of sequences of different lengths"):
        CpuBackend().compile(model)


# Signed bytes stay below 64: ONNX Runtime adds pairs of products in 16 bits on some CPUs, which overflow.
def byte(rng: np.random.Generator, *shape: int, signed: bool = False) -> np.ndarray:
    return rng.integers(-60, 60, shape).astype(np.int8) if signed else rng.integers(0, 250, shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 6])
def test_a_quantised_convolution_gives_the_same(channels: int) -> None:
    """Also with a scale and a zero point for each output channel; up to one step by rounding."""
    rng = np.random.default_rng(0)
    x = byte(rng, 1, 4, 7, 6)
    constants = {
        "xs": np.float32(0.02),
        "xz": np.uint8(120),
        "w": byte(rng, 6, 4, 3, 3, signed=True),
        "ws": rng.uniform(0.001, 0.01, channels).astype(np.float32),
        "wz": np.zeros(channels, np.int8),
        "ys": np.float32(0.05),
        "yz": np.uint8(128),
        "b": rng.integers(-500, 500, 6).astype(np.int32),
    }
    if channels == 1:
        constants |= {"ws": np.float32(0.004), "wz": np.int8(3)}
    names = ["x", "xs", "xz", "w", "ws", "wz", "ys", "yz", "b"]
    node = helper.make_node("QLinearConv", names, ["y"], pads=[1, 1, 1, 1], strides=[2, 1])
    model = model_of([node], {"x": x}, constants, {"y": TensorProto.UINT8})
    same(model, {"x": x}, atol=1)


@pytest.mark.parametrize("columns", [1, 5])
def test_a_quantised_product_gives_the_same(columns: int) -> None:
    rng = np.random.default_rng(0)
    a = byte(rng, 3, 8)
    constants = {
        "as": np.float32(0.02),
        "az": np.uint8(100),
        "b": byte(rng, 8, 5, signed=True),
        "bs": rng.uniform(0.001, 0.01, columns).astype(np.float32),
        "bz": np.zeros(columns, np.int8),
        "ys": np.float32(0.03),
        "yz": np.uint8(128),
    }
    if columns == 1:
        constants |= {"bs": np.float32(0.01), "bz": np.int8(2)}
    node = helper.make_node("QLinearMatMul", ["a", "as", "az", "b", "bs", "bz", "ys", "yz"], ["y"])
    same(model_of([node], {"a": a}, constants, {"y": TensorProto.UINT8}), {"a": a}, atol=1)


def test_integer_products_and_convolutions_give_the_same() -> None:
    rng = np.random.default_rng(0)
    a, x = byte(rng, 3, 8), byte(rng, 1, 3, 6, 5)
    constants = {
        "az": np.uint8(7),
        "b": byte(rng, 8, 5, signed=True),
        "bz": byte(rng, 5, signed=True),
        "w": byte(rng, 4, 3, 3, 3),
        "wz": np.uint8(90),
    }
    nodes = [
        helper.make_node("MatMulInteger", ["a", "b", "az", "bz"], ["y"]),
        helper.make_node("ConvInteger", ["x", "w", "az", "wz"], ["z"], pads=[1, 0, 1, 0]),
    ]
    outputs = {"y": TensorProto.INT32, "z": TensorProto.INT32}
    same(model_of(nodes, {"a": a, "x": x}, constants, outputs), {"a": a, "x": x}, atol=0)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
def test_the_output_shape_of_a_transposed_convolution_becomes_padding(auto_pad: str) -> None:
    from onnx_prune.backends.tvm.decompose import decompose

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 2, 4, 3)).astype(np.float32)
    x = rng.standard_normal((1, 3, 5, 6)).astype(np.float32)
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[3, 2], output_shape=[13, 10], auto_pad=auto_pad
    )
    before = model_of([node], {"x": x}, {"w": weights}, {"y": TensorProto.FLOAT})
    after, _ = decompose(before)
    assert "pads" in {attribute.name for node in after.graph.node for attribute in node.attribute}
    np.testing.assert_allclose(execute(after, {"x": x})["y"], execute(before, {"x": x})["y"], atol=1e-5)


def test_dynamic_quantisation_compiles() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 8)).astype(np.float32)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["a"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "b", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    model = model_of(nodes, {"a": a}, {"b": byte(rng, 8, 5, signed=True)}, {"y": TensorProto.FLOAT})
    compiled_like_onnxruntime(model, {"a": a}, 1e-2)


def test_local_functions_compile() -> None:
    body = [helper.make_node("Mul", ["u", "u"], ["v"]), helper.make_node("Relu", ["v"], ["w"])]
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("own", "Squared", ["u"], ["w"], body, opset)
    a = np.ones((2, 3), np.float32)
    node = helper.make_node("Squared", ["a"], ["y"], domain="own")
    model = model_of([node], {"a": a}, {}, {"y": TensorProto.FLOAT})
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.functions.append(function)
    compiled_like_onnxruntime(model, {"a": a}, 0)
