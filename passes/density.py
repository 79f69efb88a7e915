"""Which layer loses how many of its weights, so that the errors of all layers add up to the least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # a part of it loads where it is used first
from numpy.typing import NDArray

from ..analysis.errors import PlanError

# No layer loses more: a layer without weights cuts the model in two, whatever its error says.
MOST = 0.98
# The ratios at which an error curve is worth its price.
RATIOS = 0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98
_STEP = 0.01
_ROUNDING = 1e-9


@dataclass(frozen=True)
class ErrorCurve:
    """What a layer of ``size`` weights loses at each of some growing ratios, the first of them 0.

    Errors of different layers are added, so they are in a common unit: relative to the energy of the layer's
    outputs, times how much the model's output depends on them where that is known. A layer that has to stay
    dense has the single ratio 0.
    """

    size: int
    ratios: tuple[float, ...]
    errors: tuple[float, ...]


def allocate(curves: Sequence[ErrorCurve], ratio: float, most: float = MOST) -> list[float]:
    """The ratio of each layer, so that ``ratio`` of all weights goes and the sum of errors is the least.

    The lower convex hull of each curve is a chain of segments whose slopes, in error for each weight, grow.
    Taking the flattest segments of all layers first is what bisection over a Lagrange multiplier would
    find, and meets the total exactly by taking a part of the last one.

    Raises:
        PlanError: so many weights cannot go, because of ``most`` and of the layers that stay dense.
    """
    wanted = ratio * sum(curve.size for curve in curves)
    segments = [part for i, curve in enumerate(curves) for part in _segments(i, curve, most)]
    chosen = [0.0] * len(curves)
    for _, layer, width in sorted(segments):
        if wanted <= _ROUNDING:
            break
        taken = min(width, wanted / curves[layer].size)
        chosen[layer] += taken
        wanted -= taken * curves[layer].size
    if wanted > _ROUNDING * max(1, sum(curve.size for curve in curves)):
        reached = sum(part * curve.size for part, curve in zip(chosen, curves, strict=True))
        share = reached / sum(curve.size for curve in curves)
        raise PlanError(f"{ratio:.1%} of the weights cannot go: at most {share:.1%} can with this pattern")
    return [min(part, most) for part in chosen]


def _segments(layer: int, curve: ErrorCurve, most: float) -> list[tuple[float, int, float]]:
    """Of the convex hull of a curve: slope in error for each weight, layer, and width in ratio."""
    ratios, errors = _smooth(curve, most)
    hull: list[int] = []
    for i in range(len(ratios)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (errors[b] - errors[a]) * (ratios[i] - ratios[a]) < (errors[i] - errors[a]) * (
                ratios[b] - ratios[a]
            ):
                break
            hull.pop()
        hull.append(i)
    spans = [(a, b, float(ratios[b] - ratios[a])) for a, b in pairwise(hull)]
    return [(float(errors[b] - errors[a]) / (width * curve.size), layer, width) for a, b, width in spans]


def _smooth(curve: ErrorCurve, most: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A growing curve at steps of one percent, up to the largest ratio a layer may have."""
    known = np.asarray(curve.ratios)
    errors = np.maximum.accumulate(np.asarray(curve.errors, np.float64))
    end = min(most, float(known[-1]))
    if len(known) == 1 or end <= 0:
        return np.zeros(1), np.zeros(1)
    ratios = np.append(np.arange(0, end - _ROUNDING, _STEP), end)
    return ratios, np.asarray(scipy.interpolate.PchipInterpolator(known, errors)(ratios))
