"""What a model costs: parameters, multiply-accumulates, bytes, memory for activations."""

from __future__ import annotations

from dataclasses import dataclass

from .activations import activations, peak
from .errors import PlanError
from .graph import Node, subgraphs
from .groups import Analysis, analyze
from .lowrank import find_layers
from .model import Model
from .parameters import elements_and_bytes
from .plan import Plan, select
from .ranks import cost_with_ranks
from .resources import RESOURCES
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
        memory: bytes of the activations that are alive at once, at most; see `analysis.activations`.
        uncounted: nodes that multiply but are missing from ``macs``, because their operator states no work
            or runs a body an unknown number of times.
    """

    params: int
    macs: int
    bytes: int
    memory: int
    uncounted: tuple[str, ...] = ()


def measure(model: Model, analysis: Analysis | None = None) -> Cost:
    """The cost of a model; give its analysis where there is one already.

    Shapes come from the walk of the analysis: no weight is read.

    Example:
        ``measure(load("model.onnx")).macs``
    """
    analysis = analysis or analyze(model)
    walk = analysis.walk
    macs = 0
    counted = set()
    for work in walk.work:
        counted.add(work.node.index)
        macs += work.macs
    params, size = elements_and_bytes(model)
    missing = tuple(n.name for n in walk.nodes if n.index not in counted and _multiplies(n))
    return Cost(params, macs, size, peak(activations(walk), Selection({})), missing)


def predict(analysis: Analysis, plan: Plan) -> Cost:
    """The cost that ``plan`` leaves, before cleanup folds constants into each other; nothing is changed.

    Integer constants that hold sizes are taken to stay as long as they are.

    Raises:
        PlanError: the plan was made for another model.
    """
    before, selection = measure(analysis.model, analysis), select(analysis, plan)
    layers = find_layers(analysis) if plan.ranks else {}
    for weight in plan.ranks:
        if weight not in layers:
            raise PlanError(f"the plan takes '{weight}' apart, which is no weight of a layer that can be")
    lowered = [(layers[weight], ranks) for weight, ranks in plan.ranks.items()]
    left = {name: cost_with_ranks(analysis, name)(selection, lowered) for name in RESOURCES}
    return Cost(**left, uncounted=before.uncounted)


def _multiplies(node: Node) -> bool:
    if node.op == "Einsum" and len(node.inputs) == 1:  # only sums or moves
        return False
    custom = node.proto.domain not in ("", "ai.onnx")
    # Bodies of Loop and Scan run as often as their inputs say.
    return custom or node.op in _PRODUCTS or (node.op in ("Loop", "Scan") and any(subgraphs(node.proto)))
