"""Measure what each group costs by itself: cut it, fit again what reads it, and run both models."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from ..analysis.budget import Chooser
from ..analysis.criteria import Criterion, Setting
from ..analysis.errors import ModelError, PlanError, UsageError
from ..analysis.groups import Analysis, Group, analyze
from ..analysis.model import Model
from ..analysis.plan import Entry, Plan, entries_of, select
from ..analysis.scores import Ranking
from ..analysis.selection import Selection
from ..analysis.sensitivity import Curve, Sensitivity, model_digest
from .data.calibrate import SAMPLES, Calibration, open_calibration
from .data.calibrate import Spec as CalibrationSource
from .data.labels import Labels, accuracy, classes_of, run_batches
from .data.stretch import stretched, variants_for
from .execute import Arrays
from .measure.influence import distances, squared
from .parallel import Shared, run_all
from .pipeline import check_recovery, methods, shrunk
from .recover import recover as refit

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Cut: TypeAlias = tuple[Entry, ...]  # what stays of the groups that shrink

_LIMIT = (1 << 31) - 1  # bytes that protobuf can serialise in one piece


@dataclass(frozen=True)
class _Work:
    """What every task needs, by value: a worker may be another machine."""

    model: bytes
    batches: tuple[Arrays, ...]
    labels: NDArray[np.int64] | None
    recover: str
    variants: int

    def packed(self) -> Shared:
        return np.frombuffer(pickle.dumps(self, protocol=5), np.uint8)

    @staticmethod
    def unpacked(shared: Shared) -> _Work:
        work: _Work = pickle.loads(shared.data)  # made by `packed` in the process that asked for it
        return work


@dataclass(frozen=True)
class _Point:
    error: float
    accuracy: float | None


def sensitivity(
    model: Model | Analysis,
    *,
    ratios: Sequence[float] = RATIOS,
    criterion: str | Criterion | None = None,
    recover: str | None = None,
    calibration: Calibration | CalibrationSource = None,
    samples: int = SAMPLES,
    labels: Labels = None,
    jobs: int | None = None,
    cluster: str | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Sensitivity:
    """Measure the error of a model's outputs against the units removed, for each group by itself.

    Args:
        ratios: fractions of the units of a group to remove.
        criterion, recover, calibration, samples: as in `Options`. Only the layers that read a group are
            fitted again. Without calibration inputs, synthetic ones are run.
        labels: classes of the calibration inputs, int (samples,), to measure accuracy as well: an array,
            FILE.npy, or "module:function". None takes those the calibration data holds, if any.
        jobs: how many processes; one for each core when None.
        cluster: the address of a Dask scheduler to use instead, which needs the extra ``cluster``. Its
            workers need this package, and get everything else sent.
        progress: called with the name of each step as it begins.

    Example:
        ``sensitivity(model, calibration="images.npz").curves[0].measured``

    Raises:
        UsageError: an argument is out of range or names something unknown.
        PlanError: no group can be removed.
        ModelError: ONNX Runtime cannot run the model on these inputs.
        BackendError: a worker was lost, or Dask is not installed.
    """
    levels = _levels(ratios)
    ranked, recover = methods(criterion, recover)
    check_recovery(recover)
    analysis = model if isinstance(model, Analysis) else analyze(model)
    chooser = Chooser(analysis, {group.axis: np.zeros(group.size) for group in analysis.groups})
    if not chooser.sets:
        raise PlanError("no group of channels can be removed: 'onnx-prune analyze' tells why")
    if analysis.model.proto.ByteSize() > _LIMIT:
        raise ModelError("a model of 2 GB or more cannot be sent to the processes that measure it")
    inputs = open_calibration(calibration, analysis.model, samples=samples)
    classes = classes_of(labels, inputs)
    ranking = ranked.rank(Setting(analysis, inputs, progress))
    chooser = Chooser(analysis, ranking.scores)
    sets = [_cuts(analysis, chooser, k, levels) for k in range(len(chooser.sets))]
    variants = variants_for(analysis.macs(Selection({})), inputs.samples)
    work = _Work(
        analysis.model.proto.SerializeToString(), tuple(inputs.batches()), classes, recover, variants
    )

    def told(count: int) -> None:
        progress(f"measured {count} of {len(sets)} groups")

    told(0)
    points = run_all(_measured, work.packed(), sets, jobs, cluster, told)
    curves = [
        _curve(ranking, chooser.sets[k], cuts, found)
        for k, (cuts, found) in enumerate(zip(sets, points, strict=True))
    ]
    return Sensitivity(
        model_digest(analysis),
        ranked.name,
        recover,
        {"source": inputs.source, "digest": inputs.digest},
        levels,
        tuple(curves),
        points[0][0].accuracy,
    )


def _levels(ratios: Sequence[float]) -> tuple[float, ...]:
    wrong = [ratio for ratio in ratios if not 0 <= ratio < 1]
    if wrong or not ratios:
        told = f"ratio {wrong[0]} is out of range" if wrong else "there are no ratios"
        raise UsageError(f"{told}: give fractions removed, from 0 up to but not 1")
    return tuple(sorted({0.0, *map(float, ratios)}))


# ------------------------------------------------------------------ what is cut


def _cuts(analysis: Analysis, chooser: Chooser, number: int, levels: Sequence[float]) -> list[Cut]:
    """What stays of a set of groups at each level, with all others whole."""
    ratios = np.zeros(len(chooser.sets))
    found = []
    for level in levels:
        ratios[number] = level
        found.append(entries_of(analysis, chooser.at(ratios.tolist())))
    return found


def _curve(
    ranking: Ranking, pools: list[list[Group]], cuts: Sequence[Cut], points: Sequence[_Point]
) -> Curve:
    groups = [group for pool in pools for group in pool]
    left = [{entry.group: len(entry.keep) for entry in cut} for cut in cuts]
    gone = [[group.size - each.get(group.id, group.size) for group in groups] for each in left]
    predicted = [
        sum(float(ranking.errors[group.axis][k]) for group, k in zip(groups, each, strict=True))
        for each in gone
    ]
    accuracies = tuple(point.accuracy for point in points if point.accuracy is not None)
    return Curve(
        tuple(group.id for group in groups),
        sum(group.size for group in groups),
        tuple(map(sum, gone)),
        tuple(predicted),
        tuple(point.error for point in points),
        accuracies or None,
    )


# ------------------------------------------------------------------ what a worker does


def _measured(shared: Shared, cuts: Sequence[Cut]) -> list[_Point]:
    """Error and accuracy after each cut of a set of groups."""
    work = _Work.unpacked(shared)
    model = Model(onnx.ModelProto.FromString(work.model))
    analysis = analyze(model)
    wanted = list(run_batches(model, work.batches))
    apart = sum(distances([arrays[name] for arrays in wanted]) for name in wanted[0])
    if not 0 < apart < np.inf:
        raise ModelError(
            "errors cannot be measured: on these inputs the model's outputs are the same for every sample, or"
            " are no finite numbers"
        )
    points: dict[Cut, _Point] = {}
    for cut in cuts:
        if cut not in points:  # rounding makes some the same
            points[cut] = _point(work, analysis, cut, wanted, apart)
    return [points[cut] for cut in cuts]


def _point(work: _Work, analysis: Analysis, cut: Cut, wanted: list[Arrays], apart: float) -> _Point:
    if not cut:
        return _Point(0.0, _accuracy(work, wanted))
    plan = Plan(cut, {"recover": work.recover})
    smaller = shrunk(analysis.model, plan, analysis)
    if work.recover != "none":
        with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
            smaller, _ = refit(
                analysis,
                smaller,
                select(analysis, plan),
                lambda: stretched(lambda: iter(work.batches), work.variants),
                Path(folder),
                variants=work.variants,
                nearest=True,
                threads=1,
            )
    got = list(run_batches(smaller, work.batches))
    missing = sum(
        squared(mine[name], theirs[name]) for mine, theirs in zip(got, wanted, strict=True) for name in theirs
    )
    if not np.isfinite(missing):
        raise ModelError(f"without units of group '{cut[0].group}' the outputs are no finite numbers")
    return _Point(missing / apart, _accuracy(work, got))


def _accuracy(work: _Work, outputs: Sequence[Arrays]) -> float | None:
    return None if work.labels is None else accuracy(outputs, work.labels)
