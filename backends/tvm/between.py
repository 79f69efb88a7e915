"""What is done element by element between two layers, found again in the operators of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Constant

from .forms import Forms, is_float, number_of, operator, static_shape
from .vecmath import BINARY, ELEMENTWISE, f32

_MOST = 32  # operators
_KNOWN: dict[str, Callable[..., Any]] = {
    "relax.nn.relu": lambda x: tirx.max(x, f32(0)),
    "relax.negative": lambda x: f32(0) - x,
    **BINARY,
    **ELEMENTWISE,
}


@dataclass(frozen=True)
class Elementwise:
    """A function of each element of ``root`` and of its place on the last axis.

    Attributes:
        result: what it makes.
        constants: of more than one element, each of which has one for each place on the last axis.
    """

    forms: Forms
    root: Any
    result: Any
    constants: list[Any]

    def __call__(self, buffers: Sequence[Any], place: Any, value: Any, keep: Callable[[Any], Any]) -> Any:
        """The result of a value of the root; see `schedules.chain.Between`."""
        made = {self.root: value}

        def of(expression: Any) -> Any:
            if isinstance(expression, Constant):
                number = number_of(expression)
                if number is not None:
                    return f32(number)
                found = next(n for n, other in enumerate(self.constants) if other.same_as(expression))
                return buffers[found][place]
            if expression not in made:
                call = self.forms.definition(expression)
                value = _KNOWN[operator(call)](*(of(argument) for argument in call.args))
                made[expression] = value if self.forms.is_read_once(expression) else keep(value)
            return made[expression]

        return of(self.result)


def elementwise(forms: Forms, result: Any, reader: Any) -> Elementwise | None:
    """How ``result``, which only the variable ``reader`` may read, is made of a product; None where other
    operators are in between, or very many, or anyone else reads what they make.
    """
    if not is_float(result):
        return None
    inner: list[Any] = []
    constants: list[Any] = []
    roots: list[Any] = []

    def known(expression: Any) -> bool:
        if isinstance(expression, Constant):
            sizes = static_shape(expression) if is_float(expression) else (0,)
            several = math.prod(sizes) > 1
            if several and not any(expression.same_as(other) for other in constants):
                constants.append(expression)
            return is_float(expression) and (not several or math.prod(sizes) == sizes[-1] == channels)
        call = forms.definition(expression)
        if call is None or not is_float(expression) or static_shape(expression) != shape:
            return False
        if any(expression.same_as(other) for other in inner):
            return True
        inner.append(expression)
        if len(inner) > _MOST:
            return False
        name = operator(call)
        if name == "relax.matmul":
            roots.append(expression)
            return True
        return name in _KNOWN and all(known(operand) for operand in call.args)

    shape = static_shape(result)
    channels = shape[-1] if shape else 0
    if not shape or not known(result) or len(roots) != 1:
        return None
    readers = [other for var in inner for other in forms.readers[var]]
    if any(other is None or not any(other.same_as(var) for var in (*inner, reader)) for other in readers):
        return None
    return Elementwise(forms, roots[0], result, constants)
