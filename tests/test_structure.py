"""A model read without its weights: the same graph, and weights where they are in the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import ModelError, load, validate
from onnx_prune.analysis.graph import array_of
from onnx_prune.analysis.model import load_structure
from onnx_prune.analysis.wire import LARGE
from onnx_prune.models.digits import FOLDER


def large(seed: int = 0) -> onnx.ModelProto:
    """Weights of several sizes and types, some larger than what is left in the file."""
    rng = np.random.default_rng(seed)
    g = Graph(seed)
    h = g("MatMul", g.input(1, 200), g.weight(200, 300))
    for k, dtype in enumerate((np.float16, np.int8, np.float64)):
        value = rng.integers(-3, 4, (300, 300)).astype(dtype)
        g.weights.append(numpy_helper.from_array(value, f"typed{k}"))
        g.weights.append(numpy_helper.from_array(np.arange(90_000), f"indices{k}"))
        cast = g("Cast", f"typed{k}", to=TensorProto.FLOAT)
        h = g("MatMul", h, cast)
    return g.model(h).proto


def body(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same within a branch, with a weight in a Constant node."""
    inside = helper.make_graph(
        [
            helper.make_node("Constant", [], ["held"], value=proto.graph.initializer[0]),
            helper.make_node("MatMul", ["x", "held"], ["out"]),
        ],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 300])],
    )
    graph = helper.make_graph(
        [helper.make_node("If", ["yes"], ["y"], then_branch=inside, else_branch=inside)],
        "g",
        [*proto.graph.input, helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 300])],
    )
    copy = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=9)
    names = {"then_branch": "then", "else_branch": "else"}
    for attribute in copy.graph.node[0].attribute:
        for node in attribute.g.node:
            node.output[0] = f"{names[attribute.name]}.{node.output[0]}"
        attribute.g.node[1].input[1] = attribute.g.node[0].output[0]
        attribute.g.output[0].name = attribute.g.node[1].output[0]
    return copy


def tensors(proto: onnx.ModelProto) -> list[TensorProto]:
    found = list(proto.graph.initializer)
    for node in proto.graph.node:
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            for inner in attribute.g.node:
                found += [held.t for held in inner.attribute if held.HasField("t")]
    return found


@pytest.mark.parametrize("make", [large, lambda: body(large())], ids=["initializers", "in a branch"])
@pytest.mark.parametrize("beside", [False, True], ids=["inside", "beside"])
def test_weights_stay_in_the_file_and_are_read_from_there(tmp_path: Path, make, beside: bool) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "model.onnx"
    onnx.save(make(), path, save_as_external_data=beside, location="weights")
    whole, (model, storage) = load(path).proto, load_structure(path)
    left = [t for t in tensors(model.proto) if t.data_location == TensorProto.EXTERNAL]
    assert left and all(len(t.raw_data) == 0 for t in left)
    assert len(model.proto.SerializeToString()) < 3 * 90_000 * 8 + 50_000  # indices are not left out
    for read, stored in zip(tensors(model.proto), tensors(whole), strict=True):
        assert np.array_equal(storage.array(read), array_of(stored))
        pieces = np.concatenate([piece.copy() for piece in storage.pieces(read)])
        assert np.array_equal(pieces.reshape(tuple(read.dims)), array_of(stored))
        assert list(read.dims) == list(stored.dims) and read.name == stored.name
    assert model.proto.graph.node == whole.graph.node or left  # nodes but for what they hold


def test_a_small_model_is_read_whole() -> None:
    path = FOLDER / "digits_vit.onnx"
    model, _ = load_structure(path)
    whole = load(path)
    assert [node.op_type for node in model.proto.graph.node] == [n.op_type for n in whole.proto.graph.node]
    small = [t for t in model.proto.graph.initializer if t.data_location != TensorProto.EXTERNAL]
    assert small and all(len(t.raw_data) < LARGE for t in small)


def test_damage_is_told_and_never_crashes(tmp_path: Path) -> None:
    """Cut short anywhere, or with a byte changed, a file is read or refused; never by another error."""
    path, data = tmp_path / "model.onnx", bytearray(large().SerializeToString())
    rng = np.random.default_rng(0)
    for cut in rng.integers(1, len(data), 40):
        path.write_bytes(data[:cut])
        with pytest.raises(ModelError, match=r"cut short|needs"):
            validate(path, ["nvidia-2:4"])
    heads = [i for i in range(len(data)) if i < 2000 or data[i : i + 5] in (b"typed", b"indic")]
    heads += range(len(data) - 200, len(data))  # inputs, outputs, the opset
    for place in rng.choice(heads, 150):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            validate(path, ["nvidia-2:4"])
        except ModelError as error:
            assert "\n" not in str(error)


def field(number: int, data: bytes) -> bytes:
    """A field of a message of protobuf."""
    length, left = bytearray(), len(data)
    while left > 127:
        length.append(left & 127 | 128)
        left >>= 7
    return bytes([number << 3 | 2, *length, left]) + data


def test_messages_within_messages_end(tmp_path: Path) -> None:
    """A file of graphs within graphs is refused before Python runs out of stack."""
    data = field(10, b"x" * LARGE)  # a doc string
    for _ in range(400):
        data = field(1, field(5, field(6, data)))  # a node of a graph, its attribute, a graph
    path = tmp_path / "model.onnx"
    path.write_bytes(field(7, data))
    with pytest.raises(ModelError, match="not an ONNX model"):
        load_structure(path)


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(240_000))
    inside = tmp_path / "model"
    inside.mkdir()
    proto = large()
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (inside / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        validate(inside / "model.onnx", ["nvidia-2:4"])
