"""Running a model piece by piece."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, ModelError, load
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.execute import Arrays, execute, random_inputs
from onnx_prune.passes.measure.stream import Stream, read_by


def branches() -> Model:
    """An If whose bodies read tensors and weights from outside, one of them by an If of its own."""
    g = Graph()
    x, flag = g.input(2, 4), "flag"
    g.inputs.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
    early = g("Relu", g("MatMul", x, g.weight(4, 5)))
    late = g("Mul", early, g.weight(5))
    far = g("Add", x, g.weight(4))
    inner = g.weight(5, 3, name="inside")
    bias = g.weight(3)

    def body(name: str, nodes: list[onnx.NodeProto], out: str) -> onnx.GraphProto:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(out, 1, [2, 3])])

    deep = [helper.make_node("MatMul", [early, inner], ["p"])]
    other = [helper.make_node("MatMul", [late, inner], ["q"])]
    nested = helper.make_node(
        "If", [flag], ["t"], then_branch=body("a", deep, "p"), else_branch=body("b", other, "q")
    )
    then = body("then", [nested], "t")
    plain = [helper.make_node("MatMul", [late, inner], ["m"]), helper.make_node("Add", ["m", bias], ["u"])]
    chosen = g("If", flag, then_branch=then, else_branch=body("else", plain, "u"))
    tail = g("Relu", far)
    return g.model(g("Sigmoid", chosen), g("MatMul", tail, g.weight(4, 2)))


def residual() -> Model:
    """Three kinds of readers: the next node, nodes much later, nobody."""
    g = Graph()
    x = g.input("N", 3, 5, 5)
    first = g.conv(x, 3, 4)
    branch = g("Relu", g.conv(g("Relu", first), 4, 4, kernel=3))
    g("Sigmoid", branch)
    total = g("Add", first, branch)
    parts = g("Split", total, g.ints(1, 3), outputs=2, axis=1)
    joined = g("Concat", parts[1], x, axis=1)
    return g.model(joined, g("Relu", total))


def split(proto: onnx.ModelProto, sizes: Sequence[int] = (2, 2, 2)) -> list[Arrays]:
    return [random_inputs(proto, seed=k, dynamic=size) for k, size in enumerate(sizes)]


def assert_same(got: Arrays, wanted: Arrays) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5 * max(1, np.abs(value).max()))


def pieces(proto: onnx.ModelProto, batches: list[Arrays], stops: Sequence[int], folder: Path) -> list[Arrays]:
    """Every tensor the nodes make, from a run with these stops."""
    stream = Stream(proto, iter(batches), folder)
    found: list[Arrays] = [{} for _ in batches]
    for stop in [*stops, len(stream.nodes)]:
        made = [n for node in stream.nodes[stream.position : stop] for n in node.output if n]
        for batch, arrays in enumerate(stream.advance(stop, made)):
            assert arrays.keys() == set(made)
            found[batch] |= arrays
        assert stream.position == stop
    return found


def whole(proto: onnx.ModelProto, batches: list[Arrays]) -> list[Arrays]:
    """The same in one run for each batch, without a stream."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.output[:]
    names = [name for node in proto.graph.node for name in node.output if name]
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return [execute(copy, arrays) for arrays in batches]


@pytest.mark.parametrize("flag", [True, False])
def test_any_stops_give_what_one_run_gives(tmp_path: Path, flag: bool) -> None:
    rng = random.Random(0)
    for case, model in enumerate((branches(), residual())):
        batches = split(model.proto, (2, 2, 2) if case == 0 else (2, 3, 1))
        for arrays in batches if case == 0 else ():
            arrays["flag"] = np.array(flag)
        wanted, count = whole(model.proto, batches), len(model.proto.graph.node)
        cuts = [[], list(range(count)), *(sorted(rng.sample(range(count), 2)) for _ in range(6))]
        for k, stops in enumerate(cuts):
            for got, right in zip(
                pieces(model.proto, batches, stops, tmp_path / f"{case}.{k}"), wanted, strict=True
            ):
                assert_same(got, right)


def test_a_trained_model_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_prune.passes.measure.stream._ROOM", 1 << 16)  # some in memory, some on disk
    proto = load(FOLDER / "digits_resnet.onnx").proto
    batches = split(proto)
    (right, *_), (got, *_) = whole(proto, batches[:1]), pieces(proto, batches[:1], [3, 4, 11], tmp_path)
    assert_same(got, right)


