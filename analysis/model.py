"""A model as the program sees it: the proto, where it came from, and the checks before any work starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from .errors import ModelError
from .graph import subgraphs, walk_graphs


@dataclass(frozen=True)
class Model:
    """A loaded ONNX model. ``proto`` is never changed by any function of this package."""

    proto: onnx.ModelProto
    path: Path | None = None


def load(path: str | Path) -> Model:
    """Read a model and check that it can be worked on.

    External data is read only from inside the model's folder.

    Raises:
        ModelError: the file is missing, empty, cut short, no ONNX model, or inconsistent; the message
            names the tensor or node.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from None
    if not data:
        raise ModelError(f"'{path}' is empty")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"'{path}' is not an ONNX model, or it was cut short") from None
    if not proto.HasField("graph") or not proto.opset_import:
        raise ModelError(f"'{path}' is not an ONNX model: it has no graph or no opset")
    _read_external(proto, path.parent)
    check(proto)
    return Model(proto, path)


def _tensors(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in walk_graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t


def _read_external(proto: onnx.ModelProto, folder: Path) -> None:
    """Bring external tensor data into the proto."""
    root = folder.resolve()
    for tensor in _tensors(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        target = (root / location).resolve()
        if not location or Path(location).is_absolute() or not target.is_relative_to(root):
            raise ModelError(
                f"tensor '{tensor.name}' keeps its data in '{location}', outside the model's folder:"
                " move it there"
            )
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
            size = target.stat().st_size
            wanted = size - offset if length < 0 else length
            if offset < 0 or wanted < 0 or offset + wanted > size:
                raise ModelError(
                    f"tensor '{tensor.name}' wants bytes {offset} to {offset + wanted} of '{location}',"
                    f" which has {size}: the file was cut short"
                )
            with target.open("rb") as file:
                file.seek(offset)
                tensor.raw_data = file.read(wanted)
        except ValueError:
            raise ModelError(f"tensor '{tensor.name}' has an offset or length that is no number") from None
        except OSError as error:
            raise ModelError(
                f"cannot read '{location}', the data of tensor '{tensor.name}': {error.strerror}"
            ) from None
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


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
    if any(size < 0 for size in tensor.dims):
        raise ModelError(f"tensor '{tensor.name}' has a negative size: {list(tensor.dims)}")
    if not tensor.HasField("raw_data"):
        return
    try:
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise ModelError(f"tensor '{tensor.name}' has the unknown data type {tensor.data_type}") from None
    count = 1
    for size in tensor.dims:  # Python integers: the product may pass any machine word
        count *= size
    packed = tensor.data_type in _HALF_BYTE
    expected = -(-count // 2) if packed else count * np.dtype(dtype).itemsize
    if len(tensor.raw_data) != expected:
        raise ModelError(
            f"tensor '{tensor.name}' of shape {list(tensor.dims)} needs {expected} bytes of data"
            f" and has {len(tensor.raw_data)}"
        )


_HALF_BYTE = {
    getattr(TensorProto, name) for name in ("INT4", "UINT4", "FLOAT4E2M1") if hasattr(TensorProto, name)
}


def _check_graph(graph: onnx.GraphProto, outer: set[str]) -> None:
    known = set(outer)
    known.update(info.name for info in graph.input)
    stored = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    if len(set(stored)) < len(stored):
        twice = next(name for name in stored if stored.count(name) > 1)
        raise ModelError(f"the initializer '{twice}' is defined twice")
    known.update(stored)
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"node '{node.name or node.op_type}' reads '{name}', which nothing before it makes"
                )
        for inner in subgraphs(node):
            _check_graph(inner, known)
        for name in node.output:
            if name and name in known:
                raise ModelError(f"'{name}', made by node '{node.name or node.op_type}', is defined twice")
            if name:
                known.add(name)
    for output in graph.output:
        if output.name not in known:
            raise ModelError(f"the output '{output.name}' is made by no node")
