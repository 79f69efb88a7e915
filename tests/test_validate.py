"""Models held against profiles: the API, the command, what it writes; profiles of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Graph
from onnx import numpy_helper
from onnx_prune import (
    Model,
    PluginError,
    UsageError,
    all_profiles,
    discover,
    load,
    read_profile,
    save,
    validate,
)
from onnx_prune.analysis.patterns import profile as profiles
from onnx_prune.analysis.report.validation import sarif, totals, validation_json
from onnx_prune.models.digits import FOLDER
from plugging import command, install

OURS = """
name = "ours"
title = "Our accelerator"

[[rule]]
id = "one-of-three"
level = "hard"
text = "Of three inputs one at most is not zero."
source = ["the manual, page 3"]
[rule.where]
operators = ["Gemm", "MatMul"]
[rule.require]
kind = "groups"
nonzeros = 1
of = 3
last = "free"
"""


def model(*rows: list[int]) -> Model:
    """A product whose outputs sum over these weights."""
    g = Graph()
    g.weights.append(numpy_helper.from_array(np.array(rows, np.float32), "w"))
    return g.model(g("Gemm", g.input(2, len(rows[0])), "w", transB=1))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    path = tmp_path / "ours.toml"
    path.write_text(OURS)
    return path


def test_a_fault_is_told_where_it_is_stored(ours: Path) -> None:
    result = validate(model([1, 0, 0, 5, 5, 5], [0, 2, 0, 5, 0, 3], [0, 0, 0, 0, 0, 0]), [str(ours)])
    (finding,) = result.findings
    assert not result.ok and finding.fails and finding.shortfall is not None
    assert finding.first == (((0, 3), (0, 4), (0, 5)), ((1, 3), (1, 5)))
    assert (finding.shortfall.count, finding.shortfall.total) == (2, 6)
    (total,) = totals(result.findings)
    assert (total.weights, total.eligible, total.satisfied) == (1, 1, 0)
    assert total.macs == (36, 36, 0) and total.near == pytest.approx(4 / 6)
    assert validate(model([1, 0, 0, 5]), [read_profile(ours)]).ok


def test_a_file_and_a_model_are_judged_the_same(tmp_path: Path) -> None:
    names = sorted(all_profiles())
    path = FOLDER / "digits_mobilenet.onnx"
    whole = validation_json(validate(load(path), names))
    assert whole == validation_json(validate(path, names))
    assert {rule["profile"] for rule in whole["rules"]} == set(names)
    assert all(rule["source"] for rule in whole["rules"])


def test_the_log_of_sarif_holds_what_code_reviews_need(ours: Path) -> None:
    result = validate(model([1, 1, 1], [1, 0, 0]), [str(ours), "onnx-prune"])
    log = json.loads(json.dumps(sarif(result, Path("models/net.onnx"))))
    assert log["version"] == "2.1.0" and log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert run["tool"]["driver"]["name"] == "onnx-prune"
    for rule in rules.values():
        assert rule["shortDescription"]["text"] and rule["fullDescription"]["text"] and rule["help"]["text"]
    levels = {result["ruleId"]: result["level"] for result in run["results"]}
    assert levels == {"ours/one-of-three": "error", "onnx-prune/skips": "note"} and set(levels) <= set(rules)
    for found in run["results"]:
        physical = found["locations"][0]["physicalLocation"]
        assert (
            physical["artifactLocation"]["uri"] == "models/net.onnx" and physical["region"]["startLine"] == 1
        )
        assert "'w'" in found["message"]["text"]
    marks = [found["partialFingerprints"]["primaryLocationLineHash"] for found in run["results"]]
    assert len(set(marks)) == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("of = 3", "of = 1"), "1 non-zeros of 1 is no pattern"),
        (("nonzeros", "non-zeros"), "non-zeros"),
        (('level = "hard"', 'level = "strict"'), "strict"),
        (("operators", "operator"), "operator"),
        (('source = ["the manual, page 3"]', "source = []"), "no source"),
        (('kind = "groups"', 'kind = "triples"'), "triples"),
        (("title =", "title"), "no TOML"),
        (('text = "Of', "text = 3 #"), "text"),
    ],
)
def test_a_wrong_profile_is_told(ours: Path, change: tuple[str, str], told: str) -> None:
    assert change[0] in OURS
    ours.write_text(OURS.replace(*change))
    with pytest.raises(UsageError, match=told) as caught:
        read_profile(ours)
    assert "ours.toml" in str(caught.value)


def test_the_profile_in_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "profiles.md").read_text()
    path = tmp_path / "documented.toml"
    path.write_text(text.split("```toml\n")[1].split("```")[0])
    (rule,) = read_profile(path).rule
    assert rule.where.multiple_inputs == 8 and rule.where.without[-1] == "first-of-one"


def test_names_that_are_nearly_right() -> None:
    with pytest.raises(UsageError, match="did you mean nvidia-2:4"):
        validate(model([1, 0]), ["nvidia-24"])
    with pytest.raises(UsageError, match="No such file"):
        validate(model([1, 0]), ["nowhere.toml"])


def test_packages_bring_profiles(tmp_path: Path) -> None:
    """A folder of files beside the module, by an entry point."""
    (tmp_path / "vendor.toml").write_text(OURS)
    code = "from pathlib import Path\nPROFILES = Path(__file__).parent\n"
    install(tmp_path, "vendor", code, "profiles")
    save(model([1, 1, 1]), tmp_path / "model.onnx")
    done = command("validate", tmp_path / "model.onnx", "--profile", "ours", site=tmp_path)
    assert done.returncode == 3 and "ours/one-of-three" in done.stderr, done.stderr


def test_two_profiles_of_a_name_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Point:
        name, value, dist = "vendor", "vendor:PROFILES", None

        def load(self) -> Any:
            return all_profiles_before["apple"]

    all_profiles_before = dict(all_profiles())
    monkeypatch.setattr(profiles.plugins, "installed", lambda group: [Point()])
    all_profiles.cache_clear()
    try:
        with pytest.raises(PluginError, match="two profiles are named 'apple'"):
            all_profiles()
    finally:
        monkeypatch.undo()
        all_profiles.cache_clear()


def test_patterns_are_discovered() -> None:
    found = discover(model([1, 0, 0, 5, 0, 0, 2, 2], [1, 0, 0, 5, 0, 0, 2, 2], *[[0] * 8] * 2))
    held = {(one.pattern.nonzeros, one.pattern.of, one.pattern.shared): one for one in found.groups}
    assert held[2, 4, 1].satisfied == 1 and held[2, 4, 4].satisfied == 1 and held[4, 8, 1].groups == 1
    assert held[1, 2, 1].satisfied == 0 and held[1, 2, 1].groups == 14 / 16
    zeros = {(block.outputs, block.inputs): block.zeros for block in found.blocks}
    assert zeros[1, 1] == 24 / 32 and zeros[2, 1] == 24 / 32 and zeros[4, 1] == 16 / 32 and zeros[8, 1] == 0.5
    assert found.groups[0].macs[1] >= found.groups[-1].macs[1]


def test_the_command(tmp_path: Path, ours: Path) -> None:
    save(model([1, 1, 0, 0], [0, 0, 0, 3]), tmp_path / "model.onnx")
    log = tmp_path / "log.sarif"
    arguments = "--profile", f"{ours},apple", "--json", "-", "--sarif", log
    done = command("validate", tmp_path / "model.onnx", *arguments, site=tmp_path)
    data = json.loads(done.stdout)
    assert done.returncode == 3 and data["ok"] is False and "hard rules are broken in 1 places" in done.stderr
    (weight,) = data["weights"]
    assert (weight["weight"], weight["shape"], weight["macs"]) == ("w", [2, 4], 16)
    told = {rule["rule"]: rule for rule in weight["rules"]}
    assert told["one-of-three"]["first"] == [[[0, 0], [0, 1]]]
    assert told["neural-engine"]["eligible"] is False and "8 elements" in told["neural-engine"]["reason"]
    assert len(json.loads(log.read_text())["runs"][0]["results"]) == 1
    done = command("validate", tmp_path / "model.onnx", "--discover", "--json", "-", site=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["groups"]
    done = command("validate", tmp_path / "model.onnx", "--profile", "apple", "--fix", site=tmp_path)
    assert done.returncode == 2 and "belong together" in done.stderr
