"""A budget of time: the least cut whose model is measured to be fast enough."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..analysis.errors import PlanError, UsageError
from ..analysis.plan import Plan
from .clocks import Clock, Time
from .pipeline import carried_out
from .planner import Planner

_TEXT = re.compile(r"\s*([\d.]+(?:e[+-]?\d+)?)\s*(%|us|ms|s)\s*", re.IGNORECASE)
_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_PROBES = 10
_NEAR, _AIM = 0.95, 0.975  # of the time: near enough, and what is aimed at
_CLOSE = 0.004  # of a share of the multiply-accumulates
_MARGIN = 0.1  # of what is still open, which an estimate leaves at both ends


@dataclass(frozen=True)
class Latency:
    """What a run may take.

    Attributes:
        asked: as it was written.
        amount: a share of the dense model's time, or milliseconds.
    """

    asked: str
    amount: float
    is_share: bool

    @staticmethod
    def of(given: float | str) -> Latency:
        """From a share in (0, 1], or text such as "60%", "4ms" and "800us".

        Raises:
            UsageError: it is none of these.
        """
        if not isinstance(given, str):
            amount, share, asked = float(given), True, f"{given:.4g}"
        else:
            match = _TEXT.fullmatch(given)
            unit = match[2].lower() if match else ""
            try:
                number = float(match[1]) if match else 0.0
            except ValueError:
                number = 0.0
            share, asked = unit == "%", given.strip()
            amount = number / 100 if share else number * _MS.get(unit, 0.0)
        if not amount > 0 or (share and not amount <= 1):
            raise UsageError(f"a latency of {given} makes no sense: write 60% of the dense model's, or 4ms")
        return Latency(asked, amount, share)

    def used(self, time: Time) -> float:
        """A time over this budget."""
        return (time.share if self.is_share else time.ms) / self.amount

    def plan(
        self, planner: Planner, clock: Clock, about: Mapping[str, Any], progress: Callable[[str], None]
    ) -> Plan:
        """The plan of most multiply-accumulates whose model is within the time, found by asking the clock.

        Nothing is fitted again for it: weights of other values take the same time.

        Args:
            about: what the plan notes of the clock.

        Raises:
            PlanError: not even the smallest model is fast enough.
            BackendError: the target cannot take a model.
        """
        search = _Search(self, planner, clock, progress)
        chosen, time = search.run()
        told: dict[str, Any] = {"asked": self.asked, **about}
        told |= {"ms": round(time.ms, 4), "share": round(time.share, 4)}
        return planner.noted(chosen, {"latency": told})


class _Search:
    """Between a share of the multiply-accumulates that fits and one that does not."""

    def __init__(
        self, budget: Latency, planner: Planner, clock: Clock, progress: Callable[[str], None]
    ) -> None:
        self._budget = budget
        self._planner = planner
        self._clock = clock
        self._progress = progress
        self._seen: dict[object, Time] = {}
        self._best: tuple[Plan, Time] | None = None

    def run(self) -> tuple[Plan, Time]:
        least, most = self._planner.shares_of_macs()
        low: tuple[float, float] | None = None  # a share that fits, and the budget it uses
        high = (most, self._probe(most))
        for turn in range(_PROBES if high[1] > 1 else 0):
            share = _between(low, high) if low else max(least, _below(high, turn + 1))
            used = self._probe(share)
            if used <= 1:
                low = (share, used)
            elif share <= least:
                break
            else:
                high = (share, used)
            if low and (low[1] >= _NEAR or high[0] - low[0] < _CLOSE * high[0]):
                break
        if self._best is None:
            time = min(self._seen.values(), key=self._budget.used)
            raise PlanError(
                f"a latency of {self._budget.asked} cannot be reached: the fastest model takes"
                f" {time.ms:.3g} ms, {time.share:.0%} of the dense one"
            )
        return self._best

    def _probe(self, share: float) -> float:
        """The budget that the model of a share of the multiply-accumulates uses."""
        chosen = self._planner.at_macs(share)
        key = chosen.entries, tuple(chosen.ranks.items())
        if key not in self._seen:
            self._seen[key] = self._clock(carried_out(self._planner.whole.model, chosen))
        time = self._seen[key]
        used = self._budget.used(time)
        self._progress(f"{share:.1%} of the MACs take {time.ms:.3g} ms, {time.share:.0%}")
        if used <= 1 and (self._best is None or used > self._budget.used(self._best[1])):
            self._best = chosen, time
        return used


def _below(high: tuple[float, float], turn: int) -> float:
    """Where time, taken to be proportional, is just within the budget; further down with every turn."""
    share, used = high
    return share * min(_AIM / used, 1 - _MARGIN) ** turn


def _between(low: tuple[float, float], high: tuple[float, float]) -> float:
    """Where time, taken to be linear, is just within the budget."""
    width = high[0] - low[0]
    estimate = low[0] + width * (_AIM - low[1]) / (high[1] - low[1])
    return min(max(estimate, low[0] + _MARGIN * width), high[0] - _MARGIN * width)
