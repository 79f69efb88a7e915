"""Which sparsity patterns the weights of a model have, and how near they are to others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..model import Model
from .grid import Mask
from .requirement import Groups, Zeros
from .weights import Weight, opened, survey

_GROUPS = tuple(
    Groups(nonzeros, of, shared=shared)
    for shared in (1, 4)
    for nonzeros, of in ((1, 2), (2, 4), (1, 4), (4, 8), (2, 8), (8, 16))
)
# Outputs by inputs; zeros that stand alone are blocks of one.
_BLOCKS = ((1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 4), (4, 4), (8, 8), (16, 16), (32, 32))


@dataclass(frozen=True)
class Groupwise:
    """How near the weights of a model are to at most so many non-zeros in a group.

    Attributes:
        weights: that are large enough for groups; ``satisfied``: those in which all groups hold.
        macs: of all weights of the model, and of the satisfied ones.
        groups: the share of groups that hold, of all that there are.
    """

    pattern: Groups
    weights: int
    satisfied: int
    macs: tuple[int, int]
    groups: float


@dataclass(frozen=True)
class Blockwise:
    """Zeros in blocks.

    Attributes:
        outputs, inputs: of a block.
        zeros: the share of all weights that is in blocks of zeros.
        skipped: the share of the multiply-accumulates that read these.
    """

    outputs: int
    inputs: int
    zeros: float
    skipped: float


@dataclass(frozen=True)
class Discovery:
    """The patterns that the weights of a model have or nearly have, nearest first."""

    groups: tuple[Groupwise, ...]
    blocks: tuple[Blockwise, ...]


def discover(model: Model | str | Path, *, progress: Callable[[str], None] = lambda step: None) -> Discovery:
    """Look for patterns in the weights of a model.

    Args:
        model: a model, or its file, whose weights are then read one by one.
        progress: called with the name of each weight as it is read.

    Example:
        ``discover("model.onnx").groups[0].pattern``

    Raises:
        ModelError: the model cannot be read.
    """
    model, storage = opened(model)
    weights = [weight for weight in survey(model, storage).weights if weight.origin is not None]
    tally = _Tally()
    for weight in weights:
        progress(weight.name)
        tally.add(weight, weight.mask(storage))
    return tally.result()


class _Tally:
    def __init__(self) -> None:
        self._macs = self._elements = 0
        # weights, satisfied weights, their multiply-accumulates, groups, groups that hold
        self._groups = {pattern: np.zeros(5, np.int64) for pattern in _GROUPS}
        # zeros, and multiply-accumulates with them
        self._blocks = {shape: np.zeros(2) for shape in _BLOCKS}

    def add(self, weight: Weight, mask: Mask) -> None:
        self._macs += weight.macs
        self._elements += weight.elements
        for pattern, counts in self._groups.items():
            if pattern.misfit(weight.sizes) is None:
                missed = pattern.check(mask, 0)
                total = pattern.groups(weight.sizes)
                bad = missed.count if missed is not None else 0
                counts += [1, not bad, 0 if bad else weight.macs, total, total - bad]
        for (outputs, inputs), found in self._blocks.items():
            zeros = Zeros(0.5, outputs=outputs, inputs=inputs).zeros(mask)
            found += [zeros, weight.macs * zeros / max(1, mask.size)]

    def result(self) -> Discovery:
        groups = []
        for pattern, counts in self._groups.items():
            weights, satisfied, macs, total, held = counts.tolist()
            share = held / max(1, total)
            groups.append(Groupwise(pattern, weights, satisfied, (self._macs, macs), share))
        blocks = [
            Blockwise(*shape, float(zeros / max(1, self._elements)), float(macs / max(1, self._macs)))
            for shape, (zeros, macs) in self._blocks.items()
        ]
        groups.sort(key=lambda one: (-one.macs[1], -one.groups))
        return Discovery(tuple(groups), tuple(blocks))
