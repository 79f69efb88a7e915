"""What tests of recovery share: small nets of real weights, cut and fitted again."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from graphs import Graph, shapes
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Entry, Model, Plan, analyze, open_calibration
from onnx_prune.analysis.plan import select
from onnx_prune.passes.execute import Arrays, execute, random_inputs
from onnx_prune.passes.pipeline import refitted, shrunk
from onnx_prune.passes.recover import Refit, recover

Array = NDArray[Any]
EXACT = 1e-6
OPTIONS = {"recover": "least-squares"}


class Real(Graph):
    """With weights of any value, so that a few channels say all there is to say."""

    def weight(self, *shape: int, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        value = self.rng.standard_normal(shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def positive(self, *shape: int) -> str:
        name = f"p{len(self.weights)}"
        value = self.rng.uniform(0.5, 2, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def norm(self, x: str, size: int) -> str:
        name: str = self(
            "BatchNormalization",
            x,
            self.positive(size),
            *(self.weight(size) for _ in range(2)),
            self.positive(size),
        )
        return name


@dataclass(frozen=True)
class Result:
    model: Model
    refits: tuple[Refit, ...]
    before: float  # the error of the outputs over their energy, on other inputs than were fitted on
    after: float


def keeping(model: Model, kept: dict[int, int]) -> Plan:
    """A plan that keeps the last ``kept[size]`` units of every group of that size."""
    groups = [group for group in analyze(model).groups if group.size in kept]
    assert {group.size for group in groups} == set(kept), [g.size for g in analyze(model).groups]
    entries = [
        Entry(group.id, group.size, tuple(range(group.size - kept[group.size], group.size)))
        for group in groups
    ]
    return Plan(tuple(entries), OPTIONS)


def inputs_of(model: Model, seed: int, batch: int = 16) -> Arrays:
    return random_inputs(model.proto, seed=seed, dynamic=batch)


def error(model: Model, other: Model, inputs: Arrays) -> float:
    wanted, got = execute(model.proto, inputs), execute(other.proto, inputs)
    missing = sum(np.square(wanted[k].astype(np.float64) - got[k]).sum() for k in wanted)
    return float(missing / sum(np.square(v, dtype=np.float64).sum() for v in wanted.values()))


def recovered(model: Model, kept: dict[int, int], batches: int = 4, batch: int = 32) -> Result:
    chosen = keeping(model, kept)
    smaller = shrunk(model, chosen)
    made = [inputs_of(model, k, batch) for k in range(batches)]
    names = list(made[0])
    if any(not value.ndim for value in made[0].values()):  # a flag is no sample: it stays what it is
        return _direct(model, chosen, smaller, made)
    calibration = open_calibration(
        {name: np.concatenate([b[name] for b in made]) for name in names},
        model,
        samples=batch * batches,
        batch=batch,
    )
    fitted, refits = refitted(model, smaller, chosen, calibration)
    return _compared(model, smaller, fitted, refits)


def _direct(model: Model, chosen: Plan, smaller: Model, made: list[Arrays]) -> Result:
    analysis = analyze(model)
    with tempfile.TemporaryDirectory() as folder:
        fitted, refits = recover(
            analysis, smaller, select(analysis, chosen), lambda: iter(made), Path(folder)
        )
    return _compared(model, smaller, fitted, refits)


def _compared(model: Model, smaller: Model, fitted: Model, refits: tuple[Refit, ...]) -> Result:
    onnx.checker.check_model(fitted.proto)
    kept = {name: shape for name, shape in shapes(fitted).items() if name in shapes(smaller)}
    assert kept == shapes(smaller)
    fresh = inputs_of(model, 99)
    return Result(fitted, refits, error(model, smaller, fresh), error(model, fitted, fresh))


def assert_recovers(model: Model, kept: dict[int, int], least: int = 1, **options: Any) -> Result:
    result = recovered(model, kept, **options)
    assert result.before > 1e-2, "there is nothing to recover"
    assert result.after < EXACT
    assert len(result.refits) >= least
    return result
