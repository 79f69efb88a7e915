"""Rules of other packages: found by entry point, told when broken, refused when two claim one operator."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import plugging
import pytest
from graphs import Graph
from onnx import TensorProto, helper
from onnx_prune import Model, save
from onnx_prune.analysis.errors import PluginError, PluginWarning
from onnx_prune.analysis.rules import RULES, Rule, plugins
from onnx_prune.analysis.walk import Walk
from plugging import ROOT, command

SAME = "def same(walk, node): return [walk.axes(node, 0)]\n"


def install(site: Path, name: str, code: str, value: str | None = None) -> None:
    plugging.install(site, name, code, "rules", value)


def loaded() -> dict[str, Rule]:
    return plugins.load(plugins.installed(), RULES)


def broken() -> list[str]:
    """The rules are loaded; what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded()
    assert all(issubclass(warning.category, PluginWarning) for warning in caught)
    return [str(warning.message) for warning in caught]


def model(op: str = "Foo", domain: str = "acme") -> Model:
    """x → a → domain::op → b → y."""
    g = Graph()
    h = g("MatMul", g.input(1, 3), g.weight(3, 6, name="a"))
    g.nodes.append(helper.make_node(op, [h], ["foo"], name="Foo_0", domain=domain))
    y = g("MatMul", "foo", g.weight(6, 2, name="b"))
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in ((y, [1, 2]), ("foo", [1, 6]))
    ]
    graph = helper.make_graph(g.nodes, "g", g.inputs, shapes[:1], g.weights, value_info=shapes[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def walked(rules: dict[str, Rule], one: Model | None = None) -> Walk:
    return Walk((one or model()).proto, RULES | rules)


def test_rules_are_found_by_entry_point(site: Path) -> None:
    install(site, "acme_rules", SAME + "RULES = {'acme::Foo': same, 'ai.onnx::Bar': same}")
    rules = loaded()
    assert {"acme::Foo", "Bar"} <= set(rules)
    assert "acme::Foo" in walked({}).unknown and walked(rules).unknown == {}
    assert broken() == []


@pytest.mark.parametrize(
    ("code", "value", "told"),
    [
        ("import nothing_of_that_name", None, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("1 / 0", None, "ZeroDivisionError: division by zero"),
        ("X = 1", None, "AttributeError: .* has no attribute 'RULES'"),
        ("RULES = 1", None, "TypeError: it is a int, not a mapping from operators to rules"),
        ("RULES = {'acme::Foo': 3}", None, "it maps 'acme::Foo' to 3"),
        ("RULES = {3: print}", None, "it maps 3 to"),
        ("", "acme_rules", "TypeError: it is a module"),
    ],
)
def test_a_broken_plugin_is_named_and_left_out(site: Path, code: str, value: str | None, told: str) -> None:
    install(site, "acme_rules", code, value)
    install(site, "other_rules", SAME + "RULES = {'acme::Other': same}")
    (message,) = broken()
    assert message.startswith("the plug-in 'acme_rules_rules' of acme_rules 1.5 (acme_rules")
    assert re.search(told, message), message
    with pytest.warns(PluginWarning):
        assert "acme::Other" in loaded()


def test_two_claims_on_one_operator_name_both(site: Path) -> None:
    for name in ("one", "two"):
        install(site, name, SAME + "RULES = {'acme::Foo': same}")
    rules = loaded()
    told = (
        r"acme::Foo 'Foo_0' has two rules: one of the plug-in 'one_rules' of one 1.5 .*'two_rules' of two 1.5"
    )
    with pytest.raises(PluginError, match=told):
        walked(rules)


def test_a_claim_on_a_built_in_operator_names_both(site: Path) -> None:
    install(site, "acme_rules", SAME + "RULES = {'Relu': same}")
    rules = loaded()
    with pytest.raises(
        PluginError, match=r"Relu 'Foo_0' has two rules: one of onnx-prune itself, one of the plug"
    ):
        walked(rules, model("Relu", ""))
    walked(rules, model("Tanh", ""))  # no model without the operator is the worse for it


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return {}['size']", r"failed: KeyError: 'size'"),
        ("return walk.axes(node, 0)", "did not return a list of axes for each of its 1 outputs"),
        ("return [walk.axes(node, 0)] * 2", "did not return a list of axes"),
        ("return None", "did not return a list of axes"),
        ("return [['x']]", "did not return a list of axes"),
    ],
)
def test_a_rule_that_fails_is_not_taken_for_a_malformed_model(site: Path, body: str, told: str) -> None:
    install(site, "acme_rules", f"def foo(walk, node): {body}\nRULES = {{'acme::Foo': foo}}")
    rules = loaded()
    with pytest.raises(PluginError, match=f"the rule for acme::Foo 'Foo_0' of the plug-in .* {told}"):
        walked(rules)


def test_a_rule_can_decline(site: Path) -> None:
    code = "from onnx_prune.analysis.rules import Unsupported\n"
    code += "def foo(walk, node): raise Unsupported('not today')\n"
    install(site, "acme_rules", code + "RULES = {'acme::Foo': foo}")
    assert walked(loaded()).unknown == {"acme::Foo": "acme::Foo 'Foo_0': not today"}


def test_the_command_uses_plugins(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    save(model(), source)
    assert "has no rule" in command("analyze", source, site=site).stderr
    install(site, "acme_rules", SAME + "RULES = {'acme::Foo': same}")
    done = command(
        "prune",
        source,
        "-o",
        tmp_path / "out.onnx",
        "--ratio",
        "0.5",
        "--no-verify",
        "--criterion",
        "l2",
        "--recover",
        "none",
        site=site,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_warns_in_one_line_and_goes_on(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    save(model(), source)
    install(site, "acme_rules", "import nothing_of_that_name")
    done = command("analyze", source, site=site)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert done.returncode == 0
    assert line == (
        "warning: the plug-in 'acme_rules_rules' of acme_rules 1.5 (acme_rules:RULES) is left out:"
        " ModuleNotFoundError: No module named 'nothing_of_that_name'"
    )


def test_the_command_refuses_two_claims(site: Path, tmp_path: Path) -> None:
    source = tmp_path / "model.onnx"
    save(model(), source)
    for name in ("one", "two"):
        install(site, name, SAME + "RULES = {'acme::Foo': same}")
    done = command("analyze", source, site=site)
    assert done.returncode == 1 and "error: acme::Foo 'Foo_0' has two rules" in done.stderr


def test_the_documented_example_is_sound(site: Path) -> None:
    """The code blocks of docs/rules.md, one after the other."""
    text = (ROOT / "docs" / "rules.md").read_text("utf-8")
    rule, check = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(rule.splitlines()) <= 20
    install(site, "acme_rules", rule)
    assert "acme::Gate" in loaded()
    names: dict[str, object] = {}
    exec(check, names)
    assert names["findings"] == []
