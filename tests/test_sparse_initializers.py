"""Weights stored as ONNX sparse initializers: which, in what bytes, and that nothing else changes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import Graph
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import (
    CheckError,
    Model,
    ModelError,
    OutputError,
    as_sparse_initializers,
    check_sparse_export,
    load,
    measure,
    save,
)
from onnx_prune.analysis.graph import dense
from onnx_prune.passes.execute import execute
from recovering import Real
from test_cli import run, start

Array = NDArray[np.generic]


def with_values(model: Model, **values: Array) -> Model:
    for tensor in model.proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return model


def zeros(shape: tuple[int, ...], nonzero: int, dtype: str = "float32", seed: int = 0) -> Array:
    """An array with that many elements that are not zero, anywhere."""
    rng = np.random.default_rng(seed)
    value = np.zeros(shape, np.float32)
    value.reshape(-1)[rng.choice(value.size, nonzero, replace=False)] = rng.uniform(1, 2, nonzero)
    return value.astype(dtype)


def product(weight: Array, **others: Array) -> Model:
    """A matrix product with a weight of eight rows; in float32, whatever the type of the weight."""
    g = Graph()
    g.weights.append(numpy_helper.from_array(weight, "w"))
    wide = "w" if weight.dtype == np.float32 else g("Cast", "w", to=TensorProto.FLOAT)
    model = g.model(g("MatMul", g.input(3, 8), wide))
    model.proto.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in others.items())
    return model


def stored_sparsely(model: Model, name: str = "w") -> onnx.ModelProto:
    """The model with one weight sparse, whether that is smaller or not."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    (tensor,) = (t for t in proto.graph.initializer if t.name == name)
    value = numpy_helper.to_array(tensor)
    where = np.flatnonzero(value)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(value.reshape(-1)[where], name),
        numpy_helper.from_array(where.astype(np.int64)),
        value.shape,
    )
    proto.graph.initializer.remove(tensor)
    proto.graph.sparse_initializer.append(sparse)
    return proto


