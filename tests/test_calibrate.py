"""Calibration data of every kind: the same samples, checked when opened, never all in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, UsageError
from onnx_prune.passes.data.calibrate import Calibration, open_calibration

X = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)


def model(batch: int | str = "N") -> Model:
    g = Graph()
    return g.model(g.conv(g.input(batch, 3, 4, 4), 3, 2))


def two_inputs() -> Model:
    """x float32 (N, 4) and ids int64 (N, 4)."""
    infos = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", 4]),
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["x", "f"], ["z"]),
    ]
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4])
    return Model(helper.make_model(helper.make_graph(nodes, "g", infos, [made])))


def all_of(calibration: Calibration, name: str = "x") -> np.ndarray:
    return np.concatenate([batch[name] for batch in calibration.batches()])


def yielding() -> Iterator[np.ndarray]:
    yield from (X[:7], X[7:8], X[8:])


def sources(folder: Path) -> dict[str, Any]:
    """The same twenty samples in every form."""
    np.savez(folder / "named.npz", x=X)
    np.savez_compressed(folder / "other.npz", images=X)
    np.savez(folder / "columns.npz", x=np.asfortranarray(X))
    np.save(folder / "plain.npy", X)
    (folder / "each").mkdir()
    for k, sample in enumerate(X[:6]):
        np.save(folder / "each" / f"{k:03}.npy", sample)
    np.savez(folder / "each" / "006.npz", x=X[6:])
    return {
        "npz": folder / "named.npz",
        "npz, compressed, another name": str(folder / "other.npz"),
        "npz, column-major": folder / "columns.npz",
        "npy": folder / "plain.npy",
        "folder": folder / "each",
        "mapping": {"x": X},
        "float64": {"x": X.astype(np.float64)},
        "generator": yielding,
        "array": lambda: X,
        "dict": lambda: {"x": X},
        "list": lambda: [{"x": X[:5]}, {"x": X[5:]}],
    }


@pytest.mark.parametrize("batch", [1, 6, 32])
def test_every_source_gives_the_same_samples(tmp_path: Path, batch: int) -> None:
    digests = set()
    for kind, source in sources(tmp_path).items():
        opened = open_calibration(source, model(), batch=batch)
        assert opened.samples == 20, kind
        assert [len(b["x"]) for b in opened.batches()] == [batch] * (20 // batch) + [20 % batch] * (batch > 1)
        for _ in range(2):  # nothing is used up
            np.testing.assert_array_equal(all_of(opened), X, kind)
        digests.add(opened.digest)
    assert len(digests) == 1


def test_the_digest_knows_data_names_and_order_but_not_batches() -> None:
    digest = {b: open_calibration({"x": X}, model(), batch=b).digest for b in (1, 3, 32)}
    assert len(set(digest.values())) == 1
    assert open_calibration({"x": X[::-1]}, model()).digest != digest[1]
    assert open_calibration({"x": X}, model(), samples=19).digest != digest[1]
    assert (
        open_calibration({"x": X[:19]}, model()).digest
        == open_calibration({"x": X}, model(), samples=19).digest
    )


def test_a_function_of_a_module_in_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_data.py").write_text(
        "import numpy as np\ndef batches():\n    yield np.ones((5, 3, 4, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    opened = open_calibration("my_data:batches", model())
    assert opened.source == "5 samples of the function 'my_data:batches'"
    assert all_of(opened).sum() == 5 * 48


def test_one_batch_of_a_file_does_not_load_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "big.npz"
    np.savez_compressed(path, x=np.zeros((4096, 3, 32, 32), np.float32))  # 50 MB
    g = Graph()
    opened = open_calibration(path, g.model(g.conv(g.input("N", 3, 32, 32), 3, 2)), samples=4096, batch=8)
    tracemalloc.start()
    count = sum(len(batch["x"]) for batch in opened.batches())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4096
    assert peak < 2e6


def test_samples_are_a_limit() -> None:
    opened = open_calibration({"x": X}, model(), samples=11, batch=4)
    assert opened.samples == 11
    assert opened.source == "11 samples of the arrays given"
    np.testing.assert_array_equal(all_of(opened), X[:11])


def test_a_batch_the_model_fixes_is_kept_to(tmp_path: Path) -> None:
    for kind, source in sources(tmp_path).items():
        opened = open_calibration(source, model(8), batch=3)
        assert [b["x"].shape for b in opened.batches()] == [(8, 3, 4, 4)] * 2, kind
        np.testing.assert_array_equal(all_of(opened), X[:16])
        assert "16 samples of" in opened.source
        assert opened.source.endswith("; 4 more are left out, since the model takes 8 at once")
    assert [len(b["x"]) for b in open_calibration({"x": X}, model(1)).batches()] == [1] * 20


@pytest.mark.parametrize("key", ["labels", "y"])
def test_labels_are_read_and_kept_out_of_the_inputs(tmp_path: Path, key: str) -> None:
    path = tmp_path / "labelled.npz"
    np.savez(path, images=X, **{key: np.arange(20, dtype=np.uint8)})
    opened = open_calibration(path, model(), samples=10, batch=4)
    assert opened.labels is not None
    assert opened.labels.dtype == np.int64
    assert opened.labels.tolist() == list(range(10))
    assert all(set(batch) == {"x"} for batch in opened.batches())
    assert open_calibration({"x": X}, model()).labels is None


def test_labels_of_samples_in_a_folder(tmp_path: Path) -> None:
    for k in range(4):
        np.savez(tmp_path / f"{k}.npz", x=X[k], label=np.int64(9 - k))
    opened = open_calibration(tmp_path, model())
    assert opened.labels is not None
    assert opened.labels.tolist() == [9, 8, 7, 6]


def test_several_inputs_and_small_integers(tmp_path: Path) -> None:
    ids = np.arange(24, dtype=np.uint8).reshape(6, 4)
    x = np.ones((6, 4), np.float16)
    np.savez(tmp_path / "both.npz", ids=ids, x=x)
    opened = open_calibration(tmp_path / "both.npz", two_inputs(), batch=4)
    assert [b["ids"].shape for b in opened.batches()] == [(4, 4), (2, 4)]
    batch = next(opened.batches())
    assert (batch["ids"].dtype, batch["x"].dtype) == (np.int64, np.float32)


def test_sequences_of_other_lengths_run_apart() -> None:
    g = Graph()
    free = g.model(g("Relu", g.input("N", "T")))
    lengths = [np.ones((2, 5), np.float32), np.ones((3, 5), np.float32), np.ones((2, 7), np.float32)]
    opened = open_calibration(lambda: lengths, free, samples=6)
    assert [b["x"].shape for b in opened.batches()] == [(5, 5), (1, 7)]
    assert opened.samples == 6


def test_inputs_without_an_axis_of_samples_are_given_to_every_run() -> None:
    g = Graph()
    g.input("N", 4)
    g.input(4, name="scale")
    m = g.model(g("Mul", "x", "scale"))
    scale = np.arange(4, dtype=np.float32)
    opened = open_calibration({"x": np.ones((6, 4), np.float32), "scale": scale}, m, batch=4)
    assert [(len(b["x"]), b["scale"].tolist()) for b in opened.batches()] == [
        (4, [0, 1, 2, 3]),
        (2, [0, 1, 2, 3]),
    ]


NAN = X.copy()
NAN[3, 0, 0, 0] = np.nan


def failing() -> Iterator[np.ndarray]:
    yield X
    raise RuntimeError("the disk is gone")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nothing.npz", "no calibration data at 'nothing.npz'"),
        ("no_such_module:f", "cannot import 'no_such_module'"),
        ("math:no_such", "'math' has no function 'no_such'"),
        ({"a": X, "b": X}, "no array for the model's input 'x': it holds 'a', 'b'"),
        ({"x": X[0]}, r"input 'x' has the shape \(3, 4, 4\), but the model wants float32 \(N, 3, 4, 4\)"),
        ({"x": X[:, :2]}, r"has the shape \(20, 2, 4, 4\), but"),
        ({"x": (X * 9).astype(np.uint8)}, r"input 'x' is uint8, but the model wants float32.*\.astype"),
        ({"x": X > 0}, "input 'x' is bool"),
        ({"x": NAN}, "input 'x' holds NaNs"),
        ({"x": X.astype(np.float64) * 1e300}, "too large for float32"),
        ({"x": X[:0]}, "too few samples"),
        ({"x": X, "labels": np.arange(3)}, "'x' has 20 samples, but 'labels' has 3"),
        (failing, "'failing' failed: RuntimeError: the disk is gone"),
        (lambda: None, "failed: TypeError"),
        (list, "too few samples"),
        (lambda: [{"x": X, "y": np.arange(20)}, X], "some of the data has labels"),
    ],
)
def test_what_is_wrong_is_told(given: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        open_calibration(given, model())


def test_wrong_integers_are_told() -> None:
    x, ids = np.ones((2, 4), np.float32), np.zeros((2, 4), np.uint64)
    with pytest.raises(UsageError, match="'ids' is float32, but the model wants int64"):
        open_calibration({"x": x, "ids": x}, two_inputs())
    with pytest.raises(UsageError, match="'ids' holds 18446744073709551615, which is too large for int64"):
        open_calibration({"x": x, "ids": ids - np.uint64(1)}, two_inputs())
    with pytest.raises(UsageError, match="'x' has 2 samples, but 'ids' has 1"):
        open_calibration({"x": x, "ids": ids[:1]}, two_inputs())


def test_too_few_samples_for_a_fixed_batch() -> None:
    with pytest.raises(UsageError, match="less than the 32 that the model takes at once"):
        open_calibration({"x": X}, model(32))


def test_a_function_must_give_the_same_again() -> None:
    used_up = iter([X])
    opened = open_calibration(lambda: used_up, model())
    with pytest.raises(UsageError, match="gave other data when called again"):
        list(opened.batches())


@pytest.mark.parametrize("damage", ["text", "cut", "objects", "short"])
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, x=np.array([{}]) if damage == "objects" else X)
    data = path.read_bytes()
    if damage == "text":
        path.write_bytes(b"not a zip file")
    elif damage == "cut":
        path.write_bytes(data[:1000])
    elif damage == "short":
        path.write_bytes(data.replace(b"(20, 3, 4, 4)", b"(90, 3, 4, 4)"))
    with pytest.raises(UsageError, match=r"bad\.npz"):
        open_calibration(path, model())


def test_folders_and_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no \.npy or \.npz files"):
        open_calibration(tmp_path, model())
    (tmp_path / "cats.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"give an \.npz or \.npy file"):
        open_calibration(tmp_path / "cats.jpg", model())


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    for source in (tmp_path, tmp_path / "a.npy"):
        with pytest.raises(UsageError, match="cannot read"):
            open_calibration(source, model())


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"batch": 0}])
def test_no_samples_and_no_batches(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least one"):
        open_calibration({"x": X}, model(), **wrong)


def test_models_that_take_no_numbers() -> None:
    info = helper.make_tensor_value_info("s", TensorProto.STRING, ["N"])
    graph = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["t"])], "g", [info], [onnx.ValueInfoProto(name="t")]
    )
    with pytest.raises(UsageError, match="strings"):
        open_calibration({"s": X}, Model(helper.make_model(graph)))
