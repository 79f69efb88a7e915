"""Where the elements of an operand are stored: found by following the graph back to a constant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..graph import Array, Constant, Node, constant_of, dense, read_node, subgraphs, tensor_of, walk_graphs
from ..shapes import constant_value
from ..storage import Storage
from ..walk import Walk
from .steps import Cast, Dequantised, Index, Quantised, Reshaped, Scale, Step, Transposed

_RESHAPES = frozenset(["Reshape", "Flatten", "Squeeze", "Unsqueeze"])


class Opaque(Exception):
    """A constant operand that cannot be followed to where it is stored, and why."""


@dataclass(frozen=True)
class Origin:
    """A stored tensor, and the steps that make an operand of it.

    Attributes:
        constant: the stored tensor.
        dtype: of the operand's elements.
    """

    constant: Constant
    steps: tuple[Step, ...]
    dtype: np.dtype[Any]

    def then(self, *steps: Step, dtype: np.dtype[Any] | None = None) -> Origin:
        return Origin(self.constant, (*self.steps, *steps), dtype or self.dtype)

    @property
    def precision(self) -> np.dtype[Any]:
        """The type of the numbers that are multiplied by: that of the quantised ones, where they are."""
        quantised = [step.scale.stored for step in self.steps if isinstance(step, Dequantised)]
        return quantised[-1] if quantised else self.dtype

    def nonzero(self, storage: Storage) -> NDArray[np.bool_]:
        """Which elements of the operand are not zero.

        Raises:
            ModelError: the stored tensor cannot be read.
        """
        if any(step.makes_zeros for step in self.steps):
            return np.asarray(self.values(storage) != 0)
        found = np.empty(self.constant.elements, bool)
        start = 0
        for piece in storage.pieces(self.tensor):
            _nonzero(piece, found[start : start + len(piece)])
            start += len(piece)
        mask: NDArray[np.bool_] = found.reshape(self.constant.shape)
        for step in self.steps:
            if isinstance(step, Reshaped | Transposed):  # all others leave zeros where they are
                mask = np.asarray(step.ahead(mask), bool)
        return mask

    def values(self, storage: Storage) -> Array:
        """The operand."""
        found = storage.array(self.tensor)
        for step in self.steps:
            found = step.ahead(found)
        return found

    def without(self, keep: NDArray[np.bool_], storage: Storage) -> Array:
        """The stored tensor for an operand that is zero where it is not to be kept; all else is as it was."""
        zeros = np.zeros(keep.shape, self.dtype)
        for step in reversed(self.steps):
            zeros = step.back(zeros)
            if isinstance(step, Reshaped | Transposed):
                keep = np.asarray(step.back(keep), bool)
        return np.where(keep, storage.array(self.tensor), zeros)

    def of(self, tensor: TensorProto) -> Origin:
        """The same steps from another stored tensor."""
        return replace(self, constant=constant_of(tensor, self.constant.name))

    def place(self, index: Index) -> Index:
        """Where an element of the operand is stored."""
        for step in reversed(self.steps):
            index = step.place(index)
        return index

    @property
    def tensor(self) -> TensorProto:
        assert isinstance(self.constant.tensor, TensorProto)
        return self.constant.tensor


def _nonzero(values: Array, out: NDArray[np.bool_]) -> None:
    if values.dtype.name in ("float16", "bfloat16"):  # all bits but the sign: much faster than as numbers
        values = values.view(np.uint16) & 0x7FFF
    np.not_equal(values, 0, out=out)


def _dense(tensor: TensorProto | onnx.SparseTensorProto, name: str | None = None) -> Constant:
    if isinstance(tensor, onnx.SparseTensorProto):
        name = name or tensor.values.name
        return constant_of(tensor_of(dense(tensor), name), name)
    return constant_of(tensor, name)


class Origins:
    """Finds where operands of a model are stored.

    Attributes:
        readers: for each stored tensor, how often nodes that depend on the model's inputs read it, or what is
            made of it.
    """

    def __init__(self, proto: onnx.ModelProto, walk: Walk, storage: Storage) -> None:
        self._walk = walk
        self._storage = storage
        self._stored: dict[str, Constant] = {}
        self._makers: dict[str, Node] = {}
        for graph in walk_graphs(proto.graph):  # a body comes after what it reads
            for tensor in (*graph.initializer, *graph.sparse_initializer):
                constant = _dense(tensor)
                self._stored[constant.name] = constant
            for index, node in enumerate(graph.node):
                self._note(read_node(index, node))
        self.readers = Counter(
            self._root(name) for graph in walk_graphs(proto.graph) for name in self._read(graph)
        )

    def _read(self, graph: onnx.GraphProto) -> Iterator[str]:
        """What nodes of a graph read that depend on the model's inputs, and its outputs."""
        for node in graph.node:
            if not any(name in self._makers for name in node.output):
                yield from node.input
        yield from (output.name for output in graph.output)

    def _root(self, name: str) -> str:
        """The stored tensor that another is made of."""
        while name in self._makers:
            name = self._makers[name].inputs[0]
        return name

    def _note(self, node: Node) -> None:
        """Keep what is made from constants alone."""
        if node.op == "Constant":
            held = next((node.attrs[name] for name in ("value", "sparse_value") if name in node.attrs), None)
            value = constant_value(node.attrs)
            if held is None and value is not None:
                held = tensor_of(value, node.outputs[0])
            if held is not None:
                self._stored[node.outputs[0]] = _dense(held, node.outputs[0])
        known = (not name or self.is_constant(name) for name in node.inputs)
        if node.inputs and not any(subgraphs(node.proto)) and all(known):
            self._makers |= dict.fromkeys(node.outputs, node)

    def is_constant(self, name: str) -> bool:
        """Whether a tensor does not depend on the model's inputs."""
        if name in self._stored or name in self._makers:
            return True
        folded = self._walk.constants.get(name)
        return folded is not None and folded.static is None

    def find(self, name: str) -> Origin | None:
        """Where a tensor is stored; None when it depends on the model's inputs.

        Raises:
            Opaque: it does not, but cannot be followed to one stored tensor.
        """
        if name in self._stored:
            constant = self._stored[name]
            return Origin(constant, (), constant.dtype)
        if name not in self._makers:
            return None
        node = self._makers[name]
        before = self.find(node.inputs[0])
        if before is None:  # an input that is left out
            return None
        operator = node.op.removeprefix("com.microsoft::")
        if operator == "Identity":
            return before
        if operator == "Transpose":
            order = node.attrs.get("perm", range(len(self.shape(node.inputs[0])))[::-1])
            return before.then(Transposed(tuple(order)))
        if operator in _RESHAPES:
            return before.then(Reshaped(self.shape(node.inputs[0]), self.shape(name)))
        if operator == "Cast":
            dtype = helper.tensor_dtype_to_np_dtype(node.attrs["to"])
            return before.then(Cast(before.dtype, dtype), dtype=dtype)
        if operator == "QuantizeLinear":
            scale = self._scale(node, before.dtype, None)
            return before.then(Quantised(scale), dtype=scale.stored)
        if operator == "DequantizeLinear":
            scale = self._scale(node, None, before.dtype)
            return before.then(Dequantised(scale), dtype=scale.real)
        raise Opaque(f"it is made by {node.name}, which is not looked through")

    def value(self, name: str) -> Array | None:
        """A constant's value; None where there is none."""
        origin = self.find(name)
        return None if origin is None else origin.values(self._storage)

    def _scale(self, node: Node, real: np.dtype[Any] | None, stored: np.dtype[Any] | None) -> Scale:
        scale = self.value(node.inputs[1])
        zero = self.value(node.inputs[2]) if node.has(2) else None
        if scale is None:
            raise Opaque(f"{node.name} has no constant scale")
        if stored is None and zero is None:
            chosen = node.attrs.get("output_dtype", 0) or TensorProto.UINT8
            stored = helper.tensor_dtype_to_np_dtype(chosen)
        if zero is None:
            zero = np.zeros((), np.float32)
        rank, axis = len(self.shape(node.inputs[0])), node.attrs.get("axis", 1)
        return Scale(
            scale,
            zero.astype(np.float32),
            axis % rank if rank else 0,
            node.attrs.get("block_size", 0),
            real or scale.dtype,
            stored or zero.dtype,
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor.

        Raises:
            Opaque: it is not known.
        """
        constant = self._stored.get(name) or self._walk.constants.get(name)
        if constant is not None:
            return constant.shape
        axes = self._walk.axes_of.get(name)
        if axes is None:
            raise Opaque(f"the shape of '{name}' is not known")
        return tuple(axis.size for axis in axes)
