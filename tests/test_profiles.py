"""Profiles are held against what a reader of them says of small models: see truths.py."""

from __future__ import annotations

import onnx
import pytest
from onnx_prune import Finding, Model, all_profiles, validate
from truths import PROFILES
from truths_models import NO, OTHER, YES, Verdict

CASES = {f"{name}: {truth.about}": (name, truth) for name, truths in PROFILES.items() for truth in truths}


def verdict(finding: Finding) -> Verdict:
    if not finding.eligible:
        return OTHER
    return YES if finding.satisfied else NO


@pytest.mark.parametrize("case", CASES)
def test_what_a_rule_says_of_a_weight(case: str) -> None:
    name, truth = CASES[case]
    proto = truth.model()
    onnx.checker.check_model(proto, full_check=True)
    result = validate(Model(proto), [name])
    found = [
        finding
        for finding in result.findings
        if finding.rule.id == truth.rule
        and finding.weight.name == truth.weight
        and truth.node in ("", finding.weight.node.proto.name)
    ]
    assert found, f"nothing is said of '{truth.weight}'"
    assert {verdict(finding) for finding in found} == {truth.verdict}, found[0].refusal or found[0].shortfall
    if truth.verdict == NO and found[0].rule.level == "hard":
        assert not result.ok
    if truth.first:
        assert sorted(found[0].first[0]) == sorted(truth.first)


@pytest.mark.parametrize("name", all_profiles())
def test_a_profile_has_truths_of_each_kind(name: str) -> None:
    truths = PROFILES[name]
    satisfied = sum(truth.verdict == YES for truth in truths)
    assert len(truths) >= 20 and satisfied >= 6 and len(truths) - satisfied >= 6
    assert {truth.rule for truth in truths} == {rule.id for rule in all_profiles()[name].rule}
    assert len({truth.about for truth in truths}) == len(truths)
