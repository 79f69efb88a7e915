"""Fine-tuning elsewhere: index lists by the names of the source, and weights taken back."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Graph, shapes
from numpy.typing import NDArray
from onnx import helper
from onnx_prune import (
    Entry,
    Model,
    Plan,
    PlanError,
    analyze,
    apply,
    load,
    plan,
    save,
    without_blocks,
)
from onnx_prune.analysis.export import index_lists, to_json
from onnx_prune.analysis.graph import array_of, walk_graphs
from onnx_prune.models.digits import FOLDER, MODELS, accuracy, load_digits
from onnx_prune.passes.execute import execute
from onnx_prune.passes.shrink import shrink
from onnx_prune.passes.weights import take_weights
from variants import net

Array = NDArray[Any]
ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "finetune.py"


def weights(model: Model) -> dict[str, Array]:
    return {t.name: array_of(t) for graph in walk_graphs(model.proto.graph) for t in graph.initializer}


def lists_of(model: Model, ratio: float = 0.5, **options: Any) -> tuple[dict[str, Any], Plan]:
    analysis = analyze(model)
    chosen = plan(analysis, ratio=ratio, criterion="l2", recover="none", **options)
    return index_lists(analysis, chosen), chosen


# ---------------------------------------------------------------------- index lists


def kept(value: Array, keep: dict[str, Any]) -> Array:
    """What docs/finetune.md says stays of a weight."""
    if not keep:
        return value
    rows = np.array(keep.get("0", range(len(value))))
    for axis, positions in keep.items():
        if axis != "0" and isinstance(positions, list):
            value = value.take(positions, axis=int(axis))
    for axis, positions in keep.items():
        if isinstance(positions, dict):
            blocks = positions["blocks"]
            of = rows // (len(value) // len(blocks))
            return np.concatenate(
                [value[rows[of == g]].take(block, axis=int(axis)) for g, block in enumerate(blocks)]
            )
    return value[rows]


def read_by(model: Model) -> dict[tuple[str, int], tuple[str, str, Array]]:
    """For each node and input that reads a float weight: the node's title, the weight's name and value."""
    values = {name: value for name, value in weights(model).items() if value.dtype.kind == "f"}
    found = {}
    for node in model.proto.graph.node:
        if node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        else:
            for i, name in enumerate(node.input):
                if name in values:
                    found[node.output[0], i] = node.name or node.output[0], name, values[name]
    return found


NETS = [
    *MODELS,
    "bert.ts-dynamic",
    "llama.static",
    "mobilenet.dynamo-dynamic",
    "shufflenet.static",
    "swin.static",
    "tv_mobilenet_v3_small",
    "unet.static",
]


@pytest.mark.parametrize("name", NETS)
def test_the_lists_make_the_weights_of_the_pruned_model(name: str) -> None:
    model = Model(net(name))
    lists, chosen = lists_of(model)
    smaller = read_by(shrink(model, chosen))
    compared: set[str] = set()
    for place, (title, tensor, value) in read_by(model).items():
        entry = lists["weights"].get(tensor, {"shape": list(value.shape), "keep": {}})
        copies = entry.get("copies", [entry | {"nodes": [title]}])
        keep = next(copy["keep"] for copy in copies if title in copy["nodes"])
        assert entry["shape"] == list(value.shape)
        np.testing.assert_array_equal(kept(value, keep), smaller[place][2])
        compared.add(tensor)
    assert lists["weights"].keys() <= compared


def test_the_same_plan_gives_the_same_text() -> None:
    path = FOLDER / "digits_vit.onnx"
    first, chosen = lists_of(load(path))
    again = to_json(index_lists(analyze(load(path)), Plan.from_json(chosen.to_json())))
    assert to_json(first) == again
    assert json.loads(again) == first
    assert first["format"] == "onnx-prune index lists" and first["version"] == 1
    assert first["plan"] == chosen.digest


def test_a_plan_for_another_model_is_refused() -> None:
    chosen = plan(load(FOLDER / "digits_vit.onnx"), ratio=0.5, criterion="l2", recover="none")
    with pytest.raises(PlanError, match="another model"):
        index_lists(analyze(load(FOLDER / "digits_resnet.onnx")), chosen)


def grouped() -> Model:
    g = Graph()
    h = g.conv(g.conv(g.input(1, 3, 4, 4), 3, 8), 8, 8, 3, group=2)
    return g.model(g.conv(g("Relu", h), 8, 2))


def test_blocks_of_a_grouped_convolution_are_told_apart() -> None:
    """Input channels 0, 2 of block 0 (of 0 to 3) and 1, 3 of block 1 stay, and all its filters."""
    model = grouped()
    chosen = Plan((Entry("w0:0", 4, (0, 2)), Entry("w0:0#2", 4, (1, 3))), {})
    lists = index_lists(analyze(model), chosen)
    assert lists["weights"]["w2"]["keep"] == {"1": {"blocks": [[0, 2], [1, 3]]}}
    assert lists["weights"]["w0"]["keep"] == {"0": [0, 2, 5, 7]}
    assert shapes(shrink(model, chosen))["w2"] == (8, 2, 3, 3)


def test_blocks_that_keep_the_same_are_one_list() -> None:
    same = Plan((Entry("w0:0", 4, (1, 2)), Entry("w0:0#2", 4, (1, 2))), {})
    assert index_lists(analyze(grouped()), same)["weights"]["w2"]["keep"] == {"1": [1, 2]}


def test_counts_and_shapes_that_change_are_listed() -> None:
    lists, _ = lists_of(load(FOLDER / "digits_mobilenet.onnx"))
    change = next(c for c in lists["attributes"] if c["weights"] == ["3.body.3.weight"])
    assert (change["op"], change["attribute"], change["before"], change["after"]) == ("Conv", "group", 96, 48)
    lists, chosen = lists_of(load(FOLDER / "digits_vit.onnx"))
    after = weights(apply(load(FOLDER / "digits_vit.onnx"), chosen))
    first = next(c for c in lists["constants"] if c["node"] == "/blocks/blocks.0/Reshape")
    assert first["before"] == [-1, 16, 4, 16] and first["after"] == [-1, 16, 2, 8]
    assert after["/blocks/blocks.0/Reshape_output_0.new"].tolist() == first["after"]


def test_indices_and_bounds_count_what_is_left() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    swapped = g("Gather", x, g.ints(3, 2, 1, 0, 7, 6, 5, 4), axis=1)
    half = g("Slice", swapped, g.ints(0), g.ints(4), g.ints(1))
    model = g.model(g.conv(half, 4, 2))
    lists, chosen = lists_of(model)
    (gather,) = (c for c in lists["constants"] if c["op"] == "Gather")
    assert gather["before"] == [3, 2, 1, 0, 7, 6, 5, 4]
    smaller = shrink(model, chosen)
    node = next(n for n in smaller.proto.graph.node if n.op_type == "Gather")
    assert gather["after"] == weights(smaller)[node.input[1]].tolist()
    (bounds,) = (c for c in lists["constants"] if c["op"] == "Slice")
    left = weights(smaller)[smaller.proto.graph.node[-1].input[1]].shape[1]
    assert 1 <= left < 4
    assert (bounds["axis"], bounds["before"], bounds["after"]) == (1, [0, 1, 2, 3], list(range(left)))


def test_sizes_read_while_running_are_listed() -> None:
    g = Graph()
    x = g.conv(g.input("N", 3, 4, 4), 3, 8)
    sizes = g("Shape", x)
    model = g.model(g.conv(g("Reshape", x, sizes), 8, 2))
    lists, _ = lists_of(model)
    (read,) = lists["sizes"]
    assert read["before"] == [None, 8, 4, 4] and read["after"] == [None, 4, 4, 4]
    (shape,) = lists["constants"]
    assert shape["before"] == [None, 8, 4, 4] and shape["after"] == [None, 4, 4, 4]


def test_one_weight_under_two_names_is_listed_under_both() -> None:
    """As exporters do that store equal tensors once and read the others through Identity."""
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    g.nodes.append(
        helper.make_node("Identity", [g.weight(8, 8, 1, 1, name="first.weight")], ["second.weight"])
    )
    x = g("Relu", g("Conv", x, "first.weight"))
    model = g.model(g.conv(g("Conv", x, "second.weight"), 8, 2))
    analysis = analyze(model)
    first, second = (g for g in analysis.groups if g.id.startswith("first.weight:0"))
    chosen = Plan((Entry(first.id, 8, (0, 1)), Entry(second.id, 8, (5, 6, 7))), {})
    lists = index_lists(analysis, chosen)["weights"]
    assert lists["first.weight"]["keep"] == {"0": [0, 1]}
    assert lists["second.weight"]["keep"] == {"0": [5, 6, 7], "1": [0, 1]}
    assert lists["second.weight"]["initializer"] == "first.weight"


def test_uses_of_one_weight_that_disagree_are_told_apart() -> None:
    g = Graph()
    x, w = g.conv(g.input(1, 3, 4, 4), 3, 8), g.weight(8, 8, 1, 1, name="tied")
    once = g("Relu", g("Conv", x, w))
    model = g.model(g.conv(g("Conv", once, w), 8, 2))
    analysis = analyze(model)
    first, second = (group for group in analysis.groups if group.id.startswith("tied:0"))
    lists = index_lists(analysis, Plan((Entry(first.id, 8, (0,)), Entry(second.id, 8, (1, 2))), {}))
    copies = lists["weights"]["tied"]["copies"]
    assert [copy["keep"] for copy in copies] == [{"0": [0]}, {"0": [1, 2], "1": [0]}]
    assert [len(copy["nodes"]) for copy in copies] == [1, 1]


def test_a_small_weight_that_is_laid_out_anew_keeps_its_name() -> None:
    """Small constants are folded while the model is read: a linear layer's transposed weight."""
    g = Graph()
    x = g("MatMul", g.input(2, 4), g("Transpose", g.weight(8, 4, name="linear.weight"), perm=[1, 0]))
    x = g("Add", x, g("Reshape", g.weight(8, name="linear.bias"), g.ints(1, 8)))
    x = g("Add", x, g("Expand", g.weight(1, 8, name="token"), g.ints(2, 8)))
    model = g.model(g("MatMul", x, g.weight(8, 2)))
    analysis = analyze(model)
    (group,) = analysis.groups
    lists = index_lists(analysis, Plan((Entry(group.id, 8, (2, 5)),), {}))
    assert lists["weights"]["linear.weight"]["shape"] == [8, 4]
    assert lists["weights"]["linear.weight"]["keep"] == {"0": [2, 5]}
    assert lists["weights"]["linear.bias"]["keep"] == {"0": [2, 5]}
    assert lists["weights"]["token"]["keep"] == {"1": [2, 5]}


