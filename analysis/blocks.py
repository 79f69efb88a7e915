"""Depth: residual branches that can be removed whole, which leaves their skip path."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from .axes import Axis
from .graph import Node, subgraphs, walk_graphs
from .walk import Walk


@dataclass(frozen=True)
class Block:
    """A residual branch: y = skip + branch, where the branch reads ``skip`` and nothing else reads it.

    Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016, drop such branches while training; here
    they are dropped for good.

    Attributes:
        id: the tensor that the addition makes.
        skip: the tensor that stands for it when the branch is gone.
        branch: the tensor that is added to it.
        nodes: the nodes that go, in the order of the graph.
        params, macs: parameters and multiply-accumulates that go with them.
    """

    id: str
    skip: str
    branch: str
    nodes: tuple[str, ...]
    params: int
    macs: int


def find_blocks(walk: Walk) -> tuple[Block, ...]:
    """Every residual branch of the outermost graph, in its order; a branch may hold others."""
    reads = {node.index: [*filter(None, node.inputs), *_captured(node)] for node in walk.nodes}
    readers: dict[str, set[int]] = defaultdict(set)
    for index, names in reads.items():
        for name in names:
            readers[name].add(index)
    for output in walk.outputs:
        readers[output].add(-1)
    nodes = {node.index: node for node in walk.nodes}
    makers = {name: node.index for node in walk.nodes for name in node.outputs if name}
    work: dict[int, int] = defaultdict(int)
    for fact in walk.work:
        work[fact.node.index] += fact.scale * prod(axis.size for axis in fact.axes)
    found = []
    for node in walk.nodes:
        for skip, branch in _sides(walk, node):
            inside = _only_for(branch, node, nodes, makers, readers, reads)
            if any(skip in reads[index] for index in inside):
                gone = [nodes[index] for index in sorted(inside)]
                macs = sum(work[index] for index in inside)
                params = _params(walk, gone, readers, inside)
                titles = tuple(inner.name for inner in gone)
                found.append(Block(node.outputs[0], skip, branch, titles, params, macs))
                break
    return tuple(found)


def _sides(walk: Walk, node: Node) -> Iterator[tuple[str, str]]:
    """(skip, branch) for both operands of an addition of equal shapes."""
    if node.op not in ("Add", "Sum") or len(node.inputs) != 2 or node.inputs[0] == node.inputs[1]:
        return
    a, b, y = (walk.axes_of.get(name) for name in (*node.inputs, node.outputs[0]))
    if a is None or b is None or y is None or not _sizes(a) == _sizes(b) == _sizes(y):
        return
    yield node.inputs[0], node.inputs[1]
    yield node.inputs[1], node.inputs[0]


def _sizes(axes: list[Axis]) -> list[int]:
    return [axis.size for axis in axes]


def _captured(node: Node) -> Iterator[str]:
    for body in subgraphs(node.proto):
        for graph in walk_graphs(body):
            for proto in graph.node:
                yield from filter(None, proto.input)


def _only_for(
    tensor: str,
    addition: Node,
    nodes: dict[int, Node],
    makers: dict[str, int],
    readers: dict[str, set[int]],
    reads: dict[int, list[str]],
) -> set[int]:
    """The nodes whose results are read on the way to ``tensor`` alone, which ``addition`` reads."""
    inside: set[int] = set()
    stack = [tensor] if readers[tensor] == {addition.index} else []
    while stack:
        name = stack.pop()
        index = makers.get(name)
        if index is None or index in inside:
            continue
        others = [output for output in nodes[index].outputs if output and output != tensor]
        if all(readers[output] <= inside for output in others):
            inside.add(index)
            stack += reads[index]
    return inside


def _params(walk: Walk, gone: list[Node], readers: dict[str, set[int]], inside: set[int]) -> int:
    names = {name for node in gone for name in node.inputs if readers[name] <= inside}
    constants = (walk.constants[name] for name in sorted(names) if name in walk.constants)
    return sum(constant.elements for constant in constants if constant.is_parameter)
