"""Find the fastest choice for each kernel of a model, and keep the times.

First every choice that the static model leaves is timed once, the most work first; then the few fastest and
the default are timed in turn, and what wins is kept when it is faster than the default by more than noise is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from ..base import Progress
from ..tracker import NoDevice
from .build import workloads_of
from .computed import Choice
from .database import Database
from .devices import Device, Here
from .trial import BETWEEN, Trials
from .workloads import Workload, key

_FINALISTS, _ROUNDS = 3, 9
_FASTER = 0.97  # than the default, to be taken


@dataclass(frozen=True)
class _Tuned:
    """A choice, and milliseconds of a call by default and with it."""

    choice: Choice
    before: float
    after: float


@dataclass(frozen=True)
class _Job:
    """A kernel that is being tuned, and how often the model calls it."""

    workload: Workload
    calls: int
    trials: Trials


def tune(
    modules: Sequence[Any],
    target: Mapping[str, Any],
    database: Database,
    seconds: float,
    report: Callable[[Progress], None] = lambda progress: None,
    devices: Sequence[Device] = (Here(),),
) -> Progress:
    """Time the kernels of modules until ``seconds`` are over; those whose times are known are left.

    Args:
        modules: as imported, one for each size of the batch.
        report: called before each kernel.
        devices: that time kernels, each another one at a time. Where there is none any more it ends.
    """
    end = time.monotonic() + seconds
    known = {name for name, best in database.best(target).items() if not best.estimated}
    waiting, options, far = open_questions(modules, target, known)
    progress = Progress(0, len(waiting), 0.0, 0.0)
    idle = [Trials(target, BETWEEN[far], device) for device in devices]
    everywhere, running = tuple(idle), dict[Future[_Tuned | None], _Job]()
    with ThreadPoolExecutor(len(idle)) as pool:
        try:
            while running or (waiting and idle and time.monotonic() < end):
                while waiting and idle and time.monotonic() < end:
                    report(progress)
                    job = _Job(*waiting.pop(), idle.pop())
                    ways = options(job.workload)
                    running[pool.submit(_tuned, job.workload, ways, job.trials, end)] = job
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    try:
                        won = future.result()
                    except NoDevice as error:
                        waiting.append((job.workload, job.calls))
                        progress = replace(progress, stopped=str(error))
                        continue
                    idle.append(job.trials)
                    if won is not None:
                        database.add(job.workload, far, won.choice, won.after / 1e3, target)
                        progress = progress.with_kernel(job.calls * won.before, job.calls * won.after)
                    elif time.monotonic() < end:
                        progress = progress.with_kernel(0.0, 0.0)
        finally:  # before the pool waits for its threads
            for trials in everywhere:
                trials.close()
    return progress if waiting and not idle else replace(progress, stopped=None)


def open_questions(
    modules: Sequence[Any], target: Mapping[str, Any], known: Container[str]
) -> tuple[list[tuple[Workload, int]], Callable[[Workload], Sequence[Choice]], bool]:
    """Kernels of modules with several ways to compute them, and how often each is called, the most work last;
    the ways of one; and whether weights are more than the last cache holds.

    Args:
        known: keys of kernels that are left out.
    """
    found = [workloads_of(module, target) for module in modules]
    far = any(each.far for each in found)
    options = replace(found[0], far=far).options
    seen = sum((each.seen for each in found), Counter[Workload]())
    waiting = [(w, n) for w, n in seen.items() if len(options(w)) > 1 and key(w, far) not in known]
    return sorted(waiting, key=lambda each: each[0].flops * each[1]), options, far


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
    finals = trials.seconds(workload, finalists, _ROUNDS)
    if not any(finals):  # the device went, or a kernel that ran once did not this time
        finals = trials.seconds(workload, finalists, _ROUNDS)
    rounds = dict(zip(finalists, finals, strict=True))
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
