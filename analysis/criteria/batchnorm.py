"""The scale of batch normalisation (Liu et al., "Network Slimming", ICCV 2017)."""

from __future__ import annotations

import numpy as np

from ..scores import Ranking, Tally, by_share
from .criterion import Criterion, Setting
from .magnitude import energies


def _rank(setting: Setting) -> Ranking:
    walk, tally = setting.analysis.walk, Tally(setting.analysis)
    for fact in walk.linears:
        # Other normalisations scale too, but what they scale has no fixed variance in each channel.
        if fact.node.op == "BatchNormalization":
            scale = walk.constants[fact.node.inputs[fact.weight]].value
            tally.add(walk.axes(fact.node, fact.weight)[0], np.abs(scale.astype(np.float64)))
    return by_share(tally.or_else(energies(setting.analysis)))


BN_SCALE = Criterion("bn-scale", "the scale that batch normalisation gives it; l2 where there is none", _rank)
