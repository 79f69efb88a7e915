"""A model as the program sees it: the proto, where it came from, and the checks before any work starts."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from .errors import ModelError
from .graph import array_of, dense, subgraphs, tensor_of, walk_graphs


@dataclass(frozen=True)
class Model:
    """A loaded ONNX model. ``proto`` is never changed by any function of this package."""

    proto: onnx.ModelProto
    path: Path | None = None


class _NotSortedError(ModelError):
    """A node stands before one whose result it reads."""


def load(path: str | Path) -> Model:
    """Read a model and check that it can be worked on.

    External data is read only from inside the model's folder; weights that are stored sparsely become dense.

    Example:
        ``load("model.onnx").proto.graph.input[0].name``

    Raises:
        ModelError: the file is missing, empty, cut short, no ONNX model, or inconsistent; the message
            names the tensor or node.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ModelError(f"cannot read '{path}': it is no file")  # reading a pipe would wait for ever
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise ModelError(f"cannot read {str(path)!r}: no file can have that name") from None
    if not data:
        raise ModelError(f"'{path}' is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut short") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut short: it has no graph or no opset")
    tensors = list(_tensors(proto))
    _read_external(tensors, path.parent)
    for tensor in tensors:
        _check_tensor(tensor)
    for graph in walk_graphs(proto.graph):
        _make_dense(graph)
    try:
        _check_graph(proto.graph, set())
    except _NotSortedError:
        for graph in walk_graphs(proto.graph):
            _sort(graph)
        _check_graph(proto.graph, set())
    return Model(proto, path)


def _sort(graph: onnx.GraphProto) -> None:
    """Bring nodes that stand before what they read, as some converters leave them, into order; not cycles."""
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    reads = {i: {makers[n] for n in _read_by(node) if n in makers} for i, node in enumerate(graph.node)}
    try:
        order = list(TopologicalSorter(reads).static_order())
    except CycleError:
        return
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, in its bodies as well."""
    yield from node.input
    for body in subgraphs(node):
        for graph in walk_graphs(body):
            for inner in graph.node:
                yield from inner.input


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in walk_graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


_TENSOR, _TENSORS = onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == _TENSOR:
                yield attribute.t
            elif attribute.type == _TENSORS:
                yield from attribute.tensors


# ---------------------------------------------------------------------- external data


def _read_external(tensors: Iterable[TensorProto], folder: Path) -> None:
    """Bring external data into the tensors, one by one."""
    root = folder.resolve()
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _external_bytes(tensor, root)
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]


def _external_bytes(tensor: TensorProto, root: Path) -> bytes:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    target = _inside(root, location, tensor.name)
    expected = stored_bytes(tensor)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r} has an offset or length that is no number") from None
    if length != expected or offset < 0:
        raise ModelError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes of data, but its"
            f" external data is {length} bytes from {offset} on: export the model again"
        )
    try:
        size = target.stat().st_size
        if offset + length > size:
            raise ModelError(
                f"tensor {tensor.name!r} wants bytes {offset} to {offset + length} of {location!r},"
                f" which has {size}: the file was cut short"
            )
        with target.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise ModelError(
            f"cannot read {location!r}, the external data of tensor {tensor.name!r}: {error.strerror}"
        ) from None


def _inside(root: Path, location: str, tensor: str) -> Path:
    """The file at ``location`` with links followed, which must not lead out of the model's folder."""
    what = f"tensor {tensor!r} keeps its data in {location!r}"
    if not location:
        raise ModelError(f"tensor {tensor!r} has external data, but no file is named for it")
    if Path(location).is_absolute():
        raise ModelError(f"{what}, outside the model's folder: move it there and name it relatively")
    try:
        target = (root / location).resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, or a name that no file can have
        raise ModelError(f"{what}, which is no usable file name") from None
    if not target.is_relative_to(root):
        raise ModelError(f"{what}, outside the model's folder: move it there")
    if target.exists() and not target.is_file():
        raise ModelError(f"{what}, which is no file")
    return target


# ---------------------------------------------------------------------- sparse initializers


def _make_dense(graph: onnx.GraphProto) -> None:
    """Store sparse initializers as all others are."""
    for sparse in graph.sparse_initializer:
        _check_sparse(sparse)
        try:
            tensor = tensor_of(dense(sparse), sparse.values.name)
        except (MemoryError, ValueError):  # sizes that no array can have
            sizes = list(sparse.dims)
            raise ModelError(f"tensor {sparse.values.name!r} of shape {sizes} is too large") from None
        if sparse.values.doc_string:
            tensor.doc_string = sparse.values.doc_string
        tensor.metadata_props.extend(sparse.values.metadata_props)
        graph.initializer.append(tensor)
    del graph.sparse_initializer[:]


