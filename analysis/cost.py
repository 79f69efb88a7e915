"""What a model costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from .graph import Constant, constant_of, walk_graphs
from .groups import Analysis, analyze
from .model import Model


@dataclass(frozen=True)
class Cost:
    """Attributes:
    params: elements of floating-point constants, a shared tensor counted once.
    macs: multiply-accumulates of convolutions, matrix products and einsums in one run; axes known only
        at run time count as one position.
    bytes: bytes of all constants.
    """

    params: int
    macs: int
    bytes: int


def measure(model: Model, analysis: Analysis | None = None) -> Cost:
    """The cost of a model; give its analysis where there is one already."""
    walk = (analysis or analyze(model)).walk
    constants = list(_stored(model.proto))
    macs = 0
    for work in walk.work:
        count = work.scale
        for axis in work.axes:
            count *= 1 if axis.size in walk.witnesses else axis.size
        macs += count
    return Cost(
        params=sum(c.elements for c in constants if c.is_float),
        macs=macs,
        bytes=sum(c.elements * c.dtype.itemsize for c in constants),
    )


def _stored(proto: onnx.ModelProto) -> list[Constant]:
    found: dict[str, Constant] = {}
    for graph in walk_graphs(proto.graph):
        for tensor in graph.initializer:
            found.setdefault(tensor.name, constant_of(tensor))
        for node in graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.type == onnx.AttributeProto.TENSOR:
                        found.setdefault(node.output[0], constant_of(attribute.t, node.output[0]))
    return list(found.values())
