"""The same model computed in float32: a check of 16-bit models that is not drowned in their rounding."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from ..analysis.graph import walk_graphs

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
# Attributes that name a data type.
_TYPES = ("to", "dtype", "stash_type", "output_dtype", "softmax_precision")


def in_float32(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every 16-bit float tensor is float32; the model itself when it has none."""
    if not _has_halves(proto):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for graph in walk_graphs(copy.graph):
        for tensor in graph.initializer:
            _widen(tensor)
        for sparse in graph.sparse_initializer:
            _widen(sparse.values)
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type in _HALVES:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    _widen(attribute.t)
                elif attribute.name in _TYPES and attribute.i in _HALVES:
                    attribute.i = TensorProto.FLOAT
    return copy


def _has_halves(proto: onnx.ModelProto) -> bool:
    for graph in walk_graphs(proto.graph):
        if any(t.data_type in _HALVES for t in graph.initializer):
            return True
        if any(info.type.tensor_type.elem_type in _HALVES for info in graph.input):
            return True
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.t.data_type in _HALVES or (attribute.name in _TYPES and attribute.i in _HALVES):
                    return True
    return False


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in _HALVES:
        value = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
