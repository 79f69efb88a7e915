"""Times of single kernels, taken in a process of their own: a crash loses no more than one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import TimeoutError as Late
from threading import Lock
from typing import Any

from joblib.externals import loky

from ..tracker import NoDevice
from .computed import Choice, Operand
from .devices import Device, Here, Session
from .workloads import Workload

_SECONDS = 60.0  # that a trial may take
_REPEATS = 15
# Bytes that are copied between two calls, as another part of the model would read: weights that the last
# cache cannot hold are gone from it, others are in it and no nearer.
BETWEEN = {False: 1 << 21, True: 1 << 25}


class Trials:
    """A process that times kernels on a device; started where it is needed, and anew after a crash.

    Args:
        between: bytes that are copied between two calls, which drives others from the caches.
        device: where kernels run; they are compiled here.
    """

    def __init__(self, target: Mapping[str, Any], between: int, device: Device | None = None) -> None:
        self._target, self._between, self._device = dict(target), between, device or Here()
        self._process: Any = None
        self._closed = False
        self._lock = Lock()

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seconds(self, workload: Workload, choices: Sequence[Choice], rounds: int = 1) -> list[list[float]]:
        """Seconds of a call for each choice, one a round, the choices in turn; [] for one that fails.

        Where the process or the device dies or takes too long, all of ``choices`` have failed.

        Raises:
            NoDevice: the tracker has none any more.
        """
        limit = _SECONDS * len(choices)
        arguments = (workload, tuple(choices), self._target, self._between, rounds, self._device, limit)
        try:
            with self._lock:
                if self._closed:
                    return [[] for _ in choices]
                if self._process is None:
                    self._process = loky.ProcessPoolExecutor(max_workers=1, timeout=None)
                future = self._process.submit(measured, *arguments)
            found: list[list[float]] = future.result(timeout=self._device.patience + limit)
        except (Late, loky.process_executor.BrokenProcessPool, loky.process_executor.ShutdownExecutorError):
            self._stop()
            return [[] for _ in choices]
        return found

    def close(self) -> None:
        """End the process; what another thread measures just now fails, as does all that follows."""
        with self._lock:
            self._closed = True
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.shutdown(wait=False, kill_workers=True)


def measured(
    workload: Workload,
    choices: Sequence[Choice],
    target: Mapping[str, Any],
    between: int,
    rounds: int,
    device: Device,
    limit: float,
) -> list[list[float]]:
    """`Trials.seconds`, in this process; the device may take ``limit`` seconds."""
    kernels = [_built(workload, choice, target) for choice in choices]
    found: list[list[float]] = [[] for _ in choices]
    if not any(kernels):
        return found
    try:
        with device.session(int(target["num-cores"]), limit) as session:
            timers = [None if kernel is None else _timer(*kernel, session, between) for kernel in kernels]
            for _ in range(rounds):
                for times, timer in zip(found, timers, strict=True):
                    if timer is not None:
                        times.append(timer())
    except NoDevice:
        raise
    except Exception:  # whatever TVM makes of a device that crashed, hung or went away
        return [[] for _ in choices]
    return found


def _built(workload: Workload, choice: Choice, target: Mapping[str, Any]) -> tuple[Any, list[Operand]] | None:
    """A kernel and what it takes; None where TVM's passes take it for no way to compute it."""
    from .build import kernel_of

    try:
        return kernel_of(workload, choice, target)
    except Exception:  # whatever they raise
        return None


def _timer(kernel: Any, operands: Sequence[Operand], session: Session, between: int) -> Callable[[], float]:
    """What gives the seconds of a call."""
    import numpy as np

    arguments = [session.tensor(operand) for operand in operands]
    timer = session.load(kernel).time_evaluator(
        "main", session.device, number=1, repeat=_REPEATS, cache_flush_bytes=between
    )
    return lambda: float(np.median(timer(*arguments).results))
