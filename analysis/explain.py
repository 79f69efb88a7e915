"""An axis in sentences: what its positions are, what goes with them and why, what holds them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from .axes import ONE, Axis, atoms, find, flatten, units
from .dynamic import RUN_TIME
from .errors import UsageError
from .groups import Analysis, Group, Member
from .paths import Place, Spot, Ties, Ways, told
from .selection import Selection

_TOLD = 8  # partners, segments and positions that are listed
_STEPS = 6  # of a way that are told


@dataclass(frozen=True)
class Partner:
    """A weight's axis that loses units with the one explained, and the way between the two."""

    tensor: str
    axis: int
    because: tuple[str, ...]

    def __str__(self) -> str:
        return f"'{self.tensor}:{self.axis}'"


@dataclass(frozen=True)
class Shared:
    """A group that an axis belongs to.

    Attributes:
        per_unit: positions of the axis that one unit takes; None where units differ.
        partners: axes of weights, the nearest first.
        activations: computed tensors, as "tensor:axis".
        limits: what restricts the choice of units, in sentences.
    """

    group: str
    size: int
    per_unit: int | None
    partners: tuple[Partner, ...]
    activations: tuple[str, ...]
    limits: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """Why positions stay.

    Attributes:
        because: the way from the axis to what holds it, where it is known; of a long one the ends.
        remedy: what would let it go, where something true can be said.
    """

    size: int
    reason: str
    because: tuple[str, ...]
    remedy: str | None


@dataclass(frozen=True)
class AxisNote:
    """What is known of one axis; of a weight with several uses that differ, as ``used_by`` use it."""

    tensor: str
    axis: int
    size: int
    used_by: tuple[str, ...]
    structure: str
    groups: tuple[Shared, ...]
    held: tuple[Held, ...]

    def sentences(self) -> Iterator[str]:
        where = (
            f", where {_listed(self.used_by)} read{'s' * (len(self.used_by) == 1)} it,"
            if self.used_by
            else ""
        )
        size = _count(self.size, "position")
        yield f"Axis {self.axis} of '{self.tensor}'{where} has {size}: {self.structure}."
        for shared in self.groups:
            yield from _of_group(shared)
        for held in self.held:
            part = "Nothing of it" if held.size == self.size else f"Of a part of {held.size} nothing"
            way = f" ({', '.join(held.because)})" if held.because else ""
            yield f"{part} can go, because {held.reason}{way}."
            if held.remedy:
                yield held.remedy


