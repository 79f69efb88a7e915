"""A stopwatch for pruned models: each is run in turn with the dense one, on the same inputs."""

from __future__ import annotations

from statistics import median

from ..analysis.model import Model
from ..passes.clocks import Clock, Time
from ..passes.execute import random_inputs
from .base import Artifact, Backend
from .measure import interleaved, ratio

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
