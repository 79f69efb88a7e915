"""Operators that ONNX Runtime's optimisers fuse: each is what it was made of."""

from __future__ import annotations

from ..axes import ONE, Axis, cuts, pin, unify
from ..facts import Alone, Contraction, Normalisation, SameCount, Work
from ..graph import Node
from ..walk import Walk
from .conv import SPATIAL, convolution, pin_all
from .elementwise import broadcast, positional
from .linear import general_product, operand
from .registry import Axes, Outputs, Unsupported, rule

_MS = "com.microsoft::"


def _given(walk: Walk, node: Node, inputs: range) -> list[Axes]:
    return [walk.axes(node, i) for i in inputs if node.has(i)]


# ---------------------------------------------------------------------- position by position


@rule(*(_MS + name for name in "Gelu FastGelu BiasGelu QuickGelu BiasDropout".split()))
def broadcasting(walk: Walk, node: Node) -> Outputs:
    """An activation or dropout with the bias and residual that are added to it; other inputs are scalars."""
    return [broadcast(_given(walk, node, range(len(node.inputs))))] * len(node.outputs)


@rule(_MS + "BiasAdd", _MS + "BiasSplitGelu")
def of_certain_sizes(walk: Walk, node: Node) -> Outputs:
    """ONNX Runtime has kernels for the few widths of one family of models, and refuses all others."""
    x = broadcast(_given(walk, node, range(len(node.inputs))))
    why = f"ONNX Runtime runs {node.name} with certain widths only"
    pin(x[-1], why)
    if node.op == _MS + "BiasAdd":
        return [x]
    left, right = cuts(x[-1], [x[-1].size // 2] * 2)  # the first half times the activation of the second
    unify(left, right)
    return [[*x[:-1], left]]


rule(_MS + "Trilu")(positional)


# ---------------------------------------------------------------------- products and convolutions


@rule(_MS + "FusedMatMul", _MS + "TransposeMatMul")
def fused_matmul(walk: Walk, node: Node) -> Outputs:
    """A matrix product of operands whose last two axes may be swapped, or whose first axis is their row."""
    x, y = walk.axes(node, 0), walk.axes(node, 1)
    rows, columns = _order(node, "A", len(x)), _order(node, "B", len(y))
    left, right = [x[k] for k in rows], [y[k] for k in columns]
    unify(left[-1], right[-2 if len(y) > 1 else -1])
    places = (0, rows[-1]), (1, columns[-2 if len(y) > 1 else -1])
    walk.contractions.append(Contraction(node, places))
    batch = broadcast([left[:-2], right[:-2]]) if len(left) > 2 or len(right) > 2 else []
    out = [*batch, *left[-2:-1], *(right[-1:] if len(y) > 1 else [])]
    walk.work.append(Work(node, 1, (*out, left[-1])))
    for (i, summed), axes in zip(places, (x, y), strict=True):
        if not node.attrs.get(f"transBatch{'AB'[i]}", 0):
            walk.operands.append(operand(node, i, 1 - i, axes, summed - len(axes)))
    walk.alone += [Alone(x), Alone(y)]
    return [out]


def _order(node: Node, operand: str, rank: int) -> list[int]:
    """The axes of an operand as a matrix product takes them: batch, rows, columns."""
    places = list(range(rank))
    if node.attrs.get(f"transBatch{operand}", 0) and rank > 2:
        places = [*places[1:-1], places[0], places[-1]]
    if node.attrs.get(f"trans{operand}", 0) and rank > 1:
        places[-2:] = places[:-3:-1]
    return places


@rule(_MS + "FusedGemm")
def fused_gemm(walk: Walk, node: Node) -> Outputs:
    return [general_product(walk, node, 0, 1, 2)]


@rule(_MS + "FusedConv")
def fused_conv(walk: Walk, node: Node) -> Outputs:
    """A convolution, a tensor added to it, an activation."""
    out = convolution(walk, node, 0, 1, 2)
    return [broadcast([out, walk.axes(node, 3)]) if node.has(3) else out]


# ---------------------------------------------------------------------- normalisations


@rule(_MS + "SkipLayerNormalization", _MS + "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(walk: Walk, node: Node) -> Outputs:
    """Input, skip and bias are added, and the sum is normalised along its last axis; it is output 3."""
    x = broadcast(_given(walk, node, range(len(node.inputs))))
    read = [i for i in range(len(node.inputs)) if node.has(i)]
    _normalised(
        walk, node, x[-1], {i: len(walk.axes(node, i)) - 1 for i in read}, {o: len(x) - 1 for o in (0, 3)}
    )
    statistics = [*x[:-1], ONE]
    return [x, statistics, statistics, x]


def _normalised(walk: Walk, node: Node, width: Axis, read: dict[int, int], made: dict[int, int]) -> None:
    """The node normalises over ``width``, at these axes of these inputs and outputs."""
    outputs = tuple((o, k) for o, k in made.items() if o < len(node.outputs) and node.outputs[o])
    walk.normalisations.append(Normalisation(node, tuple(read.items()), outputs))
    walk.alone.append(Alone([width]))


@rule(_MS + "EmbedLayerNormalization", _MS + "QEmbedLayerNormalization")
def embed_layer_normalization(walk: Walk, node: Node) -> Outputs:
    """Embeddings of words, positions and segments are added and normalised; the sum is output 2.

    In the quantised form scales and zero points of all five tables and vectors follow, each one number.
    """
    tokens = walk.axes(node, 0)
    width = walk.axes(node, 2)[1]
    tables = [i for i in (2, 3, 4) if node.has(i)]
    for i in tables:
        table = walk.axes(node, i)
        pin(table[0], f"{node.name} looks up positions computed at run time")
        unify(table[1], width)
    for i in (5, 6):
        unify(walk.axes(node, i)[0], width)
    pin_all(tokens, f"{node.name} adds an embedding of the position")
    _normalised(walk, node, width, dict.fromkeys(tables, 1) | {5: 0, 6: 0}, {0: 2, 2: 2})
    y = [*tokens, width]
    return [y, tokens[:1], y]


@rule(_MS + "GroupNorm", _MS + "SkipGroupNorm")
def group_norm(walk: Walk, node: Node) -> Outputs:
    """Groups of channels, which are last unless said otherwise; a skip and a bias may be added before."""
    x, groups = walk.axes(node, 0), node.attrs["groups"]
    along = len(x) - 1 if node.attrs.get("channels_last", 1) else 1
    channels = x[along]
    places = {0: along, 1: 0, 2: 0}
    for i in (1, 2, 4):
        if node.has(i):
            unify(walk.axes(node, i)[0], channels)
            places[i] = 0
    if node.has(3):
        skip = walk.axes(node, 3)
        unify(skip[0], x[0])
        places[3] = along if len(skip) == len(x) else 1
        unify(skip[places[3]], channels)
    if channels.size % groups:
        raise Unsupported(f"its channels do not make {groups} groups")
    blocks = cuts(channels, [channels.size // groups] * groups)
    walk.same_counts.append(SameCount(tuple(blocks), f"{node.name} has {groups} groups of equal size"))
    pin_all([axis for k, axis in enumerate(x) if k not in (0, along)], SPATIAL)
    _normalised(walk, node, channels, places, {0: along, 1: along})
    return [x, x]
