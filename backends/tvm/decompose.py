"""Operators that TVM's importer lacks, written as operators that it knows. ONNX in, ONNX out.

Each decomposition is a function of a `Writer` and a node: it writes nodes in the place of that one and
returns nothing, or writes none and returns why it cannot, in words that follow the operator's name; an empty
string says that nothing need be done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...analysis.graph import walk_graphs
from . import quantised
from .writer import Writer

Decomposition = Callable[[Writer, onnx.NodeProto], str | None]

# Weights of more elements take no part in shape inference but by their shape.
_SMALL = 256


def conv_transpose(writer: Writer, node: onnx.NodeProto) -> str | None:
    """``output_shape``, which the importer overlooks, as the padding it stands for."""
    attrs = writer.attributes(node)
    if "output_shape" not in attrs:
        return ""
    x, w = writer.shape(node.input[0]), writer.shape(node.input[1])
    if x is None or w is None:
        return "of an input whose shape is not static"
    axes = len(x) - 2
    ones, zeros = [1] * axes, [0] * axes
    strides, dilations = attrs.get("strides", ones), attrs.get("dilations", ones)
    extra, wanted = attrs.get("output_padding", zeros), attrs.pop("output_shape")[-axes:]
    kind = attrs.pop("auto_pad", b"NOTSET")
    before, after = [], []
    for i in range(axes):
        whole = strides[i] * (x[2 + i] - 1) + extra[i] + (w[2 + i] - 1) * dilations[i] + 1
        total = max(whole - wanted[i], 0)
        half = total // 2 if kind == b"SAME_UPPER" else total - total // 2
        before.append(half)
        after.append(total - half)
        extra = [*extra[:i], extra[i] + wanted[i] - (whole - total), *extra[i + 1 :]]
    attrs |= {"pads": before + after, "output_padding": extra}
    writer.give(node.output[0], writer.op("ConvTranspose", *node.input, **attrs))
    return None


TABLE: dict[str, Decomposition] = {
    "ConvTranspose": conv_transpose,
    **quantised.TABLE,
}


def decompose(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A model without the operators of `TABLE`, as far as it can be written without them.

    Args:
        proto: with static inputs. It is not changed; the result shares nothing with it.

    Returns:
        The model, ``proto`` itself if there is nothing to do, and for operators that stay the reason.
    """
    if not any(_taken(node) for graph in walk_graphs(proto.graph) for node in graph.node):
        return proto, {}
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    writer = writer_of(proto)
    reasons: dict[str, str] = {}
    changed = False
    for graph in walk_graphs(result.graph):
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            reason = TABLE[node.op_type](writer, node) if _taken(node) else ""
            written = writer.take_nodes()
            if reason is None:
                nodes += written
                changed = True
            else:
                nodes.append(node)
                if reason:
                    reasons.setdefault(node.op_type, reason)
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        graph.initializer.extend(writer.take_constants())
    return (result if changed else proto), reasons


def writer_of(proto: onnx.ModelProto) -> Writer:
    """A writer that knows the model's static shapes and constants."""
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 1)
    return Writer(_shapes(proto), *_constants(proto.graph), opset)


def _taken(node: onnx.NodeProto) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in TABLE


def _constants(graph: onnx.GraphProto) -> tuple[dict[str, NDArray[Any]], set[str]]:
    """Small constants of all graphs by name, and the names of all constants."""
    found, names = {}, set()
    for inner in walk_graphs(graph):
        tensors: list[tuple[str, onnx.TensorProto]] = [(t.name, t) for t in inner.initializer]
        for node in inner.node:
            if node.op_type == "Constant":
                tensors += [(node.output[0], a.t) for a in node.attribute if a.name == "value"]
        for name, tensor in tensors:
            names.add(name)
            if np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
                found[name] = numpy_helper.to_array(tensor)
    return found, names


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Static shapes by name. Inference copies weights, so that large ones are replaced by their types."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import)
    light.functions.extend(proto.functions)
    graph = light.graph
    graph.name = proto.graph.name or "graph"
    graph.node.extend(proto.graph.node)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    weights = {t.name: t for t in proto.graph.initializer}
    graph.input.extend(info for info in proto.graph.input if info.name not in weights)
    for name, tensor in weights.items():
        if np.prod(tensor.dims, dtype=np.int64) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    shapes = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for inner in walk_graphs(inferred.graph):
        for info in [*inner.input, *inner.value_info, *inner.output]:
            sizes = _sizes(info.type.tensor_type)
            if sizes is not None:
                shapes[info.name] = sizes
    return shapes


def _sizes(type_: TensorProto) -> tuple[int, ...] | None:
    dims: Sequence[Any] = type_.shape.dim
    if not type_.HasField("shape") or not all(dim.HasField("dim_value") for dim in dims):
        return None
    return tuple(dim.dim_value for dim in dims)
