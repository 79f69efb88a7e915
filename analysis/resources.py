"""What budgets limit, and the parts each of them is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .activations import activations, peak
from .axes import Axis
from .groups import Analysis
from .parameters import Shrinking, element_bytes, elements_and_bytes
from .selection import Selection

Cost: TypeAlias = Callable[[Selection], int]


@dataclass(frozen=True)
class Term:
    """``scale`` times the product of the sizes of ``axes``; counts in the rows ``first`` to ``last``."""

    scale: float
    axes: tuple[Axis, ...]
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Resource:
    """Something a model uses, of which a budget can be set.

    Attributes:
        what: how messages call it.
        units: what absolute amounts may be given in, by how many basic units each has.
        cost: how much of it the model of an analysis uses under a selection.
        terms: what it is the sum of. Where there are several rows, as of activations that are alive at
            different times, it is the largest sum of a row.
    """

    what: str
    units: dict[str, int]
    cost: Callable[[Analysis], Cost]
    terms: Callable[[Analysis], list[Term]]


def _params(analysis: Analysis) -> Cost:
    whole, parameters = elements_and_bytes(analysis.model)[0], Shrinking(analysis)
    return lambda selection: whole - parameters.removed(selection)[0]


def _bytes(analysis: Analysis) -> Cost:
    whole, parameters = elements_and_bytes(analysis.model)[1], Shrinking(analysis)
    return lambda selection: whole - parameters.removed(selection)[1]


def _memory(analysis: Analysis) -> Cost:
    tensors = activations(analysis.walk)
    return lambda selection: peak(tensors, selection)


def _work(analysis: Analysis) -> list[Term]:
    return [Term(work.scale, work.axes) for work in analysis.walk.work]


def _elements(analysis: Analysis) -> list[Term]:
    return [Term(1, tuple(axes)) for _, _, axes in analysis.parameter_uses]


def _stored(analysis: Analysis) -> list[Term]:
    return [Term(element_bytes(constant), tuple(axes)) for constant, _, axes in analysis.parameter_uses]


def _alive(analysis: Analysis) -> list[Term]:
    return [Term(t.width, tuple(t.axes), t.first, t.last) for t in activations(analysis.walk)]


_COUNTS = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZES = {"B": 1}
_SIZES |= {f"{unit}B": factor for unit, factor in _COUNTS.items()}
_SIZES |= {f"{unit}iB": 1 << 10 * (k + 1) for k, unit in enumerate(_COUNTS)}

RESOURCES: dict[str, Resource] = {
    "macs": Resource("multiply-accumulates", _COUNTS, lambda analysis: analysis.macs, _work),
    "params": Resource("parameters", _COUNTS, _params, _elements),
    "bytes": Resource("bytes of weights", _SIZES, _bytes, _stored),
    "memory": Resource("bytes of activations alive at once", _SIZES, _memory, _alive),
}


def rows(terms: Sequence[Term]) -> int:
    """How many rows the terms count in."""
    return 1 + max((term.last for term in terms), default=0)
