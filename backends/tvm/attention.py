"""Products whose softmax weighs values: queries, keys and values found again in the operators of a model.

    matmul(softmax(elementwise(matmul(query, key))), value)

Factors of queries and keys, and what is added to or multiplied with their products, become part of the score.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm.ir import Constant

from .forms import ALONE, Forms, is_float, number_of, operator, static_shape
from .schedules import attention
from .schedules.common import i64
from .vecmath import BINARY, f32
from .views import RESHAPES, View, reshape_index
from .workloads import Attention

_ORDERED = ("relax.subtract", "relax.divide")


@dataclass(frozen=True)
class Step:
    """An elementwise operator on scores.

    Attributes:
        apply: the operator, of the score and of an element of ``operand``.
        shape: of the scores where it is done.
    """

    apply: Callable[[Any, Any], Any]
    operand: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """Attention as it is written in a model.

    Attributes:
        scale: of the products of queries (…, rows, depth) and keys (…, depth, keys).
        steps: what becomes of products, in order.
        inside: the variables that nothing but it reads.
    """

    query: Any
    key: Any
    value: Any
    scale: float
    steps: list[Step]
    inside: list[Any]


def heads(forms: Forms, call: Any) -> Heads | None:
    """The attention that ends in a product with the result of a softmax; None where it is none."""
    if operator(call) != "relax.matmul" or not all(is_float(argument) for argument in call.args):
        return None
    (powers, value), shape = call.args, static_shape(call.args[0])
    inside: list[Any] = []
    steps: list[Step] = []

    def inner(expression: Any) -> Any:
        """The definition of what has no other reader."""
        inside.append(expression)
        return forms.definition(expression) if forms.is_read_once(expression) else None

    softmax = inner(powers)
    if operator(softmax) != "relax.nn.softmax" or len(shape) < 3:
        return None
    if int(softmax.attrs.axis) % len(shape) != len(shape) - 1:
        return None
    scores = softmax.args[0]
    while operator(product := inner(scores)) != "relax.matmul":
        if operator(product) in RESHAPES:
            scores = product.args[0]
            continue
        found = _step(forms, product)
        if found is None:
            return None
        scores, step = found
        steps.insert(0, step)
    operands, scale = [*product.args, value], 1.0
    leads = {static_shape(operand)[:-2] for operand in operands if is_float(operand)}
    if leads != {shape[:-2]} or static_shape(scores) != shape:
        return None
    if any(isinstance(operand, Constant) for operand in operands):
        return None
    for number in (0, 1):
        factor = _factor(inner(operands[number]))
        if factor is None:
            inside.pop()
        else:
            operands[number], scale = factor[0], scale * factor[1]
    return Heads(operands[0], operands[1], operands[2], scale, steps, inside)


def _step(forms: Forms, call: Any) -> tuple[Any, Step] | None:
    """An elementwise operator as the scores it takes and what it does with them; None for any other."""
    name = operator(call)
    if name not in BINARY or not all(is_float(argument) for argument in call.args):
        return None
    shape, (scores, operand) = static_shape(call), call.args
    if name not in _ORDERED and not _made_of_product(forms, scores):
        scores, operand = operand, scores
    return (scores, Step(BINARY[name], operand, shape)) if static_shape(scores) == shape else None


def _made_of_product(forms: Forms, scores: Any) -> bool:
    """Whether scores are a product, or made of one by steps."""
    if not forms.is_read_once(scores):
        return False
    call = forms.definition(scores)
    if operator(call) in (*RESHAPES, *BINARY):
        return any(_made_of_product(forms, argument) for argument in call.args)
    return operator(call) == "relax.matmul"


def _factor(call: Any) -> tuple[Any, float] | None:
    """A tensor times a constant number, as both; None for anything else."""
    if operator(call) != "relax.multiply":
        return None
    for tensor, factor in (call.args, call.args[::-1]):
        number = number_of(factor)
        if number is not None and static_shape(tensor) == static_shape(call):
            return tensor, number
    return None


def attend(forms: Forms, found: Heads, order: Sequence[int], read: Callable[[Any, int | None], View]) -> Any:
    """The kernel of attention.

    Args:
        order: axes of (…, rows, columns) in the order in which the result has them.
        read: an operand as a view of what is in memory; of itself where reading along an axis would need
            divisions.
    """
    *batch, rows, depth = static_shape(found.query)
    keys, columns = static_shape(found.value)[-2:]
    shape, result = (*batch, rows, keys), (*batch, rows, columns)
    bases: list[Any] = []

    def number(base: Any) -> int:
        """Of a buffer that is read; each is one argument."""
        for known, other in enumerate(bases):
            if other.same_as(base):
                return known
        bases.append(base)
        return len(bases) - 1

    def reading(operand: Any, axis: int | None) -> tuple[int, attention.Read]:
        shown = read(operand, axis)
        return number(shown.base), lambda buffer, at: buffer[tuple(shown.index(at))]

    query, key, value = (
        reading(found.query, len(batch) + 1),
        reading(found.key, None),
        reading(found.value, None),
    )
    scored = [_scored(step, shape, number) for step in found.steps]

    def score(buffers: Sequence[Any], at: Sequence[Any], product: Any) -> Any:
        product = product * f32(found.scale) if found.scale != 1.0 else product
        for step in scored:
            product = step(buffers, at, product)
        return product

    size = [result[axis] for axis in order]
    shapes = (*(static_shape(base) for base in bases), tuple(size))
    operands = attention.Operands(shapes, query, key, value, score, lambda at: [at[axis] for axis in order])
    workload = Attention(math.prod(batch), rows, keys, depth, columns)
    sizes = attention.Sizes(tuple(batch), rows, keys, depth, columns)
    function = attention.kernel(sizes, operands, forms.choices.of(workload), forms.choices.core)
    arguments = [forms.rebuild(base) for base in bases]
    return forms.call(function, "attention", ALONE, *arguments, shape=size, workload=workload)


def _scored(step: Step, shape: Sequence[int], number: Callable[[Any], int]) -> attention.Score:
    """What a step does with the score at a position of ``shape``."""
    sizes = static_shape(step.operand)
    factor = number_of(step.operand)
    if factor is not None:
        return lambda buffers, at, product: step.apply(product, f32(factor))
    buffer, place = number(step.operand), reshape_index(step.shape, shape)

    def score(buffers: Sequence[Any], at: Sequence[Any], product: Any) -> Any:
        last = place(at)[len(step.shape) - len(sizes) :]
        at = [i64(0) if size == 1 else position for size, position in zip(sizes, last, strict=True)]
        return step.apply(product, buffers[buffer][tuple(at)])

    return score