def files(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_few_tensors_stay_in_memory(tmp_path: Path) -> None:
    proto = residual().proto
    stream = Stream(proto, split(proto, (2, 2)), tmp_path)
    assert stream.holds("x") and not files(tmp_path)


def test_files_of_tensors_that_nobody_reads_any_more_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_prune.passes.measure.stream._ROOM", 0)
    proto = residual().proto
    stream = Stream(proto, split(proto, (2, 2)), tmp_path)
    assert files(tmp_path) == 2  # the input, of two batches
    for stop in range(1, len(stream.nodes) + 1):
        list(stream.advance(stop, []))
        before = [name for node in stream.nodes[:stop] for name in node.output]
        later = {name for node in stream.nodes[stop:] for name in read_by(node)}
        waiting = later & {"x", *before}
        assert files(tmp_path) == 2 * len(waiting)
        assert all(stream.holds(name) for name in waiting)
        assert not any(stream.holds(name) for name in {"x", *before} - waiting)
    assert files(tmp_path) == 0


def test_tensors_that_only_a_body_reads_are_kept_until_then(tmp_path: Path) -> None:
    proto = branches().proto
    stream = Stream(proto, split(proto), tmp_path)
    where = [node.op_type for node in stream.nodes].index("If")
    early = stream.nodes[1].output[0]
    list(stream.advance(where, []))
    assert stream.holds(early)
    wanted = whole(proto, split(proto))[1][early]
    np.testing.assert_allclose(stream.stored(early, 1), wanted)
    list(stream.advance(where + 1, []))
    assert not stream.holds(early)


def chain() -> Model:
    """x times 2, times 3, times 5, with the same factor read again at the end."""
    g = Graph()
    x = g.input(1, 2)
    twice, thrice = g.scalar(2), g.scalar(3)
    y = g("Mul", g("Mul", x, twice), thrice)
    return g.model(g("Mul", y, twice))


def test_a_new_weight_reaches_later_nodes_only(tmp_path: Path) -> None:
    model = chain()
    names = [node.output[0] for node in model.proto.graph.node]
    stream = Stream(model.proto, [{"x": np.ones((1, 2), np.float32)}], tmp_path)
    list(stream.advance(1, []))
    stream.set_weight(model.proto.graph.node[0].input[1], np.array(7, np.float32))
    (arrays,) = stream.advance(3, names[1:])
    assert arrays[names[1]].tolist() == [[6, 6]]  # 2 · 3: the first node ran before
    assert arrays[names[2]].tolist() == [[42, 42]]
    assert model.proto == chain().proto


def test_a_weight_that_a_body_reads_can_be_set(tmp_path: Path) -> None:
    proto = branches().proto
    batches = split(proto, (2,))
    stream = Stream(proto, batches, tmp_path)
    where = [node.op_type for node in stream.nodes].index("If")
    out = stream.nodes[where].output[0]
    (before,) = stream.peek(where + 1, [out])
    list(stream.advance(where, []))
    stream.set_weight("inside", np.zeros((5, 3), np.float32))
    (after,) = stream.advance(where + 1, [out])
    assert np.any(before[out])
    assert not np.any(after[out])


def test_peek_does_not_move(tmp_path: Path) -> None:
    proto = residual().proto
    batches, end = split(proto, (2, 3)), len(proto.graph.node)
    stream = Stream(proto, batches, tmp_path)
    outputs = [output.name for output in proto.graph.output]
    list(stream.advance(2, []))
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    first, second = list(stream.peek(end, outputs)), list(stream.peek(end, outputs))
    assert stream.position == 2
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before
    last = list(stream.advance(end, outputs))
    for a, b, c, right in zip(first, second, last, whole(proto, batches), strict=True):
        for got in (a, b, c):
            assert_same(got, {name: right[name] for name in outputs})


def test_peek_can_take_a_tensor_as_something_else(tmp_path: Path) -> None:
    model = chain()
    names = [node.output[0] for node in model.proto.graph.node]
    stream = Stream(model.proto, [{"x": np.ones((1, 2), np.float32)}] * 2, tmp_path)
    list(stream.advance(1, []))
    instead = [
        arrays[names[2]].tolist()
        for arrays in stream.peek(3, [names[2]], lambda batch: {names[0]: np.full((1, 2), batch, np.float32)})
    ]
    assert instead == [[[0, 0]], [[6, 6]]]
    assert [a[names[2]].tolist() for a in stream.advance(3, [names[2]])] == [[[12, 12]]] * 2


def test_what_the_inputs_have_a_say_in(tmp_path: Path) -> None:
    g = Graph()
    x = g.input(2, 3)
    constant = g("Relu", g.weight(3))
    both = g("Add", x, constant)
    stream = Stream(g.model(both).proto, [], tmp_path)
    assert stream.dependent == {x, both}
    assert (flagged := branches().proto).graph.node[-1].output[0] in Stream(flagged, [], tmp_path).dependent


def test_16_bit_and_integer_tensors_between_pieces(tmp_path: Path) -> None:
    g = Graph()
    x = g("Cast", g.input(2, 3), to=TensorProto.FLOAT16)
    chosen = g("ArgMax", x, axis=1)
    halves = g("Cast", g("Neg", x), to=TensorProto.FLOAT)
    proto = g.model(g("Cast", chosen, to=TensorProto.FLOAT), halves).proto
    batches = split(proto)
    for got, right in zip(
        pieces(proto, batches, range(len(proto.graph.node)), tmp_path), whole(proto, batches), strict=True
    ):
        assert_same(got, right)


def test_inputs_that_do_not_fit_are_an_error_of_the_model(tmp_path: Path) -> None:
    stream = Stream(residual().proto, [{"x": np.ones((2, 9, 5, 5), np.float32)}], tmp_path)
    with pytest.raises(ModelError, match="cannot run the model"):
        list(stream.advance(2, [stream.nodes[1].output[0]]))


def test_an_initializer_that_is_declared_as_an_input_is_none(tmp_path: Path) -> None:
    proto = residual().proto
    weight = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    batches = split(proto)
    wanted = whole(proto, batches)
    got = pieces(proto, batches, [1, 3], tmp_path)
    assert_same(got[0], wanted[0])
