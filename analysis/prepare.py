"""A model in the form that analysis reads: no model-local functions, each name defined once."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx.inliner

from .errors import ModelError
from .graph import subgraphs, walk_graphs
from .model import Model


def prepare(model: Model) -> Model:
    """The model with its functions written out, and with names that two bodies share made different.

    The model itself where there is nothing to do, as in most.

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
    if any(next(subgraphs(node), None) is not None for node in proto.graph.node) and _repeats(proto.graph):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        proto = copy
        taken: set[str] = set()
        _rename(proto.graph, {}, taken)
    return model if proto is model.proto else Model(proto, model.path)


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
        new, count = old, 0
        while new in taken:
            count += 1
            new = f"{old}.{count}"
        taken.add(new)
        names[old] = new
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
