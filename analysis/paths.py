"""Ways through a graph along one kind of channel: from a tensor's axis over nodes to another's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from .axes import Axis, AxisMismatch, atom, find, units
from .graph import Node, subgraphs
from .groups import Member
from .rules.registry import Unsupported, all_rules
from .walk import Walk

Role: TypeAlias = Literal["weight", "input", "output", "inside"]


class Spot(NamedTuple):
    """An axis of a tensor. ``use`` tells apart the uses of a weight, which are not tied to each other."""

    member: Member
    use: int = 0


class Place(NamedTuple):
    """An axis of a tensor as a node has it; ``slot`` says where, whatever the tensor is called."""

    spot: Spot
    role: Role
    axis: Axis
    slot: tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Step:
    """``node`` has both places, and ties them."""

    node: Node
    start: Place
    end: Place

    def told(self, it: str) -> str:
        """What the node does with the tensor at the start, called ``it``, for people."""
        name = self.node.name
        other = f"'{self.end.spot.member.tensor}'"
        first, second = self.start.role, self.end.role
        if "inside" in (first, second):
            return f"{name} takes {it} and {other} for one"
        if first == "output":
            return f"{name} makes {it} {'from' if second == 'input' else 'with'} {other}"
        if second == "output":
            return f"{name} makes {other} with {it}" if first == "weight" else f"{name} passes {it} on"
        if self.node.op in _JOINS:
            return f"{name} {_JOINS[self.node.op].format(it)} {other}"
        return f"{name} reads {it} with {other}"


_JOINS = {"Add": "adds {} to", "Sum": "adds {} to", "Mul": "multiplies {} with", "Concat": "joins {} to"}


def places(walk: Walk, node: Node) -> Iterator[Place]:
    """Every axis of the inputs and outputs of a node, and of what goes in and out of its bodies."""
    for i, name in enumerate(node.inputs):
        constant = walk.constants.get(name) if name else None
        if constant is None:
            yield from _places(name, "input", i, walk.axes_of.get(name))
        else:
            types = walk.uses.get((node.index, i))
            yield from _places(constant.name, "weight", i, types, id(types))
    for i, name in enumerate(node.outputs):
        yield from _places(name, "output", i, walk.axes_of.get(name))
    inside = [info.name for body in subgraphs(node.proto) for info in (*body.input, *body.output)]
    for i, name in enumerate(inside):
        yield from _places(name, "inside", i, walk.axes_of.get(name))


def _places(name: str, role: Role, i: int, types: Iterable[Axis] | None, use: int = 0) -> Iterator[Place]:
    for k, axis in enumerate(types or ()):
        yield Place(Spot(Member(name, k), use), role, find(axis), (role, i, k))


class Ties:
    """What each node by itself ties: its rule is asked again, about inputs all of whose axes are free.

    In the graph, two axes of a node can be the same for reasons elsewhere (a residual connection around it).
    """

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._rules = all_rules()
        self._units: dict[int, dict[tuple[str, int, int], set[Axis]]] = {}

    def __call__(self, node: Node, a: Place, b: Place) -> bool:
        if node.index not in self._units:
            self._units[node.index] = self._alone(node)
        found = self._units[node.index]
        return not found.get(a.slot, set()).isdisjoint(found.get(b.slot, ()))

    def _alone(self, node: Node) -> dict[tuple[str, int, int], set[Axis]]:
        rule = self._rules.get(node.op)
        if rule is None:
            return {}
        if next(subgraphs(node.proto), None) is not None:  # its bodies read what is outside: left as it is
            return {place.slot: set(units(place.axis)) for place in places(self._walk, node)}
        walk = copy(self._walk)
        walk.uses, walk.axes_of = {}, {}
        for name in node.inputs:
            types = self._walk.axes_of.get(name)
            walk.axes_of[name] = None if types is None else [atom(axis.size) for axis in types]
        walk.contractions, walk.normalisations, walk.same_counts = [], [], []
        walk.work, walk.alone, walk.baked = [], [], []
        try:
            outputs = rule(walk, node)
        except (AxisMismatch, Unsupported):
            return {}
        walk.axes_of.update(zip(node.outputs, outputs, strict=False))
        return {place.slot: set(units(place.axis)) for place in places(walk, node)}


class Reach:
    """Spots that can be reached from one, the nearest first, and a shortest way to each."""

    def __init__(self, before: Mapping[Spot, tuple[Spot, Step] | None]) -> None:
        self._before = before

    def __iter__(self) -> Iterator[Spot]:
        return iter(self._before)

    def way(self, end: Spot) -> list[Step]:
        steps = []
        last = self._before[end]
        while last is not None:
            steps.append(last[1])
            last = self._before[last[0]]
        return steps[::-1]


class Ways:
    """Places that have something in common, and the nodes that join them.

    Args:
        has: whether a place has it.
        ties: whether a node by itself ties two of its places.
        anyway: go from place to place of a node that has both as well, where no other way leads on.
    """

    def __init__(self, walk: Walk, has: Callable[[Place], bool], ties: Ties, anyway: bool = False) -> None:
        self._ties = ties
        self._anyway = anyway
        self._at: dict[Spot, list[tuple[Node, Place]]] = {}
        self._in: dict[int, list[Place]] = {}
        for node in walk.nodes:
            for place in places(walk, node):
                if has(place):
                    self._at.setdefault(place.spot, []).append((node, place))
                    self._in.setdefault(node.index, []).append(place)

    def nodes(self, spot: Spot) -> list[Node]:
        """Nodes that have a spot among their places."""
        return [node for node, _ in self._at.get(spot, ())]

    def from_(self, start: Spot) -> Reach:
        """All that can be reached; breadth-first search."""
        before: dict[Spot, tuple[Spot, Step] | None] = {start: None}
        queue, waiting = deque([start]), deque[Spot]()
        while queue or waiting:
            tied = bool(queue)
            spot = queue.popleft() if tied else waiting.popleft()
            if tied and self._anyway:
                waiting.append(spot)
            for node, here in self._at.get(spot, ()):
                for there in self._in[node.index]:
                    if there.spot not in before and (not tied or self._ties(node, here, there)):
                        before[there.spot] = spot, Step(node, here, there)
                        queue.append(there.spot)
        return Reach(before)


def told(steps: Sequence[Step], most: int) -> tuple[str, ...]:
    """A way in words, about ``most`` steps of it; of a longer one the beginning and the end."""
    texts = [step.told("that" if i else "it") for i, step in enumerate(steps)]
    ends = most // 2
    if len(texts) > most + 1:
        texts[ends:-ends] = [f"and so on over {len(texts) - 2 * ends} more nodes"]
    return tuple(texts)
