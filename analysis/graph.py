"""The small view of a graph that analysis reads: nodes as plain records, constants without their data."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Array = NDArray[Any]

# A parameter of more elements is a weight: its values never enter shape arithmetic.
WEIGHT_ELEMENTS = 64


@dataclass(slots=True, eq=False)
class Node:
    """One node. ``index`` counts nodes in the order they are met, subgraphs where they stand."""

    index: int
    proto: onnx.NodeProto
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]

    @property
    def name(self) -> str:
        """How messages call this node."""
        return f"{self.op} '{self.proto.name or self.key}'"

    @property
    def key(self) -> str:
        """Its first output, which no other node of the model has."""
        return self.outputs[0] or next(filter(None, self.outputs), "")

    def has(self, i: int) -> bool:
        """Whether input ``i`` is connected."""
        return i < len(self.inputs) and bool(self.inputs[i])


_READ: dict[int, Callable[[onnx.AttributeProto], Any]] = {
    onnx.AttributeProto.INT: lambda a: a.i,
    onnx.AttributeProto.FLOAT: lambda a: a.f,
    onnx.AttributeProto.STRING: lambda a: a.s,
    onnx.AttributeProto.INTS: lambda a: list(a.ints),
    onnx.AttributeProto.TENSOR: lambda a: a.t,
}


def read_node(index: int, proto: onnx.NodeProto) -> Node:
    domain = proto.domain
    op = proto.op_type if not domain or domain == "ai.onnx" else f"{domain}::{proto.op_type}"
    attrs = {a.name: _READ.get(a.type, helper.get_attribute_value)(a) for a in proto.attribute}
    return Node(index, proto, op, tuple(proto.input), tuple(proto.output), attrs)


@dataclass(slots=True, eq=False)
class Constant:
    """A tensor whose value is known before the model runs.

    ``tensor`` is set for an initializer (or a Constant node); a folded value has only ``known``.
    ``static`` tells which elements are the same whatever the sizes known only at run time; None for all.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    tensor: onnx.TensorProto | onnx.SparseTensorProto | None = None
    known: Array | None = None
    static: NDArray[np.bool_] | None = None

    @property
    def value(self) -> Array:
        if self.known is None:
            assert self.tensor is not None
            if isinstance(self.tensor, onnx.SparseTensorProto):
                self.known = dense(self.tensor)
            else:
                self.known = array_of(self.tensor)
        return self.known

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        # The 16-bit and 8-bit floats of ml_dtypes have kind 'V'.
        return self.dtype.kind in "fV"

    @property
    def is_parameter(self) -> bool:
        """Whether its elements are learned numbers: floats, or integers of at most eight bits."""
        return _is_parameter(self.dtype)

    @property
    def is_weight(self) -> bool:
        return self.is_parameter and self.elements > WEIGHT_ELEMENTS


def _is_parameter(dtype: np.dtype[Any]) -> bool:
    # The 16-bit and 8-bit floats of ml_dtypes have kind 'V'.
    return dtype.kind in "fV" or (dtype.kind in "iu" and dtype.itemsize == 1)


def is_parameter(data_type: int) -> bool:
    """Whether tensors of a type of ONNX hold learned numbers: floats, or integers of at most eight bits."""
    try:
        return _is_parameter(_dtype(data_type))
    except KeyError:
        return False


def constant_of(tensor: onnx.TensorProto | onnx.SparseTensorProto, name: str | None = None) -> Constant:
    stored = tensor.values if isinstance(tensor, onnx.SparseTensorProto) else tensor
    return Constant(name or stored.name, tuple(tensor.dims), _dtype(stored.data_type), tensor)


@functools.cache
def _dtype(data_type: int) -> np.dtype[Any]:
    return helper.tensor_dtype_to_np_dtype(data_type)


# Types whose raw bytes are the array, on the little-endian machines ONNX's raw form is made for.
_PLAIN = frozenset("?bBhHiIlLqQefd")


def array_of(tensor: onnx.TensorProto) -> Array:
    """The value of a tensor; a view of its bytes where it can be."""
    dtype = _dtype(tensor.data_type)
    if dtype.char in _PLAIN and tensor.HasField("raw_data") and sys.byteorder == "little":
        return np.frombuffer(tensor.raw_data, dtype).reshape(tuple(tensor.dims))
    return numpy_helper.to_array(tensor)


def tensor_of(value: Array, name: str) -> onnx.TensorProto:
    """The tensor of a value."""
    data_type = _TYPES.get(value.dtype.char)
    if data_type is None or sys.byteorder != "little":
        return numpy_helper.from_array(np.ascontiguousarray(value), name)
    return onnx.TensorProto(dims=value.shape, data_type=data_type, raw_data=value.tobytes(), name=name)


_TYPES = {char: helper.np_dtype_to_tensor_dtype(np.dtype(char)) for char in "?bBhHiIlLefd"}


def dense(tensor: onnx.SparseTensorProto) -> Array:
    """The whole array of a sparse tensor, whose indices are flat or one row of coordinates an element."""
    values, indices = numpy_helper.to_array(tensor.values), numpy_helper.to_array(tensor.indices)
    out = np.full(tuple(tensor.dims), "" if values.dtype.hasobject else 0, values.dtype)
    if indices.ndim == 1:
        out.reshape(-1)[indices] = values
    else:
        out[tuple(indices.T)] = values
    return out


def folded(name: str, value: Array, static: NDArray[np.bool_] | None = None) -> Constant:
    return Constant(name, value.shape, value.dtype, known=value, static=static)


# Operators of the standard domain that hold graphs: asking every node for its attributes is slow.
_HOLD_GRAPHS = frozenset(["If", "Loop", "Scan", "SequenceMap"])
_GRAPH, _GRAPHS = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS


def subgraphs(proto: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs held by a node's attributes (bodies of If, Loop and Scan)."""
    if proto.op_type not in _HOLD_GRAPHS and not proto.domain:
        return
    for attribute in proto.attribute:
        if attribute.type == _GRAPH:
            yield attribute.g
        elif attribute.type == _GRAPHS:
            yield from attribute.graphs


def walk_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """``graph`` and every graph inside it."""
    yield graph
    for node in graph.node:
        if node.op_type in _HOLD_GRAPHS or node.domain:
            for inner in subgraphs(node):
                yield from walk_graphs(inner)
