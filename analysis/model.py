"""A model as the program sees it: the proto, where it came from, and the checks before any work starts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from .errors import ModelError
from .graph import array_of, dense, subgraphs, tensor_of, walk_graphs
from .storage import BITS, Extent, Storage, count, stored_bits, stored_bytes
from .wire import is_deferred, without_weights


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
    proto = _read(path, lambda: _whole(path))
    storage = Storage(path.parent)
    for tensor in _tensors(proto):
        storage.bring_in(tensor)
    return Model(_sound(proto), path)


def load_structure(path: str | Path) -> tuple[Model, Storage]:
    """Read a model but for its large parameters, which stay in its files, and where those are.

    Such parameters are tensors with external data. The same checks are made as when all is read.

    Raises:
        ModelError: as for `load`.
    """
    path = Path(path)
    embedded: dict[str, Extent] = {}

    def read() -> onnx.ModelProto:
        proto, found = without_weights(path)
        embedded.update(found)
        return proto

    proto, storage = _read(path, read), Storage(path.parent, embedded)
    for tensor in _tensors(proto):
        if tensor.data_location == TensorProto.EXTERNAL and not is_deferred(tensor):
            storage.bring_in(tensor)
    return Model(_sound(proto, storage), path), storage


def _read(path: Path, read: Callable[[], onnx.ModelProto]) -> onnx.ModelProto:
    """What ``read`` reads from a file, or why it cannot."""
    if path.exists() and not path.is_file():
        raise ModelError(f"cannot read '{path}': it is no file")  # reading a pipe would wait for ever
    try:
        if path.exists() and not path.stat().st_size:
            raise ModelError(f"'{path}' is empty")
        proto = read()
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from None
    except ValueError:
        raise ModelError(f"cannot read {str(path)!r}: no file can have that name") from None
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut short") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut short: it has no graph or no opset")
    return proto


def _whole(path: Path) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.ParseFromString(path.read_bytes())
    return proto


def _sound(proto: onnx.ModelProto, storage: Storage | None = None) -> onnx.ModelProto:
    """The model, checked, with dense weights and sorted nodes, in place."""
    for tensor in _tensors(proto):
        _check_tensor(tensor, storage)
    for graph in walk_graphs(proto.graph):
        _make_dense(graph)
    try:
        _check_graph(proto.graph, set())
    except _NotSortedError:
        for graph in walk_graphs(proto.graph):
            _sort(graph)
        _check_graph(proto.graph, set())
    return proto


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


def check(proto: onnx.ModelProto) -> None:
    """Linear-time checks of what every later step relies on.

    Raises:
        ModelError: a tensor's data does not fit its shape, a name is defined twice, or a node reads a
            tensor that nothing before it makes.
    """
    for tensor in _tensors(proto):
        _check_tensor(tensor)
    _check_graph(proto.graph, set())


def _check_tensor(tensor: TensorProto, storage: Storage | None = None) -> None:
    if storage is not None and tensor.data_location == TensorProto.EXTERNAL:
        storage.extent(tensor)
        return
    if tensor.HasField("raw_data"):
        expected, found, unit = stored_bytes(tensor), len(tensor.raw_data), "bytes of data"
    elif tensor.data_type in BITS:
        return  # unpacked or packed by version of ONNX; read by onnx.numpy_helper
    else:
        try:
            field = helper.tensor_dtype_to_field(tensor.data_type)
        except KeyError:
            raise ModelError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}") from None
        complex_ = tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
        expected, found, unit = count(tensor) * (1 + complex_), len(getattr(tensor, field)), "elements"
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
    _check_text(*stored, *(info.name for info in (*graph.input, *graph.output)))
    for info in (*graph.input, *graph.output, *graph.value_info):
        element = info.type.tensor_type.elem_type
        if element and stored_bits(element) is None:
            raise ModelError(f"{info.name!r} has the unknown data type {element}")
    own = {*stored, *(info.name for info in graph.input)} - known
    known |= own
    made: list[str] = []
    for node in graph.node:
        _check_text(node.op_type, node.domain, node.name, *node.input, *node.output)
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


def _check_text(*names: object) -> None:
    """Hold that names and operators are text: protobuf gives bytes for what is not."""
    wrong = next((name for name in names if not isinstance(name, str)), None)
    if wrong is not None:
        raise ModelError(f"{wrong!r} is no text, and cannot be a name or an operator: the file is damaged")


def _title(node: onnx.NodeProto) -> str:
    operator = node.op_type.encode("unicode_escape").decode()  # one line, whatever a damaged file says
    return f"{operator} {node.name or next(iter(node.output), '')!r}"
