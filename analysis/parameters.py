"""The learned constants of a model: how many elements and bytes, and what a choice of units takes away."""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx

from .axes import Axis, find
from .graph import Constant, constant_of, walk_graphs
from .groups import Analysis
from .model import Model
from .selection import Selection
from .storage import stored_bytes


def elements_and_bytes(model: Model) -> tuple[int, int]:
    """Elements of the parameters that something reads, and bytes of all constants that something reads."""
    elements = size = 0
    for tensor in _constants(model.proto):
        constant = constant_of(tensor)
        elements += constant.elements if constant.is_parameter else 0
        size += 0 if constant.dtype.hasobject else stored_bytes(tensor)
    return elements, size


class Shrinking:
    """What a choice of units takes from the stored parameters of a model."""

    def __init__(self, analysis: Analysis) -> None:
        uses: dict[str, tuple[Constant, list[list[Axis]]]] = {}
        for constant, _, axes in analysis.parameter_uses:
            if constant.tensor is not None:
                uses.setdefault(constant.name, (constant, []))[1].append(axes)
        self._uses = [
            (constant.elements, element_bytes(constant), typed)
            for constant, typed in uses.values()
            if any(find(axis).kind != "fix" for axes in typed for axis in axes)
        ]

    def removed(self, selection: Selection) -> tuple[int, int]:
        """Elements and bytes that go: fewer than none when uses that disagree split a tensor."""
        elements, size = 0, 0.0
        for before, width, typed in self._uses:
            left = {
                tuple(_kept(selection, axis) for axis in axes) if len(typed) > 1 else None: math.prod(
                    selection.count(axis) for axis in axes
                )
                for axes in typed
            }
            gone = before - sum(left.values())
            elements += gone
            size += gone * width
        return elements, int(size)


def element_bytes(constant: Constant) -> float:
    """Bytes that an element of a stored constant takes; less than one for types below eight bits."""
    tensor = constant.tensor
    if not isinstance(tensor, onnx.TensorProto) or not constant.elements:
        return float(constant.dtype.itemsize)
    return stored_bytes(tensor) / constant.elements


def _kept(selection: Selection, axis: Axis) -> object:
    """What a use keeps of an axis, as something to compare."""
    axis = find(axis)
    if axis.kind == "ragged":
        return tuple(_kept(selection, part) for part in axis.parts)
    positions = selection.positions(axis)
    return None if positions is None else positions.tobytes()


def _constants(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers and Constant nodes that a node or an output reads."""
    read = {name for graph in walk_graphs(proto.graph) for node in graph.node for name in node.input}
    read.update(output.name for graph in walk_graphs(proto.graph) for output in graph.output)
    for graph in walk_graphs(proto.graph):
        yield from (tensor for tensor in graph.initializer if tensor.name in read)
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in read:
                yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
