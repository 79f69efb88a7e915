"""Positions of a batch: which models keep them apart, proven, and why others do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model
from onnx_prune.analysis.batch import batch_of, entangled
from onnx_prune.analysis.dynamic import symbols
from onnx_prune.passes.execute import execute, random_inputs
from variants import exported, exports

SIZES = {"batch": 3, "sequence": 5, "height": 32, "width": 64}
POSITION_TABLES = ("bert.fused-dynamic", "bert.mha-dynamic")  # one operator adds them to all of its axes
DYNAMIC = [name for name in exports() if name.endswith("dynamic")]


def sizes_of(proto: onnx.ModelProto) -> dict[str, int]:
    return {s: next(SIZES[k] for k in SIZES if k in s) for s in symbols(proto.graph)}


def told(build: Callable[[Graph, str], str], *shape: int | str) -> str | None:
    g = Graph()
    model = g.model(build(g, g.input(*(shape or ("N", 4)))), shape=shape or ("N", 4))
    assert batch_of(model.proto) == "N"
    return entangled(model, "N", {})


@pytest.mark.parametrize("name", [name for name in DYNAMIC if name not in POSITION_TABLES])
def test_an_export_keeps_its_batch_apart_and_really_does(name: str) -> None:
    proto = exported(name)
    sizes = sizes_of(proto)
    assert batch_of(proto) == "batch"
    assert entangled(Model(proto), "batch", {k: v for k, v in sizes.items() if k != "batch"}) is None
    inputs = random_inputs(proto, sizes=sizes)
    whole = execute(proto, inputs)
    for i in range(SIZES["batch"]):
        alone = execute(proto, {key: value[i : i + 1] for key, value in inputs.items()})
        for key, value in whole.items():
            assert np.abs(alone[key] - value[i : i + 1]).max() < 1e-4 * np.abs(value).max()


@pytest.mark.parametrize("name", POSITION_TABLES)
def test_what_is_pinned_is_refused_with_the_reason(name: str) -> None:
    proto = exported(name)
    reason = entangled(Model(proto), "batch", {"sequence": 5})
    assert reason is not None and "adds an embedding of the position" in reason


def merged(g: Graph, x: str, *target: int) -> str:
    """A product on the batch merged with another axis, and split again."""
    flat = g("Reshape", x, g.ints(-1, 5))
    return g("Reshape", g("MatMul", flat, g.weight(5, 5)), g.ints(*target))


def by_shape(g: Graph, x: str) -> str:
    """The same, with the size of the batch computed as windows of images are counted."""
    flat = g("Reshape", x, g.ints(-1, 5))
    rows = g("Gather", g("Shape", flat), g.ints(0))
    count = g("Div", rows, g.ints(4))
    return g("Reshape", flat, g("Concat", count, g.ints(4, 5), axis=0))


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda g, x: g("Relu", x), ()),
        (lambda g, x: g("Softmax", x, axis=1), ()),
        (lambda g, x: merged(g, x, -1, 4, 5), ("N", 4, 5)),
        (by_shape, ("N", 4, 5)),
        (lambda g, x: g("Transpose", g("Transpose", x, perm=[1, 0]), perm=[1, 0]), ()),
        (lambda g, x: g("Reshape", g("Transpose", x, perm=[0, 2, 1]), g.ints(0, -1)), ("N", 4, 5)),
    ],
)
def test_positions_are_apart(build: Callable[[Graph, str], str], shape: tuple[int | str, ...]) -> None:
    assert told(build, *shape) is None


def scaled_by_count(g: Graph, x: str) -> str:
    count = g("Cast", g("Gather", g("Shape", x), g.ints(0)), to=TensorProto.FLOAT)
    return g("Div", x, count)


def trained_norm(g: Graph, x: str) -> str:
    scale, shift, mean, variance = (g.weight(4) for _ in range(4))
    y, _, _ = g("BatchNormalization", x, scale, shift, mean, variance, outputs=3, training_mode=1)
    return str(y)


def flipped(g: Graph, x: str) -> str:
    return str(g("Slice", x, g.ints(-1), g.ints(-(1 << 62)), g.ints(0), g.ints(-1)))


def counted(g: Graph, x: str) -> str:
    """Adds 0, 1, 2, ... to the rows."""
    count = g("Squeeze", g("Slice", g("Shape", x), g.ints(0), g.ints(1)), g.ints(0))
    zero, one = (g("Squeeze", g.ints(i), g.ints(0)) for i in (0, 1))
    steps = g("Cast", g("Range", zero, count, one), to=TensorProto.FLOAT)
    return str(g("Add", x, g("Unsqueeze", steps, g.ints(1))))


@pytest.mark.parametrize(
    ("build", "shape", "reason"),
    [
        (lambda g, x: g("Softmax", x, axis=0), (), "runs over the batch"),
        (lambda g, x: g("Sub", x, g("ReduceMean", x, axes=[0])), (), "runs over the batch"),
        (lambda g, x: g("CumSum", x, g.ints(0)), (), "runs over the batch"),
        (lambda g, x: g("MatMul", g("Transpose", x, perm=[1, 0]), x), (), "not the batch|runs over"),
        (lambda g, x: g("MatMul", x, g("Transpose", x, perm=[1, 0])), (), "brings positions"),
        (trained_norm, (), "runs over the batch"),
        (flipped, (), "is not the batch"),
        (lambda g, x: g("Add", x, flipped(g, x)), (), "told apart"),
        (lambda g, x: g("Add", x, g("Gather", x, g.ints(0))), (), "told apart"),
        (scaled_by_count, (), "reads the size of the batch"),
        (counted, (), "size of the batch|no rule"),
        (lambda g, x: merged(g, x, 4, -1, 5), ("N", 4, 5), "is not the batch|splits"),
        (lambda g, x: g("Reshape", x, g.ints(4, -1)), (), "is not the batch|splits"),
        (lambda g, x: g("Transpose", x, perm=[1, 0]), (), "is not the batch"),
        (lambda g, x: g("Reshape", x, g.ints(-1)), (), "is not the batch"),
        (lambda g, x: g("Unique", x, outputs=1, axis=0), (), "no rule"),
    ],
)
def test_positions_that_meet_are_told(
    build: Callable[[Graph, str], str], shape: tuple[int | str, ...], reason: str
) -> None:
    found = told(build, *shape)
    assert found is not None
    assert any(part in found for part in reason.split("|")), found


def test_an_operator_that_drops_a_batch_of_one_is_told() -> None:
    g = Graph()
    y = g("Squeeze", g.input("N", 1, 4))
    reason = entangled(g.model(y, shape=("N", 4)), "N", {})
    assert reason is not None and "in a batch of one" in reason


def test_a_size_the_batch_must_not_have_is_told() -> None:
    """Equal(size, 1) is false for both stand-ins, and true for a batch of one."""
    g = Graph()
    x = g.input("N", 4)
    alone = g("Equal", g("Gather", g("Shape", x), g.ints(0)), g.ints(1))
    y = g("Where", alone, g("Neg", x), x)
    reason = entangled(g.model(y), "N", {})
    assert reason is not None and "reads the size of the batch" in reason


@pytest.mark.parametrize(
    ("shapes", "symbol"),
    [
        ([("N", 3), ("N", "T")], "N"),
        ([("N", 3), ("M", 3)], None),
        ([("N", 3), (1, 3)], None),
        ([("N", "N")], None),
        ([(2, "N")], None),
        ([("", 3)], None),
        ([("N", 3), ()], None),
    ],
)
def test_the_batch_is_the_first_size_of_all_inputs(
    shapes: list[tuple[int | str, ...]], symbol: str | None
) -> None:
    inputs = [
        helper.make_tensor_value_info(f"x{k}", TensorProto.FLOAT, shape) for k, shape in enumerate(shapes)
    ]
    weight = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (2, 2)))
    graph = helper.make_graph([], "g", inputs, [], [weight])
    assert batch_of(helper.make_model(graph)) == symbol
