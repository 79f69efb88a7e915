"""Times of single kernels, taken in a process of their own: a crash loses no more than one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as Late
from typing import Any

from joblib.externals import loky

from ..threads import use_threads
from .workloads import Choice, Workload

_SECONDS = 60.0  # that a trial may take
_REPEATS = 15
# Between two calls so much is copied as another part of the model would read: weights that the last cache
# cannot hold are gone from it, others are in it and no nearer.
_BETWEEN = {False: 1 << 21, True: 1 << 25}


class Trials:
    """A process that times kernels; started where it is needed, and anew after a crash.

    Args:
        far: whether weights come from memory, not from the last cache.
    """

    def __init__(self, target: Mapping[str, Any], far: bool) -> None:
        self._target, self._far = dict(target), far
        self._process: Any = None

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def seconds(self, workload: Workload, choices: Sequence[Choice], rounds: int = 1) -> list[list[float]]:
        """Seconds of a call for each choice, one a round, the choices in turn; [] for one that fails.

        Where the process dies or takes too long, all of ``choices`` have failed.
        """
        if self._process is None:
            self._process = loky.ProcessPoolExecutor(max_workers=1, timeout=None)
        future = self._process.submit(measured, workload, tuple(choices), self._target, self._far, rounds)
        try:
            found: list[list[float]] = future.result(timeout=_SECONDS * len(choices))
        except (Late, loky.process_executor.BrokenProcessPool):
            self._stop()
            return [[] for _ in choices]
        return found

    def _stop(self) -> None:
        if self._process is not None:
            self._process.shutdown(wait=False, kill_workers=True)
            self._process = None


def measured(
    workload: Workload, choices: Sequence[Choice], target: Mapping[str, Any], far: bool, rounds: int
) -> list[list[float]]:
    """`Trials.seconds`, in this process."""
    import numpy as np
    import tvm

    from .build import kernel_of

    use_threads(int(target["num-cores"]))
    rng = np.random.default_rng(0)
    timers: list[Any] = []
    for choice in choices:
        try:
            function, shapes = kernel_of(workload, choice, target)
        except Exception:  # whatever TVM's passes raise: this is no way to compute it
            timers.append(None)
            continue
        arguments = [tvm.runtime.tensor(rng.standard_normal(shape).astype(np.float32)) for shape in shapes]
        timer = function.time_evaluator(
            "main", tvm.cpu(), number=1, repeat=_REPEATS, cache_flush_bytes=_BETWEEN[far]
        )
        timers.append((timer, arguments))
    found: list[list[float]] = [[] for _ in choices]
    for _ in range(rounds):
        for times, timed in zip(found, timers, strict=True):
            if timed is not None:
                timer, arguments = timed
                times.append(float(np.median(timer(*arguments).results)))
    return found