def initializers(model: Model) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    tensors = model.proto.graph.initializer
    return {t.name: (t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in tensors}


def test_what_is_mostly_zero_lists_what_is_not() -> None:
    g = Graph()
    x = g("Relu", g("Conv", g.input(1, 4, 6, 6), g.weight(8, 4, 3, 3, name="first"), g.weight(8, name="b")))
    model = g.model(g("Conv", x, g.weight(16, 8, 1, 1, name="second")))
    kept = zeros((8, 4, 3, 3), 40)
    with_values(model, first=kept, second=zeros((16, 8, 1, 1), 100), b=np.ones(8, np.float32))
    export = as_sparse_initializers(model)
    graph = export.model.proto.graph
    assert [t.name for t in graph.initializer] == ["b", "second"]
    (sparse,) = graph.sparse_initializer
    indices = numpy_helper.to_array(sparse.indices)
    assert sparse.values.name == "first" and tuple(sparse.dims) == kept.shape
    assert indices.tolist() == np.flatnonzero(kept).tolist()
    assert numpy_helper.to_array(sparse.values).tolist() == kept.reshape(-1)[indices].tolist()
    assert export.sparse == ("first",) and export.dense == {"second": "it would be larger"}
    assert graph.node == model.proto.graph.node and len(model.proto.graph.initializer) == 3
    onnx.checker.check_model(export.model.proto)
    check_sparse_export(model, export.model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_sparse_is_what_makes_the_file_smaller(dtype: str) -> None:
    """Around the edge, where 8 bytes more an element eat up what the zeros save."""
    size = 8 * 100
    width = np.dtype(dtype).itemsize
    edge = size * width // (width + 8)
    found = []
    for nonzero in range(edge - 8, edge + 2):
        model = product(zeros((8, 100), nonzero, dtype))
        export = as_sparse_initializers(model)
        smaller = stored_sparsely(model).ByteSize() < model.proto.ByteSize()
        assert bool(export.sparse) == smaller, nonzero
        assert export.larger == (not smaller)
        assert (export.before, export.after) == (model.proto.ByteSize(), export.model.proto.ByteSize())
        found.append(smaller)
    assert found[0] and not found[-1] and found == sorted(found, reverse=True)


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
@pytest.mark.parametrize("nonzero", [0, 1, 40])
def test_types_round_trip_and_compute_the_same(tmp_path: Path, dtype: str, nonzero: int) -> None:
    model = product(zeros((8, 100), nonzero, dtype))
    model.proto.graph.initializer[0].doc_string = "about the weight"
    export = as_sparse_initializers(model)
    assert export.sparse == ("w",) and not export.model.proto.graph.initializer
    onnx.checker.check_model(export.model.proto)
    check_sparse_export(model, export.model)
    save(export.model, tmp_path / "sparse.onnx")
    assert (tmp_path / "sparse.onnx").stat().st_size == export.after < export.before
    back = load(tmp_path / "sparse.onnx")
    assert initializers(back) == initializers(model) and not back.proto.graph.sparse_initializer
    assert back.proto.graph.initializer[0].doc_string == "about the weight"
    assert measure(back) == measure(model)


def test_numbers_that_are_equal_to_zero_and_are_not_zero_stay() -> None:
    value = zeros((8, 100), 0)
    value[0, :3] = -0.0, np.nan, np.inf
    model = product(value)
    (sparse,) = as_sparse_initializers(model).model.proto.graph.sparse_initializer
    assert numpy_helper.to_array(sparse.indices).tolist() == [0, 1, 2]
    assert dense(sparse).tobytes() == value.tobytes()


def test_what_stays_dense_and_why() -> None:
    model = product(
        zeros((8, 100), 5),
        given=zeros((20, 20), 5),
        result=zeros((20, 20), 6),
        full=zeros((20, 20), 400),
        number=np.zeros((), np.float32),
        nothing=np.zeros((0, 8), np.float32),
        integers=np.zeros((20, 20), np.int8),
    )
    graph = model.proto.graph
    graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [20, 20]))
    graph.output.append(helper.make_tensor_value_info("result", TensorProto.FLOAT, [20, 20]))
    export = as_sparse_initializers(model)
    assert export.sparse == ("w",)
    assert export.dense == {
        "given": "it is an input of a graph",
        "result": "it is an output of a graph",
        "full": "it would be larger",
    }
    assert {t.name for t in export.model.proto.graph.initializer} == initializers(model).keys() - {"w"}
    onnx.checker.check_model(export.model.proto)
    check_sparse_export(model, export.model)


def test_an_output_that_is_sparse_is_refused() -> None:
    """What the rule for outputs is for: ONNX Runtime gives something that is no array."""
    model = product(zeros((8, 100), 5))
    model.proto.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 100]))
    with pytest.raises(CheckError, match="another output 'w'"):
        check_sparse_export(model, Model(stored_sparsely(model)))


def test_bodies_have_sparse_weights_and_read_those_around_them() -> None:
    g = Graph()
    x = g.input(3, 8)
    g.weights.append(numpy_helper.from_array(zeros((8, 100), 30), "outer"))
    inner = numpy_helper.from_array(zeros((8, 100), 20, seed=1), "inner")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3, 100]) for name in ("a", "b")]
    one = helper.make_graph([helper.make_node("MatMul", [x, "outer"], ["a"])], "one", [], info[:1])
    two = helper.make_graph([helper.make_node("MatMul", [x, "inner"], ["b"])], "two", [], info[1:], [inner])
    flag = g("Greater", g("ReduceSum", x, keepdims=0), g.scalar(0))
    model = g.model(g("If", flag, then_branch=one, else_branch=two))
    export = as_sparse_initializers(model)
    assert sorted(export.sparse) == ["inner", "outer"]
    onnx.checker.check_model(export.model.proto)
    sign: float
    for sign in (1, -1):
        data = {x: np.full((3, 8), sign, np.float32)}
        (wanted,), (got,) = (execute(m.proto, data).values() for m in (model, export.model))
        assert wanted.any() and wanted.tobytes() == got.tobytes()


