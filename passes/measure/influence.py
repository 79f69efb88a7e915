"""What an error at some place in the model does to its outputs: the unit in which groups are compared.

A tensor is moved a little towards what it is for another sample, and the answer of the outputs is
measured, both in units of how far two samples are apart there. With it, errors of single layers add up to a
prediction of the error of the outputs, to first order and when they are independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...analysis.criteria import Inputs
from ...analysis.graph import Array
from ...analysis.groups import Analysis
from ...analysis.selection import Selection
from ..execute import Arrays
from .stream import Stream

_MOVE = 0.02  # of the squared distance between samples
# Samples by which influence is measured; multiply-accumulates it may cost.
_FEW = (8, 64)
_EFFORT = 2e11


def root_influences(
    analysis: Analysis, tensors: Sequence[str], inputs: Inputs, folder: Path
) -> dict[str, float]:
    """The root of `influences` on some calibration inputs: it damps an estimate that is one of first order.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    once = analysis.macs(Selection({})) * len(tensors) / 2
    samples = min(max(_FEW[0], int(_EFFORT / max(once, 1))), _FEW[1])
    found = influences(analysis, tensors, _first(inputs.batches(), samples), folder)
    return {name: value**0.5 for name, value in found.items()}


def influences(
    analysis: Analysis, tensors: Sequence[str], batches: Iterator[Arrays], folder: Path
) -> dict[str, float]:
    """For each of these tensors, the relative squared error of the outputs over that of the tensor.

    Args:
        batches: a few inputs; each runs once for every tensor.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    stream = Stream(analysis.model.proto, batches, folder)
    positions = {name: k for k, node in enumerate(stream.nodes) for name in node.output if name}
    outputs = [name for name in analysis.walk.outputs if name in positions]
    end = len(stream.nodes)
    plain = list(stream.peek(end, outputs))
    apart = sum(distances([arrays[name] for arrays in plain]) for name in outputs)
    found: dict[str, float] = {}
    for name in sorted((t for t in tensors if t in positions), key=positions.__getitem__):
        for _ in stream.advance(positions[name] + 1, []):
            pass
        if name in outputs or not stream.holds(name) or not apart:
            found[name] = 1.0
            continue
        later = [output for output in outputs if positions[output] > positions[name]]
        found[name] = _answer(stream, name, plain, later, end) / (_MOVE * apart)
    return found


def _answer(stream: Stream, name: str, plain: Sequence[Arrays], outputs: Sequence[str], end: int) -> float:
    """The squared error of the outputs when ``name`` is moved."""

    def moved(batch: int) -> Arrays:
        value = stream.stored(name, batch)
        other = _other(value, stream.stored(name, (batch + 1) % stream.batches))
        step = np.sqrt(_MOVE / 2, dtype=np.float32).astype(value.dtype)
        return {name: value + step * (other - value)}

    total = 0.0
    for wanted, got in zip(plain, stream.peek(end, outputs, moved), strict=True):
        total += sum(squared(got[output], wanted[output]) for output in outputs)
    return total


def distances(values: Sequence[Array]) -> float:
    """Half the squared distances between each sample and another, summed.

    Args:
        values: of a tensor, batch by batch.
    """
    return sum(
        squared(_other(value, values[(k + 1) % len(values)]), value) / 2 for k, value in enumerate(values)
    )


def _other(value: Array, following: Array) -> Array:
    """The values of another sample: of the next in the batch, or of the next batch if there is one sample."""
    if value.ndim and value.shape[0] > 1:
        return np.roll(value, 1, axis=0)
    return following if following.shape == value.shape else value


def squared(a: Array, b: Array) -> float:
    """The squared distance of two tensors; 0 for what is not of floating point."""
    if a.dtype.kind not in "fV" or a.shape != b.shape:
        return 0.0
    return float(np.square(a.astype(np.float64) - b.astype(np.float64)).sum())


def _first(batches: Iterator[Arrays], samples: int) -> Iterator[Arrays]:
    """As many batches as have that many samples, and two at least where each has one."""
    taken = 0
    for arrays in batches:
        yield arrays
        taken += max((value.shape[0] for value in arrays.values() if value.ndim), default=1)
        if taken >= samples:
            return
