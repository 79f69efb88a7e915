"""Inputs without data: the same for a seed, of the kind the model takes, matched to what it knows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, UsageError
from onnx_prune.passes.data.calibrate import Calibration, open_calibration
from onnx_prune.passes.data.inputs import signature
from onnx_prune.passes.data.matching import Probe, herd, statistics
from onnx_prune.passes.data.synthetic import fields, images
from onnx_prune.passes.execute import execute


def all_of(calibration: Calibration, name: str = "x") -> np.ndarray:
    return np.concatenate([batch[name] for batch in calibration.batches()])


def plain() -> Model:
    g = Graph()
    return g.model(g.conv(g.input("N", 3, 16, 16), 3, 4, kernel=3))


def normalised(batch: int | str = "N", scale: float = 1.0, trained: bool = True) -> Model:
    """Two convolutions with BatchNormalization, which have seen blurred images of a mean of 0.3 ``scale``."""
    g = Graph()
    y = g.input(batch, 1, 12, 12)
    for inner, outer in ((1, 6), (6, 8)):
        weight, ones = g.weight(outer, inner, 3, 3), g.weight(outer)
        mean, variance = g.weight(outer, name=f"mean{outer}"), g.weight(outer, name=f"var{outer}")
        y = g("Conv", y, weight, pads=[1] * 4)
        y = g("Relu", g("BatchNormalization", y, ones, g.weight(outer), mean, variance))
    m = g.model(y)
    weights = {t.name: t for t in m.proto.graph.initializer}

    def put(name: str, value: np.ndarray) -> None:
        weights[name].CopyFrom(numpy_helper.from_array(value.astype(np.float32), name))

    for size in (6, 8):
        put(f"mean{size}", np.zeros(size))
        put(f"var{size}", np.ones(size))
    if not trained:
        return m
    rng = np.random.default_rng(5)
    x = fields(rng, (256, 1, 12, 12), np.full(256, 1.2, np.float32)) * 0.2 + 0.3
    x = np.maximum(x, 0) * np.float32(scale)
    for node in [n for n in m.proto.graph.node if n.op_type == "BatchNormalization"]:
        part = onnx.ModelProto()
        part.CopyFrom(m.proto)
        del part.graph.output[:]
        part.graph.output.append(onnx.ValueInfoProto(name=node.input[0]))
        feeds = [x] if batch == "N" else np.split(x, len(x) // int(batch))
        seen = np.concatenate([execute(part, {"x": feed})[node.input[0]] for feed in feeds])
        put(node.input[3], seen.mean((0, 2, 3)))
        put(node.input[4], seen.var((0, 2, 3)))
    return m


def loss(m: Model, x: np.ndarray) -> float:
    """How far means and mean squares of all channels are off, in variances."""
    rows = Probe(m.proto, statistics(m.proto), signature(m.proto))({"x": x}).mean(axis=0)
    return float(rows @ rows)


@pytest.mark.parametrize("m", [plain(), normalised()], ids=["plain", "matched"])
def test_the_same_for_a_seed_whatever_the_batch(m: Model) -> None:
    one, same, other = (
        open_calibration(None, m, samples=40, batch=b, seed=s) for b, s in ((7, 1), (32, 1), (32, 2))
    )
    np.testing.assert_array_equal(all_of(one), all_of(same))
    assert one.digest == same.digest != other.digest
    assert one.samples == 40
    assert one.synthetic
    assert "synthetic" in one.source and "no data was given" in one.source


@pytest.mark.parametrize("scale", [1.0, 200.0])
@pytest.mark.parametrize("batch", ["N", 4])
def test_batch_normalisations_see_what_they_were_trained_on(batch: int | str, scale: float) -> None:
    m = normalised(batch, scale)
    opened = open_calibration(None, m, samples=64)
    assert "matched to 2 BatchNormalizations" in opened.source
    x = all_of(opened)
    assert x.shape == (64, 1, 12, 12)
    general = images(np.random.default_rng(0), (64, 1, 12, 12))
    assert loss(m, x) < 0.02
    assert loss(m, general) > 5 * loss(m, x)


def test_what_was_never_trained_knows_nothing() -> None:
    m = normalised(trained=False)
    assert statistics(m.proto) == []
    assert "matched" not in open_calibration(None, m, samples=8).source


def test_batch_normalisation_of_the_input_itself() -> None:
    g = Graph()
    args = [
        numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("m", [90, 40]), ("v", [400, 900]))
    ]
    y = g("BatchNormalization", g.input("N", 2, 8, 8), g.weight(2), g.weight(2), "m", "v")
    g.weights += args
    x = all_of(open_calibration(None, g.model(y)))
    np.testing.assert_allclose(x.mean((0, 2, 3)), [90, 40], rtol=0.1)
    np.testing.assert_allclose(x.var((0, 2, 3)), [400, 900], rtol=0.2)


def test_features_are_matched_as_images_are() -> None:
    g = Graph()
    args = [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in (("m", [3, -1]), ("v", [4, 0.5]))]
    y = g("BatchNormalization", g("Relu", g.input("N", 2)), g.weight(2), g.weight(2), "m", "v")
    g.weights += args
    seen = np.maximum(all_of(open_calibration(None, g.model(y))), 0)
    assert abs(seen[:, 0].mean() - 3) < 0.3
    assert abs(seen[:, 0].var() - 4) < 0.8


def test_herding_balances() -> None:
    rows = np.array([[1, 0], [-1, 0.1], [5, 5], [0, 1], [0, -1.1], [9, -9]], np.float32)
    chosen, square = herd(rows, 4)
    assert sorted(chosen) == [0, 1, 3, 4]
    assert square == pytest.approx(float((rows[chosen].mean(0) ** 2).sum()), abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "exponent"), [((400, 1, 32, 32), 0.0), ((400, 2, 15, 9), 1.0), ((200, 1, 4, 8, 8), 1.0)]
)
def test_fields_have_their_variance_and_spectrum(shape: tuple[int, ...], exponent: float) -> None:
    y = fields(np.random.default_rng(0), shape, np.full(shape[0], exponent, np.float32))
    assert y.shape == shape
    assert y.dtype == np.float32
    assert y.var() == pytest.approx(1, abs=0.15)
    neighbours = (y[..., 1:] * y[..., :-1]).mean() / y.var()
    assert (abs(neighbours) < 0.02) if exponent == 0 else (neighbours > 0.3)


def test_colours_go_together() -> None:
    rng = np.random.default_rng(0)
    for channels, least, most in ((3, 0.7, 0.9), (4, -0.1, 0.1)):
        y = fields(rng, (200, channels, 8, 8), np.ones(200, np.float32))
        assert least < (y[:, 0] * y[:, 1]).mean() < most


def test_general_images_fill_both_ranges() -> None:
    x = all_of(open_calibration(None, plain(), samples=200))
    assert -1.81 < x.min() < -1.5
    assert 2 < x.max() < 2.21
    raw = (x.min((1, 2, 3)) >= 0) & (x.max((1, 2, 3)) <= 1)
    assert 0.35 < raw.mean() < 0.75


def embedding(length: int | str, dtype: int = TensorProto.INT64, batch: int | str = "N") -> Model:
    """Token embeddings times a mask."""
    infos = [helper.make_tensor_value_info(n, dtype, [batch, length]) for n in ("ids", "mask")]
    table = numpy_helper.from_array(np.ones((50, 8), np.float32), "table")
    axes = numpy_helper.from_array(np.array([2]), "axes")
    nodes = [
        helper.make_node("Identity", ["ids"], ["same"]),
        helper.make_node("Gather", ["table", "same"], ["e"]),
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["m", "axes"], ["mm"]),
        helper.make_node("Mul", ["e", "mm"], ["z"]),
    ]
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch, length, 8])
    graph = helper.make_graph(nodes, "g", infos, [made], [table, axes])
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))


@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
def test_tokens_stay_in_the_vocabulary_and_masks_are_open(dtype: int) -> None:
    opened = open_calibration(None, embedding(24, dtype), samples=64)
    ids, mask = all_of(opened, "ids"), all_of(opened, "mask")
    assert ids.dtype == helper.tensor_dtype_to_np_dtype(dtype)
    assert set(np.unique(ids)) == set(range(50))
    assert np.all(mask == 1)


def test_sizes_left_open_are_ones_the_model_takes() -> None:
    opened = open_calibration(None, embedding("T"), samples=3)
    assert next(opened.batches())["ids"].shape == (3, 32)
    opened = open_calibration(None, embedding("T", batch=1), samples=3)
    assert [b["ids"].shape for b in opened.batches()] == [(1, 32)] * 3
    g = Graph()
    y = g("Add", g.input("N", "T"), g("Slice", g.weight(100), g.ints(0), g.ints(16)))
    opened = open_calibration(None, g.model(y), samples=3)
    assert next(opened.batches())["x"].shape == (3, 16)


def test_a_size_that_cannot_be_found_asks_for_data() -> None:
    g = Graph()
    with pytest.raises(UsageError, match="give calibration data"):
        open_calibration(None, g.model(g("Add", g.input("N", "T"), g.weight(77))))


def test_bytes_are_images_from_0_to_255() -> None:
    info = helper.make_tensor_value_info("x", TensorProto.UINT8, ["N", 3, 16, 16])
    made = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3, 16, 16])
    node = helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)
    x = all_of(
        open_calibration(None, Model(helper.make_model(helper.make_graph([node], "g", [info], [made]))))
    )
    assert x.dtype == np.uint8
    assert x.max() == 255
    assert 20 < x.mean() < 235
