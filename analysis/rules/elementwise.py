"""Operators that act on each position alone: axes pass through, broadcast ones are the same."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes import pin, unify
from ..graph import Node
from ..walk import Walk
from .registry import Axes, Outputs, rule


def broadcast(shapes: Sequence[Axes]) -> Axes:
    """The axes of the numpy broadcast of ``shapes``: aligned from the right, size 1 stretches."""
    rank = max(map(len, shapes))
    out = []
    for k in range(1, rank + 1):
        aligned = [axes[-k] for axes in shapes if len(axes) >= k]
        wide = [axis for axis in aligned if axis.size != 1]
        for other in wide[1:]:
            unify(wide[0], other)
        out.append(wide[0] if wide else aligned[0])
    return out[::-1]


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
    return [broadcast([walk.axes(node, i) for i in range(len(node.inputs)) if node.has(i)])]
