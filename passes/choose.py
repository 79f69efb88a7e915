"""Rank units by the optimal brain surgeon, on what a model's layers read for calibration inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np

from ..analysis.axes import Axis
from ..analysis.groups import Analysis
from ..analysis.memory import keeps_all
from ..analysis.obs import eliminate
from ..analysis.scores import Ranking, Scores, rank
from ..analysis.selection import Selection
from .calibrate import Calibration
from .execute import Arrays
from .influence import influences
from .statistics import Statistics, collect
from .stretch import stretched, variants_for

OBS = "obs"
# Of groups that no measured layer reads, as in the bodies of loops.
FALLBACK = "l2"
# Samples by which the influence of a layer on the outputs is measured; multiply-accumulates it may cost.
_FEW = (8, 64)
_EFFORT = 2e11


def weighed_statistics(
    analysis: Analysis,
    calibration: Calibration,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
    layers: Collection[str] = (),
) -> Statistics:
    """What layers read, and as the weight of errors the root of how much they move the outputs.

    Args:
        layers: outputs of nodes that are measured although no group is read there.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        progress("measure what layers read")
        variants = variants_for(analysis.macs(Selection({})), calibration.samples)
        statistics = collect(
            analysis,
            stretched(calibration.batches, variants, seed),
            Path(folder) / "all",
            seed,
            samples=calibration.samples * (1 + variants),
            layers=layers,
        )
        progress("measure what errors do")
        once = analysis.macs(Selection({})) * len(statistics.outputs) / 2
        samples = min(max(_FEW[0], int(_EFFORT / max(once, 1))), _FEW[1])
        influence = influences(
            analysis, statistics.outputs, _first(calibration.batches(), samples), Path(folder) / "few"
        )
    statistics.weigh({name: value**0.5 for name, value in influence.items()})
    return statistics


@keeps_all
def rank_by_obs(
    analysis: Analysis,
    calibration: Calibration,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Ranking:
    """`rank_measured` of `weighed_statistics`.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    return rank_measured(analysis, weighed_statistics(analysis, calibration, seed, progress), progress)


def rank_measured(
    analysis: Analysis, statistics: Statistics, progress: Callable[[str], None] = lambda step: None
) -> Ranking:
    """The order in which OBS removes the units of each group, and the error this makes.

    The error is the sum over the layers that read the group of their relative error, after the rest has been
    fitted again, times the root of how much an error there moves the outputs (`passes.influence`).
    """
    ranking = rank(analysis, FALLBACK)
    scores: dict[Axis, Scores] = {}
    errors: dict[Axis, Scores] = {}
    for k, group in enumerate(analysis.groups):
        progress(f"rank group {k + 1} of {len(analysis.groups)}")
        consumers = statistics.consumers(group.axis)
        if not consumers:
            scores[group.axis], errors[group.axis] = ranking.scores[group.axis], ranking.errors[group.axis]
            continue
        curve = eliminate(group.size, consumers)
        scores[group.axis] = np.empty(group.size)
        scores[group.axis][curve.order] = curve.errors[1:]
        errors[group.axis] = curve.errors
    return Ranking(scores, errors)


def _first(batches: Iterator[Arrays], samples: int) -> Iterator[Arrays]:
    """As many batches as have that many samples, and two at least where each has one."""
    taken = 0
    for arrays in batches:
        yield arrays
        taken += max((value.shape[0] for value in arrays.values() if value.ndim), default=1)
        if taken >= samples:
            return
