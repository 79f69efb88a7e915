"""The drawn groups: everything is there once, in its colour, inside the picture, and nothing meets."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, analyze, load
from onnx_prune.analysis.report import picture
from onnx_prune.analysis.report.picture import Box, Scene, draw, page, svg
from onnx_prune.models.digits import FOLDER

RESNET = FOLDER / "digits_resnet.onnx"


def chain(length: int) -> Model:
    """Convolutions one after another, each with a Relu."""
    g = Graph()
    h, inner = g.input(1, 3, 4, 4), 3
    for i in range(length):
        h = g("Relu", g("Conv", h, g.weight(8, inner, 1, 1, name=f"w{i}")))
        inner = 8
    return g.model(h)


def scene(model: Model) -> Scene:
    return draw(analyze(model), "model")


def meet(a: Box, b: Box) -> bool:
    across = a.x < b.x + b.width and b.x < a.x + a.width
    return across and a.y < b.y + b.height and b.y < a.y + a.height


def test_a_small_model_is_drawn_node_by_node() -> None:
    analysis = analyze(load(RESNET))
    drawn = draw(analysis, "model")
    assert len(drawn.boxes) == len(analysis.walk.nodes) + 2, "nodes, the input and the output"
    assert not any(meet(a, b) for a, b in combinations(drawn.boxes, 2))
    inside = [
        b.x >= 0 and b.x + b.width <= drawn.width and b.y + b.height <= drawn.height for b in drawn.boxes
    ]
    assert all(inside)


def test_data_flows_down() -> None:
    tops = {box.text: box.y for box in scene(chain(3)).boxes}
    names = ["x", "Conv Conv_0", "Relu Relu_1", "Conv Conv_2", "Relu Relu_3", "Conv Conv_4", "Relu Relu_5"]
    assert sorted(names, key=tops.__getitem__) == names


def test_coupled_nodes_have_one_colour_and_pinned_ones_are_grey() -> None:
    fills = {box.text: box.fill for box in scene(load(RESNET)).boxes}
    assert fills["Conv /5/conv2/Conv"] == fills["Conv /4/conv2/Conv"] == fills["Conv /4/skip/Conv"]
    assert fills["Conv /5/conv1/Conv"] != fills["Conv /5/conv2/Conv"]
    grey = next(box for box in scene(load(RESNET)).boxes if box.text == "Gemm /9/Gemm")
    assert grey.fill == "#aab2bd" and "'logits' is an output of the model" in grey.tip


def test_more_channels_are_thicker() -> None:
    lines = {line.tip.partition(":")[0]: line.width for line in scene(load(RESNET)).lines}
    assert lines["/6/Relu_output_0"] > lines["/4/Relu_output_0"] > lines["/3/Relu_output_0"] > lines["x"]


def test_the_legend_lists_groups_by_parameters() -> None:
    analysis = analyze(load(RESNET))
    saved = [entry.told for entry in draw(analysis, "model").legend]
    counts = [float(told.split(", ", 1)[1].split(" ")[0].replace(",", "")) for told in saved]
    assert len(counts) == len(analysis.groups) and counts == sorted(counts, reverse=True)


def test_a_large_model_is_drawn_by_layers_and_groups() -> None:
    analysis = analyze(chain(picture.NODES_DRAWN // 2 + 1))
    drawn = draw(analysis, "model")
    rows = [box for box in drawn.boxes if box.text]
    assert [box.text.split()[1] for box in rows] == [
        n.proto.name for n in analysis.walk.nodes if n.op == "Conv"
    ]
    bars = [box for box in drawn.boxes if not box.text and box.height > 12]
    assert len(bars) == len(analysis.groups)
    assert not any(meet(a, b) for a, b in combinations(bars, 2))
    assert drawn.unlisted == len(analysis.groups) - len(drawn.legend) > 0


def test_layers_of_a_group_have_marks_on_its_bar() -> None:
    """The first layer writes the units of its group, the second reads them."""
    drawn = draw(analyze(chain(picture.NODES_DRAWN // 2 + 1)), "model")
    marks = {box.tip: box for box in drawn.boxes}
    written, read = marks["Conv 'Conv_0' writes w0:0"], marks["Conv 'Conv_2' reads w0:0"]
    assert written.fill == written.stroke == read.stroke and read.fill == "#ffffff"
    assert written.x == read.x and written.y < read.y


@pytest.mark.parametrize("length", [2, picture.NODES_DRAWN])
def test_names_are_escaped_and_the_picture_is_xml(length: int) -> None:
    model = chain(length)
    for tensor in model.proto.graph.initializer:
        tensor.name = f"<b>&{tensor.name}"
    for node in model.proto.graph.node:
        node.name = f"<i>&{node.name}"
        for i, name in enumerate(node.input):
            if name.startswith("w"):
                node.input[i] = f"<b>&{name}"
    text = svg(analyze(model), "<script>")
    assert "<script>" not in text and "<b>" not in text and "<i>" not in text
    titles = [e.text for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}title")]
    assert any("<b>&w0:0" in (title or "") for title in titles)


def test_the_page_holds_the_picture_and_loads_nothing() -> None:
    analysis = analyze(load(RESNET))
    text = page(analysis, "model")
    assert svg(analysis, "model") in text and text == page(analysis, "model")
    assert "src=" not in text and "href=" not in text


def test_a_model_without_nodes_or_groups() -> None:
    g = Graph()
    ElementTree.fromstring(svg(analyze(g.model(g("Relu", g.input(1, 3)))), "model"))


def test_branches_of_an_if_are_joined_to_it() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    g.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        node = helper.make_node(op, [h], [f"{op}_out"], name=op)
        info = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, [1, 6])
        branches[name] = helper.make_graph([node], name, [], [info])
    y = g("MatMul", g("If", "flag", **branches), g.weight(6, 2, name="b"))
    drawn = scene(g.model(y))
    assert {"Relu_out: 1×6", "Tanh_out: 1×6"} <= {line.tip.splitlines()[0] for line in drawn.lines}


@pytest.mark.parametrize("kind", ["svg", "html"])
def test_the_command_writes_a_picture(tmp_path: Path, kind: str) -> None:
    target = tmp_path / f"groups.{kind}"
    done = analyze_command("--graph", target)
    assert done.returncode == 0 and f"wrote {target}" in done.stderr, done.stderr
    assert "5.conv1.weight:0" in target.read_text("utf-8")


def test_the_command_refuses_other_kinds(tmp_path: Path) -> None:
    done = analyze_command("--graph", tmp_path / "groups.png")
    assert done.returncode == 2 and "choose .svg or .html" in done.stderr
    assert list(tmp_path.iterdir()) == []


def analyze_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_prune", "analyze", str(RESNET), *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent / ".dev")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
