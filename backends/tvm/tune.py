"""Find the fastest choice for each kernel of a model, and keep the times.

First every choice that the static model leaves is timed once, the most work first; then the few fastest and
the default are timed in turn, and what wins is kept when it is faster than the default by more than noise is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..base import Progress
from .build import workloads_of
from .database import Database
from .trial import Trials
from .workloads import Choice, Workload, key

_FINALISTS, _ROUNDS = 3, 9
_FASTER = 0.99  # than the default, to be taken


@dataclass(frozen=True)
class _Tuned:
    """A choice, and milliseconds of a call by default and with it."""

    choice: Choice
    before: float
    after: float


def tune(
    module: Any,
    target: Mapping[str, Any],
    database: Database,
    seconds: float,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Time the kernels of a module until ``seconds`` are over; those whose times are known are left.

    Args:
        module: as imported.
        report: called before each kernel.
    """
    end = time.monotonic() + seconds
    known = database.best(target)
    found = workloads_of(module)
    far = found.far
    several = [(w, calls) for w, calls in found.seen.items() if len(w.choices(far)) > 1]
    waiting = [(w, calls) for w, calls in several if key(w, far) not in known]
    waiting.sort(key=lambda each: -each[0].flops * each[1])
    progress = Progress(0, len(waiting), 0.0, 0.0)
    with Trials(target, far) as trials:
        for workload, calls in waiting:
            report(progress)
            won = _tuned(workload, workload.choices(far), trials, end)
            if time.monotonic() >= end:
                break
            progress = replace(progress, done=progress.done + 1)
            if won is not None:
                database.add(workload, far, won.choice, won.after / 1e3, target)
                before, after = progress.before + calls * won.before, progress.after + calls * won.after
                progress = replace(progress, before=before, after=after)
    return progress


def _tuned(workload: Workload, choices: Sequence[Choice], trials: Trials, end: float) -> _Tuned | None:
    """What wins; None where the default, which is the first, fails or time is up."""
    default, *others = choices
    once: dict[Choice, float] = {}
    for choice in others:
        if time.monotonic() >= end:
            return None
        (times,) = trials.seconds(workload, [choice])
        if times:
            once[choice] = times[0]
    finalists = [default, *sorted(once, key=once.__getitem__)[:_FINALISTS]]
    rounds = dict(zip(finalists, trials.seconds(workload, finalists, _ROUNDS), strict=True))
    reference = rounds[default]
    if not reference:
        return None
    ratios = {
        choice: median(a / b for a, b in zip(times, reference, strict=True))
        for choice, times in rounds.items()
        if times
    }
    choice = min(ratios, key=ratios.__getitem__)
    if ratios[choice] > _FASTER:
        choice = default
    before = median(reference) * 1e3
    return _Tuned(choice, before, before * ratios[choice])
