"""Parts of a graph that a runtime computes in another way as a whole, if their weights together allow it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import networkx as nx

from ..graph import Node
from .weights import Survey, Weight


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The convolution a cluster begins with."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    inputs: int


class Cluster(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes a cluster: connected nodes that are all of these kinds, besides those the rule is about.

    Attributes:
        entry: takes data from outside.
        depthwise: kernels of depthwise convolutions.
        through: other operators.
        exits: operators whose results may leave, and what is computed from these alone.
        ends: operators whose results do leave.
    """

    entry: Entry
    depthwise: tuple[tuple[int, ...], ...]
    through: tuple[str, ...]
    exits: tuple[str, ...]
    ends: tuple[str, ...] = ()

    def find(self, survey: Survey, counted: Mapping[int, Weight]) -> dict[int, int | str]:
        """The cluster of each counted weight by the index of its node, or why it is in none."""
        weights = {weight.node.index: weight for weight in survey.weights}
        inside = {
            node.index: node
            for node in survey.walk.nodes
            if node.index in counted or self._belongs(node, weights.get(node.index))
        }
        makers = {name: node for node in survey.walk.nodes for name in node.outputs if name}
        graph = nx.Graph()
        graph.add_nodes_from(inside)
        outside: dict[int, str] = {}
        constant = survey.origins.is_constant
        free: set[int] = set()  # nodes whose results may leave
        for node in survey.walk.nodes:
            data = [(name, makers.get(name)) for name in node.inputs if name and not constant(name)]
            for name, maker in data:
                within = maker is not None and maker.index in inside and maker.op not in self.ends
                if maker is not None and within and node.index in inside:
                    graph.add_edge(maker.index, node.index)
                elif node.index in inside and not self._is_entry(node, weights.get(node.index)):
                    outside[node.index] = f"{node.name} reads '{name}', which is made outside of it"
                elif maker is not None and within and maker.index not in free:
                    outside[maker.index] = f"{node.name}, outside of it, reads what {maker.name} makes"
            behind = data and all(maker is not None and maker.index in free for _, maker in data)
            if node.op in self.exits or node.op in self.ends or behind:
                free.add(node.index)
        for name in survey.walk.outputs:
            if name in makers and makers[name].index in inside and makers[name].index not in free:
                outside[makers[name].index] = f"'{name}' is an output of the model"
        found: dict[int, int | str] = {}
        for number, part in enumerate(nx.connected_components(graph)):
            broken = next((outside[index] for index in sorted(part) if index in outside), None)
            result = number if broken is None else f"its cluster is none: {broken}"
            found |= {index: result for index in part if index in counted}
        return found

    def _belongs(self, node: Node, weight: Weight | None) -> bool:
        if node.op in (*self.through, *self.exits, *self.ends):
            return True
        depthwise = weight is not None and weight.depthwise and weight.kernel in self.depthwise
        return depthwise or self._is_entry(node, weight)

    def _is_entry(self, node: Node, weight: Weight | None) -> bool:
        entry = self.entry
        return (
            weight is not None
            and not weight.depthwise
            and (weight.kernel, weight.strides, weight.channels[0])
            == (entry.kernel, entry.strides, entry.inputs)
        )
