"""Write a model so that a reader never meets half of it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
from onnx import TensorProto

from ..analysis.errors import OutputError
from ..analysis.graph import walk_graphs
from ..analysis.model import Model

# Protobuf cannot serialise 2 GiB in one piece; the rest is for the structure around the weights.
PROTO_LIMIT = (1 << 31) - (1 << 26)
# Tensors of fewer bytes stay in the model file; others start at a multiple, so that runtimes can map them.
_PAGE = 4096


def save(model: Model, path: str | Path, limit: int = PROTO_LIMIT) -> None:
    """Write ``model`` to ``path`` in one step: all of it, or nothing.

    The same model gives the same bytes. Weights of ``limit`` bytes or more together go to ``PATH.data``
    beside it, as ONNX external data; that file is in place before the model that names it. Sparse
    initializers stay in the model file: ONNX's own tools do not find them elsewhere.

    Example:
        ``save(prune(load("model.onnx"), ratio=0.5).model, "smaller.onnx")``

    Raises:
        OutputError: the file cannot be written, or what stays in it is more than protobuf can serialise.
    """
    path = Path(path)
    if sum(len(tensor.raw_data) for tensor in _stored(model.proto)) < limit:
        _write_bytes(path, model.proto.SerializeToString(deterministic=True))
        return
    data = path.with_name(path.name + ".data")
    check_writable(path)
    small = _without_weights(model.proto)
    inside = sum(len(tensor.raw_data) for tensor in _stored(small))
    if inside >= PROTO_LIMIT:
        raise OutputError(
            f"cannot write '{path}': sparse initializers and weights of bodies stay in the model file, and"
            f" have {inside:,} bytes, more than protobuf can serialise"
        )
    large = [tensor for tensor in model.proto.graph.initializer if _is_large(tensor)]

    def write_weights(temporary: Path) -> None:
        with temporary.open("wb") as file:
            for tensor in large:
                file.write(bytes(-file.tell() % _PAGE))
                start = file.tell()
                file.write(tensor.raw_data)
                small.graph.initializer.append(_reference(tensor, data.name, start, file.tell() - start))
            _sync(file.fileno(), file.flush)

    write_atomic(data, write_weights)
    _write_bytes(path, small.SerializeToString(deterministic=True))


def save_text(text: str, path: str | Path) -> None:
    """Write a UTF-8 text file in one step. Raises OutputError."""
    _write_bytes(Path(path), text.encode())


def _stored(proto: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in walk_graphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _is_large(tensor: TensorProto) -> bool:
    return len(tensor.raw_data) >= _PAGE


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which the main graph lacks its large initializers; they are never copied."""
    copy = onnx.ModelProto()
    for field, value in proto.ListFields():
        if field.name == "graph":
            _copy_fields(value, copy.graph, skip="initializer")
        else:
            _copy_field(copy, field.name, value)
    copy.graph.initializer.extend(tensor for tensor in proto.graph.initializer if not _is_large(tensor))
    return copy


def _copy_fields(source: onnx.GraphProto, target: onnx.GraphProto, skip: str) -> None:
    for field, value in source.ListFields():
        if field.name != skip:
            _copy_field(target, field.name, value)


def _copy_field(target: onnx.ModelProto | onnx.GraphProto, name: str, value: object) -> None:
    if isinstance(value, int | float | str | bytes):
        setattr(target, name, value)
    else:  # a message, or repeated: both merge into an empty one as a copy
        getattr(target, name).MergeFrom(value)


def _reference(tensor: TensorProto, location: str, offset: int, length: int) -> TensorProto:
    reference = TensorProto(
        name=tensor.name,
        dims=tensor.dims,
        data_type=tensor.data_type,
        doc_string=tensor.doc_string,
        data_location=TensorProto.EXTERNAL,
    )
    reference.metadata_props.extend(tensor.metadata_props)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        reference.external_data.add(key=key, value=value)
    return reference


# ---------------------------------------------------------------------- files


def _write_bytes(path: Path, data: bytes) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            file.write(data)
            _sync(file.fileno(), file.flush)

    write_atomic(path, write)


def _sync(handle: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(handle)


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then put it in place.

    A link is followed: the file it points to is replaced. Whatever happens, the temporary file is gone.

    Raises:
        OutputError: naming ``path``.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    temporary: Path | None = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".onnx-prune-", suffix=target.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        # mkstemp makes files only their owner can read.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before long work starts whether ``path`` can be written.

    Raises:
        OutputError: it is no ordinary file (a folder, a device), its folder is missing or read-only, or no
            file can have that name.
    """
    target = Path(os.path.realpath(path)) if "\0" not in str(path) else Path(path)
    try:
        mode: int | None = target.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero byte in it
        raise OutputError(
            f"cannot write {str(path)!r}: {getattr(error, 'strerror', None) or error}"
        ) from None
    if mode is not None and not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise OutputError(f"cannot write '{path}': it is {what}")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write '{path}': there is no folder '{target.parent}'")
    if not os.access(target.parent, os.W_OK) or (mode is not None and not os.access(target, os.W_OK)):
        raise OutputError(f"cannot write '{path}': permission denied")