@dataclass(frozen=True)
class Explanation:
    """What is known of a tensor; ``note`` says why there are no axes, where there are none."""

    tensor: str
    axes: tuple[AxisNote, ...]
    note: str | None = None

    def sentences(self) -> list[str]:
        """Plain sentences, an axis after the other."""
        return [*([self.note] if self.note else []), *(s for axis in self.axes for s in axis.sentences())]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values, and the sentences."""
        return asdict(self) | {"sentences": self.sentences()}


def find_place(analysis: Analysis, text: str) -> tuple[str, int | None]:
    """A tensor and perhaps an axis from ``TENSOR[:AXIS]``; a tensor that has the whole text as name wins.

    Raises:
        UsageError: no tensor has that name.
    """
    known = _names(analysis)
    if text in known:
        return text, None
    name, _, axis = text.rpartition(":")
    if name in known and axis.removeprefix("-").isdecimal():
        return name, int(axis)
    near = difflib.get_close_matches(name if axis.isdecimal() and name else text, known, n=3)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise UsageError(f"no tensor has the name '{text}'{hint}")


def explain(analysis: Analysis, tensor: str, axis: int | None = None) -> Explanation:
    """What the positions of a tensor's axes are, which group they belong to, and what pins them.

    Args:
        tensor: name of a weight or of a computed tensor.
        axis: one axis of it, from the end when negative; all when None.

    Raises:
        UsageError: there is no such tensor or axis.
    """
    tensor, _ = find_place(analysis, tensor) if tensor not in _names(analysis) else (tensor, None)
    explainer = _Explainer(analysis)
    uses = _uses(analysis, tensor, explainer.groups)
    if not uses:
        return Explanation(tensor, (), _without_axes(analysis, tensor))
    rank = len(uses[0].axes)
    if axis is not None and not -rank <= axis < rank:
        raise UsageError(f"'{tensor}' has {rank} axes, there is no axis {axis}")
    wanted = range(rank) if axis is None else [axis % rank]
    notes = [
        explainer.note(Spot(Member(tensor, k), one.use), one.axes[k], one.readers if len(uses) > 1 else [])
        for k in wanted
        for one in uses
    ]
    return Explanation(tensor, tuple(notes))


def _names(analysis: Analysis) -> dict[str, None]:
    walk = analysis.walk
    return dict.fromkeys([*walk.axes_of, *walk.constants, *(c.name for c in walk.constants.values())])


class _Use(NamedTuple):
    """One typing of a tensor: its axes, the `Spot.use`, and the nodes that use it so."""

    axes: Sequence[Axis]
    use: int
    readers: list[str]


def _uses(analysis: Analysis, tensor: str, groups: Mapping[Axis, Group]) -> list[_Use]:
    """The types of a tensor; of a weight those of each use, alike ones together."""
    walk = analysis.walk
    types = walk.axes_of.get(tensor)
    if types is not None:
        return [_Use(types, 0, [])]
    found: dict[tuple[str, ...], _Use] = {}
    for node in walk.nodes:
        for i, name in enumerate(node.inputs):
            used = walk.uses.get((node.index, i))
            if used is not None and tensor in (name, walk.constants[name].name):
                alike = tuple(_structure(axis, groups) for axis in used)
                found.setdefault(alike, _Use(used, id(used), [])).readers.append(node.name)
    return list(found.values())


def _without_axes(analysis: Analysis, tensor: str) -> str:
    if tensor in analysis.walk.axes_of:
        return f"Not even the rank of '{tensor}' is known, so nothing is said of its axes."
    return (
        f"No operator computes along the axes of '{tensor}': it is a constant that is read as a size, an"
        " index or a setting, or nothing reads it."
    )


class _Explainer:
    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.groups = {group.axis: group for group in analysis.groups}
        self.ties = Ties(analysis.walk)

    def note(self, spot: Spot, axis: Axis, readers: Sequence[str]) -> AxisNote:
        return AxisNote(
            tensor=spot.member.tensor,
            axis=spot.member.axis,
            size=axis.size,
            used_by=tuple(readers),
            structure=_structure(axis, self.groups),
            groups=tuple(
                self._shared(spot, axis, self.groups[unit]) for unit in units(axis) if unit in self.groups
            ),
            held=tuple(self._held(spot, axis)) if axis.size != 1 else (),
        )

    def _shared(self, spot: Spot, axis: Axis, group: Group) -> Shared:
        unit = group.axis

        def has(place: Place) -> bool:
            return unit in units(place.axis)

        reach = Ways(self.analysis.walk, has, self.ties, anyway=True).from_(spot)
        constants = {constant.name for constant, _, _ in self.analysis.parameter_uses}
        nearest: dict[Member, Spot] = {}
        for other in reach:
            if other.member.tensor in constants and other.member != spot.member:
                nearest.setdefault(other.member, other)
        partners = [
            Partner(other.tensor, other.axis, told(reach.way(end), _STEPS)) for other, end in nearest.items()
        ]
        activations = tuple(str(other) for other in group.activations if other != spot.member)
        limits = list(group.limits)
        if group.exactness == "renormalising":
            limits.append(
                "A normalisation or reduction runs over the units, so the function changes beyond them."
            )
        per_unit = _per_unit(axis, unit)
        return Shared(group.id, group.size, per_unit, tuple(partners), activations, tuple(limits))

    def _held(self, spot: Spot, axis: Axis) -> Iterator[Held]:
        sizes: dict[str, int] = {}
        for part in _parts(axis):
            if part.kind == "fix" and part is not ONE:
                sizes[part.why] = sizes.get(part.why, 0) + part.size
        for why, size in sizes.items():
            whole = not any(True for _ in atoms(axis)) and len(sizes) == 1
            yield Held(axis.size if whole else size, why, self._way_to(spot, why), self._remedy(why))

    def _way_to(self, spot: Spot, why: str) -> tuple[str, ...]:
        """The shortest way to the tensor or the node that the reason names."""
        walk = self.analysis.walk
        ends = [info.name for info in self.analysis.model.proto.graph.input]
        goal = next((n for n in (*walk.outputs, *ends) if why.startswith(f"'{n}' is an ")), None)
        culprit = next((node for node in walk.nodes if why.startswith(node.name)), None)
        if goal is None and culprit is None:
            return ()
        ways = Ways(walk, lambda place: _holds(place.axis, why), self.ties)
        reach = ways.from_(spot)
        for other in reach:
            if other.member.tensor == goal or (culprit is not None and culprit in ways.nodes(other)):
                return told(reach.way(other), _STEPS)
        return ()

    def _remedy(self, why: str) -> str | None:
        if "is an output of the model" in why:
            return "It would be free of this if that tensor were not an output of the model."
        if "is an input of the model" in why:
            return "It would be free of this if a layer of the model computed that tensor."
        if why == RUN_TIME:
            return "Export the model with a static size for this axis."
        culprit = next((node for node in self.analysis.walk.nodes if why.startswith(node.name)), None)
        if culprit is None:
            return None
        rest = why[len(culprit.name) :]
        if rest == " has no rule":
            return f"Give a rule for the operator {culprit.op}: docs/rules.md says how."
        if rest.startswith(": "):
            return f"The rule for {culprit.op} does not cover this form of the operator."
        if rest.endswith("computed at run time"):
            return "It could be free if these were constants of the model."
        return None


def _parts(axis: Axis) -> Iterator[Axis]:
    """The leaves of an axis, each once."""
    stack, seen = [axis], set()
    while stack:
        axis = find(stack.pop())
        if axis not in seen:
            seen.add(axis)
            if axis.kind in ("atom", "fix"):
                yield axis
            stack.extend(reversed(axis.parts))


def _holds(axis: Axis, why: str) -> bool:
    return any(part.kind == "fix" and part.why == why for part in _parts(axis))


def _per_unit(axis: Axis, unit: Axis) -> int | None:
    if any(part.kind in ("view", "ragged") for part in _all(axis)):
        return None
    kept = Selection({unit: np.arange(1, unit.size)}).positions(axis)
    return None if kept is None else axis.size - len(kept)


def _all(axis: Axis) -> Iterator[Axis]:
    stack = [axis]
    while stack:
        axis = find(stack.pop())
        yield axis
        stack.extend(axis.parts)


# ---------------------------------------------------------------------------------- wording


def _structure(axis: Axis, groups: Mapping[Axis, Group]) -> str:
    """How positions map to units."""
    axis = find(axis)
    if axis.kind == "atom":
        if axis in groups:
            return f"{_count(axis.size, 'unit')} of the group '{groups[axis].id}'"
        return f"{_count(axis.size, 'unit')} that no weight of two axes has"
    if axis.kind == "fix":
        return f"{_count(axis.size, 'position')} that stay{'s' if axis.size == 1 else ''}"
    if axis.kind == "prod":
        factors = [_structure(factor, groups) for factor in flatten([axis], "prod")]
        return f"a product, the last factor running fastest, of {_listed(factors)}"
    if axis.kind == "sum":
        told, start = [], 0
        for part in flatten([axis], "sum"):
            told.append(f"{start} to {start + part.size - 1} are {_structure(part, groups)}")
            start += part.size
        return f"{len(told)} segments, of which positions {_listed(told)}"
    if axis.kind == "view":
        assert axis.index is not None
        index = [str(i) for i in axis.index[:_TOLD].tolist()] + ["…"] * (axis.size > _TOLD)
        return f"positions {', '.join(index)} of an axis that is {_structure(axis.parts[0], groups)}"
    told = list(dict.fromkeys(_structure(part, groups) for part in axis.parts))
    return f"for each of {len(axis.parts)} blocks of the other channel axis other ones: {_listed(told)}"


def _of_group(shared: Shared) -> Iterator[str]:
    takes = f", each of which takes {shared.per_unit} positions here," if (shared.per_unit or 1) > 1 else ""
    others = len(shared.partners)
    if others:
        text = f"Units of the group '{shared.group}'{takes} go from {others} other"
        yield f"{text} ax{'is' if others == 1 else 'es'} of weights as well:"
    else:
        yield f"Units of the group '{shared.group}'{takes} are on no other weight."
    # Weights that the same node reads are told in one line.
    lines: dict[tuple[str, ...], list[str]] = {}
    for partner in shared.partners:
        *way, last = partner.because
        lines.setdefault((*way, last.removesuffix(f"'{partner.tensor}'")), []).append(str(partner))
    for because, names in list(lines.items())[:_TOLD]:
        these = "this weight" if len(names) == 1 else "these weights"
        yield f"- {_listed(names)}, because {', '.join(because)}{these}."
    left = sum(len(names) for names in list(lines.values())[_TOLD:])
    if left:
        yield f"- and {left} more, farther away."
    yield from shared.limits


def _listed(things: Sequence[str]) -> str:
    names = list(things[:_TOLD])
    if len(things) > _TOLD:
        names.append(f"{len(things) - _TOLD} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _count(size: int, what: str) -> str:
    return f"{size} {what}{'s' if size != 1 else ''}"
