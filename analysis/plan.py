"""The plan: which channels go, why, and what it saves. A small JSON file, replayable bit for bit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from .allocate import allot
from .axes import Axis
from .components import Index
from .errors import PlanError
from .exact import allot_exactly
from .goal import Goal
from .groups import Analysis
from .lowrank import RankCurve
from .memory import keeps_all
from .problem import Problem
from .ranks import RankedProblem
from .scores import Ranking
from .selection import Selection
from .truncation import Ranks

FORMAT = "onnx-prune plan"
VERSION = 1

# Small nets have few multiples that suit their axes: parts of these are taken where a budget is not used up.
_FINER = (1, 2, 4)
_USED = 0.99


@dataclass(frozen=True)
class Entry:
    """One group that shrinks: its id, its size before, and the units that stay, ascending."""

    group: str
    size: int
    keep: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A choice of channels for one model.

    Attributes:
        entries: groups that shrink; all others stay whole.
        options: how the choice was made (criterion, ratio or budget, multiple, ignored names).
        blocks: residual blocks that go whole, before anything shrinks; see `analysis.blocks.Block`.
        ranks: of layers that become factors once channels are gone, by the name of their weight.
    """

    entries: tuple[Entry, ...]
    options: dict[str, Any]
    blocks: tuple[str, ...] = ()
    ranks: Mapping[str, Ranks] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        entries = ",\n    ".join(
            json.dumps({"group": e.group, "size": e.size, "keep": list(e.keep)}) for e in self.entries
        )
        options = json.dumps(self.options, sort_keys=True)
        blocks = f'  "blocks": {json.dumps(list(self.blocks))},\n' if self.blocks else ""
        ranks = {name: rank.to_json() for name, rank in sorted(self.ranks.items())}
        rest = f'{blocks}  "ranks": {json.dumps(ranks)},\n' if ranks else blocks
        return (
            f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n  "options": {options},\n{rest}'
            f'  "groups": [\n    {entries}\n  ]\n}}\n'
        )

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: the text is not a plan of this version.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"the plan is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(f'the plan has no "format": "{FORMAT}"; make one with \'onnx-prune plan\'')
        if data.get("version") != VERSION:
            raise PlanError(f"the plan has version {data.get('version')}; this program reads {VERSION}")
        try:
            entries = tuple(
                Entry(str(e["group"]), int(e["size"]), tuple(int(i) for i in e["keep"]))
                for e in data["groups"]
            )
            options = dict(data["options"])
            blocks = tuple(str(block) for block in data.get("blocks", []))
            ranks = {str(weight): Ranks.from_json(value) for weight, value in data.get("ranks", {}).items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the plan is malformed: {error!r}") from None
        return Plan(entries, options, blocks, ranks)


@keeps_all
def make_plan(
    analysis: Analysis,
    goal: Goal,
    ranking: Ranking,
    how: Mapping[str, object] | None = None,
    amounts: Mapping[str, float] | None = None,
    curves: Sequence[RankCurve] = (),
) -> Plan:
    """Choose channels to remove.

    Args:
        ranking: what is lost with each unit.
        how: options to write into the plan beside those of the goal: where the ranking is from.
        amounts: what the budgets of the goal amount to, where they are not those of ``analysis`` itself.
        curves: what is lost by lower ranks, where the goal has them.

    Raises:
        UsageError, PlanError: as `Goal.check`, and `RankedProblem.check`.
    """
    amounts = goal.amounts(analysis) if amounts is None else amounts
    goal.check(analysis, amounts)
    told = goal.options | dict(how or {})
    if goal.ratio is not None:
        return Plan(entries_of(analysis, goal.chooser(analysis, ranking.scores).at_ratio(goal.ratio)), told)
    coarse = goal.multiple is None and not curves  # ranks fill a budget up
    for finer in _FINER if coarse else _FINER[:1]:
        chooser = goal.chooser(analysis, ranking.scores, finer)
        channels = Problem(chooser, ranking, goal.limits_on(analysis, amounts))
        problem = RankedProblem.of(analysis, channels, curves)
        if goal.exact:
            found = allot_exactly(problem)
            ratios = found.ratios
            told["exact"] = {"gap": round(found.gap, 6), "seconds": found.seconds}
        else:
            ratios = allot(problem)
        if problem.usage(ratios).max() >= _USED:
            break
    problem.check(ratios)
    selection, ranks = problem.choice(ratios)
    return Plan(entries_of(analysis, selection), told, ranks=ranks)


def entries_of(analysis: Analysis, selection: Selection) -> tuple[Entry, ...]:
    """The groups that shrink, as a plan lists them."""
    return tuple(
        Entry(group.id, group.size, tuple(kept.tolist()))
        for group in analysis.groups
        if (kept := selection.positions(group.axis)) is not None
    )


def select(analysis: Analysis, plan: Plan) -> Selection:
    """What a plan keeps of the axes of a model.

    Raises:
        PlanError: the plan names groups the model does not have, or breaks a constraint of the analysis.
    """
    groups = {group.id: group for group in analysis.groups}
    keep: dict[Axis, Index] = {}
    for entry in plan.entries:
        group = groups.get(entry.group)
        if group is None:
            raise PlanError(f"the model has no group '{entry.group}': the plan was made for another model")
        if group.size != entry.size:
            raise PlanError(
                f"group '{entry.group}' has {group.size} units, the plan says {entry.size}:"
                " it was made for another model"
            )
        some = bool(entry.keep) or group.size == 1
        ascending = all(a < b for a, b in pairwise((-1, *entry.keep, group.size)))
        if not some or not ascending:
            raise PlanError(
                f"group '{entry.group}': \"keep\" must be an ascending list of at least one unit"
                f" from 0 to {group.size - 1}"
            )
        if len(entry.keep) < group.size:
            keep[group.axis] = np.array(entry.keep, np.int64)
    selection = Selection(keep)
    ids = {group.axis: group.id for group in analysis.groups}
    for axes, same in analysis.same_counts():
        if len({selection.count(axis) for axis in axes}) > 1:
            named = ", ".join(f"'{ids[axis]}'" for axis in axes if axis in ids)
            raise PlanError(f"groups {named} must keep equal numbers of units: {same.because}")
    for axis, name in analysis.composed.items():
        if selection.count(axis) == 0:
            raise PlanError(f"the plan leaves nothing of an axis of '{name}'")
    return selection
