"""79 real exported graphs without their weights, and the code that takes weights out and puts them in.

A skeleton keeps the graph, every small or integer constant, and the shape and type of each large float
initializer; its numbers are drawn from a seed when the model is loaded. Tensors that were equal in the
original stay one shared initializer, as the exporter wrote them.
"""

from __future__ import annotations

import difflib
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...analysis.errors import UsageError
from ...analysis.graph import walk_graphs

FOLDER = Path(__file__).parent
SUFFIX = ".onnx.xz"
MARK = "skeleton"  # location of an external_data entry: "this tensor's numbers were dropped"
SMALL = 64  # float constants of at most this many elements are kept


def names() -> tuple[str, ...]:
    """The graphs there are, sorted."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob("*" + SUFFIX)))


def load(name: str, seed: int = 0) -> onnx.ModelProto:
    """A graph of the zoo with weights drawn from ``seed``.

    Raises:
        UsageError: there is no graph of that name.
    """
    path = FOLDER / (name + SUFFIX)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"there is no zoo graph '{name}'{hint}")
    with lzma.open(path) as file:
        return fill(onnx.load_from_string(file.read()), seed)


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the numbers of large float tensors from ``model``, in place; the model."""
    for tensor in _tensors(model.graph):
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
        if tensor.data_type in floats and int(np.prod(tensor.dims)) > SMALL:
            for field in ("raw_data", "float_data", "double_data", "int32_data"):
                tensor.ClearField(field)
            tensor.external_data.add(key="location", value=MARK)
    return model


def fill(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Draw each dropped tensor, in place: N(0, 1/fan_in) for weights, U(0.5, 1.5) for vectors."""
    for tensor in _tensors(model.graph):
        if not any(entry.key == "location" and entry.value == MARK for entry in tensor.external_data):
            continue
        rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode()), *tensor.dims])
        shape = tuple(tensor.dims)
        if sum(size > 1 for size in shape) <= 1:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
        tensor.raw_data = numpy_helper.from_array(value.astype(dtype)).raw_data
    return model


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Initializers and tensors in node attributes, subgraphs included."""
    for inner in walk_graphs(graph):
        yield from inner.initializer
        for node in inner.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR:
                    yield attribute.t
