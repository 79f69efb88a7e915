"""Memory for activations: which tensors are alive at once while the nodes run in order.

A tensor lives from the node that makes it to the last one that reads it, inputs of the model from the start
and its outputs to the end. What a node reads is still there while it writes. Operators that only give a
tensor another shape share its memory. Kernels' own buffers are not counted, and a runtime that works in place
or changes the order needs less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np

from .dtypes import bits, dtypes
from .selection import Selection
from .walk import Axes, Walk

_VIEWS = frozenset(["Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"])


@dataclass(frozen=True, eq=False)
class Activation:
    """A tensor that is computed while the model runs.

    Attributes:
        axes: without the sizes known only at run time, which count as one position.
        width: bytes of an element.
        first, last: the steps it is alive in, both included; a step is a node, in order.
    """

    axes: Axes
    width: float
    first: int
    last: int


def activations(walk: Walk) -> list[Activation]:
    """Every computed tensor of known shape that has memory of its own, inputs of the model among them."""
    made, read, types = _made(walk), _last_reads(walk), dtypes(walk)
    found = []
    for name, first in made.items():
        axes = walk.static_axes(name)
        if axes is not None:
            last = max(first, read.get(name, first))
            found.append(Activation(axes, bits(types[name]) / 8, first, last))
    return found


def peak(tensors: Sequence[Activation], selection: Selection) -> int:
    """Bytes of the tensors that are alive at once, at most, with what ``selection`` keeps."""
    change = np.zeros(max((tensor.last for tensor in tensors), default=0) + 2)
    for tensor in tensors:
        size = tensor.width * prod(selection.count(axis) for axis in tensor.axes)
        change[tensor.first] += size
        change[tensor.last + 1] -= size
    return ceil(float(np.cumsum(change).max()))


def _sources(walk: Walk) -> dict[str, str]:
    """For each tensor that is only a view, the one whose memory it has."""
    found: dict[str, str] = {}
    for node in walk.nodes:
        if node.op in _VIEWS and node.inputs[0] in walk.axes_of:
            found[node.outputs[0]] = found.get(node.inputs[0], node.inputs[0])
    return found


def _made(walk: Walk) -> dict[str, int]:
    """The step each tensor is there from; what bodies are given is there from the start."""
    made = dict.fromkeys(walk.axes_of, 0)
    made.update((name, step) for step, node in enumerate(walk.nodes) for name in node.outputs if name)
    views = _sources(walk)
    return {name: step for name, step in made.items() if name not in views}


def _last_reads(walk: Walk) -> dict[str, int]:
    """The last step that reads a tensor or a view of it."""
    views = _sources(walk)
    read: dict[str, int] = {}
    for step, node in enumerate(walk.nodes):
        for name in node.inputs:
            read[views.get(name, name)] = step
    read.update((views.get(name, name), len(walk.nodes)) for name in walk.outputs)
    return read