@pytest.mark.parametrize(("nonzero", "version"), [(10, 6), (800, 4)])
def test_old_versions_of_the_format_are_raised_where_needed(nonzero: int, version: int) -> None:
    model = product(zeros((8, 100), nonzero))
    model.proto.ir_version = 4
    model.proto.opset_import[0].version = 9
    export = as_sparse_initializers(model)
    assert export.model.proto.ir_version == version and model.proto.ir_version == 4
    onnx.checker.check_model(export.model.proto)
    check_sparse_export(model, export.model)


def test_what_is_stored_sparsely_already_stays() -> None:
    model = Model(stored_sparsely(product(zeros((8, 100), 10))))
    export = as_sparse_initializers(model)
    assert export.model.proto == model.proto and not export.sparse


def test_another_value_and_another_place_are_noticed() -> None:
    model = product(zeros((8, 100), 10))
    for field, add in (("values", 1e-6), ("indices", 1)):
        proto = as_sparse_initializers(model).model.proto
        tensor = getattr(proto.graph.sparse_initializer[0], field)
        value = numpy_helper.to_array(tensor).copy()
        value[0] += value.dtype.type(add)
        tensor.raw_data = value.tobytes()
        with pytest.raises(CheckError, match="ONNX Runtime computes another output 'matmul0_0'"):
            check_sparse_export(model, Model(proto))


def test_what_the_runtime_does_not_take_is_refused() -> None:
    model = product(zeros((8, 100), 10))
    proto = as_sparse_initializers(model).model.proto
    proto.graph.sparse_initializer[0].dims[0] = 4
    with pytest.raises(CheckError, match="cannot be stored sparsely: ONNX Runtime cannot run the model"):
        check_sparse_export(model, Model(proto))


# ---------------------------------------------------------------------- files


def test_sparse_weights_stay_in_the_file_of_a_model_with_external_data(tmp_path: Path) -> None:
    model = product(zeros((8, 1000), 400), full=zeros((40, 40), 1600))
    model.proto.graph.node.append(helper.make_node("Abs", ["full"], ["y"]))
    model.proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [40, 40]))
    export = as_sparse_initializers(model)
    path = tmp_path / "m.onnx"
    save(export.model, path, limit=1024)
    assert (tmp_path / "m.onnx.data").stat().st_size == 6400
    stored = onnx.load(path, load_external_data=False).graph
    assert stored.sparse_initializer == export.model.proto.graph.sparse_initializer
    assert initializers(load(path)) == initializers(model)
    data = {"x": np.ones((3, 8), np.float32)}
    names = [output.name for output in stored.output]
    got = onnxruntime.InferenceSession(path).run(names, data)
    assert all(np.array_equal(a, b) for a, b in zip(execute(model.proto, data).values(), got, strict=True))


def test_sparse_weights_count_towards_what_one_file_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = as_sparse_initializers(product(zeros((8, 1000), 400), full=zeros((40, 40), 1600)))
    monkeypatch.setattr("onnx_prune.passes.save.PROTO_LIMIT", 4800)
    with pytest.raises(OutputError, match="stay in the model file, and have 4,800 bytes"):
        save(export.model, tmp_path / "m.onnx", limit=4800)
    assert not list(tmp_path.iterdir())


def damaged(what: str) -> onnx.ModelProto:
    proto = stored_sparsely(product(zeros((8, 100), 10)))
    sparse = proto.graph.sparse_initializer[0]
    indices = numpy_helper.to_array(sparse.indices).copy()
    if what == "outside":
        indices[-1] = 800
    elif what == "negative":
        indices[0] = -1
    elif what == "fewer":
        indices = indices[:-1]
    elif what == "narrow":
        indices = indices.astype(np.int32)
    elif what == "coordinates":
        indices = np.stack([indices // 100, indices % 100 + 1], axis=1)
        indices[3] = 8, 0
    sparse.indices.CopyFrom(numpy_helper.from_array(indices))
    if what == "huge":
        del sparse.dims[:]
        sparse.dims.extend([1 << 31, 1 << 31])
    return proto


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("outside", "'w' of shape [8, 100] has values outside of it"),
        ("negative", "has values outside of it"),
        ("coordinates", "has values outside of it"),
        ("fewer", "has values of shape [10] at indices of shape [9]"),
        ("narrow", "has indices that are no 64-bit integers"),
        ("huge", "is too large"),
    ],
)
def test_damaged_sparse_tensors_are_not_loaded(tmp_path: Path, what: str, told: str) -> None:
    (tmp_path / "m.onnx").write_bytes(damaged(what).SerializeToString())
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "m.onnx")
    assert told in str(caught.value)


