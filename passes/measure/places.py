"""Where in a model a linear layer stands whose weight and bias can be set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ...analysis.facts import Linear
from ...analysis.graph import Node, constant_of
from ...analysis.model import Model
from ...analysis.walk import Walk
from .layers import Layer, can_be_read
from .stream import Stream, read_by

# Forms of `Linear` whose weight is a matrix, or one for each group.
MATRICES = ("window", "spread", "rows", "columns", "gemm")


@dataclass(frozen=True)
class Place:
    """A layer of a model that can be fitted.

    Attributes:
        position: of its node; ``dense``: in the model to whose outputs it is fitted.
        weight: name of the initializer.
        bias: its name, new where the node has none yet; None where there can be none.
        shifts: outputs of nodes that add a term to be fitted.
        sum: a sum the result goes into, the other operand, and the sum's place in the dense model.
    """

    fact: Linear
    node: Node
    layer: Layer
    position: int
    dense: int
    weight: str
    bias: str | None
    shifts: frozenset[str]
    sum: tuple[str, str, int] | None = None


def find_places(walk: Walk, pruned: Model, dense: Stream, small: Stream) -> list[Place]:
    """Layers in the order in which the pruned model, of which ``walk`` is, runs them."""
    reads = Counter(name for node in small.nodes for name in read_by(node))
    positions = {node.output[0]: k for k, node in enumerate(small.nodes)}
    before = {node.output[0]: k for k, node in enumerate(dense.nodes)}
    outputs = {output.name for output in pruned.proto.graph.output}
    linears = [fact for fact in walk.linears if fact.node.inputs[fact.data] in small.dependent]
    shifts = frozenset(
        fact.node.outputs[0]
        for fact in linears
        if fact.form == "shift"
        and (term := fact.node.inputs[fact.weight]) in small.weights
        and reads[term] == 1
        and len(small.weights[term].dims) == 1
        and small.weights[term].dims[0] > 1
    )
    sizes = {name: [a.size for a in axes] for name, axes in walk.axes_of.items() if axes is not None}
    found = []
    for fact in linears:
        node, key = fact.node, fact.node.outputs[0]
        weight = node.inputs[fact.weight]
        # What was folded into the node since has given it the name of its own output.
        if key not in positions or key not in before or not can_be_read(fact):
            continue
        if weight not in small.weights or reads[weight] > 1:
            continue  # a weight in use elsewhere stays what it is
        constant = constant_of(small.weights[weight])
        shape = tuple(constant.shape)
        matrix = fact.form in MATRICES
        if (matrix and len(shape) < 2) or (fact.form in ("rows", "columns") and len(shape) != 2):
            continue
        if fact.form in ("scale", "shift") and (len(shape) != 1 or shape[0] < 2):
            continue
        bias = _bias(fact, node, small, reads, outputs)
        layer = Layer(fact, node, shape)
        if fact.form == "scale" and bias is None and fact.bias is not None and node.has(fact.bias):
            continue
        total = _sum_with_known(key, small, positions, before, shifts, outputs, sizes)
        found.append(Place(fact, node, layer, positions[key], before[key], weight, bias, shifts, total))
    return sorted(found, key=lambda place: place.position)


def _sum_with_known(
    key: str,
    small: Stream,
    positions: dict[str, int],
    before: dict[str, int],
    shifts: frozenset[str],
    outputs: set[str],
    sizes: dict[str, list[int]],
) -> tuple[str, str, int] | None:
    """A sum of the layer's result with something that is known by then, as of a branch with its skip path.

    Fitting the sum and not the branch makes up for what went wrong before.
    """
    operand = key
    for _ in range(2):
        readers = [node for node in small.nodes[positions[key] + 1 :] if operand in read_by(node)]
        if operand in outputs or len(readers) != 1 or readers[0].op_type != "Add":
            return None
        total = readers[0].output[0]
        if total not in shifts:
            break
        operand = total
    others = [name for name in readers[0].input if name != operand]
    if len(others) != 1 or total not in before or total in shifts:
        return None
    if sizes.get(total) != sizes.get(key):
        return None  # the sum broadcasts
    known = positions.get(others[0], len(small.nodes)) < positions[key]
    return (total, others[0], before[total]) if known else None


def _bias(fact: Linear, node: Node, small: Stream, reads: Counter[str], outputs: set[str]) -> str | None:
    if fact.bias is None:
        return None
    if not node.has(fact.bias):
        return f"{node.key}.bias" if fact.form in ("window", "spread", "gemm") else None
    name = node.inputs[fact.bias]
    if name not in small.weights or reads[name] > 1:
        return None
    shape = tuple(small.weights[name].dims)
    return name if len(shape) == 1 and shape[0] > 1 else None
