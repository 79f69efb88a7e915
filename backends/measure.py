"""Timing: every runner in turn within a round, so that a busy machine slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from numpy.typing import NDArray

from ..analysis.errors import UsageError
from ..passes.execute import random_inputs
from .base import Artifact, Backend

ROUNDS = 11
SECONDS = 0.1
_LEAST = 1e-6  # seconds; guards the division for calls too short for the clock


@dataclass(frozen=True)
class Timing:
    """How fast one runtime runs one model.

    Attributes:
        model: its name, as given.
        runtime: name of the backend.
        threads: threads it may use.
        median_ms: median over the rounds of the time of a call, in milliseconds.
        ratio: median over the rounds of this time divided by that of the runtime compared with.
    """

    model: str
    runtime: str
    threads: int
    median_ms: float
    ratio: float


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, list[float]]:
    """Time callables in turn, round after round.

    Args:
        runs: what to call, by name. Each is called twice first, to warm up.
        rounds: rounds; each gives one number for each callable.
        seconds: about how long one callable runs within one round; at least one call.

    Returns:
        For each name the milliseconds a call took, one number a round.

    Raises:
        UsageError: there are no rounds.
    """
    if rounds < 1:
        raise UsageError("timing needs at least one round")
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        run()
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - start, _LEAST)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            times[name].append((time.perf_counter() - start) / repeats[name] * 1e3)
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of one runner's time divided by another's."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def compare(
    models: Sequence[tuple[str, onnx.ModelProto]],
    backends: Sequence[Backend],
    against: str,
    inputs: Callable[[onnx.ModelProto], Mapping[str, NDArray[Any]]] | None = None,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
) -> list[Timing]:
    """Time every model in every backend, the backends of one model interleaved.

    Args:
        models: names and models.
        backends: at least the one named by ``against``; all with the same number of threads.
        against: name of the backend that ratios compare with.
        inputs: makes the inputs of a model; random ones with dynamic sizes of 1 if not given.
        rounds, seconds: see `interleaved`.

    Raises:
        UsageError: no backend has that name, or their threads differ.
        BackendError: a backend cannot take a model.
    """
    if against not in {backend.name for backend in backends}:
        raise UsageError(f"there is no runtime '{against}' among those to time")
    if len({backend.threads for backend in backends}) != 1:
        raise UsageError("runtimes with different numbers of threads cannot be compared")
    timings = []
    for name, model in models:
        feed = inputs(model) if inputs else random_inputs(model, dynamic=1)
        runs = {backend.name: _runner(backend.compile(model), feed) for backend in backends}
        times = interleaved(runs, rounds, seconds)
        timings += [
            Timing(
                name,
                backend.name,
                backend.threads,
                statistics.median(times[backend.name]),
                ratio(times[backend.name], times[against]),
            )
            for backend in backends
        ]
    return timings


def _runner(artifact: Artifact, feed: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
    return lambda: artifact.run(feed)