def _check_sparse(sparse: onnx.SparseTensorProto) -> None:
    """Hold that every value has a place in the tensor.

    Raises:
        ModelError: it has not.
    """
    name, sizes, count = sparse.values.name, list(sparse.dims), list(sparse.values.dims)
    what = f"the sparse tensor {name!r} of shape {sizes}"
    if any(size < 0 for size in sizes):
        raise ModelError(f"tensor {name!r} has a negative size: {sizes}")
    flat = list(sparse.indices.dims) == count
    if len(count) != 1 or not (flat or list(sparse.indices.dims) == [*count, len(sizes)]):
        raise ModelError(
            f"{what} has values of shape {count} at indices of shape {list(sparse.indices.dims)}:"
            " export the model again"
        )
    if sparse.indices.data_type != TensorProto.INT64:
        raise ModelError(f"{what} has indices that are no 64-bit integers: export the model again")
    indices = array_of(sparse.indices)
    limits = math.prod(sizes) if flat else np.array(sizes, np.int64)
    if ((indices < 0) | (indices >= limits)).any():
        raise ModelError(f"{what} has values outside of it: export the model again")


# ---------------------------------------------------------------------- checks

_BITS = {
    getattr(TensorProto, name): bits
    for bits, names in ((4, ("INT4", "UINT4", "FLOAT4E2M1")), (2, ("INT2", "UINT2")))
    for name in names
    if hasattr(TensorProto, name)
}


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes of the tensor's elements in ONNX's raw form; types below 8 bits are packed.

    Raises:
        ModelError: the data type is unknown, or has no raw form (strings).
    """
    bits = _bits(tensor.data_type)
    if bits is None:
        raise ModelError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}")
    if not bits:
        raise ModelError(f"tensor {tensor.name!r} holds strings as raw bytes, which ONNX does not allow")
    return -(-_count(tensor) * bits // 8)


@functools.cache
def _bits(data_type: int) -> int | None:
    """Bits of an element in ONNX's raw form; 0 for strings, None for an unknown type."""
    if data_type in _BITS:
        return _BITS[data_type]
    try:
        dtype = helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return None
    return 0 if dtype.hasobject else 8 * dtype.itemsize


def _count(tensor: TensorProto) -> int:
    dims = list(tensor.dims)
    if dims and min(dims) < 0:
        raise ModelError(f"tensor {tensor.name!r} has a negative size: {dims}")
    return math.prod(dims)  # Python integers: the product may pass any machine word


def check(proto: onnx.ModelProto) -> None:
    """Linear-time checks of what every later step relies on.

    Raises:
        ModelError: a tensor's data does not fit its shape, a name is defined twice, or a node reads a
            tensor that nothing before it makes.
    """
    for tensor in _tensors(proto):
        _check_tensor(tensor)
    _check_graph(proto.graph, set())


def _check_tensor(tensor: TensorProto) -> None:
    if tensor.HasField("raw_data"):
        expected, found, unit = stored_bytes(tensor), len(tensor.raw_data), "bytes of data"
    elif tensor.data_type in _BITS:
        return  # unpacked or packed by version of ONNX; read by onnx.numpy_helper
    else:
        try:
            field = helper.tensor_dtype_to_field(tensor.data_type)
        except KeyError:
            raise ModelError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}") from None
        complex_ = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
        expected, found, unit = _count(tensor) * (1 + complex_), len(getattr(tensor, field)), "elements"
    if found != expected:
        raise ModelError(
            f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} {unit} and has {found}:"
            " export the model again"
        )


def _check_graph(graph: onnx.GraphProto, known: set[str]) -> None:
    """``known`` holds the names of the graphs around this one; it is as before on return."""
    stored = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    for what, names in (("initializer", stored), ("input", [info.name for info in graph.input])):
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise ModelError(f"the {what} {twice!r} is defined twice")
    own = {*stored, *(info.name for info in graph.input)} - known
    known |= own
    made: list[str] = []
    for node in graph.node:
        for name in node.input:
            if name not in known and name:
                if any(name in other.output for other in graph.node):
                    why = "only a node after it makes: a cycle, or not sorted"
                    raise _NotSortedError(f"{_title(node)} reads {name!r}, which {why}")
                raise ModelError(f"{_title(node)} reads {name!r}, which nothing makes")
        for inner in subgraphs(node):
            _check_graph(inner, known)
        for name in node.output:
            if name in known:
                raise ModelError(f"{name!r}, made by {_title(node)}, is defined twice")
            if name:
                known.add(name)
                made.append(name)
    for output in graph.output:
        if output.name not in known:
            raise ModelError(f"nothing makes the output {output.name!r}")
    known -= own
    known.difference_update(made)


def _title(node: onnx.NodeProto) -> str:
    operator = node.op_type.encode("unicode_escape").decode()  # one line, whatever a damaged file says
    return f"{operator} {node.name or next(iter(node.output), '')!r}"
