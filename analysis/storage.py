"""Where the bytes of tensors are: in the tensor, or in a file inside the model's folder."""

from __future__ import annotations

import errno
import functools
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from .errors import ModelError
from .graph import Array, array_of

# Bytes of a piece that is read at once: few enough for a cache, and whole elements of all types.
_PIECE = 1 << 19

# Of types below eight bits, which are packed.
BITS = {
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
    bits = stored_bits(tensor.data_type)
    if bits is None:
        raise ModelError(f"tensor {tensor.name!r} has the unknown data type {tensor.data_type}")
    if not bits:
        raise ModelError(f"tensor {tensor.name!r} holds strings as raw bytes, which ONNX does not allow")
    return -(-count(tensor) * bits // 8)


@functools.cache
def stored_bits(data_type: int) -> int | None:
    """Bits of an element in ONNX's raw form; 0 for strings, None for an unknown type."""
    if data_type in BITS:
        return BITS[data_type]
    try:
        dtype = helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return None
    return 0 if dtype.hasobject else 8 * dtype.itemsize


def count(tensor: TensorProto) -> int:
    dims = list(tensor.dims)
    if dims and min(dims) < 0:
        raise ModelError(f"tensor {tensor.name!r} has a negative size: {dims}")
    return math.prod(dims)  # Python integers: the product may pass any machine word


@dataclass(frozen=True)
class Extent:
    """Bytes of a file."""

    path: Path
    offset: int
    length: int


@dataclass(frozen=True)
class Storage:
    """The bytes of a model's tensors.

    Attributes:
        folder: of the model; nothing outside it is read.
        embedded: where in the model's own file the bytes are that were left there when it was read, by the
            location that stands for them in the tensor.
    """

    folder: Path = Path()
    embedded: Mapping[str, Extent] = field(default_factory=dict)

    def bring_in(self, tensor: TensorProto) -> None:
        """Put bytes that are elsewhere into the tensor.

        Raises:
            ModelError: they are not there, or outside the model's folder.
        """
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = self._read(tensor, self.extent(tensor))
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]

    def extent(self, tensor: TensorProto) -> Extent:
        """Where the bytes of a tensor are that does not hold them itself.

        Raises:
            ModelError: nowhere, or outside the model's folder.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        expected = stored_bytes(tensor)
        what = f"tensor {tensor.name!r} of shape {list(tensor.dims)} needs {expected} bytes of data"
        if location in self.embedded:
            extent = self.embedded[location]
            if extent.length != expected:
                raise ModelError(f"{what} and has {extent.length}: export the model again")
            return extent
        target = _inside(self.folder.resolve(), location, tensor.name)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", expected))
        except ValueError:
            raise ModelError(f"tensor {tensor.name!r} has an offset or length that is no number") from None
        if length != expected or offset < 0:
            raise ModelError(
                f"{what}, but its external data is {length} bytes from {offset} on: export the model again"
            )
        try:
            size = target.stat().st_size
        except OSError as error:
            raise _unreadable(tensor, location, error) from None
        if offset + length > size:
            raise ModelError(
                f"tensor {tensor.name!r} wants bytes {offset} to {offset + length} of {location!r},"
                f" which has {size}: the file was cut short"
            )
        return Extent(target, offset, length)

    def pieces(self, tensor: TensorProto) -> Iterator[Array]:
        """The elements of a tensor in a row, piece by piece; those of types below 8 bits all at once.

        A piece is overwritten by the next.

        Raises:
            ModelError: its bytes cannot be read.
        """
        if tensor.data_location != TensorProto.EXTERNAL or tensor.data_type in BITS:
            yield array_of(self._whole(tensor)).reshape(-1)
            return
        extent, dtype = self.extent(tensor), helper.tensor_dtype_to_np_dtype(tensor.data_type)
        buffer = bytearray(min(_PIECE, extent.length))
        try:
            with extent.path.open("rb", buffering=0) as file:
                file.seek(extent.offset)
                for start in range(0, extent.length, _PIECE):
                    piece = memoryview(buffer)[: extent.length - start]
                    if file.readinto(piece) < len(piece):
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    yield np.frombuffer(piece, dtype)
        except OSError as error:
            raise _unreadable(tensor, extent.path.name, error) from None

    def array(self, tensor: TensorProto) -> Array:
        """The value of a tensor.

        Raises:
            ModelError: its bytes cannot be read.
        """
        return array_of(self._whole(tensor))

    def _whole(self, tensor: TensorProto) -> TensorProto:
        """The tensor with its bytes inside."""
        if tensor.data_location != TensorProto.EXTERNAL:
            return tensor
        raw = self._read(tensor, self.extent(tensor))
        return TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name, raw_data=raw)

    def _read(self, tensor: TensorProto, extent: Extent) -> bytes:
        try:
            with extent.path.open("rb") as file:
                file.seek(extent.offset)
                return file.read(extent.length)
        except OSError as error:
            raise _unreadable(tensor, extent.path.name, error) from None


def _unreadable(tensor: TensorProto, location: str, error: OSError) -> ModelError:
    return ModelError(
        f"cannot read {location!r}, the external data of tensor {tensor.name!r}: {error.strerror}"
    )


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
