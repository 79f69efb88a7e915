"""Which of many points hang together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Index = NDArray[np.int64]


def components(a: Index, b: Index, count: int) -> Index:
    """Connected components of the ``count`` points with an edge from each a[i] to b[i]: their labels."""
    label = np.arange(count)
    while True:
        low = np.minimum(label[a], label[b])
        np.minimum.at(label, a, low)
        np.minimum.at(label, b, low)
        shorter = label[label]
        if (shorter == label).all() and (label[a] == label[b]).all():
            return label
        label = shorter
