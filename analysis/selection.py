"""Which positions of an axis stay, once the units of each atom have been chosen."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .axes import Axis, find
from .components import Index


class Selection:
    """Kept units of atoms, and what that means for any axis built from them.

    Args:
        keep: for each free atom that shrinks, its kept units in ascending order. Atoms not named stay.
    """

    def __init__(self, keep: Mapping[Axis, Index]) -> None:
        self._keep = dict(keep)
        self._memo: dict[Axis, Index | None] = {}

    def positions(self, axis: Axis) -> Index | None:
        """Kept positions of ``axis``, ascending; None when all of them stay.

        A ragged axis has positions only block by block: ask for its parts.
        """
        axis = find(axis)
        if axis.kind == "atom":
            return self._keep.get(axis)
        if axis.kind == "fix":
            return None
        if axis not in self._memo:
            self._memo[axis] = self._positions(axis)
        return self._memo[axis]

    def count(self, axis: Axis) -> int:
        axis = find(axis)
        if axis.kind == "ragged":
            return self.count(axis.parts[0])
        kept = self.positions(axis)
        return axis.size if kept is None else len(kept)

    def shrinks(self, axis: Axis) -> bool:
        axis = find(axis)
        if axis.kind == "ragged":
            return any(self.shrinks(part) for part in axis.parts)
        return self.positions(axis) is not None

    def _positions(self, axis: Axis) -> Index | None:
        parts = [self.positions(part) for part in axis.parts]
        if all(part is None for part in parts):
            return None
        full = [
            np.arange(part.size) if kept is None else kept
            for part, kept in zip(axis.parts, parts, strict=True)
        ]
        if axis.kind == "sum":
            offsets = np.cumsum([0, *(part.size for part in axis.parts[:-1])])
            return np.concatenate([kept + offset for kept, offset in zip(full, offsets, strict=True)])
        if axis.kind == "view":
            assert axis.index is not None
            stays = np.zeros(axis.parts[0].size, bool)
            stays[full[0]] = True
            kept = np.flatnonzero(stays[axis.index])
            return None if len(kept) == axis.size else kept
        assert axis.kind == "prod"
        out = np.zeros(1, np.int64)
        for part, kept in zip(axis.parts, full, strict=True):
            out = (out[:, None] * part.size + kept).reshape(-1)
        return out


def hold(keep: dict[Axis, Index], axis: Axis, position: int) -> None:
    """Add to ``keep`` the units that ``position`` of ``axis`` needs."""
    axis = find(axis)
    if axis.kind == "atom":
        if axis in keep:
            keep[axis] = np.union1d(keep[axis], [position])
    elif axis.kind == "view":
        assert axis.index is not None
        hold(keep, axis.parts[0], int(axis.index[position]))
    elif axis.kind == "sum":
        for part in axis.parts:
            if position < part.size:
                hold(keep, part, position)
                return
            position -= part.size
    elif axis.kind == "prod":
        for part in reversed(axis.parts):
            hold(keep, part, position % part.size)
            position //= part.size


def units_along(axis: Axis) -> dict[Axis, Index]:
    """For each free atom in ``axis``, which of its units every position needs; -1 where none."""
    axis = find(axis)
    if axis.kind == "atom":
        return {axis: np.arange(axis.size)}
    found: dict[Axis, Index] = {}
    if axis.kind == "sum":
        offset = 0
        for part in axis.parts:
            for atom, units in units_along(part).items():
                whole = found.setdefault(atom, np.full(axis.size, -1))
                whole[offset : offset + part.size] = units
            offset += part.size
    elif axis.kind == "prod":
        positions, inner = np.arange(axis.size), axis.size
        for part in axis.parts:
            inner //= part.size
            for atom, units in units_along(part).items():
                found[atom] = units[positions // inner % part.size]
    elif axis.kind == "view":
        assert axis.index is not None
        for atom, units in units_along(axis.parts[0]).items():
            found[atom] = units[axis.index]
    return found
