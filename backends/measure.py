"""Timing that survives a noisy machine: runs in turn, medians, ratios within each round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from ..passes.execute import random_inputs
from .base import Backend

# One round times each candidate for about this long, so that short runs are not lost in the clock.
_SLICE_SECONDS = 0.02
_ROUNDS = 15
_WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """Attributes:
    model, runtime, threads: what was timed.
    median_ms: median time of one run in milliseconds.
    ratio: median over rounds of this time over that of the runtime compared with, in the same round.
    """

    model: str
    runtime: str
    threads: int
    median_ms: float
    ratio: float


def interleaved(runs: Mapping[str, Callable[[], object]], rounds: int = _ROUNDS) -> dict[str, list[float]]:
    """Milliseconds per call of each candidate in each round, the candidates taking turns."""
    calls = {}
    for name, run in runs.items():
        for _ in range(_WARM_UP):
            start = time.perf_counter()
            run()
            seconds = time.perf_counter() - start
        calls[name] = max(1, int(_SLICE_SECONDS / max(seconds, 1e-9)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            times[name].append((time.perf_counter() - start) * 1e3 / calls[name])
    return times


def compare(
    models: Sequence[tuple[str, onnx.ModelProto]], backends: Sequence[Backend], against: str
) -> list[Timing]:
    """Time every model in every backend, interleaved, on random inputs with dynamic axes at 1.

    Args:
        against: name of the backend that ratios compare with, on the same model.

    Raises:
        BackendError: a backend refuses a model.
    """
    timings = []
    for label, proto in models:
        inputs = random_inputs(proto, dynamic=1)
        artifacts = {backend.name: backend.compile(proto) for backend in backends}
        runs = {name: (lambda a=artifact: a.run(inputs)) for name, artifact in artifacts.items()}
        times = interleaved(runs)
        for backend in backends:
            ratios = [a / b for a, b in zip(times[backend.name], times[against], strict=True)]
            timings.append(
                Timing(
                    label,
                    backend.name,
                    backend.threads,
                    round(statistics.median(times[backend.name]), 4),
                    round(statistics.median(ratios), 4),
                )
            )
    return timings
