"""Weights times what they read: the criterion of Wanda, for whole units.

Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024: a weight counts as
its magnitude times the norm of the feature it multiplies, over the calibration inputs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from ...analysis.axes import Axis
from ...analysis.criteria import L2, Criterion, Setting
from ...analysis.memory import keeps_all
from ...analysis.obs import Consumer
from ...analysis.scores import Ranking, Scores, by_share
from .statistics import collect


@keeps_all
def rank_by_activation(setting: Setting) -> Ranking:
    """Rank each unit by |W| times the norm of its features, as a share of that of all the layer reads.

    Shares are summed over the layers that read the unit.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    analysis, inputs = setting.analysis, setting.measured()
    setting.progress("measure what layers read")
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        statistics = collect(analysis, inputs.batches(), Path(folder), samples=inputs.samples)
    scores: dict[Axis, Scores] = {}
    for group in analysis.groups:
        consumers = statistics.consumers(group.axis, centred=False)
        if consumers:
            scores[group.axis] = np.sum([_shares(one, group.size) for one in consumers], axis=0)
    return L2.rank(setting).updated(by_share(scores))


def _shares(consumer: Consumer, size: int) -> Scores:
    each = np.abs(consumer.weight).sum(axis=1) * np.sqrt(np.diag(consumer.gram))
    own = consumer.units >= 0
    summed = np.bincount(consumer.units[own], each[own], minlength=size)
    return np.asarray(summed / (each.sum() or 1.0))


ACTIVATION = Criterion("activation", "its weights times what they read", rank_by_activation, measures=True)
