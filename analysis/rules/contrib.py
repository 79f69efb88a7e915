"""Operators that ONNX Runtime's optimisers fuse: each is what it was made of."""

from __future__ import annotations

from ..axes import Axis, cuts, pin, unify
from ..facts import Alone, Contraction, Normalisation, Work
from ..graph import Node
from ..walk import Walk
from .conv import convolution
from .elementwise import broadcast
from .linear import general_product
from .registry import Axes, Outputs, Unsupported, rule

_MS = "com.microsoft::"


@rule(*(_MS + name for name in "Gelu FastGelu BiasGelu QuickGelu BiasAdd BiasDropout".split()))
def broadcasting(walk: Walk, node: Node) -> Outputs:
    """An activation with its bias, and whatever is added to it."""
    inputs = [walk.axes(node, i) for i in range(len(node.inputs)) if node.has(i)]
    if node.op == _MS + "BiasDropout":  # ratio and mode come last and are scalars
        inputs = [axes for axes in inputs if axes]
    return [broadcast(inputs)] * len(node.outputs)


@rule(_MS + "BiasSplitGelu")
def bias_split_gelu(walk: Walk, node: Node) -> Outputs:
    """The first half is multiplied by the activation of the second."""
    x = broadcast([walk.axes(node, 0), walk.axes(node, 1)])
    left, right = cuts(x[-1], [x[-1].size // 2] * 2)
    unify(left, right)
    return [[*x[:-1], left]]


@rule(_MS + "FusedMatMul", _MS + "TransposeMatMul")
def fused_matmul(walk: Walk, node: Node) -> Outputs:
    """A matrix product of operands whose last two axes, or first and last, may be swapped."""
    x, y = walk.axes(node, 0), walk.axes(node, 1)
    order = []
    for i, letter in ((0, "A"), (1, "B")):
        places = list(range(len(walk.axes(node, i))))
        if node.attrs.get(f"transBatch{letter}", 0) and len(places) > 2:
            places = [*places[1:-1], places[0], places[-1]]
        if node.attrs.get(f"trans{letter}", 0) and len(places) > 1:
            places[-2:] = places[:-3:-1]
        order.append(places)
    left, right = [x[k] for k in order[0]], [y[k] for k in order[1]]
    if len(left) < 2 or len(right) < 2:
        raise Unsupported("an operand is a vector")
    unify(left[-1], right[-2])
    walk.contractions.append(Contraction(node, ((0, order[0][-1]), (1, order[1][-2]))))
    batch = broadcast([left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else []
    out = [*batch, left[-2], right[-1]]
    walk.work.append(Work(node, 1, (*out, left[-1])))
    walk.alone += [Alone(x), Alone(y)]
    return [out]


@rule(_MS + "FusedGemm")
def fused_gemm(walk: Walk, node: Node) -> Outputs:
    return [general_product(walk, node, 0, 1, 2)]


@rule(_MS + "FusedConv")
def fused_conv(walk: Walk, node: Node) -> Outputs:
    """A convolution, a tensor added to it, an activation."""
    out = convolution(walk, node, 0, 1, 2)
    return [broadcast([out, walk.axes(node, 3)]) if node.has(3) else out]


@rule(_MS + "SkipLayerNormalization", _MS + "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(walk: Walk, node: Node) -> Outputs:
    """Input, skip and bias are added, and the sum is normalised along its last axis; it is output 3."""
    vectors = [i for i in range(2, len(node.inputs)) if node.has(i)]
    x = broadcast([walk.axes(node, i) for i in (0, 1)])
    width = x[-1]
    for i in vectors:
        unify(walk.axes(node, i)[-1], width)
    places = [(i, len(walk.axes(node, i)) - 1) for i in (0, 1, *vectors)]
    outputs = [(o, len(x) - 1) for o in (0, 3) if o < len(node.outputs) and node.outputs[o]]
    walk.normalisations.append(Normalisation(node, tuple(places), tuple(outputs)))
    walk.alone.append(Alone([width]))
    statistics = x[:-1]
    return [x, statistics, statistics, x][: len(node.outputs)]


@rule(_MS + "EmbedLayerNormalization")
def embed_layer_normalization(walk: Walk, node: Node) -> Outputs:
    """Embeddings of words, positions and segments are added and normalised; the sum is output 2."""
    tokens = walk.axes(node, 0)
    tables = [i for i in (2, 3, 4) if node.has(i)]
    width: Axis = walk.axes(node, 2)[1]
    for i in tables:
        table = walk.axes(node, i)
        pin(table[0], f"{node.name} looks up positions computed at run time")
        unify(table[1], width)
    for i in (5, 6):
        unify(walk.axes(node, i)[0], width)
    y: Axes = [*tokens, width]
    places = [*((i, 1) for i in tables), (5, 0), (6, 0)]
    outputs = [(o, 2) for o in (0, 2) if o < len(node.outputs) and node.outputs[o]]
    walk.normalisations.append(Normalisation(node, tuple(places), tuple(outputs)))
    walk.alone.append(Alone([width]))
    return [y, tokens[:1], y][: len(node.outputs)]
