"""What is lost with channels, and by lower ranks where a request asks for them: measured once for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..analysis.criteria import Criterion, Setting
from ..analysis.goal import Goal
from ..analysis.groups import Analysis
from ..analysis.lowrank import RankCurve
from ..analysis.scores import Ranking
from .data.calibrate import Calibration
from .measure.choose import OBS, rank_by_obs, weighed_statistics
from .rank_curves import Places


@dataclass(frozen=True)
class Losses:
    """The ranking of the channels of a model, and the curves of its layers."""

    ranking: Ranking
    curves: tuple[RankCurve, ...] = ()


def measure_losses(
    setting: Analysis,
    goal: Goal,
    criterion: Criterion,
    inputs: Calibration | None,
    progress: Callable[[str], None] = lambda step: None,
    places: Places | None = None,
) -> Losses:
    """Rank the channels of a model, and measure its layers where the goal has lower ranks.

    Errors of ranks are measured on what layers read where those of channels are, by the criterion "obs", and
    else by weights alone.

    Args:
        places: the layers; those of the model itself when None. Else they are of a larger one.

    Raises:
        ModelError: the model cannot be run on the inputs.
    """
    if goal.low_rank is None:
        return Losses(criterion.rank(Setting(setting, inputs, progress)))
    places = places or Places.of(setting, ignored=goal.ignore)
    statistics, ranking = None, Ranking({}, {})
    if criterion is OBS and inputs is not None:
        keys = [layer.node.key for layer in places.layers.values()]
        statistics = weighed_statistics(setting, inputs, progress=progress, layers=keys)
        if goal.low_rank != "only":
            ranking = rank_by_obs(setting, statistics, progress)
    elif goal.low_rank != "only":
        ranking = criterion.rank(Setting(setting, inputs, progress))
    names = [name for name in goal.budgets if name != "memory"]
    return Losses(ranking, tuple(places.curves(statistics, names, goal.multiple, progress)))
