"""Bad files, and files that are never half written."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, ModelError, OutputError, load, save
from onnx_prune.models.digits import FOLDER


def model() -> Model:
    g = Graph()
    return g.model(g.conv(g.conv(g.input(1, 3, 4, 4), 3, 8), 8, 2))


def written(tmp_path: Path, proto: onnx.ModelProto) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "empty"),
        (b"\x00\x01garbage" * 40, "not an ONNX model"),
        ((FOLDER / "digits_resnet.onnx").read_bytes()[:70_000], "cut short"),
    ],
)
def test_files_that_are_no_models(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=told):
        load(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        load(tmp_path)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="no file"):
        load(tmp_path / "pipe")
    with pytest.raises(ModelError, match="no file"):
        load(written(tmp_path, external("pipe")))


def test_names_of_branches_may_repeat_but_not_shadow(tmp_path: Path) -> None:
    def branch(name: str) -> onnx.GraphProto:
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        return helper.make_graph([helper.make_node("Neg", ["x"], [name])], name, [], [made])

    def choice(name: str) -> onnx.ModelProto:
        info = [helper.make_tensor_value_info(n, t, [1]) for n, t in (("x", 1), ("c", 9), ("y", 1))]
        node = helper.make_node("If", ["c"], ["y"], then_branch=branch(name), else_branch=branch(name))
        return helper.make_model(helper.make_graph([node], "g", info[:2], info[2:]))

    assert load(written(tmp_path, choice("z")))
    with pytest.raises(ModelError, match="'x', made by Neg 'x', is defined twice"):
        load(written(tmp_path, choice("x")))


def test_random_damage_never_crashes(tmp_path: Path) -> None:
    """Whatever bytes change, the model loads or is refused with a typed error."""
    data = np.frombuffer(model().proto.SerializeToString(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(200):
        damaged = data.copy()
        damaged[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        path = tmp_path / "damaged.onnx"
        path.write_bytes(damaged.tobytes())
        try:
            load(path)
        except ModelError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda g: g.initializer[0].dims.append(7), "'w0'.*bytes"),
        (lambda g: g.initializer.append(g.initializer[0]), "'w0' is defined twice"),
        (lambda g: g.node[0].input.append("ghost"), "'ghost'"),
        (lambda g: g.node.append(g.node[0]), "defined twice"),
        (lambda g: g.output.append(onnx.ValueInfoProto(name="ghost")), "'ghost'"),
        (lambda g: g.input.append(g.input[0]), "input 'x' is defined twice"),
        (lambda g: g.node[0].input.append(g.node[1].output[0]), "a cycle, or not sorted"),
        (lambda g: setattr(g.initializer[0], "data_type", 99), "'w0'.*unknown data type"),
        (lambda g: setattr(g.initializer[0], "data_type", TensorProto.STRING), "'w0' holds strings"),
        (lambda g: g.initializer[0].dims.__setitem__(0, -8), "'w0' has a negative size"),
        (lambda g: g.initializer[0].dims.extend([1 << 40] * 4), "'w0'.*bytes"),
        (lambda g: g.initializer[0].ClearField("raw_data"), "'w0'.*elements"),
    ],
)
def test_inconsistent_graphs(tmp_path: Path, change, told: str) -> None:
    proto = model().proto
    change(proto.graph)
    with pytest.raises(ModelError, match=told):
        load(written(tmp_path, proto))


def external(location: str, **entries: str) -> onnx.ModelProto:
    proto = model().proto
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return proto


def test_external_data_is_read(tmp_path: Path) -> None:
    data = model().proto.graph.initializer[0].raw_data
    (tmp_path / "w.bin").write_bytes(b"xx" + data)
    loaded = load(written(tmp_path, external("w.bin", offset="2", length=str(len(data)))))
    assert loaded.proto.graph.initializer[0].raw_data == data


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(b"0" * 4096)
    (folder / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="folder"):
        load(written(folder, external(location)))


@pytest.mark.parametrize(
    "entries",
    [{"offset": "-4"}, {"offset": "9999"}, {"length": "99999"}, {"offset": "many"}, {"length": "4"}],
)
def test_external_data_of_a_wrong_size_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(model().proto.graph.initializer[0].raw_data)
    with pytest.raises(ModelError, match="'w0'"):
        load(written(tmp_path, external("w.bin", **entries)))


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no folder"):
        save(model(), tmp_path / "none" / "out.onnx")
    with pytest.raises(OutputError, match="is a folder"):
        save(model(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(model(), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_what_is_not_touched_survives(tmp_path: Path) -> None:
    from graphs import pruned

    source = model()
    source.proto.metadata_props.add(key="author", value="somebody")
    source.proto.graph.doc_string = "about the graph"
    source.proto.graph.node[0].doc_string = "about the node"
    source.proto.opset_import.append(helper.make_opsetid("local", 1))
    source.proto.functions.append(
        helper.make_function(
            "local",
            "F",
            ["a"],
            ["b"],
            [helper.make_node("Relu", ["a"], ["b"])],
            [helper.make_opsetid("", 17)],
        )
    )
    smaller, _, _ = pruned(source)
    assert smaller.proto.metadata_props == source.proto.metadata_props
    assert smaller.proto.graph.doc_string == "about the graph"
    assert smaller.proto.graph.node[0].doc_string == "about the node"
    assert smaller.proto.functions == source.proto.functions


def test_nodes_out_of_order_are_sorted(tmp_path: Path) -> None:
    source = model()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in source.proto.graph.node]
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(source.proto)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(nodes[::-1])
    onnx.save(shuffled, tmp_path / "model.onnx")
    assert [n.name for n in load(tmp_path / "model.onnx").proto.graph.node] == [n.name for n in nodes]


def test_names_and_types_that_are_none(tmp_path: Path) -> None:
    """An operator that is no text, and an input of a type that ONNX has not."""
    path = tmp_path / "model.onnx"
    path.write_bytes(model().proto.SerializeToString().replace(b"\x22\x04Conv", b"\x22\x04Co\xff\xfe"))
    with pytest.raises(ModelError, match="no text"):
        load(path)
    proto = onnx.ModelProto()
    proto.CopyFrom(model().proto)
    proto.graph.input[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match="'x' has the unknown data type 99"):
        load(written(tmp_path, proto))
