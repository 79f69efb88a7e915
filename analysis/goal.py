"""What a plan is to reach: a ratio or budgets, and what limits them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from .axes import Axis
from .budget import Chooser
from .errors import PlanError, UsageError
from .groups import Analysis, Group
from .lowrank import find_layers
from .problem import Limit
from .ranks import least_with_ranks
from .resources import RESOURCES
from .scores import Scores
from .selection import Selection

# A float up to 1 is a share of the whole, an integer above 1 that many.
Amount: TypeAlias = float
# The least and the most of a group's units that stay: a float is a share, an integer a count.
Range: TypeAlias = tuple[float | None, float | None]

LOW_RANK = ("compete", "only")


@dataclass(frozen=True)
class Goal:
    """What a plan is to reach.

    Attributes:
        ratio: fraction of the units of every group to remove, in [0, 1).
        budgets: instead of ``ratio``, how much may remain of `analysis.resources.RESOURCES`, by name: a float
            in (0, 1] is a share, an integer above 1 an amount. Several hold all at once.
        multiple: round the kept channels of an axis up to a multiple of this; None for what suits the axis
            (`analysis.alignment`).
        ignore: names of nodes, weights, activations or groups whose channels stay.
        limits: for such names, the least and the most units of their groups that stay; None for no limit.
        exact: share budgets out by `analysis.exact`, which takes up to a minute.
        low_rank: whether layers may become factors of lower rank: None for no, "compete" where that costs
            less than removing channels, "only" with all channels kept.
    """

    ratio: float | None = None
    budgets: Mapping[str, Amount] = field(default_factory=dict)
    multiple: int | None = None
    ignore: tuple[str, ...] = ()
    limits: Mapping[str, Range] = field(default_factory=dict)
    exact: bool = False
    low_rank: str | None = None

    @staticmethod
    def of(options: Mapping[str, Any]) -> Goal:
        """From keywords, of which each resource is one; those that are None are left out."""
        left = {key: value for key, value in options.items() if value is not None}
        budgets = {name: left.pop(name) for name in RESOURCES if name in left}
        left["ignore"] = tuple(left.get("ignore", ()))
        return Goal(budgets=budgets, **left)

    @property
    def options(self) -> dict[str, Any]:
        """The goal as a plan notes it."""
        asked: dict[str, Any] = {} if self.ratio is None else {"ratio": self.ratio}
        asked |= self.budgets
        if self.limits:
            asked["limits"] = {name: list(between) for name, between in sorted(self.limits.items())}
        if self.low_rank is not None:
            asked["low_rank"] = self.low_rank
        return asked | {"multiple": self.multiple or "auto", "ignore": sorted(self.ignore)}

    def amounts(self, whole: Analysis) -> dict[str, float]:
        """The budgets as absolute amounts; shares are of what ``whole`` uses."""
        nothing = Selection({})
        return {
            name: float(asked) if _is_count(asked) else asked * RESOURCES[name].cost(whole)(nothing)
            for name, asked in self.budgets.items()
        }

    def spent(self, whole: Analysis) -> dict[str, float]:
        """What ``whole`` uses of each budgeted resource."""
        return {name: float(RESOURCES[name].cost(whole)(Selection({}))) for name in self.budgets}

    def limits_on(self, analysis: Analysis, amounts: Mapping[str, float]) -> list[Limit]:
        """The budgets as limits of what is left of a model."""
        return [
            Limit(name, RESOURCES[name].cost(analysis), RESOURCES[name].terms(analysis), amount)
            for name, amount in amounts.items()
        ]

    def chooser(self, analysis: Analysis, scores: dict[Axis, Scores], finer: int = 1) -> Chooser:
        """What chooses units within the limits of this goal.

        Args:
            finer: what the multiples are divided by that suit each axis.

        Raises:
            UsageError: a name is unknown.
        """
        bounds: dict[Axis, tuple[float, float]] = {}
        for name, (least, most) in self.limits.items():
            for group in named_groups(analysis, [name], "limit"):
                low, high = bounds.get(group.axis, (0.0, 1.0))
                low, high = max(low, _share(least, group.size, 0.0)), min(high, _share(most, group.size, 1.0))
                if low > high:
                    raise UsageError(f"the limits of group '{group.id}' contradict each other")
                bounds[group.axis] = low, high
        ignored = named_groups(analysis, self.ignore, "ignore")
        if self.low_rank == "only":
            ignored = list(analysis.groups)
        return Chooser(analysis, scores, ignored, self.multiple, bounds, finer)

    def check(self, analysis: Analysis, amounts: Mapping[str, float] | None = None) -> None:
        """Before any long work.

        Args:
            amounts: of the budgets, where ``analysis`` is of what is left of another model.

        Raises:
            UsageError: an argument is out of range, or a name is unknown.
            PlanError: nothing can be removed, or not enough.
        """
        self._check_arguments()
        if not analysis.groups and self.low_rank is None:
            pins = "; ".join(dict.fromkeys(pin.reason for pin in analysis.pins))
            raise PlanError(f"no group of channels can be removed: {pins or 'the model has no weights'}")
        amounts = self.amounts(analysis) if amounts is None else amounts
        for name, least in self.least(analysis, amounts).items():
            if least > amounts[name]:
                resource, asked = RESOURCES[name], self.budgets[name]
                told = f"{asked:,}" if _is_count(asked) else f"{asked:.1%} of the"
                whole = resource.cost(analysis)(Selection({}))
                raise PlanError(
                    f"{told} {resource.what} cannot be reached: pruning as far as possible leaves"
                    f" {least / whole:.1%}, which is {least:,}"
                )

    def least(self, analysis: Analysis, names: Iterable[str]) -> dict[str, int]:
        """How little of these resources can be left of a model, each by itself.

        Raises:
            UsageError: as `chooser`.
        """
        nothing = {group.axis: np.zeros(group.size) for group in analysis.groups}
        furthest = self.chooser(analysis, nothing).at_ratio(1.0)
        layers = find_layers(analysis, self.ignore).values() if self.low_rank is not None else ()
        return {name: least_with_ranks(analysis, furthest, layers, name) for name in names}

    def _check_arguments(self) -> None:
        given = [*(["ratio"] if self.ratio is not None else []), *self.budgets]
        if not given or (self.ratio is not None and self.budgets):
            *names, last = ["ratio", *RESOURCES]
            told = f", not {given}" if given else ""
            raise UsageError(f"give exactly one of {', '.join(names)} and {last}, or several budgets{told}")
        for name, amount in {"ratio": self.ratio or 0, **self.budgets}.items():
            if not isinstance(amount, Real):
                raise UsageError(f"{name} {amount!r} is not a number: write 0.5 for 50 %")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise UsageError(
                f"ratio {self.ratio} is out of range: it is the fraction removed, from 0 up to but not 1"
            )
        for name, amount in self.budgets.items():
            if name not in RESOURCES:
                raise UsageError(f"there is no budget '{name}'; choose one of {', '.join(RESOURCES)}")
            if not (0 < amount <= 1 or _is_count(amount)):
                raise UsageError(
                    f"{name} {amount:.0%} is out of range: it is what may remain, above 0 % to 100 %, or an"
                    " integer above 1 for an absolute amount"
                )
        if self.low_rank is not None:
            if self.low_rank not in LOW_RANK:
                raise UsageError(
                    f"there is no low_rank '{self.low_rank}'; choose one of {', '.join(LOW_RANK)}"
                )
            if self.budgets.keys() <= {"memory"}:
                raise UsageError(
                    "lower ranks need a budget that they can save: macs, params or bytes. A ratio is one of"
                    " channels, and so is the memory for activations"
                )
        if self.exact and self.ratio is not None:
            raise UsageError("a ratio leaves nothing to share out exactly: give a budget")
        if self.multiple is not None and self.multiple < 1:
            raise UsageError(f"multiple {self.multiple} is out of range: it must be at least 1")
        for name, between in self.limits.items():
            for end in between:
                if end is not None and not (end >= 0 and (isinstance(end, int) or end <= 1)):
                    raise UsageError(f"a limit of {end} for '{name}' makes no sense: give a share or a count")


def _is_count(amount: Amount) -> bool:
    return isinstance(amount, int) and amount > 1


def _share(end: float | None, size: int, otherwise: float) -> float:
    """A limit as a share of the units of a group."""
    if end is None:
        return otherwise
    return min(1.0, end / size) if isinstance(end, int) else end


def named_groups(analysis: Analysis, names: Sequence[str], verb: str) -> list[Group]:
    """The groups that live on the named nodes, weights, activations, or are named themselves.

    Raises:
        UsageError: a name is unknown; ``verb`` says what it was named for.
    """
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
            raise UsageError(f"cannot {verb} '{name}': no node, tensor or group has that name{hint}")
    return list(found.values())