def test_a_constant_that_is_no_weight_of_the_source_is_listed_apart() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    scaled = g("Mul", x, g("Mul", g.weight(1, 8, 1, 1, name="a"), g.weight(1, 8, 1, 1, name="b")))
    lists, _ = lists_of(g.model(g.conv(scaled, 8, 2)))
    (product,) = lists["constants"]
    assert product["op"] == "Mul" and product["shape"] == [1, 8, 1, 1] and len(product["keep"]["1"]) == 4


def test_weights_that_go_with_blocks_are_listed() -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    whole = analyze(model)
    block = next(b.id for b in whole.blocks if "/3/" in b.id)
    chosen = plan(model, ratio=0.5, criterion="l2", recover="none", drop=[block])
    lists = index_lists(analyze(without_blocks(model, [block])), chosen, whole)
    assert lists["blocks"] == [block]
    gone = {name for name in weights(model) if name.startswith("3.")}
    assert gone and set(lists["gone"]) == gone
    assert not gone & lists["weights"].keys()


# ---------------------------------------------------------------------- the example in PyTorch


def example() -> Any:
    spec = importlib.util.spec_from_file_location("finetune", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["digits_resnet", "digits_mobilenet"])
def test_the_sliced_module_computes_what_the_pruned_model_does(name: str) -> None:
    torch = pytest.importorskip("torch")
    finetune = example()
    path = FOLDER / f"{name}.onnx"
    model = load(path)
    lists, chosen = lists_of(model)
    images = load_digits("test").images[:64]
    with torch.no_grad():
        got = finetune.shrink(finetune.source(path), lists)(torch.from_numpy(images)).numpy()
    wanted = execute(apply(model, chosen).proto, {"x": images})["logits"]
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_example_trains_and_its_weights_come_back(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    path = FOLDER / "digits_resnet.onnx"
    model = load(path)
    lists, chosen = lists_of(model)
    indices, out, smaller = (tmp_path / n for n in ("indices.json", "trained.onnx", "smaller.onnx"))
    indices.write_text(to_json(lists))
    command = [sys.executable, EXAMPLE, path, indices, out]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    pruned, other = apply(model, chosen), load(out)
    save(take_weights(pruned, other), smaller)
    test = load_digits("test")
    before, wanted, after = (
        execute(m.proto, {"x": test.images})["logits"] for m in (pruned, other, load(smaller))
    )
    assert np.abs(after - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert accuracy(lambda x: before, test) < 0.9 < 0.97 <= accuracy(lambda x: after, test)
    assert shapes(load(smaller)) == shapes(pruned)


def test_the_example_is_short() -> None:
    parts = EXAMPLE.read_text().split('"""')[::2]  # docstrings are at the odd places
    lines = [line.strip() for part in parts for line in part.splitlines()]
    assert 20 < len([line for line in lines if line and not line.startswith("#")]) <= 40
