"""Criteria of other packages: found by entry point, told when broken, refused when two claim one name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from graphs import PLAIN, Graph
from onnx import numpy_helper
from onnx_prune import Model, UsageError, plan, save
from onnx_prune.analysis.errors import PluginError, PluginWarning
from onnx_prune.passes import criteria
from plugging import ROOT, command
from plugging import install as install_plugin

# The first units are the most important.
FIRST = """
import numpy as np
from onnx_prune.analysis.criteria import Criterion
from onnx_prune.analysis.scores import Ranking, by_share
def first(setting):
    return by_share({g.axis: np.arange(g.size, 0.0, -1) for g in setting.analysis.groups})
"""
ONE = FIRST + "CRITERIA = Criterion('first', 'the first ones stay', first)\n"


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Plug-ins are loaded once in a process, and here once in a test."""
    criteria._plugged_in.cache_clear()
    yield
    criteria._plugged_in.cache_clear()


def install(site: Path, name: str, code: str, value: str | None = None) -> None:
    install_plugin(site, name, code, "criteria", value)


def model() -> Model:
    g = Graph()
    h = g("Relu", g("MatMul", g.input(1, 3), g.weight(3, 6, name="a")))
    return g.model(g("MatMul", h, g.weight(6, 2, name="b")))


def kept(criterion: str) -> list[tuple[int, ...]]:
    return [entry.keep for entry in plan(model(), ratio=0.5, criterion=criterion, recover="none").entries]


@pytest.mark.parametrize("how", ["Criterion('first', '', first)", "[Criterion('first', '', first)]"])
def test_criteria_are_found_by_entry_point(site: Path, how: str) -> None:
    install(site, "acme_criteria", f"{FIRST}CRITERIA = {how}")
    assert kept("first") == [(0, 1, 2)]
    with pytest.raises(
        UsageError, match=r"choose one of activation, bn-scale, first, fpgm.*did you mean 'first'"
    ):
        kept("frist")


@pytest.mark.parametrize(
    ("code", "value", "told"),
    [
        ("import nothing_of_that_name", None, "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("X = 1", None, "AttributeError: .* has no attribute 'CRITERIA'"),
        ("CRITERIA = 1", None, "TypeError: it is or holds a int"),
        (FIRST + "CRITERIA = [first]", None, "it is or holds a function, where only a Criterion can be"),
        ("", "acme_criteria", "it is or holds a module"),
    ],
)
def test_a_broken_plugin_is_named_and_left_out(site: Path, code: str, value: str | None, told: str) -> None:
    install(site, "acme_criteria", code, value)
    install(site, "other_criteria", ONE)
    with pytest.warns(PluginWarning) as caught:
        assert kept("first") == [(0, 1, 2)]
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("the plug-in 'acme_criteria_criteria' of acme_criteria 1.5 (acme_criteria")
    assert re.search(told, message), message


def test_two_claims_on_one_name_harm_nothing_else(site: Path) -> None:
    for name in ("one", "two"):
        install(site, name, ONE.replace("'first',", "'l1',") if name == "one" else ONE)
    install(site, "three", ONE)
    told = (
        r"two criteria 'first': one of the plug-in 'three_criteria' of three 1.5 .*'two_criteria' of two 1.5"
    )
    with pytest.raises(PluginError, match=told):
        kept("first")
    with pytest.raises(
        PluginError, match=r"two criteria 'l1': one of onnx-prune itself, one of the plug-in 'one"
    ):
        kept("l1")
    assert kept("l2") == [entry.keep for entry in plan(model(), ratio=0.5, **PLAIN).entries]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return {}['size']", "KeyError: 'size'"),
        ("return None", "it returned a NoneType, not a Ranking"),
        ("return Ranking({}, {})", "it has no scores of group 'a:1'"),
        ("return Ranking({a: np.ones(6)}, {})", "it has no errors of group 'a:1'"),
        ("return Ranking({a: [1] * 6}, {})", "the scores of group 'a:1' are a list, not an array"),
        (
            "return Ranking({a: np.ones(5)}, {a: np.arange(7)})",
            r"the scores .* have the shape \(5,\), not \(6,\)",
        ),
        (
            "return Ranking({a: np.ones(6)}, {a: np.arange(6)})",
            r"the errors .* have the shape \(6,\), not \(7,\)",
        ),
        (
            "return Ranking({a: np.full(6, np.nan)}, {a: np.arange(7)})",
            "the scores of group 'a:1' are not finite",
        ),
        ("return Ranking({a: np.ones(6)}, {a: -np.arange(7)})", "the errors of group 'a:1' do not rise"),
        ("return setting.measured()", "a criterion that measures needs calibration inputs"),
    ],
)
def test_a_criterion_that_fails_is_named(site: Path, body: str, told: str) -> None:
    code = f"{FIRST}def bad(setting):\n    a = setting.analysis.groups[0].axis\n    {body}\n"
    install(site, "acme_criteria", f"{code}CRITERIA = Criterion('bad', '', bad)")
    with pytest.raises(PluginError, match=f"the criterion 'bad' of the plug-in .* failed: .*{told}"):
        kept("bad")


def test_a_criterion_that_measures_gets_inputs(site: Path) -> None:
    code = (
        FIRST + "def some(setting):\n    assert sum(len(b['x']) for b in setting.measured().batches()) == 5\n"
    )
    code += "    return first(setting)\nCRITERIA = Criterion('some', '', some, measures=True)"
    install(site, "acme_criteria", code)
    given = {"x": np.ones((5, 3), np.float32)}
    chosen = plan(model(), ratio=0.5, criterion="some", recover="none", calibration=given)
    assert chosen.options["calibration"]["source"] == "5 samples of the arrays given"


def test_the_command_uses_plugins_and_warns_of_broken_ones(site: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "model.onnx", tmp_path / "plan.json"
    save(model(), source)
    install(site, "acme_criteria", ONE)
    install(site, "broken", "import nothing_of_that_name")
    line = ("plan", source, "-o", out, "--ratio", "0.5")
    done = command(*line, "--criterion", "first", site=site)
    assert done.returncode == 0, done.stderr
    assert '"criterion": "first"' in out.read_text()
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(
        "warning: the plug-in 'broken_criteria' of broken 1.5 (broken:CRITERIA) is left out"
    )
    done = command(*line, "--criterion", "frist", site=site)
    assert done.returncode == 2 and "did you mean 'first'" in " ".join(done.stderr.split())


def test_the_documented_examples_rank(site: Path) -> None:
    """The code block of docs/criteria.md."""
    text = (ROOT / "docs" / "criteria.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    install(site, "acme_criteria", code)
    assert {"sturdy", "lively"} <= set(criteria.all_criteria())
    images = {"x": np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)}
    assert len(kept("sturdy")[0]) == 3
    lively = plan(model(), ratio=0.5, criterion="lively", recover="none", calibration=images)
    weights = {t.name: numpy_helper.to_array(t) for t in model().proto.graph.initializer}
    read = np.maximum(images["x"] @ weights["a"], 0)
    best = np.sort(np.argsort(-read.var(axis=0), kind="stable")[:3])
    assert lively.entries[0].keep == tuple(best.tolist())
