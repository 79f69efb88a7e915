"""What profiles say of a model: totals, JSON, SARIF."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..patterns.discover import Discovery
from ..patterns.profile import Profile, Rule
from ..patterns.validate import Finding, Validation
from ..patterns.weights import Weight

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"hard": "error", "advisory": "note"}


@dataclass(frozen=True)
class Total:
    """What one rule says of all weights.

    Attributes:
        weights: of the model; ``eligible``: those the rule is about; ``satisfied``: those that satisfy it.
        macs: of the nodes that read each of these three.
        near: how much of the groups, weights or sizes that the rule counts is as it wants it, in a mean over
            the weights it is about, by their multiply-accumulates.
    """

    profile: Profile
    rule: Rule
    weights: int
    eligible: int
    satisfied: int
    macs: tuple[int, int, int]
    near: float

    @property
    def share(self) -> float:
        """Of the multiply-accumulates of weights the rule is about, those of weights that satisfy it."""
        return self.macs[2] / self.macs[1] if self.macs[1] else 1.0


def discovery_json(found: Discovery) -> dict[str, Any]:
    """The patterns a model has, for machines."""
    return {
        "groups": [
            {
                "nonzeros": one.pattern.nonzeros,
                "of": one.pattern.of,
                "shared": one.pattern.shared,
                "weights": one.weights,
                "satisfied": one.satisfied,
                "macs": dict(zip(("all", "satisfied"), one.macs, strict=True)),
                "groups": one.groups,
            }
            for one in found.groups
        ],
        "blocks": [asdict(one) for one in found.blocks],
    }


def totals(findings: Iterable[Finding]) -> list[Total]:
    """For each rule, in the order of profiles, how many weights it is about and how many satisfy it."""
    by_rule: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        by_rule.setdefault((finding.profile.name, finding.rule.id), []).append(finding)
    return [_total(found) for found in by_rule.values()]


def _total(findings: Sequence[Finding]) -> Total:
    eligible = [finding for finding in findings if finding.eligible]
    satisfied = [finding for finding in eligible if finding.satisfied]
    macs = tuple(sum(f.weight.macs for f in found) for found in (findings, eligible, satisfied))
    counts = len(findings), len(eligible), len(satisfied)
    near = sum(f.weight.macs * (1 - f.shortfall.share if f.shortfall else 1) for f in eligible)
    first = findings[0]
    return Total(first.profile, first.rule, *counts, (macs[0], macs[1], macs[2]), near / max(1, macs[1]))


def validation_json(validation: Validation) -> dict[str, Any]:
    """All of it, for machines: rules with their totals, and for each weight what each rule says."""
    weights: dict[tuple[int, int], dict[str, Any]] = {}
    for finding in validation.findings:
        key = finding.weight.node.index, finding.weight.input
        weights.setdefault(key, _weight(finding.weight))["rules"].append(_finding(finding))
    return {
        "ok": validation.ok,
        "rules": [
            {
                "profile": total.profile.name,
                "rule": total.rule.id,
                "level": total.rule.level,
                "text": _line(total.rule.text),
                "requires": str(total.rule.require),
                "source": list(total.rule.source),
                "weights": total.weights,
                "eligible": total.eligible,
                "satisfied": total.satisfied,
                "macs": dict(zip(("all", "eligible", "satisfied"), total.macs, strict=True)),
                "near": total.near,
            }
            for total in totals(validation.findings)
        ],
        "weights": list(weights.values()),
    }


def _weight(weight: Weight) -> dict[str, Any]:
    origin = weight.origin
    groups, outputs, positions, inputs = weight.sizes
    return {
        "weight": weight.name,
        "node": weight.node.name,
        "operator": weight.node.op,
        "shape": list(origin.constant.shape) if origin is not None else None,
        "dtype": origin.precision.name if origin is not None else None,
        "groups": groups,
        "outputs": outputs,
        "kernel": positions,
        "inputs": inputs,
        "macs": weight.macs,
        "rules": [],
    }


def _finding(finding: Finding) -> dict[str, Any]:
    missed = finding.shortfall
    return {
        "profile": finding.profile.name,
        "rule": finding.rule.id,
        "level": finding.rule.level,
        "eligible": finding.eligible,
        "reason": finding.refusal,
        "satisfied": finding.satisfied if finding.eligible else None,
        "text": missed.text if missed else "",
        "count": missed.count if missed else 0,
        "total": missed.total if missed else 0,
        "first": [[list(index) for index in group] for group in finding.first],
    }


def sarif(validation: Validation, model: Path) -> dict[str, Any]:
    """What is missed as a log of SARIF 2.1.0, which code review tools open.

    A model is one line to such tools: they want a line for each result.
    """
    missed = [finding for finding in validation.findings if finding.shortfall is not None]
    driver = {
        "name": "onnx-prune",
        "version": version("onnx-prune"),
        "rules": [
            {
                "id": _id(total.profile, total.rule),
                "shortDescription": {"text": f"{total.profile.title}: {total.rule.require}"},
                "fullDescription": {"text": _line(total.rule.text)},
                "help": {"text": f"{_line(total.rule.text)} Source: {'; '.join(total.rule.source)}."},
                "defaultConfiguration": {"level": _LEVELS[total.rule.level]},
            }
            for total in totals(validation.findings)
        ],
    }
    results = [_result(finding, model) for finding in missed]
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }


def _result(finding: Finding, model: Path) -> dict[str, Any]:
    assert finding.shortfall is not None
    weight, rule = finding.weight, _id(finding.profile, finding.rule)
    mark = hashlib.sha256(f"{rule}\n{weight.name}\n{weight.node.key}".encode()).hexdigest()
    return {
        "ruleId": rule,
        "level": _LEVELS[finding.rule.level],
        "message": {"text": f"'{weight.name}', read by {weight.node.name}: {described(finding)}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": model.as_posix()},
                    "region": {"startLine": 1},
                },
                "logicalLocations": [
                    {
                        "name": weight.name,
                        "fullyQualifiedName": f"{weight.node.key}/{weight.name}",
                        "kind": "variable",
                    }
                ],
            }
        ],
        "partialFingerprints": {"primaryLocationLineHash": mark[:16]},
    }


def described(finding: Finding) -> str:
    """How a weight misses a rule, with the first place."""
    assert finding.shortfall is not None
    if not finding.first:
        return finding.shortfall.text
    places = ", ".join(str(list(index)) for index in finding.first[0])
    return f"{finding.shortfall.text}, first at {places}"


def _id(profile: Profile, rule: Rule) -> str:
    return f"{profile.name}/{rule.id}"


def _line(text: str) -> str:
    return " ".join(text.split())
