"""Compute what depends on constants alone, where the result takes no more room than what it is made from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..analysis.errors import ModelError
from ..analysis.graph import subgraphs, walk_graphs
from ..analysis.model import Model
from ..analysis.storage import stored_bytes
from .edit import Edit
from .execute import Arrays, execute

_STANDARD = ("", "ai.onnx")
# Random, or kept on purpose: a DequantizeLinear tells the runtime that a weight is quantised.
_KEPT = frozenset(
    """Bernoulli DequantizeLinear Identity Multinomial QuantizeLinear RandomNormal RandomNormalLike
    RandomUniform RandomUniformLike""".split()
)


@dataclass(frozen=True)
class FoldConstants:
    """Replace nodes that read only constants by their results; equal results become one tensor.

    A transposed copy of a weight that is also read as it stands would make the model larger: it stays.
    """

    def __call__(self, model: Model) -> Model:
        edit = Edit(model.proto)
        graph = edit.proto.graph
        constants = _constants(graph)
        nodes = _foldable(graph, set(constants))
        inside = Counter(name for node in nodes for name in node.input)
        everywhere = _reads(graph)
        made = {name for node in nodes for name in node.output if name}
        results = sorted(name for name in made if everywhere[name] > inside[name])
        values = _evaluate(edit.proto, nodes, constants, results) if results else {}
        freed = {
            n: stored_bytes(constants[n]) for n in inside if n in constants and everywhere[n] == inside[n]
        }
        folded = [name for part in _independent(nodes, freed) for name in _smaller(part, values, freed)]
        if not folded:
            return model
        distinct: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        renamed = {}
        for name in folded:
            key = _key(values[name])
            if key not in distinct:
                distinct[key] = edit.constant(values[name], f"{name}.folded")
            renamed[name] = distinct[key]
        for inner in walk_graphs(graph):
            for node in inner.node:
                for i, name in enumerate(node.input):
                    node.input[i] = renamed.get(name, name)
        return Model(edit.finish(removable=lambda node: node.domain in _STANDARD), model.path)


def _key(value: NDArray[np.generic]) -> tuple[str, tuple[int, ...], bytes]:
    return value.dtype.name, value.shape, value.tobytes()


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers and Constant nodes; what can be fed is no constant."""
    fed = {info.name for info in graph.input}
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in fed}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in _STANDARD:
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def _foldable(graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """Nodes that read only constants, and whose results no graph gives as its output."""
    outputs = {output.name for inner in walk_graphs(graph) for output in inner.output}
    found = []
    for node in graph.node:
        if node.op_type in _KEPT or node.domain not in _STANDARD or any(subgraphs(node)):
            continue
        if (
            node.input
            and all(name in known for name in node.input if name)
            and outputs.isdisjoint(node.output)
        ):
            known.update(node.output)
            found.append(node)
    return found


def _reads(graph: onnx.GraphProto) -> Counter[str]:
    counts: Counter[str] = Counter()
    for inner in walk_graphs(graph):
        counts.update(output.name for output in inner.output)
        for node in inner.node:
            counts.update(node.input)
    return counts


def _evaluate(
    proto: onnx.ModelProto,
    nodes: list[onnx.NodeProto],
    constants: dict[str, onnx.TensorProto],
    results: list[str],
) -> Arrays:
    """The values of ``results``; none when the runtime cannot compute them."""
    tensors = []
    for name in sorted({name for node in nodes for name in node.input} & set(constants)):
        tensor = onnx.TensorProto()
        tensor.CopyFrom(constants[name])
        tensor.name = name
        tensors.append(tensor)
    outputs = [onnx.ValueInfoProto(name=name) for name in results]
    graph = helper.make_graph(nodes, "constants", [], outputs, tensors)
    try:
        return execute(
            helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version), {}
        )
    except ModelError:
        return {}


def _independent(nodes: list[onnx.NodeProto], freed: dict[str, int]) -> list[set[str]]:
    """Names that hang together through nodes or constants that nothing else reads."""
    links = nx.Graph()
    for node in nodes:
        names = [name for name in (*node.output, *node.input) if name in freed or name in node.output]
        nx.add_path(links, names)
    made = {name for node in nodes for name in node.output}
    for node in nodes:
        links.add_edges_from((name, node.output[0]) for name in node.input if name in made)
    return [set(part) for part in nx.connected_components(links)]


def _smaller(part: set[str], values: Arrays, freed: dict[str, int]) -> list[str]:
    """The results of a part, none when they take more room than the constants that become free."""
    names = sorted(part & set(values))
    if any(values[name].dtype.itemsize < 4 and values[name].dtype.kind in "fV" for name in names):
        return []  # rounded at every step, it would not be what the model computes with more bits
    sizes = {_key(values[name]): values[name].nbytes for name in names}
    return names if sum(sizes.values()) <= sum(freed.get(name, 0) for name in part) else []
