"""Reading a model file without its weights, from protobuf's wire format.

A message is a sequence of fields, each a tag (number and wire type) and a value. Raw bytes of large tensors
are skipped, and an entry of external data stands for them; all other bytes go into the message as they are.
See https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
import secrets
from functools import cache
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from .graph import is_parameter
from .storage import Extent, stored_bytes

# Shorter tensors stay in the message: scales, biases, tables of indices.
LARGE = 1 << 16
_DEPTH = 100  # as deep as protobuf itself goes
_RAW, _TYPE = TensorProto.RAW_DATA_FIELD_NUMBER, TensorProto.DATA_TYPE_FIELD_NUMBER
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}  # bytes of a value by wire type


def without_weights(path: Path) -> tuple[onnx.ModelProto, dict[str, Extent]]:
    """A model whose large parameters are left in the file, and where they are.

    Each of them is a tensor with external data, whose location is a key of the extents.

    Raises:
        DecodeError: the file was cut short, or is no ONNX model.
        OSError: it cannot be read.
        ValueError: it is empty.
    """
    proto = onnx.ModelProto()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        reader = _Reader(path, data)
        proto.ParseFromString(reader.reduced(0, len(data), onnx.ModelProto.DESCRIPTOR, _DEPTH))
    return proto, reader.extents


def is_deferred(tensor: TensorProto) -> bool:
    """Whether the bytes of a tensor are left where they are, when it does not hold them itself."""
    return is_parameter(tensor.data_type) and stored_bytes(tensor) >= LARGE


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._mark = secrets.token_hex()  # no location that a file could hold already
        self.extents: dict[str, Extent] = {}

    def reduced(self, start: int, stop: int, kind: Any, depth: int) -> bytes:
        """The message of bytes ``start`` to ``stop`` without large parameters."""
        if not depth:
            raise DecodeError("messages are nested too deeply")
        parts: list[bytes] = []
        copied, at, element, raw = start, start, 0, None
        inner = _that_hold_tensors(kind)
        while at < stop:
            begin = at
            tag, at = self._varint(at, stop)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, at = self._varint(at, stop)
                element = value if number == _TYPE else element
            elif wire == _BYTES:
                length, first = self._varint(at, stop)
                at = first + length
                if length >= LARGE and at <= stop:
                    if number in inner:
                        message: bytes = self.reduced(first, at, inner[number], depth - 1)
                        parts += [self._data[copied:begin], _encoded(tag), _encoded(len(message)), message]
                        copied = at
                    elif kind.name == "TensorProto" and number == _RAW:
                        raw = begin, first, at
            else:
                at += _FIXED.get(wire, stop)
            if at > stop:
                raise DecodeError("a field ends after its message")
        if raw is not None and is_parameter(element):
            begin, first, after = raw
            parts += [self._data[start:begin], self._left_out(first, after)]
            copied = after
        parts.append(self._data[copied:stop])
        return b"".join(parts)

    def _left_out(self, start: int, stop: int) -> bytes:
        """What stands for the bytes of a tensor."""
        location = f"{self._mark}.{len(self.extents)}"
        self.extents[location] = Extent(self._path, start, stop - start)
        entry = onnx.StringStringEntryProto(key="location", value=location)
        stub = TensorProto(external_data=[entry], data_location=TensorProto.EXTERNAL)
        encoded: bytes = stub.SerializeToString()
        return encoded

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """A number of seven bits a byte, the lowest first, and where it ends."""
        value = shift = 0
        while at < stop and shift < 70:
            byte = self._data[at]
            at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, at
            shift += 7
        raise DecodeError("a number does not end")


def _encoded(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


@cache
def _that_hold_tensors(kind: Any) -> dict[int, Any]:
    """Fields in which large parameters are looked for: not those of sparse tensors."""
    names = {"GraphProto", "FunctionProto", "NodeProto", "AttributeProto", "TensorProto"}
    return {
        field.number: field.message_type
        for field in kind.fields
        if field.message_type is not None and field.message_type.name in names
    }
