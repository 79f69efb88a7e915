"""Closed groups of channels: what shrinks together, what limits it, and why an axis is pinned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod as product
from typing import Literal, NamedTuple, TypeAlias

import networkx as nx
import onnx

from .axes import Axis, atoms, find, flatten, pin, pool_of, reason, unify, units
from .blocks import Block, find_blocks
from .dynamic import stand_ins, symbols
from .facts import SameCount
from .graph import Constant
from .memory import keeps_all
from .model import Model
from .prepare import prepare
from .rules import all_rules
from .selection import Selection
from .walk import Walk

Exactness: TypeAlias = Literal["exact", "renormalising"]

# How many names a sentence lists before it says "and n more".
_NAMES_TOLD = 6


class Member(NamedTuple):
    """Axis ``axis`` of the constant or activation ``tensor``."""

    tensor: str
    axis: int

    def __str__(self) -> str:
        return f"{self.tensor}:{self.axis}"


@dataclass(frozen=True)
class Pin:
    """An axis of a weight of which nothing can be removed, and why."""

    tensor: str
    axis: int
    size: int
    reason: str


@dataclass(frozen=True, eq=False)
class Group:
    """Units that can be removed one by one, each from all members at once.

    Attributes:
        id: the first member, with a number when several groups share that axis.
        size: number of units.
        members: axes of weights the units live on.
        exactness: "exact" when removal equals zeroing the consumers' weights; "renormalising" when a
            normalisation runs over the units, so that the function changes.
        limits: sentences about what restricts the choice.
        params_per_unit: parameters that go with one unit, everything else staying.
    """

    id: str
    size: int
    members: tuple[Member, ...]
    exactness: Exactness
    limits: tuple[str, ...]
    params_per_unit: float
    axis: Axis = field(repr=False)
    analysis: Analysis = field(repr=False)

    @property
    def activations(self) -> tuple[Member, ...]:
        """Axes of computed tensors the units live on."""
        return self.analysis.reached[self.axis][0]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes that read the units."""
        return self.analysis.reached[self.axis][1]

    def explain(self) -> str:
        """In sentences: which axes shrink together, through which nodes, and what limits them."""
        told = [f"Group '{self.id}' has {self.size} units, about {self.params_per_unit:.0f} parameters each."]
        if len(self.members) == 1:
            told.append(f"They live on {self.members[0]} alone.")
        else:
            told.append(f"A unit goes from {_listed(self.members)} at once")
            told[-1] += f", because the same values flow through {_listed(self.nodes)}."
        if self.exactness == "exact":
            told.append(
                "Removal is exact: the result equals the original with the consumers' weights for the"
                " removed units set to zero."
            )
        else:
            told.append(
                "A normalisation or reduction runs over the units, so that it is computed over the kept"
                " ones only: the function changes beyond the zeroed weights."
            )
        return " ".join([*told, *self.limits])


def _listed(things: Sequence[object]) -> str:
    names = [str(thing) for thing in things[:_NAMES_TOLD]]
    if len(things) > _NAMES_TOLD:
        names.append(f"{len(things) - _NAMES_TOLD} more")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _composed(axes: Sequence[Axis], name: str, found: dict[Axis, str]) -> None:
    for axis in map(find, axes):
        if axis.kind in ("sum", "prod", "view"):
            found.setdefault(axis, name)


def _tie_counts(same: SameCount) -> bool:
    """Tie axes position by position, unless they are separate free atoms; whether that did anything."""
    axes = [find(axis) for axis in same.axes]
    if len(set(axes)) == len(axes) and all(axis.kind == "atom" for axis in axes):
        return False
    before = [tuple(atoms(axis)) for axis in axes]
    for axis in axes[1:]:
        unify(axes[0], axis)
    return [tuple(atoms(axis)) for axis in axes] != before


