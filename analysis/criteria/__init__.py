"""Ways to rank units. Here are those that read weights alone; `passes.criteria` has all of them."""

from .batchnorm import BN_SCALE
from .chance import RANDOM, random
from .criterion import Criterion, Inputs, Setting
from .magnitude import L1, L2, LAMP
from .median import FPGM

OF_WEIGHTS = (L1, L2, LAMP, BN_SCALE, FPGM, RANDOM)

__all__ = [
    "BN_SCALE",
    "FPGM",
    "L1",
    "L2",
    "LAMP",
    "OF_WEIGHTS",
    "RANDOM",
    "Criterion",
    "Inputs",
    "Setting",
    "random",
]
