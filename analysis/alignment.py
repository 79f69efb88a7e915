"""What the kept units of a group are rounded up to a multiple of, when nothing is asked for.

Kernels of convolutions want their channels in fours to work on blocks of eight or sixteen at all, and fill
vector registers with eights. Matrix products take any size as well. Measured in docs/alignment.md.
"""

from __future__ import annotations

from math import prod

from .axes import Axis, atoms
from .groups import Analysis

_FULL, _LEAST = 8, 4
_MANY, _FEW = 64, 16  # units from which on a group is rounded to the one and to the other


def alignment(size: int) -> int:
    """The multiple that suits the channels of a convolution, of which there are ``size``.

    One where a multiple would leave too few choices, and for sizes that are no multiple themselves: their
    kernels are not aligned before either.
    """
    if size >= _MANY and size % _FULL == 0:
        return _FULL
    return _LEAST if size >= _FEW and size % _LEAST == 0 else 1


def convolved(analysis: Analysis) -> set[Axis]:
    """Groups that are channels of convolutions: one reads them, or they do most of the work on them."""
    walk = analysis.walk
    windows = {fact.node.index: fact for fact in walk.linears if fact.form == "window"}
    found: set[Axis] = set()
    for fact in windows.values():
        found.update(atoms(walk.axes(fact.node, fact.data)[1]))
    work: dict[Axis, float] = {}
    for each in walk.work:
        amount = each.scale * prod(axis.size for axis in each.axes)
        sign = 1 if each.node.index in windows else -1
        for unit in {unit for axis in each.axes for unit in atoms(axis)}:
            work[unit] = work.get(unit, 0.0) + sign * amount
    found.update(unit for unit, balance in work.items() if balance > 0)
    return found
