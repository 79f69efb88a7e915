"""Which zeros each layer gets so that a run takes no longer than asked, for the least error.

Every layer may stay dense, or lose a ratio of its weights in one of some patterns. What an option costs is
read off the error curve of its pattern, what it saves is timed for each layer by itself. Those on the convex
hull of both are taken in the order of error for each millisecond, until the rest is fast enough; then a model
with such zeros is timed as a whole, and what is off is taken off the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy  # a part of it loads where it is used first

from ..analysis.errors import PlanError
from ..analysis.patterns.pattern import Blocks
from .clocks import LayerClock, Time
from .density import ErrorCurve
from .latency import Latency

# What kernels are made for: blocks of four outputs, which are skipped the fastest, and single weights.
PATTERNS = (Blocks(4, 1, 0.0), Blocks(1, 1, 0.0))
_STEP = 0.05
_LEAST = 0.3  # of a layer's weights, below which no kernel skips them with profit
_PROBES = 5
_NEAR, _AIM = 0.95, 0.975  # of the budget: near enough, and what is aimed at
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Option:
    """One way for a layer.

    Attributes:
        pattern: None where it stays dense.
        ms: milliseconds of the layer.
        error: as `ErrorCurve` counts it.
    """

    pattern: Blocks | None
    ms: float
    error: float


def options(weight: str, curves: Mapping[Blocks, ErrorCurve], clock: LayerClock) -> list[Option]:
    """All ways for a layer; the dense one alone where the target has no kernel that skips its zeros."""
    dense = clock.ms(weight, 1, 1.0)
    found = [Option(None, 0.0 if dense is None else dense, 0.0)]
    for pattern, curve in curves.items():
        errors = scipy.interpolate.PchipInterpolator(curve.ratios, np.maximum.accumulate(curve.errors))
        for ratio in np.arange(_LEAST, curve.ratios[-1] + _STEP / 2, _STEP):
            share = round(min(float(ratio), curve.ratios[-1]), 4)
            ms = None if dense is None else clock.ms(weight, pattern.rows, 1 - share)
            if ms is not None and dense is not None and ms < dense:
                found.append(Option(pattern.at(share), ms, float(errors(share))))
    return found


def cheapest(layers: Sequence[Sequence[Option]], ms: float) -> list[Option]:
    """An option for each layer, so that their times add up to ``ms`` at most and the errors to the least.

    Raises:
        PlanError: the fastest of each are not fast enough together.
    """
    hulls = [_hull(layer) for layer in layers]
    chosen = [0] * len(hulls)
    total = sum(hull[0].ms for hull in hulls)
    steps = sorted(
        ((after.error - before.error) / (before.ms - after.ms), layer, place)
        for layer, hull in enumerate(hulls)
        for place, (before, after) in enumerate(pairwise(hull))
    )
    for _, layer, place in steps:
        if total <= ms * (1 + _ROUNDING):
            break
        total -= hulls[layer][place].ms - hulls[layer][place + 1].ms
        chosen[layer] = place + 1
    if total > ms * (1 + _ROUNDING):
        raise PlanError(f"with zeros these layers take {total:.3f} ms at best; {ms:.3f} ms are left for them")
    return [hull[place] for hull, place in zip(hulls, chosen, strict=True)]


def _hull(layer: Sequence[Option]) -> list[Option]:
    """From the slowest, which has no error, to the fastest: each step costs more for a millisecond."""
    found: list[Option] = []
    for option in sorted(layer, key=lambda option: (-option.ms, option.error)):
        while found and found[-1].ms <= option.ms:
            found.pop()
        while len(found) > 1:
            a, b = found[-2:]
            if (b.error - a.error) * (a.ms - option.ms) < (option.error - a.error) * (a.ms - b.ms):
                break
            found.pop()
        if not found or option.ms < found[-1].ms:
            found.append(option)
    return found


def fitting(
    layers: Mapping[str, Sequence[Option]],
    budget: Latency,
    dense: Time,
    timed: Callable[[Mapping[str, Blocks]], Time],
    progress: Callable[[str], None],
) -> tuple[dict[str, Blocks], Time]:
    """The pattern of each layer that does not stay dense, and the time of a model with such zeros.

    Args:
        dense: of the whole model.
        timed: times a model with zeros of these patterns anywhere.

    Raises:
        PlanError: no zeros make it fast enough.
    """
    names, found = list(layers), list(layers.values())
    slowest = sum(max(option.ms for option in layer) for layer in found)
    fastest = sum(min(option.ms for option in layer) for layer in found)
    aim, time = slowest, dense
    for number in range(_PROBES):
        used = budget.used(time)
        aim = max(fastest, aim - time.ms + time.ms / used * _AIM) if used > 1 or number else slowest
        chosen = cheapest(found, aim)
        patterns = {
            name: option.pattern
            for name, option in zip(names, chosen, strict=True)
            if option.pattern is not None
        }
        progress(f"time model {number + 1}")
        time = timed(patterns)
        used = budget.used(time)
        last = number == _PROBES - 1
        if used <= 1 and (used >= _NEAR or not patterns or last):
            return patterns, time
        if used > 1 and (aim <= fastest or last):
            break
    raise PlanError(f"a latency of {budget.asked} is not met: with zeros the model takes {time.ms:.3f} ms")
