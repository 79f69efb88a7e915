"""Groups whose units are one basis of many: nothing in the model treats one unit by itself.

Where the units of a group are made by linear operators, added, moved and averaged over positions, and read by
linear operators, a model computes the same with Q'x for the units x and any orthogonal Q, once every weight
they live on is multiplied by Q along them. A product of two activations that sums over such units does not
change either: (Q'q)·(Q'k) = q·k. The stream of a MobileNetV2 is of that kind, and the queries, keys and
values of attention heads are; a Relu or a normalisation of the units ends it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from .axes import Axis, find, units
from .facts import Linear
from .graph import Node, walk_graphs
from .groups import Analysis, Group

# For each input (or output) that holds the units, on which axes.
Places: TypeAlias = dict[int, list[int]]

# Operators that do the same to every unit, and something linear.
_MOVES = frozenset(
    """AveragePool Concat Dropout Expand Flatten Gather GlobalAveragePool Identity Neg Pad ReduceMean
    ReduceSum Reshape Slice Split Squeeze Transpose Unsqueeze""".split()
)
_ADDS = frozenset(["Add", "Sub", "Sum", "Mean"])
_MATRICES = frozenset(["window", "spread", "rows", "columns", "gemm"])


@dataclass(frozen=True)
class Scaled:
    """A BatchNormalization that is all that reads a layer, whose factors can be made the layer's own."""

    norm: Node
    layer: Linear


class Bases:
    """Which groups of an analysed model may change their basis."""

    def __init__(self, analysis: Analysis) -> None:
        self._analysis = analysis
        self._walk = analysis.walk
        graph = analysis.model.proto.graph
        self._weights = {tensor.name for tensor in graph.initializer} - {info.name for info in graph.input}
        self._linears = {fact.node.index: fact for fact in self._walk.linears if fact.form in _MATRICES}

    @cached_property
    def free(self) -> tuple[Group, ...]:
        """Groups that may."""
        return tuple(group for group in self._analysis.groups if group.axis not in self.obstacles)

    @cached_property
    def scaled(self) -> dict[int, Scaled]:
        """By the index of its node, every BatchNormalization that need not scale."""
        graphs = list(walk_graphs(self._analysis.model.proto.graph))
        reads = Counter(name for graph in graphs for node in graph.node for name in node.input)
        reads.update(output.name for graph in graphs for output in graph.output)
        layers = {fact.node.key: fact for fact in self._linears.values()}
        found = {}
        for node in self._walk.nodes:
            layer = layers.get(node.inputs[0]) if node.op == "BatchNormalization" else None
            if layer is None or layer.form not in ("window", "spread", "gemm"):
                continue
            own = [name for name in (*node.inputs[1:], *layer.node.inputs[1:]) if name]
            alone = reads[node.inputs[0]] == 1 and len([name for name in node.outputs if name]) == 1
            if alone and all(name in self._weights and reads[name] == 1 for name in own):
                found[node.index] = Scaled(node, layer)
        return found

    @cached_property
    def obstacles(self) -> Mapping[Axis, str]:
        """By the axes of the other groups, in words, why their units are the only basis."""
        groups = {group.axis for group in self._analysis.groups}
        found: dict[Axis, str] = {}
        for node in self._walk.nodes:
            inputs = self._inputs(node)
            outputs = [self._walk.axes_of.get(name) or () for name in node.outputs]
            touched = {unit for axes in (*inputs, *outputs) for axis in axes for unit in units(axis)} & groups
            for unit in touched - found.keys():
                why = _apart(node, unit, inputs, outputs) or self._why(node, unit, inputs, outputs)
                if why:
                    found[unit] = why
        for unit, why in self._ambiguous():
            found.setdefault(unit, why)
        return found

    def _inputs(self, node: Node) -> list[Sequence[Axis]]:
        uses, computed = self._walk.uses, self._walk.axes_of
        return [uses.get((node.index, i)) or computed.get(name) or () for i, name in enumerate(node.inputs)]

    def _ambiguous(self) -> Iterator[tuple[Axis, str]]:
        """Weights that hold the units at one use and not, or on another axis, at another."""
        names = {node.index: node.inputs for node in self._walk.nodes}
        first: dict[str, Sequence[Axis]] = {}
        for (index, i), axes in self._walk.uses.items():
            name = self._walk.constants[names[index][i]].name
            before = first.setdefault(name, axes)
            for a, b in zip(before, axes, strict=True):
                for unit in {*units(a)} ^ {*units(b)}:
                    yield unit, f"'{name}' is also read where its positions are not these units"

    def _why(
        self, node: Node, unit: Axis, inputs: Sequence[Sequence[Axis]], outputs: Sequence[Sequence[Axis]]
    ) -> str | None:
        """Why a node fits one basis alone; None where it fits any."""
        read, made = _places(inputs, unit), _places(outputs, unit)
        alone = f"{node.name} treats each of its units by itself"
        for i in read:
            constant = self._walk.constants.get(node.inputs[i])
            if constant is not None and constant.name not in self._weights:
                return f"'{constant.name}' is no weight that can be written anew"
        fact = self._linears.get(node.index)
        if fact is not None and fact.weight in read:
            lacks_bias = fact.bias is not None and node.has(fact.bias) and fact.bias not in read
            grouped = fact.form in ("window", "spread") and node.attrs.get("group", 1) != 1
            return alone if grouped or (made and lacks_bias) else None
        if node.op == "BatchNormalization":
            return None if node.index in self.scaled else alone
        if node.op == "MatMul":
            summed = all(places == [len(inputs[i]) + (-1 if i == 0 else -2)] for i, places in read.items())
            return None if (len(read) == 1 and made) or (len(read) == 2 and summed and not made) else alone
        if node.op in _ADDS:
            return None if len(read) == len(node.inputs) else alone
        if node.op in ("Mul", "Div"):
            return None if len(read) == 1 and (node.op == "Mul" or 0 in read) else alone
        if node.op == "Pad" and node.has(2) and self._walk.value(node, 2) != 0:
            return alone
        return None if node.op in _MOVES and read and made else alone


def _places(tensors: Sequence[Sequence[Axis]], unit: Axis) -> Places:
    found = {i: [k for k, axis in enumerate(axes) if unit in units(axis)] for i, axes in enumerate(tensors)}
    return {i: where for i, where in found.items() if where}


def _apart(
    node: Node, unit: Axis, inputs: Sequence[Sequence[Axis]], outputs: Sequence[Sequence[Axis]]
) -> str | None:
    """Where an axis does not hold all the units each time it holds one."""
    for name, axes in zip((*node.inputs, *node.outputs), (*inputs, *outputs), strict=True):
        if not all(_holds_all(axis, unit) for axis in axes):
            return f"'{name}' holds some of its units, or in another order"
    return None


def _holds_all(axis: Axis, unit: Axis) -> bool:
    axis = find(axis)
    if axis.kind in ("atom", "fix") or unit not in units(axis):
        return True
    holding = [part for part in axis.parts if unit in units(part)]
    if axis.kind not in ("prod", "sum") or (axis.kind == "prod" and len(holding) > 1):
        return False
    return all(_holds_all(part, unit) for part in holding)
