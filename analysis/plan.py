"""The plan: which channels go, why, and what it saves. A small JSON file, replayable bit for bit."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

from .allocate import Term, allot
from .axes import Axis
from .budget import Chooser
from .components import Index
from .errors import PlanError, UsageError
from .groups import Analysis, Group
from .lowrank import Kind, RankCurve, find_layers
from .memory import keeps_all
from .ranks import allot_with_ranks, check_reach
from .scores import Ranking
from .selection import Selection
from .truncation import Ranks

FORMAT = "onnx-prune plan"
VERSION = 1
LOW_RANK = ("compete", "only")


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
        ranks = (
            f'  "ranks": {json.dumps({name: rank.to_json() for name, rank in sorted(self.ranks.items())})},\n'
            if self.ranks
            else ""
        )
        return (
            f'{{\n  "format": "{FORMAT}",\n  "version": {VERSION},\n  "options": {options},\n{blocks}{ranks}'
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


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach.

    Attributes:
        ratio: fraction of the units of every group to remove, in [0, 1).
        macs, params: instead of ``ratio``, the fraction of multiply-accumulates or of parameters that may
            remain, in (0, 1].
        multiple: round the kept channels of an axis up to a multiple of this.
        ignore: names of nodes, weights, activations or groups whose channels stay.
        low_rank: whether layers may become factors of lower rank: None for no, "compete" where that costs
            less than removing channels, "only" with all channels kept.
    """

    ratio: float | None = None
    macs: float | None = None
    params: float | None = None
    multiple: int = 1
    ignore: tuple[str, ...] = ()
    low_rank: str | None = None

    BUDGETS: ClassVar[tuple[str, ...]] = ("ratio", "macs", "params")

    def as_share_of(self, whole: Analysis, left: Analysis) -> Goal:
        """Budgets that are shares of one model, as shares of what is ``left`` of it."""

        def share(fraction: float | None, cost: Callable[[Analysis], int]) -> float | None:
            return fraction and min(1.0, fraction * cost(whole) / cost(left))

        return replace(
            self,
            macs=share(self.macs, lambda a: a.macs(Selection({}))),
            params=share(self.params, lambda a: a.params(Selection({}))),
        )

    def check(self, analysis: Analysis) -> None:
        """Before any long work.

        Raises:
            UsageError: an argument is out of range, or a name is unknown.
            PlanError: nothing can be removed, or not enough.
        """
        _check(self.ratio, self.macs, self.params, self.multiple)
        if self.low_rank is not None:
            self._check_ranks(analysis)
            return
        if not analysis.groups:
            pins = "; ".join(dict.fromkeys(pin.reason for pin in analysis.pins))
            raise PlanError(f"no group of channels can be removed: {pins or 'the model has no weights'}")
        furthest = self._furthest(analysis)
        for cost, fraction, what in (
            (analysis.macs, self.macs, "multiply-accumulates"),
            (analysis.params, self.params, "parameters"),
        ):
            least, whole = cost(furthest), cost(Selection({}))
            if fraction is not None and least > fraction * whole:
                raise PlanError(
                    f"{fraction:.1%} of the {what} cannot be reached: pruning as far as possible leaves"
                    f" {least / whole:.1%}"
                )

    def _furthest(self, analysis: Analysis) -> Selection:
        """What is left when all goes that may."""
        nothing = {group.axis: np.zeros(group.size) for group in analysis.groups}
        return Chooser(analysis, nothing, self.kept(analysis), self.multiple).at_ratio(1.0)

    def kept(self, analysis: Analysis) -> Sequence[Group]:
        """Groups that stay whole."""
        return analysis.groups if self.low_rank == "only" else _ignored(analysis, self.ignore)

    def budget(self) -> tuple[Kind, float]:
        """The cost that ranks are to save, and the fraction of it that may remain.

        Raises:
            UsageError: there is none.
        """
        if self.macs is not None:
            return "macs", self.macs
        if self.params is not None:
            return "params", self.params
        raise UsageError("low rank needs a budget of macs or params: a ratio is one of channels")

    def _check_ranks(self, analysis: Analysis) -> None:
        if self.low_rank not in LOW_RANK:
            raise UsageError(f"low_rank {self.low_rank!r} is unknown: choose one of {', '.join(LOW_RANK)}")
        kind, fraction = self.budget()
        _ignored(analysis, self.ignore)  # names that are unknown
        layers = list(find_layers(analysis, self.ignore).values())
        check_reach(analysis, self._furthest(analysis), layers, kind, fraction)


