"""Numbers of channels that satisfy the rules of runtimes: which units go, so that sizes become multiples.

The size of an axis is linear in how many units stay of the groups in it. So the choice is a mixed-integer
linear program for each set of groups that rules connect, which HiGHS solves: as many rules as can hold
together, hard ones first, and then as many parameters as can stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import scipy  # a part of it loads where it is used first

from ..analysis.axes import Axis, find, total
from ..analysis.errors import CheckError
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.patterns.profile import Profile
from ..analysis.patterns.requirement import Multiple
from ..analysis.patterns.validate import Finding, Validation, validate
from ..analysis.patterns.weights import Weight
from .data.calibrate import Calibration
from .prune import PruneResult, prune

# A constant that is computed is a weight only after the first pruning, which folds it.
_ROUNDS = 3
_SECONDS = 20.0  # for one set of groups; what was found until then is a choice as well


def align(
    model: Model,
    profiles: Sequence[Profile],
    validation: Validation,
    inputs: Calibration | None,
    progress: Callable[[str], None],
) -> tuple[Model, Validation, tuple[PruneResult, ...]]:
    """Prune what it takes for numbers of channels to be multiples, as far as they can be.

    Returns the model, what the profiles say of it, and each pruning.

    Raises:
        CheckError: the certificate of a pruning does not hold.
    """
    done: list[PruneResult] = []
    while len(done) < _ROUNDS and any(_is_odd(finding) for finding in validation.findings):
        analysis = analyze(model)
        limits = sizes(analysis, _wants(analysis, validation))
        if not limits:
            break
        kept = {name: (None, size) for name, size in limits.items()}
        fit: dict[str, Any] = {"recover": "none", "criterion": "l2"}
        if inputs is not None:
            fit = {"calibration": inputs}
        result = prune(model, ratio=0.0, multiple=1, limits=kept, progress=progress, **fit)
        if result.verdict is not None and not result.verdict.ok:
            raise CheckError(f"the certificate does not hold: {result.verdict.message}")
        done.append(result)
        model = result.model
        validation = validate(model, profiles)
    return model, validation, tuple(done)


def _is_odd(finding: Finding) -> bool:
    """Whether a number of channels is no multiple, and is to be one."""
    return finding.shortfall is not None and isinstance(finding.rule.require, Multiple)


# ---------------------------------------------------------------------- what is wanted


@dataclass(frozen=True)
class Size:
    """Of an axis: a constant, and for other axes how often each of their units that stay counts."""

    factors: tuple[tuple[Axis, float], ...]
    constant: float

    def times(self, factor: float) -> Size:
        return Size(tuple((axis, value * factor) for axis, value in self.factors), self.constant * factor)


@dataclass(frozen=True)
class Want:
    """A number of channels is to be a multiple of ``step``."""

    size: Size
    step: int
    hard: bool


def _wants(analysis: Analysis, validation: Validation) -> Counter[Want]:
    """What the rules want of numbers of channels that can change, and how many want the same."""
    found: Counter[Want] = Counter()
    for finding in validation.findings:
        rule, weight = finding.rule.require, finding.weight
        if not finding.eligible or not isinstance(rule, Multiple):
            continue
        axes = _operand(analysis, weight)
        if len(axes) < 2:
            continue  # a vector, which has no channels to speak of
        for size, step in zip(_channels(weight, axes), (rule.inputs, rule.outputs), strict=True):
            if step > 1 and size is not None and size.factors:
                found[Want(size, step, finding.rule.level == "hard")] += 1
    return found


def _operand(analysis: Analysis, weight: Weight) -> Sequence[Axis]:
    node, i = weight.node, weight.input
    return analysis.walk.uses.get((node.index, i)) or analysis.walk.axes_of.get(node.inputs[i]) or ()


def _channels(weight: Weight, axes: Sequence[Axis]) -> tuple[Size | None, Size | None]:
    """The numbers of input and output channels, those of all groups of a convolution together."""
    first, second = (axes[0], axes[1]) if weight.kernel else (axes[-2], axes[-1])
    inputs, outputs = (find(a) for a in ((second, first) if weight.outputs_first else (first, second)))
    many_in, many_out = weight.channels
    out = _size(outputs)
    if weight.depthwise:  # each group has one input, and goes with its outputs
        return (None if out is None else out.times(many_in / many_out)), out
    return _size(total(inputs.parts) if inputs.kind == "ragged" else inputs), out


def _size(axis: Axis) -> Size | None:
    """How many positions stay; None where that is not linear in how many units stay.

    Of a product of several axes that shrink, one that divides it: the last that does.
    """
    axis = find(axis)
    if axis.kind == "atom":
        return Size(((axis, 1.0),), 0.0)
    if axis.kind == "fix":
        return Size((), float(axis.size))
    if axis.kind == "view":
        assert axis.index is not None
        whole = len(axis.index) == axis.parts[0].size == len(np.unique(axis.index))
        return _size(axis.parts[0]) if whole else None
    parts = [_size(part) for part in axis.parts]
    known = [part for part in parts if part is not None]
    if axis.kind == "prod":
        free = [part for part in known if part.factors]
        fixed = float(np.prod([part.constant for part in known if not part.factors]))
        return free[-1].times(fixed) if free else Size((), fixed) if len(known) == len(parts) else None
    if axis.kind != "sum" or len(known) < len(parts):
        return None
    factors: dict[Axis, float] = {}
    for part in known:
        for one, factor in part.factors:
            factors[one] = factors.get(one, 0.0) + factor
    return Size(tuple(factors.items()), sum(part.constant for part in known))


# ---------------------------------------------------------------------- what is chosen


def sizes(analysis: Analysis, wants: Mapping[Want, int]) -> dict[str, int]:
    """How many units stay of each group that has to shrink, by its id.

    Args:
        wants: multiples, and how many rules want each.
    """
    groups = {group.axis: group for group in analysis.groups}
    linked = nx.Graph()
    for want in wants:
        nx.add_path(linked, [axis for axis, _ in want.size.factors])
        linked.add_nodes_from(axis for axis, _ in want.size.factors)
    siblings = [axes for axes, _ in analysis.same_counts() if not linked.nodes.isdisjoint(axes)]
    for axes in siblings:
        nx.add_path(linked, axes)
    found: dict[str, int] = {}
    for part in nx.connected_components(linked):
        mine = {want: count for want, count in wants.items() if want.size.factors[0][0] in part}
        worths = {axis: float(groups[axis].params_per_unit) for axis in groups if axis in part}
        if worths.keys() == part and any(_whole(want) % want.step for want in mine):
            chosen = best_sizes(worths, mine, [axes for axes in siblings if axes[0] in part])
            found |= {groups[axis].id: n for axis, n in chosen.items() if n < axis.size}
    return dict(sorted(found.items()))


def _whole(want: Want) -> int:
    return round(want.size.constant + sum(axis.size * factor for axis, factor in want.size.factors))


def best_sizes(
    worths: Mapping[Axis, float], wants: Mapping[Want, int], siblings: Sequence[Sequence[Axis]]
) -> dict[Axis, int]:
    """How many units stay of each axis: as many wants hold as can, and then as much as can is left.

    Args:
        worths: what a unit of each axis is worth.
        wants: multiples, and how often each is wanted.
        siblings: axes that must keep equal numbers.
    """

    # Columns: units that stay; for each want whether it holds, and how many steps there are.
    columns = {axis: i for i, axis in enumerate(worths)}
    units, count = len(columns), len(columns) + 2 * len(wants)
    rows: list[np.ndarray[Any, Any]] = []
    bounds: list[tuple[float, float]] = []
    upper = np.full(count, np.inf)
    upper[:units] = [axis.size for axis in columns]
    lower = np.zeros(count)
    lower[:units] = 1
    held = np.zeros(count)
    most = sum(wants.values()) + 1
    for k, (want, number) in enumerate(wants.items()):
        holds, steps = units + 2 * k, units + 2 * k + 1
        upper[holds] = 1
        held[holds] = number * (most if want.hard else 1)
        rest = np.zeros(count)  # what is left over, zero where it holds
        for axis, factor in want.size.factors:
            rest[columns[axis]] = factor
        rest[steps] = -want.step
        rows.append(rest.copy())
        bounds.append((-want.size.constant, np.inf))
        rest[holds] = want.step - 1
        rows.append(rest)
        bounds.append((-np.inf, want.step - 1 - want.size.constant))
    for first, *others in siblings:
        for other in others:
            row = np.zeros(count)
            row[columns[first]], row[columns[other]] = 1, -1
            rows.append(row)
            bounds.append((0, 0))
    kept = np.zeros(count)
    kept[:units] = list(worths.values())
    start = upper[:units]
    for aim in (held, kept):
        low, high = zip(*bounds, strict=True)
        result: Any = scipy.optimize.milp(
            -aim / max(aim.max(), 1.0),
            integrality=np.ones(count),
            bounds=scipy.optimize.Bounds(lower, upper),
            constraints=scipy.optimize.LinearConstraint(np.array(rows), np.array(low), np.array(high)),
            options={"time_limit": _SECONDS, "mip_rel_gap": 0.0},
        )
        if result.x is None:
            break
        start = result.x[:units]
        rows.append(aim)  # the next aim must not cost this one
        bounds.append((float(aim @ np.round(result.x)) - 0.5, np.inf))
    return {axis: round(float(n)) for axis, n in zip(columns, start, strict=True)}
