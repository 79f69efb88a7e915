"""Spend what an allocation leaves of its budgets: units come back, and are exchanged for others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .budget import Chooser

Vector = NDArray[np.float64]

_RUNGS = 512
_COARSE = 96  # steps of a whole ladder at first
_EXCHANGES = 16
_TRIES = 8


class Refinement:
    """Moves sets of groups up and down their ladders one by one, as long as the budgets hold.

    Args:
        ratios: of each set, within the budgets.
        usage: the costs over their limits at ratios of all sets.
        error: of a set at a ratio.
    """

    def __init__(
        self,
        chooser: Chooser,
        ratios: Sequence[float],
        usage: Callable[[Sequence[float]], Vector],
        error: Callable[[int, float], float],
    ) -> None:
        self._ladders = [chooser.ratios(k, _RUNGS) for k in range(len(ratios))]
        self._rungs = [_rung(ladder, ratio) for ladder, ratio in zip(self._ladders, ratios, strict=True)]
        self._usage = usage
        self._error = error
        self._errors: dict[tuple[int, int], float] = {}

    @property
    def ratios(self) -> list[float]:
        return self._ratios(self._rungs)

    def _ratios(self, rungs: Sequence[int]) -> list[float]:
        return [ladder[rung] for ladder, rung in zip(self._ladders, rungs, strict=True)]

    def _used(self, rungs: Sequence[int]) -> Vector:
        return self._usage(self._ratios(rungs))

    def _is_full(self, full: float) -> bool:
        return bool(self._used(self._rungs).max() >= full)

    def _lost(self, number: int, rung: int) -> float:
        if (number, rung) not in self._errors:
            self._errors[number, rung] = self._error(number, self._ladders[number][rung])
        return self._errors[number, rung]

    def fill(self, full: float) -> None:
        """Give units back, those that reduce the error most first, until a budget is used to that share."""
        steps = {k: max(1, len(self._ladders[k]) // _COARSE) for k, rung in enumerate(self._rungs) if rung}
        while steps and not self._is_full(full):
            gain = {
                k: self._lost(k, self._rungs[k]) - self._lost(k, max(0, self._rungs[k] - step))
                for k, step in steps.items()
            }
            best = max(gain, key=gain.__getitem__)
            more = self._moved((best, -steps[best]))
            if self._used(more).max() <= 1:
                self._rungs = more
                if not more[best]:
                    del steps[best]
            elif steps[best] > 1:
                steps[best] //= 2
            else:
                del steps[best]

    def exchange(self, full: float) -> None:
        """Give units of one set back for units of another, where that reduces the error; as `fill`."""
        for _ in range(_EXCHANGES):
            if self._is_full(full) or not self._exchanged():
                return

    def _exchanged(self) -> bool:
        now = self._used(self._rungs)
        up = {k: -1 for k, rung in enumerate(self._rungs) if rung}
        down = {k: 1 for k, rung in enumerate(self._rungs) if rung + 1 < len(self._ladders[k])}
        back, away = ({k: self._effect(k, by, now) for k, by in side.items()} for side in (up, down))
        found = []
        for i, (better, more) in back.items():
            for j, (worse, less) in away.items():
                if i != j and better + worse < 0 and (now + more + less).max() <= 1:
                    found.append((better + worse, i, j))
        for _, i, j in sorted(found)[:_TRIES]:
            rungs = self._moved((i, -1), (j, 1))
            if self._used(rungs).max() <= 1:
                self._rungs = rungs
                return True
        return False

    def _effect(self, number: int, by: int, now: Vector) -> tuple[float, Vector]:
        """What a step of one set does to the error and to the usage."""
        rung = self._rungs[number]
        error = self._lost(number, rung + by) - self._lost(number, rung)
        return error, self._used(self._moved((number, by))) - now

    def _moved(self, *steps: tuple[int, int]) -> list[int]:
        rungs = list(self._rungs)
        for number, by in steps:
            rungs[number] = max(0, rungs[number] + by)
        return rungs


def _rung(ladder: list[float], ratio: float) -> int:
    """The first rung that gives at least a ratio, or the last."""
    return min(bisect_left(ladder, ratio - 1e-9), len(ladder) - 1)
