"""Rank units by the optimal brain surgeon, on what a model's layers read for calibration inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from ...analysis.axes import Axis
from ...analysis.criteria import L2, Criterion, Inputs, Setting
from ...analysis.groups import Analysis
from ...analysis.memory import keeps_all
from ...analysis.obs import eliminate
from ...analysis.scores import Ranking, Scores
from ...analysis.selection import Selection
from ...analysis.threads import threads_for
from ..data.stretch import stretched, variants_for
from .influence import root_influences
from .statistics import Statistics, collect


@keeps_all
def weighed_statistics(
    analysis: Analysis,
    inputs: Inputs,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
    layers: Collection[str] = (),
) -> Statistics:
    """What layers read; errors there count times the root of how much they move the outputs
    (`passes.measure.influence`).

    Args:
        layers: outputs of nodes that are measured although no group is read there.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        progress("measure what layers read")
        variants = variants_for(analysis.macs(Selection({})), inputs.samples)
        statistics = collect(
            analysis,
            stretched(inputs.batches, variants, seed),
            Path(folder) / "all",
            seed,
            samples=inputs.samples * (1 + variants),
            layers=layers,
        )
        progress("measure what errors do")
        statistics.weigh(root_influences(analysis, statistics.outputs, inputs, Path(folder) / "few"))
    return statistics


@keeps_all
def rank_by_obs(
    analysis: Analysis, statistics: Statistics, progress: Callable[[str], None] = lambda step: None
) -> Ranking:
    """The order in which OBS removes the units of each group, and the error this makes.

    The error is the sum over the layers that read the group of their relative error, after the rest has been
    fitted again, times the weight that errors have there (`weighed_statistics`). Groups that no measured
    layer reads, as in the bodies of loops, are ranked by `L2`.
    """
    scores: dict[Axis, Scores] = {}
    errors: dict[Axis, Scores] = {}
    for k, group in enumerate(analysis.groups):
        progress(f"rank group {k + 1} of {len(analysis.groups)}")
        consumers = statistics.consumers(group.axis)
        if consumers:
            with threads_for(max(len(consumer.gram) for consumer in consumers)):
                curve = eliminate(group.size, consumers)
            scores[group.axis] = np.empty(group.size)
            scores[group.axis][curve.order] = curve.errors[1:]
            errors[group.axis] = curve.errors
    return L2.rank(Setting(analysis)).updated(Ranking(scores, errors))


def _rank(setting: Setting) -> Ranking:
    statistics = weighed_statistics(setting.analysis, setting.measured(), progress=setting.progress)
    return rank_by_obs(setting.analysis, statistics, setting.progress)


OBS = Criterion("obs", "what its removal costs once the rest is fitted again", _rank, measures=True)
