"""Matrix products: the summed axis is one axis of both operands."""

from __future__ import annotations

import math
import string

from ..axes import Axis, unify
from ..facts import Alone, Contraction, Linear, Operand, Work
from ..graph import Node
from ..walk import Walk
from .elementwise import broadcast
from .registry import Axes, Outputs, Unsupported, rule


def _contract(walk: Walk, node: Node, x: tuple[int, int], y: tuple[int, int]) -> None:
    unify(walk.axes(node, x[0])[x[1]], walk.axes(node, y[0])[y[1]])
    walk.contractions.append(Contraction(node, (x, y)))


@rule("MatMul")
def matmul(walk: Walk, node: Node) -> Outputs:
    out = product(walk, node, 0, 1)
    walk.linear(Linear(node, "rows", 0, 1))
    walk.linear(Linear(node, "columns", 1, 0))
    return [out]


def product(
    walk: Walk, node: Node, i: int, j: int, zeros: tuple[int | None, int | None] = (None, None)
) -> Axes:
    """The matrix product of inputs ``i`` and ``j``, whose zero points are the inputs ``zeros``."""
    x, y = walk.axes(node, i), walk.axes(node, j)
    row = len(y) - 2 if len(y) > 1 else 0
    _contract(walk, node, (i, len(x) - 1), (j, row))
    batch = broadcast([x[:-2], y[:-2]]) if len(x) > 2 or len(y) > 2 else []
    out = batch + (x[-2:-1] if len(x) > 1 else []) + (y[-1:] if len(y) > 1 else [])
    walk.work.append(Work(node, 1, (*out, x[-1])))
    walk.operands += [operand(node, i, j, x, -1, zeros[0]), operand(node, j, i, y, row - len(y), zeros[1])]
    walk.alone += [Alone(x), Alone(y)]
    return out


def operand(
    node: Node, i: int, data: int | None, axes: Axes, summed: int, zero: int | None = None
) -> Operand:
    """Input ``i``, a stack of matrices times ``data``, of whose axes ``summed``, -1 or -2, is summed over."""
    stack, rest = math.prod(axis.size for axis in axes[:-2]), axes[-2:]
    if len(rest) < 2:
        return Operand(node, i, (1, 1, 1, rest[0].size), (0, 1, 2, 3), data, zero=zero)
    sizes = stack, rest[0].size, rest[1].size, 1
    return Operand(node, i, sizes, (0, 1, 3, 2) if summed == -1 else (0, 2, 3, 1), data, zero=zero)


@rule("Gemm")
def gemm(walk: Walk, node: Node) -> Outputs:
    out = general_product(walk, node, 0, 1, 2)
    walk.linear(Linear(node, "gemm", 0, 1, 2))
    return [out]


def general_product(walk: Walk, node: Node, a: int, b: int, c: int, zero: int | None = None) -> Axes:
    """op(A) op(B) + C of inputs ``a``, ``b`` and, where it is there, ``c``; ``zero`` has B's zero point."""
    trans_a, trans_b = int(bool(node.attrs.get("transA"))), int(bool(node.attrs.get("transB")))
    x, y = walk.axes(node, a), walk.axes(node, b)
    _contract(walk, node, (a, 1 - trans_a), (b, trans_b))
    out = [x[trans_a], y[1 - trans_b]]
    walk.work.append(Work(node, 1, (*out, y[trans_b])))
    walk.operands += [operand(node, a, b, x, -1 - trans_a), operand(node, b, a, y, trans_b - 2, zero)]
    walk.alone += [Alone(x), Alone(y)]
    return broadcast([out, walk.axes(node, c)]) if node.has(c) else out


@rule("Einsum")
def einsum(walk: Walk, node: Node) -> Outputs:
    equation = node.attrs["equation"].decode().replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if "." in equation:
        terms, result = _spell_ellipsis(walk, node, terms, result, bool(arrow))
    elif not arrow:
        result = "".join(sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1))
    letters: dict[str, Axis] = {}
    places: dict[str, list[tuple[int, int]]] = {}
    for i, term in enumerate(terms):
        axes = walk.axes(node, i)
        if len(axes) != len(term):
            raise Unsupported(f"equation '{equation}' does not fit its inputs")
        walk.alone.append(Alone(axes))
        for k, (letter, axis) in enumerate(zip(term, axes, strict=True)):
            places.setdefault(letter, []).append((i, k))
            if letter not in letters or letters[letter].size == 1:
                letters[letter] = axis
            elif axis.size != 1:
                unify(letters[letter], axis)
    for letter, where in places.items():
        if letter not in result:
            walk.contractions.append(Contraction(node, tuple(where)))
    if len(terms) > 1:
        walk.work.append(Work(node, 1, tuple(letters.values())))
    return [[letters[letter] for letter in result]]


def _spell_ellipsis(
    walk: Walk, node: Node, terms: list[str], result: str, explicit: bool
) -> tuple[list[str], str]:
    """Write letters for every ``...``, aligned from the right as in numpy."""
    used = set("".join(terms) + result)
    spare = [c for c in string.ascii_letters if c not in used]
    spelled, longest = [], 0
    for i, term in enumerate(terms):
        count = len(walk.axes(node, i)) - len(term.replace("...", "")) if "..." in term else 0
        longest = max(longest, count)
        spelled.append(term.replace("...", "".join(spare[:count][::-1])))
    dots = "".join(spare[:longest][::-1])
    if explicit:
        return spelled, result.replace("...", dots)
    joined = "".join(terms)
    return spelled, dots + "".join(sorted(c for c in set(joined) if c.isalpha() and joined.count(c) == 1))
