"""A model in the form that analysis reads.

No model-local functions; each name defined once, also across bodies; a quantised constant made real once for
each of its readers, since sharing a constant ties nothing and sharing what is computed ties all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
import onnx.inliner

from .errors import ModelError
from .graph import subgraphs, walk_graphs
from .model import Model


def prepare(model: Model) -> Model:
    """The model in that form; itself where there is nothing to do, as in most.

    Raises:
        ModelError: a function cannot be written out.
    """
    proto = model.proto
    functions = {(function.domain, function.name) for function in proto.functions}
    if functions and any(
        (node.domain, node.op_type) in functions for graph in walk_graphs(proto.graph) for node in graph.node
    ):
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:  # raised by native code, without a class of its own
            raise ModelError(f"the functions of the model cannot be inlined: {error}") from None
    if len(list(walk_graphs(proto.graph))) > 1 and _repeats(proto.graph):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        taken: set[str] = set()
        _rename(proto.graph, {}, taken)
    shared = _shared_dequantised(proto.graph)
    if shared:
        if proto is model.proto:
            proto = onnx.ModelProto()
            proto.CopyFrom(model.proto)
        _give_each_its_own(proto.graph, shared)
    return model if proto is model.proto else Model(proto, model.path)


def _shared_dequantised(graph: onnx.GraphProto) -> set[str]:
    """Tensors that a DequantizeLinear makes from constants alone, and that several nodes read."""
    candidates = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    if not candidates:
        return set()
    constants = {tensor.name for tensor in graph.initializer}
    made = {node.output[0] for node in candidates if all(name in constants for name in node.input if name)}
    reads = Counter(name for node in graph.node for name in set(node.input))
    return {name for name in made if reads[name] > 1}


def _give_each_its_own(graph: onnx.GraphProto, shared: set[str]) -> None:
    taken = set(_defined(graph))
    makers = {node.output[0]: node for node in graph.node if node.output and node.output[0] in shared}
    seen: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        for name in dict.fromkeys(name for name in node.input if name in shared):
            if name in seen:
                copy = onnx.NodeProto()
                copy.CopyFrom(makers[name])
                copy.output[0] = _free(f"{name}.{len(seen)}", taken)
                copy.name = copy.output[0]
                nodes.append(copy)
                for i, read in enumerate(node.input):
                    if read == name:
                        node.input[i] = copy.output[0]
            seen.add(name)
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _free(name: str, taken: set[str]) -> str:
    new, count = name, 0
    while new in taken:
        count += 1
        new = f"{name}.{count}"
    taken.add(new)
    return new


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for info in graph.input:
        yield info.name
    inputs = {info.name for info in graph.input}
    for tensor in graph.initializer:
        if tensor.name not in inputs:
            yield tensor.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from filter(None, node.output)


def _repeats(graph: onnx.GraphProto) -> bool:
    names = [name for inner in walk_graphs(graph) for name in _defined(inner)]
    return len(set(names)) < len(names)


def _rename(graph: onnx.GraphProto, outer: dict[str, str], taken: set[str]) -> None:
    """Give what ``graph`` defines names that no graph before it has; ``outer`` maps what it captures."""
    names = dict(outer)
    for old in dict.fromkeys(_defined(graph)):
        names[old] = _free(old, taken)
    for info in (*graph.input, *graph.output, *graph.value_info):
        info.name = names.get(info.name, info.name)
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for fields in (node.input, node.output):
            for i, name in enumerate(fields):
                fields[i] = names.get(name, name)
        for inner in subgraphs(node):
            _rename(inner, names, taken)
