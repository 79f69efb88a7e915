"""What a model costs: parameters, multiply-accumulates, bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from .axes import Axis, find
from .errors import PlanError
from .graph import Constant, Node, constant_of, subgraphs, walk_graphs
from .groups import Analysis, analyze
from .lowrank import extra, find_layers
from .model import Model, stored_bytes
from .plan import Plan, select
from .selection import Selection

# Operators that multiply and accumulate. One of them whose rule states no work is reported as not counted.
_PRODUCTS = frozenset(
    """Attention Conv ConvInteger ConvTranspose DeformConv Einsum GRU Gemm LSTM LinearAttention MatMul
    MatMulInteger QLinearConv QLinearMatMul RNN""".split()
)


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
        params: elements of the constants that something reads and that hold floats or integers of at most
            eight bits (quantised weights), a shared tensor counted once. Shapes and indices are none.
        macs: multiply-accumulates of convolutions, matrix products and einsums in one run; axes known only
            at run time count as one position. Both branches of an If count.
        bytes: bytes of all constants that something reads, as ONNX stores them.
        uncounted: nodes that multiply but are missing from ``macs``, because their operator states no work
            or runs a body an unknown number of times.
    """

    params: int
    macs: int
    bytes: int
    uncounted: tuple[str, ...] = ()


def measure(model: Model, analysis: Analysis | None = None) -> Cost:
    """The cost of a model; give its analysis where there is one already.

    Shapes come from the walk of the analysis: no weight is read.

    Example:
        ``measure(load("model.onnx")).macs``
    """
    walk = (analysis or analyze(model)).walk
    macs = 0
    counted = set()
    for work in walk.work:
        counted.add(work.node.index)
        count = work.scale
        for axis in work.axes:
            count *= axis.size
        macs += count
    params = size = 0
    for tensor in _constants(model.proto):
        constant = constant_of(tensor)
        params += constant.elements if constant.is_parameter else 0
        size += 0 if constant.dtype.hasobject else stored_bytes(tensor)
    missing = tuple(n.name for n in walk.nodes if n.index not in counted and _multiplies(n))
    return Cost(params, macs, size, missing)


def predict(analysis: Analysis, plan: Plan) -> Cost:
    """The cost that ``plan`` leaves, before cleanup folds constants into each other; nothing is changed.

    Integer constants that hold sizes are taken to stay as long as they are.

    Raises:
        PlanError: the plan was made for another model.
    """
    before, selection = measure(analysis.model, analysis), select(analysis, plan)
    elements = size = 0
    for constant, count in _removed(analysis, selection):
        elements += count
        size += count * constant.dtype.itemsize
    macs = analysis.macs(selection)
    if plan.ranks:
        layers, dtypes = find_layers(analysis), {c.name: c.dtype for c, _, _ in analysis.parameter_uses}
        for weight, ranks in plan.ranks.items():
            if weight not in layers:
                raise PlanError(f"the plan takes '{weight}' apart, which is no weight of a layer that can be")
            more = extra(layers[weight], ranks, "params", selection)
            elements -= more
            size -= more * dtypes[weight].itemsize
            macs += extra(layers[weight], ranks, "macs", selection)
    return Cost(before.params - elements, macs, before.bytes - size, before.uncounted)


def _removed(analysis: Analysis, selection: Selection) -> Iterator[tuple[Constant, int]]:
    """Each parameter and the elements it loses: fewer than none when uses that disagree split it."""
    left: dict[str, dict[object, int]] = {}
    constants: dict[str, Constant] = {}
    for constant, _, axes in analysis.parameter_uses:
        if constant.tensor is not None:
            constants[constant.name] = constant
            kept = tuple(_kept(selection, axis) for axis in axes)
            count = math.prod(selection.count(axis) for axis in axes)
            left.setdefault(constant.name, {})[kept] = count
    for name, copies in left.items():
        yield constants[name], constants[name].elements - sum(copies.values())


def _kept(selection: Selection, axis: Axis) -> object:
    """What a use keeps of an axis, as something to compare."""
    axis = find(axis)
    if axis.kind == "ragged":
        return tuple(_kept(selection, part) for part in axis.parts)
    positions = selection.positions(axis)
    return None if positions is None else positions.tobytes()


def _multiplies(node: Node) -> bool:
    if node.op == "Einsum" and len(node.inputs) == 1:  # only sums or moves
        return False
    custom = node.proto.domain not in ("", "ai.onnx")
    # Bodies of Loop and Scan run as often as their inputs say.
    return custom or node.op in _PRODUCTS or (node.op in ("Loop", "Scan") and any(subgraphs(node.proto)))


def _constants(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Initializers and Constant nodes that a node or an output reads."""
    read = {name for graph in walk_graphs(proto.graph) for node in graph.node for name in node.input}
    read.update(output.name for graph in walk_graphs(proto.graph) for output in graph.output)
    for graph in walk_graphs(proto.graph):
        yield from (tensor for tensor in graph.initializer if tensor.name in read)
        for node in graph.node:
            if node.op_type == "Constant" and node.output[0] in read:
                yield from (a.t for a in node.attribute if a.type == onnx.AttributeProto.TENSOR)
