"""Clocks for pruned models: one runs each in turn with the dense one, the other reads a latency table."""

from __future__ import annotations

from statistics import median

from ..analysis.errors import BackendError
from ..analysis.model import Model
from ..passes.clocks import Clock, Time
from ..passes.execute import random_inputs
from .base import Artifact, Backend
from .cpu import CpuBackend
from .measure import interleaved, ratio
from .table import Table

ROUNDS = 15
SECONDS = 0.05


def stopwatch(backend: Backend, dense: Model, rounds: int = ROUNDS, seconds: float = SECONDS) -> Clock:
    """A clock that measures in ``backend``; sizes known only at run time are 1.

    Args:
        rounds, seconds: see `interleaved`.

    Raises:
        BackendError: the backend cannot take the model.
    """
    feed = random_inputs(dense.proto, dynamic=1)
    reference = backend.compile(dense.proto)

    def run(artifact: Artifact) -> None:
        artifact.run(feed)

    def time(model: Model) -> Time:
        artifact = backend.compile(model.proto)
        runs = {"dense": lambda: run(reference), "pruned": lambda: run(artifact)}
        times = interleaved(runs, rounds, seconds)
        return Time(median(times["pruned"]), ratio(times["pruned"], times["dense"]))

    return time


def foretold(table: Table, backend: CpuBackend, dense: Model) -> Clock:
    """A clock that adds up times of a table; nothing is run.

    Raises:
        BackendError: the table is not complete or not of this model, or the backend cannot take the model.
    """
    kernels, weights = backend.kernels(dense.proto)
    whole = table.predicted(kernels, weights)
    strange = [kernel.name for kernel in kernels if not table.knows(kernel)]
    if strange:
        raise BackendError(
            f"the latency table is of another model: it knows nothing of {len(strange)} kernels, such as"
            f" {strange[0]}"
        )

    def time(model: Model) -> Time:
        ms = table.predicted(*backend.kernels(model.proto))
        return Time(ms, ms / whole)

    return time