def test_coordinates_and_strings_are_read(tmp_path: Path) -> None:
    proto = stored_sparsely(product(zeros((8, 100), 10)))
    sparse = proto.graph.sparse_initializer[0]
    flat = numpy_helper.to_array(sparse.indices)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.stack(np.divmod(flat, 100), axis=1)))
    words = helper.make_tensor("words", TensorProto.STRING, [1], [b"one"])
    place = helper.make_tensor("", TensorProto.INT64, [1], [1])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(words, place, [2]))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    weight, texts = load(tmp_path / "m.onnx").proto.graph.initializer
    assert numpy_helper.to_array(weight).tobytes() == zeros((8, 100), 10).tobytes()
    assert list(texts.string_data) == [b"", b"one"]


# ---------------------------------------------------------------------- the command


def files(tmp_path: Path) -> list[Path | str]:
    """Arguments of a run: two layers, one of which can give nearly all of its weights."""
    g = Real()
    x = g("Relu", g("Gemm", g.input("N", 32), g.weight(32, 32, name="poor"), g.weight(32), transB=1))
    model = g.model(g("Gemm", x, g.weight(32, 32, name="rich"), g.weight(32), transB=1))
    rows = np.arange(32)[:, None] < 4
    save(
        with_values(model, poor=g.rng.standard_normal((32, 32)).astype(np.float32) * rows),
        tmp_path / "m.onnx",
    )
    np.savez(tmp_path / "x.npz", x=g.rng.standard_normal((64, 32)).astype(np.float32))
    return ["sparsify", tmp_path / "m.onnx", "-o", tmp_path / "out.onnx", "--calibration", tmp_path / "x.npz"]


def test_the_command_stores_sparsely_and_says_so(tmp_path: Path) -> None:
    arguments = [*files(tmp_path), "--pattern", "60%", "--json", "-"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["sparse_initializers"] is None and "sparsely" not in done.stderr
    plain = load(tmp_path / "out.onnx")
    before = (tmp_path / "out.onnx").stat().st_size
    done = run(*arguments, "--sparse-initializers")
    assert done.returncode == 0, done.stderr
    stored = onnx.load(tmp_path / "out.onnx").graph.sparse_initializer
    after = (tmp_path / "out.onnx").stat().st_size
    assert [sparse.values.name for sparse in stored] == ["poor"] and after < before
    told = json.loads(done.stdout)["sparse_initializers"]
    assert told == {"weights": 1, "bytes": {"before": before, "after": after}}
    (line,) = (line for line in done.stderr.splitlines() if "stored sparsely" in line)
    assert line.startswith("1 weights are stored sparsely") and "1 stay dense" in line
    assert line.endswith(f"file: {before:,} bytes → {after:,}")
    assert initializers(load(tmp_path / "out.onnx")) == initializers(plain)


def test_nothing_is_written_when_the_runtime_computes_something_else(tmp_path: Path) -> None:
    wrong = """
import onnx_prune as api
right = api.as_sparse_initializers
def wrong(model):
    export = right(model)
    values = export.model.proto.graph.sparse_initializer[0].values
    values.raw_data = values.raw_data[::-1]
    return export
api.as_sparse_initializers = wrong"""
    arguments = [*files(tmp_path), "--pattern", "60%", "--sparse-initializers"]
    running = start(*arguments, before=wrong)
    _, told = running.communicate()
    assert running.returncode == 3 and "cannot be stored sparsely" in told
    assert not (tmp_path / "out.onnx").exists()


def test_a_pattern_that_leaves_too_much_stores_nothing_sparsely(tmp_path: Path) -> None:
    arguments = [*files(tmp_path), "--pattern", "2:4", "--sparse-initializers", "--json", "-"]
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["sparse_initializers"]
    assert told["weights"] == 0 and told["bytes"]["before"] == told["bytes"]["after"]
    assert "0 weights are stored sparsely" in done.stderr
