"""The registry of criteria by which units are ranked: built in, or of other packages.

Those have an entry point in the group ``onnx_prune.criteria`` that names a `Criterion` or a list of them. One
that cannot be loaded is told once, by a `PluginWarning`. A name that two claim raises a `PluginError` when it
is asked for, and else does no harm.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from functools import cache

import numpy as np

from ..analysis import plugins
from ..analysis.criteria import OF_WEIGHTS, Criterion, Setting
from ..analysis.errors import OnnxPruneError, PluginError, UsageError
from ..analysis.groups import Analysis
from ..analysis.scores import Ranking
from .measure.activation import ACTIVATION
from .measure.choose import OBS

GROUP = "onnx_prune.criteria"

CRITERIA: dict[str, Criterion] = {one.name: one for one in (OBS, ACTIVATION, *OF_WEIGHTS)}


@cache
def _plugged_in() -> plugins.Brought[Criterion]:
    return plugins.bring(plugins.installed(GROUP), CRITERIA, _read)


def all_criteria() -> dict[str, Criterion]:
    """The criteria of this package and of installed plug-ins, by name; loaded at the first call.

    Warns:
        PluginWarning: a plug-in cannot be loaded.
    """
    brought = _plugged_in()
    return CRITERIA | {name: _guarded(one, title) for name, (one, title) in brought.things.items()}


def criterion_of(chosen: str | Criterion) -> Criterion:
    """The criterion of a name; one that is given as such is taken as it is.

    Raises:
        UsageError: there is none of that name.
        PluginError: two claim the name.
    """
    if isinstance(chosen, Criterion):
        return chosen
    clash = _plugged_in().clashes.get(chosen)
    if clash is not None:
        first, second = clash
        raise PluginError(
            f"there are two criteria '{chosen}': one of {first}, one of {second}; uninstall either"
        )
    known = all_criteria()
    if chosen not in known:
        near = difflib.get_close_matches(chosen.lower(), known, n=2)
        hint = f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
        raise UsageError(f"there is no criterion '{chosen}'; choose one of {', '.join(sorted(known))}{hint}")
    return known[chosen]


def _read(brought: object) -> dict[str, Criterion]:
    found: dict[str, Criterion] = {}
    for one in brought if isinstance(brought, list | tuple) else (brought,):
        if not isinstance(one, Criterion):
            raise TypeError(f"it is or holds a {type(one).__name__}, where only a Criterion can be")
        found[one.name] = one
    return found


def _guarded(criterion: Criterion, title: str) -> Criterion:
    """``criterion``, with its mistakes told as its own and not as those of the model."""

    def rank(setting: Setting) -> Ranking:
        try:
            ranking = criterion.rank(setting)
        except OnnxPruneError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise PluginError(f"the criterion '{criterion.name}' of {title} failed: {told}") from error
        wrong = _mistake(setting.analysis, ranking)
        if wrong:
            raise PluginError(f"the criterion '{criterion.name}' of {title} failed: {wrong}")
        return ranking

    return replace(criterion, rank=rank)


def _mistake(analysis: Analysis, ranking: object) -> str | None:
    """What makes something no ranking of the groups of a model."""
    if not isinstance(ranking, Ranking):
        return f"it returned a {type(ranking).__name__}, not a Ranking"
    for group in analysis.groups:
        for what, values, size in (
            ("scores", ranking.scores.get(group.axis), group.size),
            ("errors", ranking.errors.get(group.axis), group.size + 1),
        ):
            if values is None:
                return f"it has no {what} of group '{group.id}'"
            if not isinstance(values, np.ndarray):
                return f"the {what} of group '{group.id}' are a {type(values).__name__}, not an array"
            if values.shape != (size,):
                return f"the {what} of group '{group.id}' have the shape {values.shape}, not ({size},)"
            if not np.isfinite(values).all():
                return f"the {what} of group '{group.id}' are not finite"
        if (np.diff(ranking.errors[group.axis]) < 0).any():
            return f"the errors of group '{group.id}' do not rise"
    return None
