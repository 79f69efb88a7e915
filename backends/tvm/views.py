"""Reshapes and transposes folded into the reads of a matrix product, instead of copies in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx

from .forms import Forms, operator, static_shape
from .schedules.common import i64

RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")

Index = Callable[[Sequence[Any]], list[Any]]


@dataclass(frozen=True)
class View:
    """A tensor of ``shape`` whose element at i is the element of ``base`` at index(i)."""

    base: Any
    shape: tuple[int, ...]
    index: Index


def view(forms: Forms, expression: Any, stop: Callable[[Any], bool] = lambda value: False) -> View:
    """An expression as a view of what it is a reshape or transpose of.

    Args:
        stop: tells of a definition not to look through it.
    """
    shape = static_shape(expression)
    value = forms.definition(expression)
    name = operator(value)
    if value is not None and not stop(value):
        if name in RESHAPES:
            inner = view(forms, value.args[0], stop)
            return View(inner.base, shape, _then(reshape_index(inner.shape, shape), inner.index))
        if name == "relax.permute_dims":
            inner = view(forms, value.args[0], stop)
            return View(inner.base, shape, _then(_permute_index(axes_of(value)), inner.index))
        if isinstance(value, relax.TupleGetItem):
            split = forms.definition(value.tuple_value)
            if operator(split) == "relax.split":
                return _part(forms, split, int(value.index), shape, stop)
    return View(expression, shape, list)


def axes_of(permute: Any) -> list[int]:
    """The permutation of a permute_dims call."""
    rank = len(static_shape(permute.args[0]))
    axes = permute.attrs.axes
    return [int(a) % rank for a in axes] if axes is not None else list(range(rank))[::-1]


def reshape_index(source: Sequence[int], shape: Sequence[int]) -> Index:
    """Positions in ``source`` of positions in ``shape``, both of the same size.

    Axes are matched in groups of equal size, so that most reshapes need no division.
    """
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(source) or j < len(shape):
        theirs, ours = [], []
        a = b = 1
        if i < len(source):
            theirs, a, i = [i], source[i], i + 1
        if j < len(shape):
            ours, b, j = [j], shape[j], j + 1
        while a != b:
            if a < b:
                theirs.append(i)
                a, i = a * source[i], i + 1
            else:
                ours.append(j)
                b, j = b * shape[j], j + 1
        groups.append((theirs, ours))

    def index(at: Sequence[Any]) -> list[Any]:
        out: list[Any] = [i64(0)] * len(source)
        for theirs, ours in groups:
            flat = i64(0)
            for axis in ours:
                if shape[axis] != 1:
                    flat = flat * i64(shape[axis]) + at[axis]
            long = [axis for axis in theirs if source[axis] != 1]
            for n, axis in enumerate(long):
                step = math.prod(source[other] for other in long[n + 1 :])
                position = flat if step == 1 else tirx.floordiv(flat, i64(step))
                out[axis] = position if n == 0 else tirx.floormod(position, i64(source[axis]))
        return out

    return index


def _part(forms: Forms, split: Any, number: int, shape: tuple[int, ...], stop: Callable[[Any], bool]) -> View:
    inner = view(forms, split.args[0], stop)
    axis, sections = int(split.attrs.axis) % len(shape), split.attrs.indices_or_sections
    if isinstance(sections, (int, tirx.IntImm)):
        start = number * shape[axis]
    else:
        start = [0, *(int(s) for s in sections)][number]

    def index(at: Sequence[Any]) -> list[Any]:
        moved = list(at)
        moved[axis] = moved[axis] + i64(start)
        return inner.index(moved)

    return View(inner.base, shape, index)


def _permute_index(axes: list[int]) -> Index:
    def index(at: Sequence[Any]) -> list[Any]:
        out: list[Any] = [None] * len(axes)
        for position, axis in enumerate(axes):
            out[axis] = at[position]
        return out

    return index


def _then(first: Index, second: Index) -> Index:
    return lambda at: second(first(at))


def divides(shown: View, axis: int) -> bool:
    """Whether reading along ``axis`` needs divisions, which cost too much in an inner loop."""
    variables = [tirx.Var(f"i{n}", "int64") for n in range(len(shown.shape))]

    def mentions(node: Any) -> bool:
        return bool(node.same_as(variables[axis])) or any(mentions(part) for part in _operands(node))

    def divided(node: Any) -> bool:
        if isinstance(node, (tirx.FloorDiv, tirx.FloorMod)):
            return mentions(node)
        return any(divided(part) for part in _operands(node))

    return any(divided(position) for position in shown.index(variables))


def _operands(node: Any) -> tuple[Any, ...]:
    return (node.a, node.b) if hasattr(node, "a") else ()