class Analysis:
    """What is known of the channels of a model. Made by `analyze`; reads no weights."""

    def __init__(self, model: Model, walk: Walk) -> None:
        self.model = model
        self.walk = walk
        self._close_counts()
        self._pin_layout_factors()
        self.groups: tuple[Group, ...] = tuple(self._find_groups())

    @cached_property
    def pins(self) -> tuple[Pin, ...]:
        """Axes of weights of which nothing can be removed."""
        return tuple(self._find_pins())

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Residual branches that can be removed whole."""
        return find_blocks(self.walk)

    @cached_property
    def reached(self) -> dict[Axis, tuple[tuple[Member, ...], tuple[str, ...]]]:
        """For each group's axis, the activations its units live on and the nodes that read them."""
        activations: dict[Axis, dict[Member, None]] = {group.axis: {} for group in self.groups}
        nodes: dict[Axis, dict[str, None]] = {group.axis: {} for group in self.groups}
        for name, types in self.walk.axes_of.items():
            for k, axis in enumerate(types or ()):
                for unit in units(axis):
                    if unit in activations:
                        activations[unit][Member(name, k)] = None
        for node in self.walk.nodes:
            for i, name in enumerate(node.inputs):
                for axis in self.walk.uses.get((node.index, i)) or self.walk.axes_of.get(name) or ():
                    for unit in units(axis):
                        if unit in nodes:
                            nodes[unit][node.name] = None
        return {unit: (tuple(found), tuple(nodes[unit])) for unit, found in activations.items()}

    # ------------------------------------------------------------------ closing

    def _close_counts(self) -> None:
        """Equal counts: separate free atoms may differ in their positions, anything else is tied."""
        while any(_tie_counts(same) for same in self.walk.same_counts):
            pass  # a tie can bind atoms of a set that was settled
        for same in self.walk.same_counts:
            for axis in map(find, same.axes):
                if axis.kind == "atom":
                    axis.pool = axis

    def _pin_layout_factors(self) -> None:
        """Of the factors of a weight's axis that never stand alone, only the largest shrinks."""
        products = [axis for _, _, axis in self.weight_axes() if find(axis).kind == "prod"]
        if not products:
            return
        alone = {find(axis) for fact in self.walk.alone for axis in fact.axes}
        for axis in products:
            factors = [f for f in flatten([axis], "prod") if f.kind == "atom" and f not in alone]
            for f in sorted(factors, key=lambda f: -f.size)[1:]:
                pin(f, "it only lays out a larger axis and is never a dimension of its own")

    # ------------------------------------------------------------------ reading

    def weight_uses(self) -> list[tuple[Constant, tuple[int, int], list[Axis]]]:
        """Uses of parameters that carry channels (rank 2 and more), each typing once."""
        return [use for use in self.parameter_uses if len(use[2]) > 1]

    @cached_property
    def parameter_uses(self) -> list[tuple[Constant, tuple[int, int], list[Axis]]]:
        """Uses of constants that hold learned numbers, each typing once: constant, use, axes."""
        inputs = {node.index: node.inputs for node in self.walk.nodes}
        found: dict[tuple[str, int], tuple[Constant, tuple[int, int], list[Axis]]] = {}
        for key, axes in self.walk.uses.items():
            constant = self.walk.constants[inputs[key[0]][key[1]]]
            if constant.is_parameter and constant.static is None:
                found.setdefault((constant.name, id(axes)), (constant, key, axes))
        return list(found.values())

    def weight_axes(self) -> Iterator[tuple[str, int, Axis]]:
        for constant, _, axes in self.weight_uses():
            for k, axis in enumerate(axes):
                yield constant.name, k, axis

    def _find_groups(self) -> Iterator[Group]:
        members: dict[Axis, dict[Member, None]] = {}
        elements: dict[Axis, dict[Member, float]] = {}
        for constant, _, axes in self.parameter_uses:
            volume = product(constant.shape)
            for k, axis in enumerate(axes):
                for unit in units(axis):
                    member = Member(constant.name, k)
                    elements.setdefault(unit, {})[member] = volume / unit.size
                    if len(axes) > 1:
                        members.setdefault(unit, {})[member] = None
        normalised = self._normalised()
        limits = self._limits()
        taken: dict[str, int] = {}
        for unit, where in members.items():
            first = str(next(iter(where)))
            taken[first] = taken.get(first, 0) + 1
            yield Group(
                id=first if taken[first] == 1 else f"{first}#{taken[first]}",
                size=unit.size,
                members=tuple(where),
                exactness="renormalising" if unit in normalised else "exact",
                limits=tuple(limits.get(unit, ())),
                params_per_unit=sum(elements[unit].values()),
                axis=unit,
                analysis=self,
            )

    def _normalised(self) -> set[Axis]:
        found: set[Axis] = set()
        for fact in self.walk.normalisations:
            for i, k in fact.inputs:
                found.update(units(self.walk.axes(fact.node, i)[k]))
        return found

    def _limits(self) -> dict[Axis, list[str]]:
        limits: dict[Axis, list[str]] = {}
        for same in self.walk.same_counts:
            for axis in same.axes:
                if find(axis).kind == "atom":
                    told = limits.setdefault(find(axis), [])
                    sentence = f"As many must stay as in its sibling blocks, because {same.because}."
                    if sentence not in told:
                        told.append(sentence)
        return limits

    def _find_pins(self) -> Iterator[Pin]:
        seen = set()
        for name, k, axis in self.weight_axes():
            why = reason(axis)
            if why is not None and axis.size > 1 and (name, k) not in seen:
                seen.add((name, k))
                yield Pin(name, k, axis.size, why)

    def same_counts(self) -> list[tuple[list[Axis], SameCount]]:
        """Sets of different free atoms that must keep equal numbers of units."""
        found = []
        for same in self.walk.same_counts:
            axes = list(dict.fromkeys(find(axis) for axis in same.axes))
            if len(axes) > 1 and all(axis.kind == "atom" for axis in axes):
                found.append((axes, same))
        return found

    @cached_property
    def composed(self) -> dict[Axis, str]:
        """Every axis made of others, which could lose all its positions with them, and a tensor it is in."""
        found: dict[Axis, str] = {}
        for name, types in self.walk.axes_of.items():
            _composed(types or (), name, found)
        for constant, _, types in self.parameter_uses:
            _composed(types, constant.name, found)
        return found

    def twins(self) -> list[list[Axis]]:
        """Free atoms that count the same positions of one weight at its different uses.

        The weight stays shared when they keep the same units, and is cloned when they do not.
        """
        shared: dict[str, list[list[Axis]]] = {}
        for constant, _, axes in self.weight_uses():
            shared.setdefault(constant.name, []).append(axes)
        linked = nx.Graph()
        for first, *others in shared.values():
            for axes in others:
                for mine, theirs in zip(first, axes, strict=True):
                    left, right = list(atoms(mine)), list(atoms(theirs))
                    if [a.size for a in left] == [b.size for b in right]:
                        linked.add_edges_from((a, b) for a, b in zip(left, right, strict=True) if a is not b)
        order = {axis: i for i, axis in enumerate(linked)}
        return [sorted(part, key=order.__getitem__) for part in nx.connected_components(linked)]

    def pools(self) -> list[list[Group]]:
        """Groups ranked against each other: pieces that were cut from one axis."""
        found: dict[Axis, list[Group]] = {}
        for group in self.groups:
            found.setdefault(pool_of(group.axis), []).append(group)
        return list(found.values())

    def outer_factors(self) -> set[Axis]:
        """Atoms that are an outer factor of some axis of a weight, as heads are of (head, width)."""
        found: set[Axis] = set()
        for _, _, axis in self.weight_axes():
            for segment in flatten([axis], "sum"):
                factors = flatten([segment], "prod")
                for f in factors[:-1]:
                    found.update(atoms(f))
        return found

    # ------------------------------------------------------------------ counting

    def macs(self, selection: Selection) -> int:
        """Multiply-accumulates of convolutions and matrix products under ``selection``."""
        return sum(w.scale * product(selection.count(axis) for axis in w.axes) for w in self.walk.work)

    def params(self, selection: Selection) -> int:
        """Elements of parameters under ``selection``, counted once for all uses that keep the same."""
        sizes: dict[tuple[str, tuple[Axis | None, ...]], int] = {}
        for constant, _, axes in self.parameter_uses:
            kept = tuple(find(axis) if selection.shrinks(axis) else None for axis in axes)
            sizes[constant.name, kept] = product(selection.count(axis) for axis in axes)
        return sum(sizes.values())

    def graph(self) -> nx.Graph:
        """Groups and the tensors they live on, as a bipartite graph for queries, pictures and export."""
        graph = nx.Graph()
        for group in self.groups:
            graph.add_node(group.id, kind="group", size=group.size, exactness=group.exactness)
            for member in group.members:
                graph.add_node(member.tensor, kind="tensor")
                graph.add_edge(group.id, member.tensor, axis=member.axis)
        return graph


@keeps_all
def analyze(model: Model) -> Analysis:
    """Find the groups of channels of a model. Reads structure and small constants, never weights."""
    prepared = prepare(model)
    return Analysis(prepared, _walk(prepared.proto))


def _walk(proto: onnx.ModelProto) -> Walk:
    rules, names = all_rules(), symbols(proto.graph)
    if not names:
        return Walk(proto, rules)
    best: Walk | None = None
    for first, second in stand_ins(names):
        walk = Walk(proto, rules, first, Walk(proto, rules, second))
        if best is None or walk.misfits < best.misfits:
            best = walk
        if not best.misfits:
            break
    assert best is not None
    return best
