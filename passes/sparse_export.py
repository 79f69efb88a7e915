"""Weights stored as ONNX sparse initializers where that is smaller: another file of the same model.

A sparse initializer lists the values that are not zero, and of each its index in the flattened tensor as a
64-bit integer (ONNX IR version 6, ``SparseTensorProto``). ONNX Runtime makes such weights dense when it loads
the model, before any node sees them: what reads them does not matter, and nothing gets faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from ..analysis.errors import CheckError, ModelError
from ..analysis.graph import constant_of, tensor_of, walk_graphs
from ..analysis.groups import analyze
from ..analysis.model import Model
from .execute import execute
from .verify import first_run

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE))
_IR_VERSION = 6  # the first that has sparse initializers
_INDEX_BYTES = 8
_LARGER = "it would be larger"


@dataclass(frozen=True)
class SparseExport:
    """What `as_sparse_initializers` made.

    Attributes:
        model: the same with sparse initializers, to be written: `load` makes them dense again, and the rest
            of the package expects that.
        sparse: names of the weights that are stored sparsely.
        dense: float initializers of more than 64 elements that are not, and why.
        before: bytes of the model as one file when all its weights are dense.
        after: bytes of ``model`` as one file.
    """

    model: Model
    sparse: tuple[str, ...]
    dense: Mapping[str, str]
    before: int
    after: int

    @property
    def larger(self) -> int:
        """How many weights stay dense because they would be larger."""
        return sum(reason == _LARGER for reason in self.dense.values())


def as_sparse_initializers(model: Model) -> SparseExport:
    """Store every float initializer sparsely that takes fewer bytes of the file so, in bodies as well.

    An element takes 8 bytes more than its value: that pays from 67 % zeros on in float32, 80 % in float16 and
    bfloat16, 50 % in float64. Only elements whose bits are all zero are left out, so that minus zero stays.
    What is an input of a graph (its default) or an output stays dense: ONNX Runtime would give the output as
    a sparse tensor.

    Example:
        ``save(as_sparse_initializers(sparsify(model, "90%").model).model, "sparse.onnx")``
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graphs = list(walk_graphs(proto.graph))
    named = {info.name: "it is an output of a graph" for graph in graphs for info in graph.output}
    named.update((info.name, "it is an input of a graph") for graph in graphs for info in graph.input)
    stored: list[str] = []
    dense: dict[str, str] = {}
    for graph in graphs:
        found: dict[str, onnx.SparseTensorProto] = {}
        for tensor in _floats(graph):
            sparse = None if tensor.name in named else _smaller(tensor)
            if sparse is not None:
                found[tensor.name] = sparse
            elif constant_of(tensor).is_weight:
                dense[tensor.name] = named.get(tensor.name, _LARGER)
        graph.initializer.sort(key=lambda tensor: tensor.name in found)
        del graph.initializer[len(graph.initializer) - len(found) :]
        graph.sparse_initializer.extend(found.values())
        stored += found
    if stored:
        # Before 4 all weights are inputs of the graph, which stay dense: nothing else changes with 6.
        proto.ir_version = max(proto.ir_version, _IR_VERSION)
    sizes = model.proto.ByteSize(), proto.ByteSize()
    return SparseExport(Model(proto, model.path), tuple(stored), dense, *sizes)


def check_sparse_export(dense: Model, sparse: Model, seed: int = 0) -> None:
    """Hold that ONNX Runtime computes the same bits from both, with its graph optimisations and without.

    Raises:
        CheckError: it does not, or does not take the sparse model.
        ModelError: it does not run the dense model.
    """
    inputs, plain = first_run(dense.proto, analyze(dense).walk.sizes, seed)
    for optimised in (False, True):
        wanted = execute(dense.proto, inputs, optimised=True) if optimised else plain
        try:
            got = execute(sparse.proto, inputs, optimised=optimised)
        except ModelError as error:
            raise CheckError(f"weights cannot be stored sparsely: {error}") from None
        for name, value in wanted.items():
            if not _same_bits(value, got[name]):
                raise CheckError(
                    "weights cannot be stored sparsely: with them so ONNX Runtime computes another output"
                    f" '{name}'"
                )


def _floats(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    return (tensor for tensor in graph.initializer if tensor.data_type in _FLOATS)


def _smaller(tensor: TensorProto) -> onnx.SparseTensorProto | None:
    """The tensor in sparse form, None where that takes as many bytes or more."""
    flat = constant_of(tensor).value.reshape(-1)
    where = np.flatnonzero(flat.view(f"u{flat.itemsize}"))
    if where.size * (flat.itemsize + _INDEX_BYTES) >= flat.nbytes:
        return None
    values = tensor_of(flat[where], tensor.name)
    if tensor.doc_string:
        values.doc_string = tensor.doc_string
    values.metadata_props.extend(tensor.metadata_props)
    indices = TensorProto(
        dims=where.shape, data_type=TensorProto.INT64, raw_data=where.astype("<i8").tobytes()
    )
    sparse = onnx.SparseTensorProto(values=values, indices=indices, dims=tensor.dims)
    return sparse if sparse.ByteSize() < tensor.ByteSize() else None


def _same_bits(wanted: object, got: object) -> bool:
    """Whether two outputs are the same to the last bit; strings and maps, whether they are equal."""
    if isinstance(wanted, list) and isinstance(got, list):
        return len(wanted) == len(got) and all(map(_same_bits, wanted, got))
    if not isinstance(wanted, np.ndarray) or not isinstance(got, np.ndarray):
        return type(wanted) is type(got) and bool(wanted == got)
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return False
    return np.array_equal(wanted, got) if wanted.dtype.hasobject else wanted.tobytes() == got.tobytes()
