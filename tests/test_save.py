"""Files that are written whole or not at all, and the external data of large models."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import Graph
from onnx_prune import Model, OutputError, load, save
from onnx_prune.passes.save import check_writable, save_text, write_atomic


def model() -> Model:
    """One weight of 16 kB and one of 8 kB, and their small biases."""
    g = Graph()
    return g.model(g.conv(g.conv(g.input(1, 16, 4, 4), 16, 256), 256, 8))


def test_large_weights_go_to_a_file_beside_the_model(tmp_path: Path) -> None:
    source, path = model(), tmp_path / "large.onnx"
    before = source.proto.SerializeToString(deterministic=True)
    save(source, path, limit=1024)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["large.onnx", "large.onnx.data"]
    assert path.stat().st_size < 4096
    assert source.proto.SerializeToString(deterministic=True) == before
    loaded = load(path).proto
    onnx.checker.check_model(loaded)
    stored = {t.name: t.raw_data for t in loaded.graph.initializer}
    assert stored == {t.name: t.raw_data for t in source.proto.graph.initializer}
    x = {"x": np.ones((1, 16, 4, 4), np.float32)}
    wanted, got = (onnxruntime.InferenceSession(m).run(None, x)[0] for m in (before, str(path)))
    assert np.array_equal(wanted, got)


def test_external_data_is_the_same_each_time(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(model(), tmp_path / name / "m.onnx", limit=1024)
        files.append([(p.name, p.read_bytes()) for p in sorted((tmp_path / name).iterdir())])
    assert files[0] == files[1]


def test_what_belongs_to_the_model_survives_the_split(tmp_path: Path) -> None:
    source = model()
    source.proto.metadata_props.add(key="author", value="somebody")
    source.proto.graph.doc_string = "about the graph"
    save(source, tmp_path / "m.onnx", limit=1024)
    loaded = load(tmp_path / "m.onnx").proto
    assert loaded.metadata_props == source.proto.metadata_props
    assert loaded.graph.doc_string == "about the graph"
    assert loaded.graph.node == source.proto.graph.node
    assert loaded.opset_import == source.proto.opset_import
    assert loaded.ir_version == source.proto.ir_version


def test_a_writer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")

    def half(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"m\.onnx.*No space left"):
        write_atomic(path, half)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    save_text("new", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_name_as_long_as_files_may_have(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 250 + ".json")
    save_text("text", path)
    assert path.read_text() == "text"


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        save_text("text", tmp_path / "file")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("", "is a folder"),
        ("none/file", "no folder"),
        ("file/file", "Not a directory"),
        ("x" * 300, "too long"),
        ("a\0b", "null byte"),
        ("pipe", "no ordinary file"),
    ],
)
def test_places_that_cannot_be_written_are_found_first(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "file").write_text("here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=told):
        check_writable(tmp_path / name)