@keeps_all
def make_plan(
    analysis: Analysis,
    goal: Goal,
    ranking: Ranking,
    how: Mapping[str, object] | None = None,
    curves: Sequence[RankCurve] = (),
) -> Plan:
    """Choose channels to remove.

    Args:
        ranking: what is lost with each unit.
        how: options to write into the plan beside those of the goal: where the ranking is from.
        curves: what is lost by lower ranks, where the goal has them.

    Raises:
        UsageError, PlanError: as `Goal.check`.
    """
    goal.check(analysis)
    ratio, macs, params, multiple = goal.ratio, goal.macs, goal.params, goal.multiple
    chooser = Chooser(analysis, ranking.scores, goal.kept(analysis), multiple)
    ranks: dict[str, Ranks] = {}
    if goal.low_rank is not None:
        selection, ranks = allot_with_ranks(analysis, chooser, ranking, curves, *goal.budget())
    elif ratio is not None:
        selection = chooser.at_ratio(ratio)
    elif macs is not None:
        terms = [Term(work.scale, work.axes) for work in analysis.walk.work]
        selection = allot(chooser, ranking, terms, analysis.macs, macs)
    else:
        assert params is not None
        terms = [Term(1, tuple(axes)) for _, _, axes in analysis.parameter_uses]
        selection = allot(chooser, ranking, terms, analysis.params, params)
    asked = {"ratio": ratio, "macs": macs, "params": params}
    options: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    options |= {"multiple": multiple, "ignore": sorted(goal.ignore)} | dict(how or {})
    if goal.low_rank is not None:
        options["low_rank"] = goal.low_rank
    entries = [
        Entry(group.id, group.size, tuple(kept.tolist()))
        for group in analysis.groups
        if (kept := selection.positions(group.axis)) is not None
    ]
    return Plan(tuple(entries), options, ranks=ranks)


def _check(ratio: float | None, macs: float | None, params: float | None, multiple: int) -> None:
    given = [
        name for name, value in (("ratio", ratio), ("macs", macs), ("params", params)) if value is not None
    ]
    if len(given) != 1:
        raise UsageError("give exactly one of ratio, macs and params" + (f", not {given}" if given else ""))
    if ratio is not None and not 0 <= ratio < 1:
        raise UsageError(f"ratio {ratio} is out of range: it is the fraction removed, from 0 up to but not 1")
    for name, value in (("macs", macs), ("params", params)):
        if value is not None and not 0 < value <= 1:
            raise UsageError(f"{name} {value:.0%} is out of range: it is what may remain, above 0 % to 100 %")
    if multiple < 1:
        raise UsageError(f"multiple {multiple} is out of range: it must be at least 1")


def _ignored(analysis: Analysis, names: Sequence[str]) -> list[Group]:
    """The groups that live on the named nodes, weights, activations, or are named themselves."""
    if not names:
        return []
    known: dict[str, set[str]] = {}
    for constant in analysis.walk.constants:
        known.setdefault(constant, {constant})
    for tensor in analysis.walk.axes_of:
        known.setdefault(tensor, {tensor})
    for node in analysis.walk.nodes:
        if node.proto.name:
            known.setdefault(node.proto.name, set()).update(n for n in (*node.inputs, *node.outputs) if n)
    groups = {group.id: group for group in analysis.groups}
    found: dict[str, Group] = {}
    for name in names:
        if name in groups:
            found[name] = groups[name]
        elif name in known:
            tensors = known[name]
            for group in analysis.groups:
                if any(m.tensor in tensors for m in (*group.members, *group.activations)):
                    found[group.id] = group
        else:
            near = difflib.get_close_matches(name, [*known, *groups], n=3)
            hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            raise UsageError(f"cannot ignore '{name}': no node, tensor or group has that name{hint}")
    return list(found.values())


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
