"""Normalisations and reductions."""

from __future__ import annotations

from collections.abc import Iterable

from ..axes import ONE, cuts, fix, pin, unify
from ..facts import Alone, Contraction, Linear, Normalisation, SameCount
from ..graph import Node
from ..walk import Walk
from .elementwise import broadcast
from .registry import Outputs, Unsupported, rule


def normalise(walk: Walk, node: Node, over: Iterable[int]) -> None:
    """The node normalises its first input over these axes, which its first output has as well."""
    walk.normalisations += [Normalisation(node, ((0, k),), ((0, k),)) for k in over]


@rule("BatchNormalization")
def batch_normalization(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    for i in range(1, 5):
        unify(walk.axes(node, i)[0], x[1])
    if node.attrs.get("training_mode", 0):
        normalise(walk, node, (k for k in range(len(x)) if k != 1))
    walk.linear(Linear(node, "scale", 0, 1, 2))
    return [x, *([[x[1]]] * (len(node.outputs) - 1))]


@rule("InstanceNormalization")
def instance_normalization(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    for i in (1, 2):
        unify(walk.axes(node, i)[0], x[1])
    normalise(walk, node, range(2, len(x)))
    walk.linear(Linear(node, "scale", 0, 1, 2))
    walk.alone.append(Alone(x))
    return [x]


@rule("GroupNormalization")
def group_normalization(walk: Walk, node: Node) -> Outputs:
    x, groups = walk.axes(node, 0), node.attrs["num_groups"]
    places = [(0, 1)]
    for i in (1, 2):
        scale = walk.axes(node, i)[0]
        if walk.opset < 21:  # one for each group
            pin(scale, f"{node.name} has {groups} groups")
        else:
            unify(scale, x[1])
            places.append((i, 0))
    blocks = cuts(x[1], [x[1].size // groups] * groups)
    walk.same_counts.append(SameCount(tuple(blocks), f"{node.name} has {groups} groups of equal size"))
    for axis in x[2:]:
        pin(axis, "a spatial axis")
    walk.normalisations.append(Normalisation(node, tuple(places), ((0, 1),)))
    if len(places) > 1:
        walk.linear(Linear(node, "scale", 0, 1, 2))
    return [x]


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    first = node.attrs.get("axis", -1) % len(x)
    places = {k: [(0, k)] for k in range(first, len(x))}
    for i in range(1, len(node.inputs)):
        if node.has(i):
            parameter = walk.axes(node, i)
            broadcast([x[first:], parameter])
            for k, axis in enumerate(parameter, start=len(x) - len(parameter)):
                if axis.size != 1:
                    places[k].append((i, k - len(x) + len(parameter)))
    for k, where in places.items():
        walk.normalisations.append(Normalisation(node, tuple(where), ((0, k),)))
    if node.has(1) and first == len(x) - 1:
        walk.linear(Linear(node, "scale", 0, 1, 2 if node.op == "LayerNormalization" else None))
    walk.alone.append(Alone(x))
    statistics = [*x[:first], *([ONE] * (len(x) - first))]
    return [x, *([statistics] * (len(node.outputs) - 1))]


@rule("LpNormalization", "MeanVarianceNormalization")
def lp_normalization(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    default = [-1] if node.op == "LpNormalization" else [0, 2, 3]
    given = [node.attrs["axis"]] if "axis" in node.attrs else node.attrs.get("axes", default)
    normalise(walk, node, [int(k) % len(x) for k in given])
    return [x]


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    first = node.attrs.get("axis", 1 if walk.opset < 13 else -1) % len(x)
    along = range(first, len(x)) if walk.opset < 13 else range(first, first + 1)
    normalise(walk, node, along)
    return [x]


@rule(*("Reduce" + k for k in "Mean Sum Max Min L1 L2 Prod SumSquare LogSum LogSumExp".split()))
def reduce(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    given = walk.value(node, 1) if node.has(1) else node.attrs.get("axes")
    if given is None and node.has(1):
        raise Unsupported("its axes are computed at run time")
    if given is None or not len(given):
        over = set() if node.attrs.get("noop_with_empty_axes", 0) else set(range(len(x)))
    else:
        over = {int(k) % len(x) for k in given}
    keep = node.attrs.get("keepdims", 1)
    walk.normalisations += [Normalisation(node, ((0, k),), ()) for k in sorted(over)]
    return [[ONE if k in over else axis for k, axis in enumerate(x) if keep or k not in over]]


@rule("CumSum")
def cumsum(walk: Walk, node: Node) -> Outputs:
    x, along = walk.axes(node, 0), walk.value(node, 1)
    if along is None:
        raise Unsupported("its axis is computed at run time")
    place = (0, int(along.reshape(-1)[0]) % len(x))
    walk.contractions.append(Contraction(node, (place,), in_place=True))
    return [x]


@rule("ArgMax", "ArgMin", "TopK")
def ranking(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    along = node.attrs.get("axis", -1 if node.op == "TopK" else 0) % len(x)
    pin(x[along], f"{node.name} ranks its positions")
    if node.op == "TopK":
        sizes = walk.output_sizes(node)[0]
        count = sizes[along] if sizes is not None else None
        if count is None:
            return [None] * len(node.outputs)
        out = [*x[:along], fix(count, f"{node.name} keeps that many"), *x[along + 1 :]]
        return [out] * len(node.outputs)
    keep = node.attrs.get("keepdims", 1)
    return [[ONE if k == along else axis for k, axis in enumerate(x) if keep or k != along]]
