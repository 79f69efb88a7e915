"""Chance: what any criterion must beat."""

from __future__ import annotations

import numpy as np

from ..scores import Ranking, by_share
from .criterion import Criterion, Setting


def random(seed: int = 0) -> Criterion:
    """A criterion that draws the importance of each unit evenly from 0 to 1; the same for the same seed."""

    def rank(setting: Setting) -> Ranking:
        rng = np.random.default_rng(seed)
        return by_share({group.axis: rng.random(group.size) for group in setting.analysis.groups})

    return Criterion("random", "chance", rank)


RANDOM = random()
