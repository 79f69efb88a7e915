"""Edits of a model's proto: new constants, inserted nodes, what became dead.

Passes edit a copy of the proto and not a graph of objects, so that all they do not touch (metadata,
doc strings, training_info, functions, attributes of unknown operators) stays verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from ..analysis.graph import subgraphs, tensor_of, walk_graphs


def node_key(node: onnx.NodeProto) -> str:
    """A name for a node: its first output, which no other node of the model has."""
    output = node.output
    return output[0] if output and output[0] else next(filter(None, output), "")


class Edit:
    """A copy of a model under change. `finish` gives the result; the original is never touched."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.graphs = list(walk_graphs(self.proto.graph))
        self.nodes = {node_key(node): node for graph in self.graphs for node in graph.node}
        self._added: dict[str, onnx.TensorProto] = {}
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._keys: dict[str, str] = {}  # present first output -> key, for nodes whose output was renamed

    @cached_property
    def _names(self) -> set[str]:
        return {name for graph in self.graphs for name in _names(graph)}

    def fresh(self, hint: str) -> str:
        """A name nothing has yet."""
        name, count = hint, 0
        while name in self._names:
            count += 1
            name = f"{hint}.{count}"
        self._names.add(name)
        return name

    def constant(self, value: NDArray[Any], hint: str) -> str:
        """Add an initializer; its name."""
        name = self.fresh(hint)
        self._added[name] = tensor_of(value, name)
        return name

    def insert_before(self, key: str, op: str, inputs: list[str], hint: str, **attrs: Any) -> str:
        """Add a node with one output before the node ``key``; the output's name."""
        output = self.fresh(hint)
        self._before.setdefault(key, []).append(helper.make_node(op, inputs, [output], **attrs))
        return output

    def insert_after(self, key: str, op: str, inputs: list[str], output: str, **attrs: Any) -> None:
        self._after.setdefault(key, []).append(helper.make_node(op, inputs, [output], **attrs))

    def rename_output(self, node: onnx.NodeProto, o: int, hint: str) -> str:
        """Give an output of a node a fresh name, for nodes after it to make the old one from."""
        key = self._key(node)
        node.output[o] = self.fresh(hint)
        self._keys[node_key(node)] = key
        return str(node.output[o])

    def _key(self, node: onnx.NodeProto) -> str:
        return self._keys.get(node_key(node), node_key(node))

    def set_input(self, node: onnx.NodeProto, i: int, name: str) -> None:
        while len(node.input) <= i:
            node.input.append("")
        node.input[i] = name

    def finish(self, removable: Callable[[onnx.NodeProto], bool] = lambda node: False) -> onnx.ModelProto:
        """The edited model, without nodes that are ``removable`` and dead, and without dead initializers."""
        inserted = self._before.keys() | self._after.keys()
        for graph in reversed(self.graphs):  # bodies first: nodes around them are copied with what they hold
            if inserted and any(self._key(node) in inserted for node in graph.node):
                nodes: list[onnx.NodeProto] = []
                for node in graph.node:
                    key = self._key(node)
                    nodes += [*self._before.get(key, ()), node, *self._after.get(key, ())]
                copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
                del graph.node[:]
                graph.node.extend(copies)
        self.graphs = list(walk_graphs(self.proto.graph))
        self.proto.graph.initializer.extend(self._added.values())
        drop_dead(self.proto.graph, removable)
        return self.proto

    def rename_initializers(self, names: dict[str, str]) -> None:
        """Give initializers of the finished model other names; one that has such a name makes room."""
        taken = set(names.values())
        for graph in self.graphs:
            _drop(graph.initializer, lambda tensor: tensor.name in taken)
            for tensor in graph.initializer:
                tensor.name = names.get(tensor.name, tensor.name)
            for node in graph.node:
                for i, name in enumerate(node.input):
                    if name in names:
                        node.input[i] = names[name]


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.output
    for tensor in graph.initializer:
        yield tensor.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for info in graph.input:
        yield info.name


def drop_dead(graph: onnx.GraphProto, removable: Callable[[onnx.NodeProto], bool]) -> None:
    """Remove ``removable`` nodes that nothing reads, then initializers that nothing reads.

    An initializer that is the default of an input stays: without it the input would have to be given.
    """
    needed = {output.name for output in graph.output}
    needed.update(info.name for info in graph.input)
    _sweep(graph, needed, removable)
    for inner in walk_graphs(graph):
        _drop(inner.initializer, lambda tensor: tensor.name not in needed)
        _drop(inner.sparse_initializer, lambda tensor: tensor.values.name not in needed)


def _sweep(graph: onnx.GraphProto, needed: set[str], removable: Callable[[onnx.NodeProto], bool]) -> None:
    needed.update(output.name for output in graph.output)
    dead = set()
    for node in reversed(graph.node):
        if needed.isdisjoint(filter(None, node.output)) and removable(node):
            dead.add(node_key(node))
            continue
        needed.update(node.input)
        for inner in subgraphs(node):
            _sweep(inner, needed, removable)
    if dead:
        _drop(graph.node, lambda node: node_key(node) in dead)


def _drop(field: Any, gone: Callable[[Any], bool]) -> None:
    """Remove elements of a repeated field: moved to its end first, since removing one by one is quadratic."""
    count = sum(map(gone, field))
    if count:
        field.sort(key=gone)
        del field[len(field) - count :]
