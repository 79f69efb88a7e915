"""Whether the weights of a model are what runtimes want, by their profiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..model import Model
from ..storage import Storage
from .grid import Mask
from .profile import Profile, Rule, profile_named
from .requirement import AtLeast, Multiple, Shortfall, Zeros
from .steps import Index
from .weights import Survey, Weight, opened, survey

FIRST = 5


@dataclass(frozen=True)
class Finding:
    """What one rule says of one weight.

    Attributes:
        refusal: why the rule is not about it; empty where it is.
        shortfall: how it misses the requirement; None where it does not, or the rule is not about it.
        first: for the first groups it misses, where their non-zeros are in the stored tensor.
        zeros: that count for a cluster, where the rule is about one, and which cluster that is.
    """

    profile: Profile
    rule: Rule
    weight: Weight
    refusal: str = ""
    shortfall: Shortfall | None = None
    first: tuple[tuple[Index, ...], ...] = ()
    zeros: int = 0
    cluster: int | None = None

    @property
    def eligible(self) -> bool:
        return not self.refusal

    @property
    def satisfied(self) -> bool:
        return self.eligible and self.shortfall is None

    @property
    def fails(self) -> bool:
        return self.shortfall is not None and self.rule.level == "hard"


@dataclass(frozen=True)
class Validation:
    """What profiles say of a model: a finding for each of their rules and each of its weights."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether no hard rule fails."""
        return not any(finding.fails for finding in self.findings)


def validate(
    model: Model | str | Path,
    profiles: Iterable[str | Profile],
    *,
    first: int = FIRST,
    progress: Callable[[str], None] = lambda step: None,
) -> Validation:
    """Hold the weights of a model against profiles.

    Args:
        model: a model, or its file, whose weights are then read one by one.
        profiles: names of profiles, files of them, or themselves.
        first: for so many groups of each weight the places that miss a requirement are told.
        progress: called with the name of each weight as it is read.

    Example:
        ``validate("model.onnx", ["nvidia-2:4"]).ok``

    Raises:
        ModelError: the model cannot be read.
        UsageError: there is no such profile.
    """
    chosen = [profile_named(one) if isinstance(one, str) else one for one in profiles]
    model, storage = opened(model)
    rules = [(profile, rule) for profile in chosen for rule in profile.rule]
    found = survey(model, storage)
    clusters = {rule: _clusters(rule, found) for _, rule in rules}
    findings: list[Finding] = []
    for weight in found.weights:
        progress(weight.name)
        findings += _judge(weight, rules, storage, first, clusters)
    return Validation(tuple(_together(findings)))


_Clusters: TypeAlias = Mapping[Rule, Mapping[int, int | str]]


def _clusters(rule: Rule, found: Survey) -> dict[int, int | str]:
    """For a rule about clusters that of each node with a weight, or why it is in none."""
    if rule.cluster is None:
        return {}
    about = {w.node.index: w for w in found.weights if rule.where.refusal(w) is None}
    return rule.cluster.find(found, about)


def _judge(
    weight: Weight, rules: Sequence[tuple[Profile, Rule]], storage: Storage, most: int, clusters: _Clusters
) -> list[Finding]:
    mask: Mask | None = None
    findings = []
    for profile, rule in rules:
        want = rule.require
        cluster = clusters[rule].get(weight.node.index)
        refusal = rule.where.refusal(weight) or (cluster if isinstance(cluster, str) else None)
        shortfall = None
        zeros = 0
        if isinstance(want, Multiple | AtLeast):
            shortfall = None if refusal else want.sizes(weight.channels)
        else:
            refusal = refusal or want.misfit(weight.sizes)
            if not refusal:
                mask = weight.mask(storage) if mask is None else mask
                if rule.cluster is None:
                    shortfall = want.check(mask, most)
                elif isinstance(want, Zeros):
                    zeros = want.zeros(mask)
        cells = shortfall.first if shortfall is not None else ()
        first = tuple(tuple(weight.place(cell) for cell in group) for group in cells)
        number = cluster if isinstance(cluster, int) else None
        findings.append(Finding(profile, rule, weight, refusal or "", shortfall, first, zeros, number))
    return findings


def _together(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The findings, with those of rules about clusters judged by all weights of the cluster."""
    zeros: Counter[tuple[Rule, int]] = Counter()
    sizes: Counter[tuple[Rule, int]] = Counter()
    for finding in findings:
        if finding.cluster is not None and finding.eligible:
            zeros[finding.rule, finding.cluster] += finding.zeros
            sizes[finding.rule, finding.cluster] += finding.weight.elements
    for finding in findings:
        want = finding.rule.require
        if finding.cluster is not None and finding.eligible and isinstance(want, Zeros):
            key = finding.rule, finding.cluster
            shortfall = want.judge(zeros[key], sizes[key])
            if shortfall is not None:
                text = f"of the cluster it is in, {shortfall.text}"
                shortfall = msgspec.structs.replace(shortfall, text=text)
            finding = replace(finding, shortfall=shortfall)
        yield finding
