"""What `explain` says, on graphs small enough to know it all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, UsageError, analyze, save
from onnx_prune.analysis.explain import Explanation, explain, find_place
from onnx_prune.analysis.groups import Member
from onnx_prune.analysis.paths import Spot, Ties, Ways


def told(model: Model, tensor: str, axis: int | None = None) -> str:
    explanation = explain(analyze(model), tensor, axis)
    assert json.loads(json.dumps(explanation.to_json()))["sentences"] == explanation.sentences()
    return "\n".join(explanation.sentences())


def residual() -> Model:
    """x → a → (+ b(relu)) → c → y: the outputs of a and b are added, c reads them."""
    g = Graph()
    h = g("Conv", g.input(1, 3, 4, 4), g.weight(8, 3, 1, 1, name="a"))
    r = g("Relu", g("Conv", h, g.weight(8, 8, 1, 1, name="b")))
    return g.model(g("Conv", g("Add", h, r), g.weight(5, 8, 1, 1, name="c")))


def test_partners_come_with_the_way_to_them() -> None:
    explanation = explain(analyze(residual()), "a", 0)
    (note,) = explanation.axes
    (shared,) = note.groups
    assert {(p.tensor, p.axis) for p in shared.partners} == {("b", 0), ("b", 1), ("c", 1)}
    because = {(p.tensor, p.axis): p.because for p in shared.partners}
    assert because["b", 1] == (
        "Conv 'Conv_0' makes 'conv0_0' with it",
        "Conv 'Conv_1' reads that with 'b'",
    )
    assert because["b", 0] == (
        "Conv 'Conv_0' makes 'conv0_0' with it",
        "Add 'Add_3' adds that to 'relu2_0'",
        "Relu 'Relu_2' makes that from 'conv1_0'",
        "Conv 'Conv_1' makes that with 'b'",
    )
    assert set(shared.activations) == {"conv0_0:1", "conv1_0:1", "relu2_0:1", "add3_0:1"}
    assert "- 'c:1', because Conv 'Conv_0' makes" in told(residual(), "a", 0)


def test_the_nearest_partner_comes_first() -> None:
    note = explain(analyze(residual()), "c", 1).axes[0]
    assert [len(partner.because) for partner in note.groups[0].partners] == [3, 3, 4]


def test_an_activation_can_be_explained() -> None:
    text = told(residual(), "relu2_0")
    assert "Axis 1 of 'relu2_0' has 8 positions: 8 units of the group 'a:0'." in text
    assert "Axis 0 of 'relu2_0' has 1 position: 1 position that stays." in text


def test_an_output_is_pinned_and_says_how_to_free_it() -> None:
    note = explain(analyze(residual()), "c", 0).axes[0]
    (held,) = note.held
    assert held.reason == "'conv4_0' is an output of the model"
    assert held.because == ("Conv 'Conv_4' makes 'conv4_0' with it",)
    assert held.remedy is not None and "not an output" in held.remedy


def test_the_way_to_a_pin_goes_over_several_nodes() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    model = g.model(g("Tanh", g("Relu", g("Add", h, g.weight(1, 6, name="b")))))
    (held,) = explain(analyze(model), "a", -1).axes[0].held
    assert held.because == (
        "MatMul 'MatMul_0' makes 'matmul0_0' with it",
        "Add 'Add_1' passes that on",
        "Relu 'Relu_2' passes that on",
        "Tanh 'Tanh_3' passes that on",
    )


def unruled() -> Model:
    """x → a → acme::Foo → b → y."""
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    node = helper.make_node("Foo", [g("Relu", h)], ["foo"], name="Foo_0", domain="acme")
    shape = helper.make_tensor_value_info("foo", TensorProto.FLOAT, [1, 6])
    g.nodes.append(node)
    y = g("MatMul", "foo", g.weight(6, 2, name="b"))
    graph = helper.make_graph(g.nodes, "g", g.inputs, [shape_of(y, 1, 2)], g.weights, value_info=[shape])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def shape_of(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def test_an_operator_without_a_rule_is_named_with_the_way_to_it() -> None:
    (held,) = explain(analyze(unruled()), "a", 1).axes[0].held
    assert held.reason == "acme::Foo 'Foo_0' has no rule"
    assert held.because == ("MatMul 'MatMul_0' makes 'matmul0_0' with it", "Relu 'Relu_1' passes that on")
    assert held.remedy == "Give a rule for the operator acme::Foo: docs/rules.md says how."


def test_a_size_known_only_at_run_time_says_what_to_export() -> None:
    g = Graph()
    h = g("MatMul", g.input("batch", 4), g.weight(4, 3, name="a"))
    ones = g("ConstantOfShape", g("Shape", h))
    (held,) = explain(analyze(g.model(g("Add", h, ones))), ones, 0).axes[0].held
    assert held.reason == "its size is known only at run time"
    assert held.remedy == "Export the model with a static size for this axis."


def test_an_input_of_the_model_is_pinned() -> None:
    assert "Nothing of it can go, because 'x' is an input of the model" in told(residual(), "a", 1)


def test_heads_are_a_product() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 5, 6), g.weight(6, 12, name="q"))
    h = g("Transpose", g("Reshape", h, g.ints(1, 5, 3, 4)), perm=[0, 2, 1, 3])
    h = g("MatMul", h, g("Transpose", h, perm=[0, 1, 3, 2]))
    model = g.model(g("ReduceSum", h, g.ints(1), keepdims=0))
    text = told(model, "q", 1)
    assert "has 12 positions: a product, the last factor running fastest, of 3 units" in text
    assert "each of which takes 4 positions here" in text and "each of which takes 3 positions here" in text


def test_segments_of_a_concatenation() -> None:
    g = Graph()
    x = g.input(1, 3, 4, 4)
    a = g("Conv", x, g.weight(4, 3, 1, 1, name="a"))
    b = g("Conv", x, g.weight(6, 3, 1, 1, name="b"))
    model = g.model(g("Conv", g("Concat", a, b, axis=1), g.weight(2, 10, 1, 1, name="c")))
    text = told(model, "c", 1)
    assert (
        "2 segments, of which positions 0 to 3 are 4 units of the group 'a:0'"
        " and 4 to 9 are 6 units of the group 'b:0'." in text
    )


def test_a_gather_is_an_index_map() -> None:
    g = Graph()
    h = g("Conv", g.input(1, 3, 4, 4), g.weight(4, 3, 1, 1, name="a"))
    h = g("Gather", h, g.ints(3, 2, 1, 0), axis=1)
    text = told(g.model(g("Conv", h, g.weight(2, 4, 1, 1, name="c"))), "c", 1)
    assert "positions 3, 2, 1, 0 of an axis that is 4 units of the group 'a:0'" in text


def test_blocks_of_a_grouped_convolution_and_what_limits_them() -> None:
    g = Graph()
    h = g("Conv", g.input(1, 3, 4, 4), g.weight(8, 3, 1, 1, name="a"))
    h = g("Conv", h, g.weight(8, 4, 1, 1, name="b"), group=2)
    model = g.model(g("Conv", h, g.weight(2, 8, 1, 1, name="c")))
    text = told(model, "b", 1)
    assert "for each of 2 blocks of the other channel axis other ones" in text
    assert "As many must stay as in its sibling blocks" in text


def test_a_normalisation_is_a_limit() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    h = g("LayerNormalization", h, g.weight(6, name="scale"))
    text = told(g.model(g("MatMul", h, g.weight(6, 2, name="b"))), "a", 1)
    assert "A normalisation or reduction runs over the units" in text


def test_uses_of_a_shared_weight_are_told_apart_and_do_not_tie() -> None:
    """Sharing a weight ties nothing: no way between the two uses goes over its name."""
    g = Graph()
    x = g.input(1, 4)
    a = g("MatMul", x, g.weight(4, 6, name="a"))
    b = g("MatMul", x, g.weight(4, 6, name="b"))
    g.weight(6, name="shared")
    y = g("MatMul", g("Add", a, "shared"), g.weight(6, 2, name="c"))
    z = g("MatMul", g("Add", b, "shared"), g.weight(6, 2, name="d"))
    model = g.model(y, z)
    one, other = explain(analyze(model), "shared").axes
    assert one.used_by == ("Add 'Add_2'",) and other.used_by == ("Add 'Add_4'",)
    assert {p.tensor for p in one.groups[0].partners} == {"a", "c"}
    assert {p.tensor for p in other.groups[0].partners} == {"b", "d"}


def test_ways_over_bodies() -> None:
    """A branch captures a tensor and gives one: the If ties what its branches give."""
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    g.inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
    branches = {}
    for name, op in (("then_branch", "Relu"), ("else_branch", "Tanh")):
        node = helper.make_node(op, [h], [f"{op}_out"], name=op)
        branches[name] = helper.make_graph([node], name, [], [shape_of(f"{op}_out", 1, 6)])
    y = g("MatMul", g("If", "flag", **branches), g.weight(6, 2, name="b"))
    explanation = explain(analyze(g.model(y)), "a", 1)
    (partner,) = explanation.axes[0].groups[0].partners
    assert (partner.tensor, partner.axis) == ("b", 0)
    assert len(partner.because) == 4 and partner.because[1] == "Relu 'Relu' passes that on"


def test_every_partner_is_reached() -> None:
    """Whatever a group lives on, there is a way to it from any of its members."""
    analysis = analyze(residual())
    for group in analysis.groups:
        for start in group.members:
            note = explain(analysis, *start).axes[0]
            shared = next(s for s in note.groups if s.group == group.id)
            reached = {(p.tensor, p.axis) for p in shared.partners}
            assert reached >= set(group.members) - {start}


def test_long_ways_are_cut_in_the_middle() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    for _ in range(20):
        h = g("Relu", h)
    model = g.model(g("MatMul", h, g.weight(6, 2, name="b")))
    (partner,) = explain(analyze(model), "a", 1).axes[0].groups[0].partners
    assert len(partner.because) == 7 and partner.because[3] == "and so on over 16 more nodes"
    assert partner.because[-1].endswith("reads that with 'b'")


def test_a_way_is_a_shortest_one() -> None:
    analysis = analyze(residual())
    atom = analysis.groups[0].axis
    ways = Ways(analysis.walk, lambda place: place.axis is atom, Ties(analysis.walk))
    reach = ways.from_(Spot(Member("conv0_0", 1)))
    assert [step.node.proto.name for step in reach.way(Spot(Member("add3_0", 1)))] == ["Add_3"]


def test_names_and_axes() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="w:0"))
    analysis = analyze(g.model(g("MatMul", h, g.weight(6, 2, name="w"))))
    assert find_place(analysis, "w:0") == ("w:0", None), "the exact name wins"
    assert find_place(analysis, "w:1") == ("w", 1)
    assert find_place(analysis, "w:0:1") == ("w:0", 1)
    assert find_place(analysis, "w:-1") == ("w", -1)
    with pytest.raises(UsageError, match="'w' has 2 axes, there is no axis 2"):
        explain(analysis, "w", 2)
    with pytest.raises(UsageError, match="'matmul0_9'; did you mean 'matmul0_0'"):
        find_place(analysis, "matmul0_9")


def test_a_constant_without_channels() -> None:
    g = Graph()
    h = g("Reshape", g.input(1, 12), g.ints(1, 3, 4))
    explanation = explain(analyze(g.model(h)), "i0")
    assert isinstance(explanation, Explanation) and explanation.axes == ()
    assert "read as a size, an index or a setting" in explanation.sentences()[0]


def test_the_command_explains(tmp_path: Path) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "out.json"
    save(residual(), source)
    done = analyze_command(source, "--explain", "a:0", "--json", target)
    assert done.returncode == 0, done.stderr
    explanation = json.loads(target.read_text())["explanation"]
    assert explanation["sentences"] == done.stderr.splitlines()
    assert explanation["axes"][0]["groups"][0]["partners"]


def test_the_command_knows_no_such_tensor(tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    save(residual(), source)
    done = analyze_command(source, "--explain", "relu2")
    assert done.returncode == 2 and "did you mean 'relu2_0'" in done.stderr


def analyze_command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_prune", "analyze", *map(str, arguments)]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent / ".dev")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)
