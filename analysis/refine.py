"""Spend what an allocation leaves of its budgets: units come back, and are exchanged for others."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

RUNGS = 512  # of a set, at most
_COARSE = 96  # steps of a whole ladder at first
_EXCHANGES = 16
_TRIES = 8
_USED = 0.99  # of a budget: all but used up
TOLERATED = 0.1  # of the error, for that


class Refinement:
    """Moves sets of groups up and down their ladders one by one, as long as the budgets hold.

    Args:
        ladders: the ratios each set can take, rising.
        ratios: of each set, within the budgets.
        usage: the costs over their limits at ratios of all sets.
        error: of a set at a ratio.
    """

    def __init__(
        self,
        ladders: Sequence[list[float]],
        ratios: Sequence[float],
        usage: Callable[[Sequence[float]], Vector],
        error: Callable[[int, float], float],
    ) -> None:
        self._ladders = ladders
        self._rungs = [_rung(ladder, ratio) for ladder, ratio in zip(ladders, ratios, strict=True)]
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

    def exchange(self, full: float, tolerated: float) -> None:
        """Give units of one set back for units of another, until a budget is used to ``full``.

        Exchanges lower the error, but for those that raise it by less than the share ``tolerated`` of it and
        leave a budget all but used up.
        """
        for _ in range(_EXCHANGES):
            if self._is_full(full) or not self._exchanged(tolerated):
                return

    def _exchanged(self, tolerated: float) -> bool:
        now = self._used(self._rungs)
        back = {k: self._effect(k, -1, now) for k, rung in enumerate(self._rungs) if rung}
        away = {
            k: -self._effect(k, 1, now)[1]
            for k, rung in enumerate(self._rungs)
            if rung + 1 < len(self._ladders[k])
        }
        total = sum(self._lost(k, rung) for k, rung in enumerate(self._rungs))
        found = []
        for i, (gain, more) in back.items():
            for j, less in away.items():
                steps = _steps(now + more - 1, less) if i != j else 0
                if not 0 < steps < len(self._ladders[j]) - self._rungs[j]:
                    continue
                change = gain + self._lost(j, self._rungs[j] + steps) - self._lost(j, self._rungs[j])
                closer = (now + more - steps * less).max() >= _USED > now.max()
                if change < 0 or (closer and change <= tolerated * total):
                    found.append((change, i, j, steps))
        for change, i, j, steps in sorted(found)[:_TRIES]:
            rungs = self._moved((i, -1), (j, steps))
            used = self._used(rungs).max()
            if used <= 1 and (change < 0 or used >= _USED):
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


def _steps(excess: Vector, less: Vector) -> int:
    """How many steps, each of which takes ``less``, make up for an excess; 0 where none would."""
    over = excess > 0
    if not over.any():
        return 1
    if (less[over] <= 0).any():
        return 0
    return int(np.ceil((excess[over] / less[over]).max() - 1e-9))
