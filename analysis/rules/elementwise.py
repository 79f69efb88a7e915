"""Operators that act on each position alone: axes pass through, broadcast ones are the same."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes import pin, unify
from ..facts import Linear
from ..graph import Node
from ..walk import Walk
from .registry import Axes, Outputs, rule


def broadcast(shapes: Sequence[Axes]) -> Axes:
    """The axes of the numpy broadcast of ``shapes``: aligned from the right, size 1 stretches."""
    rank = max(map(len, shapes))
    out = list(next(axes for axes in shapes if len(axes) == rank))
    for axes in shapes:
        for k, axis in enumerate(axes, len(out) - len(axes)):
            if axis is out[k] or axis.size == 1:
                continue
            if out[k].size == 1:
                out[k] = axis
            else:
                unify(out[k], axis)
    return out


@rule(
    *"Identity Cast Relu LeakyRelu ThresholdedRelu Sigmoid Tanh Erf Gelu Sqrt Exp Log Neg Abs".split(),
    *"Softplus Softsign HardSigmoid HardSwish Elu Selu Celu Mish Swish Ceil Floor Round Sign Not".split(),
    *"Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh IsNaN IsInf Dropout Shrink".split(),
    "BitwiseNot",
)
def unary(walk: Walk, node: Node) -> Outputs:
    return [walk.axes(node, 0)] * len(node.outputs)


@rule("CastLike")
def cast_like(walk: Walk, node: Node) -> Outputs:
    return [walk.axes(node, 0)]


@rule("Trilu", "EyeLike")
def positional(walk: Walk, node: Node) -> Outputs:
    x = walk.axes(node, 0)
    for axis in x[-2:]:
        pin(axis, f"{node.name} depends on where a position stands")
    return [x]


@rule(
    *"Add Sub Mul Div Pow Mod Min Max Sum Mean Where PRelu Clip And Or Xor BitShift".split(),
    *"Equal Greater GreaterOrEqual Less LessOrEqual BitwiseAnd BitwiseOr BitwiseXor".split(),
)
def broadcasting(walk: Walk, node: Node) -> Outputs:
    if node.op == "Add":
        walk.linear(Linear(node, "shift", 0, 1))
        walk.linear(Linear(node, "shift", 1, 0))
    return [broadcast([walk.axes(node, i) for i in range(len(node.inputs)) if node.has(i)])]
