"""More calibration inputs from few: what a layer is fitted on should not be just what was given.

Each batch is followed by variants of itself: every sample mixed with another one (Zhang et al., "mixup", ICLR
2018, of inputs alone: the dense model tells what they should give), brighter or darker, with some noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...analysis.graph import Array
from ..execute import Arrays

VARIANTS = 3
WEIGHT = 0.25  # of a variant in a fit, beside a sample that was given
_EFFORT = 1e11  # multiply-accumulates on all inputs: large models are fitted on what is given
_MIXED = (0.6, 1.0)  # the share of the sample itself
_GAIN = (0.8, 1.2)
_NOISE = 0.3  # of the standard deviation of the inputs


def variants_for(macs: int, samples: int) -> int:
    """How many variants of each batch are worth their time."""
    return min(VARIANTS, int(_EFFORT / max(1, macs * samples)))


def stretched(batches: Callable[[], Iterator[Arrays]], variants: int, seed: int = 0) -> Iterator[Arrays]:
    """Every batch and then so many variants of it. Integers and truth values are the same in all."""
    for number, arrays in enumerate(batches()):
        yield arrays
        for k in range(variants):
            rng = np.random.default_rng((seed, number, k))
            yield {name: _variant(value, rng) for name, value in arrays.items()}


def _variant(value: Array, rng: np.random.Generator) -> Array:
    if value.dtype.kind != "f" or not value.ndim:
        return value
    each = (value.shape[0], *[1] * (value.ndim - 1))
    share = rng.uniform(*_MIXED, each)
    mixed = share * value + (1 - share) * value[rng.permutation(value.shape[0])]
    noise = rng.standard_normal(value.shape) * (_NOISE * float(value.std()))
    return np.asarray(rng.uniform(*_GAIN, each) * mixed + noise, value.dtype)
