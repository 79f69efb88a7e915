"""Rank units by the optimal brain surgeon, on what a model's layers read for calibration inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..analysis.axes import Axis
from ..analysis.groups import Analysis
from ..analysis.memory import keeps_all
from ..analysis.obs import eliminate
from ..analysis.scores import Ranking, Scores, rank
from ..analysis.selection import Selection
from .calibrate import Calibration
from .influence import root_influences
from .statistics import collect
from .stretch import stretched, variants_for

OBS = "obs"
# Of groups that no measured layer reads, as in the bodies of loops.
FALLBACK = "l2"


def ranked(
    analysis: Analysis,
    criterion: str,
    calibration: Calibration | None,
    progress: Callable[[str], None] = lambda step: None,
) -> Ranking:
    """Rank by a criterion: "obs" on calibration inputs, any other by the values of weights.

    Without inputs the order of "obs" is that of `FALLBACK`.

    Raises:
        UsageError: there is no criterion of that name.
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    if criterion == OBS and calibration is not None:
        return rank_by_obs(analysis, calibration, progress=progress)
    return rank(analysis, FALLBACK if criterion == OBS else criterion)


@keeps_all
def rank_by_obs(
    analysis: Analysis,
    calibration: Calibration,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Ranking:
    """The order in which OBS removes the units of each group, and the error this makes.

    The error is the sum over the layers that read the group of their relative error, after the rest has been
    fitted again, times the root of how much an error there moves the outputs (`passes.influence`).

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
        )
        progress("measure what errors do")
        statistics.weigh(root_influences(analysis, statistics.outputs, calibration, Path(folder) / "few"))
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
