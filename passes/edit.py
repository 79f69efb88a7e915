"""Edits of a model's proto: new constants, inserted nodes, what became dead.

Passes edit a copy of the proto and not a graph of objects, so that all they do not touch (metadata,
doc strings, training_info, functions, attributes of unknown operators) stays verbatim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from ..analysis.graph import subgraphs, walk_graphs


def node_key(node: onnx.NodeProto) -> str:
    """A name for a node: its first output, which no other node of the model has."""
    return next((name for name in node.output if name), "")


class Edit:
    """A copy of a model under change. `finish` gives the result; the original is never touched."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.nodes = {node_key(n): n for g in walk_graphs(self.proto.graph) for n in g.node}
        self._names = {name for g in walk_graphs(self.proto.graph) for name in _names(g)}
        self._added: dict[str, onnx.TensorProto] = {}
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._after: dict[str, list[onnx.NodeProto]] = {}
        self._keys: dict[str, str] = {}  # present first output -> key, for nodes whose output was renamed

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
        self._added[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
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
        for graph in walk_graphs(self.proto.graph):
            if any(self._key(n) in self._before or self._key(n) in self._after for n in graph.node):
                nodes: list[onnx.NodeProto] = []
                for node in graph.node:
                    key = self._key(node)
                    nodes += [*self._before.get(key, ()), node, *self._after.get(key, ())]
                copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
                del graph.node[:]
                graph.node.extend(copies)
        self.proto.graph.initializer.extend(self._added.values())
        drop_dead(self.proto.graph, removable)
        return self.proto

    def rename_initializers(self, names: dict[str, str]) -> None:
        """Give initializers of the finished model other names; one that has such a name makes room."""
        taken = set(names.values())
        for graph in walk_graphs(self.proto.graph):
            for i in reversed(range(len(graph.initializer))):
                if graph.initializer[i].name in taken:
                    del graph.initializer[i]
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
        dead = [i for i, t in enumerate(inner.initializer) if t.name not in needed]
        for i in reversed(dead):
            del inner.initializer[i]


def _sweep(graph: onnx.GraphProto, needed: set[str], removable: Callable[[onnx.NodeProto], bool]) -> None:
    needed.update(output.name for output in graph.output)
    dead = []
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if removable(node) and not any(name in needed for name in node.output if name):
            dead.append(i)
            continue
        needed.update(node.input)
        for inner in subgraphs(node):
            _sweep(inner, needed, removable)
    for i in dead:
        del graph.node[i]
