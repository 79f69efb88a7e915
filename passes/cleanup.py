"""Remove what does nothing: dead nodes and initializers, Identity, BatchNormalization after a convolution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..analysis.graph import subgraphs, walk_graphs
from ..analysis.model import Model
from .edit import Edit, node_key

# Operators that can be dropped when nothing reads their results: they have no other effect.
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Cleanup:
    """Options of the pass.

    Attributes:
        fold_batch_norm: merge a BatchNormalization into the convolution before it. Results then agree
            within rounding, no longer bit for bit.
    """

    fold_batch_norm: bool = True

    def __call__(self, model: Model) -> Model:
        edit = Edit(model.proto)
        _skip_identities(edit.proto.graph)
        _merge_dequantised(edit.proto.graph)
        if self.fold_batch_norm:
            _fold_batch_norms(edit)
        proto = edit.finish(removable=lambda node: node.domain in _STANDARD)
        return Model(proto, model.path)


def cleanup(model: Model) -> Model:
    """`Cleanup` with its default options."""
    return Cleanup()(model)


def _readers(proto: onnx.ModelProto) -> Counter[str]:
    """How often each name is read, captures and graph outputs included."""
    counts: Counter[str] = Counter()
    for graph in walk_graphs(proto.graph):
        counts.update(output.name for output in graph.output)
        for node in graph.node:
            counts.update(node.input)
    return counts


def _skip_identities(graph: onnx.GraphProto) -> None:
    """Let readers of an Identity read its input. Outputs of a graph keep theirs: their name must stay."""
    source: dict[str, str] = {}
    _collect_identities(graph, source)
    for inner in walk_graphs(graph):
        for node in inner.node:
            for i, name in enumerate(node.input):
                if name in source:
                    node.input[i] = source[name]


def _collect_identities(graph: onnx.GraphProto, source: dict[str, str]) -> None:
    for node in graph.node:
        if node.op_type == "Identity" and node.domain in _STANDARD:
            source[node.output[0]] = source.get(node.input[0], node.input[0])
        for inner in subgraphs(node):
            _collect_identities(inner, source)


def _merge_dequantised(graph: onnx.GraphProto) -> None:
    """A constant is made real once for all readers that want the same of it."""
    first: dict[tuple[tuple[str, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and all(name in constants for name in node.input if name):
            attributes = b"".join(a.SerializeToString() for a in node.attribute)
            renamed[node.output[0]] = first.setdefault((tuple(node.input), attributes), node.output[0])
    for inner in walk_graphs(graph) if renamed else ():
        for node in inner.node:
            for i, name in enumerate(node.input):
                if name in renamed:
                    node.input[i] = renamed[name]


def _fold_batch_norms(edit: Edit) -> None:
    graph = edit.proto.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = _readers(edit.proto)
    makers = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    gone = []
    for i, norm in enumerate(graph.node):
        if norm.op_type != "BatchNormalization" or norm.domain not in _STANDARD or len(norm.output) > 1:
            continue
        conv = makers.get(norm.input[0])
        if conv is None or readers[norm.input[0]] > 1:
            continue
        if any(name not in weights for name in (*conv.input[1:], *norm.input[1:]) if name):
            continue
        if weights[conv.input[1]].data_type not in (TensorProto.FLOAT, TensorProto.DOUBLE):
            continue  # a product rounded to fewer bits is another model
        scale, shift, mean, variance = (
            numpy_helper.to_array(weights[name]).astype(np.float64) for name in norm.input[1:5]
        )
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        weight = numpy_helper.to_array(weights[conv.input[1]])
        bias = np.zeros(1)
        if len(conv.input) > 2 and conv.input[2]:
            bias = numpy_helper.to_array(weights[conv.input[2]]).astype(np.float64)
        folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        key = node_key(conv)
        edit.set_input(conv, 1, edit.constant(folded.astype(weight.dtype), f"{conv.input[1]}.folded"))
        edit.set_input(
            conv, 2, edit.constant(((bias - mean) * factor + shift).astype(weight.dtype), f"{key}.bias")
        )
        conv.output[0] = norm.output[0]
        gone.append(i)
    for i in reversed(gone):
        del graph.node[i]
