"""From scores and ratios to a choice of units that the constraints allow."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from math import ceil, floor

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from .alignment import alignment, convolved
from .axes import Axis
from .components import Index
from .groups import Analysis, Group
from .scores import Scores
from .selection import Selection, hold

_ROUNDING = 1e-9


def rounded(count: int, multiple: int) -> int:
    """``count`` rounded up to a multiple."""
    return -(-count // multiple) * multiple


def aligned(count: int, size: int, finer: int = 1) -> int:
    """``count`` of ``size`` channels of a convolution rounded up to what suits them; `analysis.alignment`.

    Args:
        finer: what the multiple is divided by.
    """
    multiple = max(1, alignment(size) // finer)
    while count <= multiple // 2:  # less than one multiple: the next power of two
        multiple //= 2
    return min(size, rounded(count, multiple))


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """``count`` dealt out in proportion to ``sizes``, at least one to each, the largest remainders first."""
    if len(sizes) == 1:
        return [count]
    exact = np.array(sizes) * (count / sum(sizes))
    dealt = np.maximum(1, np.floor(exact + _ROUNDING)).astype(int)
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
    for axes in _alike(analysis):
        linked.add_edges_from(pairwise(number[axis] for axis in axes if axis in number))
    return [[pools[k] for k in sorted(part)] for part in nx.connected_components(linked)]


def _alike(analysis: Analysis) -> list[list[Axis]]:
    """Groups that keep equal counts, or the same units of a weight they share."""
    return [*(axes for axes, _ in analysis.same_counts()), *analysis.twins()]


class Chooser:
    """Chooses units by score, under the constraints the analysis found.

    Attributes:
        sets: groups that shrink at one ratio, as lists of pools of groups ranked against each other.

    Args:
        ignored: groups that stay whole.
        multiple: kept counts are rounded up to a multiple of this (1: no rounding; None: channels of
            convolutions are, to what `analysis.alignment` says).
        bounds: shares of a group's units of which one is the least and one the most that stays.
        finer: what the multiples are divided by where ``multiple`` is None.
    """

    def __init__(
        self,
        analysis: Analysis,
        scores: dict[Axis, Scores],
        ignored: Collection[Group] = (),
        multiple: int | None = 1,
        bounds: Mapping[Axis, tuple[float, float]] | None = None,
        finer: int = 1,
    ) -> None:
        self.analysis = analysis
        self._scores = dict(scores)
        for twins in analysis.twins():  # ranked as one, so that a shared weight stays shared
            joint = np.sum([scores[axis] for axis in twins if axis in scores], axis=0)
            self._scores.update((axis, joint) for axis in twins)
        self._orders: dict[Axis, Index] = {}
        self._multiple = multiple
        self._finer = finer
        self._outer = analysis.outer_factors() if multiple != 1 else set()
        self._convolved = convolved(analysis) if multiple is None else set()
        self._bounds = dict(bounds or {})
        for axes in _alike(analysis) if bounds else ():
            least = max(self._bounds.get(axis, (0.0, 1.0))[0] for axis in axes)
            most = min(self._bounds.get(axis, (0.0, 1.0))[1] for axis in axes)
            self._bounds |= dict.fromkeys(axes, (least, max(least, most)))
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
        for pools, ratio in zip(self.sets, ratios, strict=True):
            for pool in pools:
                for piece, count in self._counts(pool, ratio):
                    self._best(piece, count, keep)
        return self._without_empty_views(keep)

    def counts(self, number: int, ratio: float) -> dict[Axis, float]:
        """How many units stay of each group of a set, before constraints between sets.

        Groups of a single unit each share what stays of all of them.
        """
        found: dict[Axis, float] = {}
        for pool in self.sets[number]:
            for piece, count in self._counts(pool, ratio):
                size = sum(axis.size for axis in piece)
                found.update((axis, axis.size * count / size) for axis in piece)
        return found

    def ratios(self, number: int, most: int) -> list[float]:
        """Ratios at which different counts of a set stay, from 0 up: all there are, or ``most`` of them."""
        sizes = {sum(group.size for group in pool) for pool in self.sets[number]}
        grid = sorted({gone / size for size in sizes for gone in _spread(size, 4 * most)})
        found: dict[tuple[float, ...], float] = {}
        for ratio in grid:
            found.setdefault(tuple(self.counts(number, ratio).values()), ratio)
        ratios = list(found.values())
        return [ratios[i] for i in _spread(len(ratios), most)]

    def _counts(self, pool: list[Group], ratio: float) -> list[tuple[list[Axis], int]]:
        """Pieces of a pool and how many units of each stay."""
        pieces = _pieces(pool)
        sizes = [sum(axis.size for axis in piece) for piece in pieces]
        dealt = shares(sizes, self._kept(pool, sum(sizes), ratio))
        return [(piece, self._bounded(piece, count)) for piece, count in zip(pieces, dealt, strict=True)]

    def _bounded(self, piece: list[Axis], count: int) -> int:
        if not any(axis in self._bounds for axis in piece):
            return count
        bounds = [(axis.size, *self._bounds.get(axis, (0.0, 1.0))) for axis in piece]
        least = max(1, ceil(sum(size * low for size, low, _ in bounds) - _ROUNDING))
        most = max(least, floor(sum(size * high for size, _, high in bounds) + _ROUNDING))
        return min(max(count, least), most)

    def _best(self, piece: list[Axis], count: int, keep: dict[Axis, Index]) -> None:
        """Keep the best ``count`` units of a piece, whatever atoms they are in."""
        if len(piece) == 1:
            if count < piece[0].size:
                keep[piece[0]] = np.sort(self._order(piece[0])[:count])
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

    def _order(self, axis: Axis) -> NDArray[np.int64]:
        """Units of an axis, the most important first."""
        if axis not in self._orders:
            self._orders[axis] = np.argsort(-self._scores[axis], kind="stable")
        return self._orders[axis]

    def _kept(self, pool: list[Group], size: int, ratio: float) -> int:
        kept = max(1, size - int(size * ratio + _ROUNDING))
        # Alignment is a matter of whole axes: an outer factor (heads) is multiplied by the inner ones.
        if self._multiple == 1 or any(group.axis in self._outer for group in pool):
            return kept
        if self._multiple is not None:
            return min(size, rounded(kept, self._multiple))
        if not any(group.axis in self._convolved for group in pool):
            return kept
        return aligned(kept, size, self._finer)

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


def _spread(count: int, most: int) -> list[int]:
    """Numbers below ``count``: all of them, or ``most`` evenly spread, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return [int(i) for i in np.unique(np.linspace(0, count - 1, most).round())]
