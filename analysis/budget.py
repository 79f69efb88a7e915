"""From scores and ratios to a choice of units that the constraints allow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import networkx as nx
import numpy as np

from .axes import Axis
from .components import Index
from .groups import Analysis, Group
from .scores import Scores
from .selection import Selection, hold


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` dealt out in proportion to ``sizes``, at least one to each, the largest remainders first."""
    if len(sizes) == 1:
        return [count]
    exact = np.array(sizes) * (count / sum(sizes))
    dealt = np.maximum(1, np.floor(exact + 1e-9)).astype(int)
    order = np.argsort(dealt - exact, kind="stable")
    for i in order[: max(0, count - int(dealt.sum()))]:
        dealt[i] = min(sizes[i], dealt[i] + 1)
    return [int(n) for n in dealt]


def _pieces(pool: list[Group]) -> list[list[Axis]]:
    """Groups of a pool, those of a single unit together: one of them alone could only stay or go."""
    single = [group.axis for group in pool if group.size == 1]
    pieces = [[group.axis] for group in pool if group.size > 1]
    return [*pieces, single] if single else pieces


def _linked(pools: list[list[Group]], analysis: Analysis) -> list[list[list[Group]]]:
    """Pools that must give the same share: those that need equal counts, or share a weight."""
    number = {group.axis: k for k, pool in enumerate(pools) for group in pool}
    linked = nx.Graph()
    linked.add_nodes_from(range(len(pools)))
    for axes in [*(axes for axes, _ in analysis.same_counts()), *analysis.twins()]:
        linked.add_edges_from(pairwise(number[axis] for axis in axes if axis in number))
    return [[pools[k] for k in sorted(part)] for part in nx.connected_components(linked)]


class Chooser:
    """Chooses units by score, under the constraints the analysis found.

    Attributes:
        sets: groups that shrink at one ratio, as lists of pools of groups ranked against each other.

    Args:
        ignored: groups that stay whole.
        multiple: kept counts are rounded up to a multiple of this (1: no rounding).
    """

    def __init__(
        self,
        analysis: Analysis,
        scores: dict[Axis, Scores],
        ignored: Collection[Group] = (),
        multiple: int = 1,
    ) -> None:
        self.analysis = analysis
        self._scores = dict(scores)
        for twins in analysis.twins():  # ranked as one, so that a shared weight stays shared
            joint = np.sum([scores[axis] for axis in twins if axis in scores], axis=0)
            self._scores.update((axis, joint) for axis in twins)
        self._multiple = multiple
        self._outer = analysis.outer_factors() if multiple > 1 else set()
        blocked = {group.axis for group in ignored}
        for axes, _ in analysis.same_counts():  # a block cannot shrink when a sibling does not
            if any(axis in blocked for axis in axes):
                blocked.update(axes)
        free = ([group for group in pool if group.axis not in blocked] for pool in analysis.pools())
        self.sets = _linked([pool for pool in free if pool], analysis)

    def at_ratio(self, ratio: float) -> Selection:
        """Remove ``ratio`` of the units of every group, the least important first."""
        return self.at([ratio] * len(self.sets))

    def at(self, ratios: Sequence[float]) -> Selection:
        """Remove these ratios of the units of the groups of each of `sets`."""
        keep: dict[Axis, Index] = {}
        for pool, ratio in ((pool, r) for pools, r in zip(self.sets, ratios, strict=True) for pool in pools):
            pieces = _pieces(pool)
            sizes = [sum(axis.size for axis in piece) for piece in pieces]
            kept = self._kept(pool, sum(sizes), ratio)
            for piece, count in zip(pieces, shares(sizes, kept), strict=True):
                self._best(piece, count, keep)
        return self._without_empty_views(keep)

    def _best(self, piece: list[Axis], count: int, keep: dict[Axis, Index]) -> None:
        """Keep the best ``count`` units of a piece, whatever atoms they are in."""
        if len(piece) == 1:
            if count < piece[0].size:
                order = np.argsort(-self._scores[piece[0]], kind="stable")
                keep[piece[0]] = np.sort(order[:count])
            return
        stays = np.zeros(sum(axis.size for axis in piece), bool)
        values = np.concatenate([self._scores[axis] for axis in piece])
        stays[np.argsort(-values, kind="stable")[:count]] = True
        offset = 0
        for axis in piece:
            part = np.flatnonzero(stays[offset : offset + axis.size])
            offset += axis.size
            if len(part) < axis.size:
                keep[axis] = part

    def _kept(self, pool: list[Group], size: int, ratio: float) -> int:
        kept = size - int(size * ratio + 1e-9)
        # Alignment is a matter of whole axes: an outer factor (heads) is multiplied by the inner ones.
        if self._multiple > 1 and not any(group.axis in self._outer for group in pool):
            kept = -(-kept // self._multiple) * self._multiple
        return max(1, min(size, kept))

    def _without_empty_views(self, keep: dict[Axis, Index]) -> Selection:
        while True:
            self._level(keep)
            selection = Selection(keep)
            empty = [axis for axis in self.analysis.composed if selection.count(axis) == 0]
            if not empty:
                return selection
            for axis in empty:
                hold(keep, axis, 0)

    def _level(self, keep: dict[Axis, Index]) -> None:
        """Blocks that need equal counts all keep as many as the one that keeps most."""
        for axes, _ in self.analysis.same_counts():
            most = max(len(keep[axis]) if axis in keep else axis.size for axis in axes)
            for axis in axes:
                if axis in keep and len(keep[axis]) < most:
                    others = np.setdiff1d(np.arange(axis.size), keep[axis])
                    best = others[np.argsort(-self._scores[axis][others], kind="stable")]
                    keep[axis] = np.sort(np.concatenate([keep[axis], best[: most - len(keep[axis])]]))
