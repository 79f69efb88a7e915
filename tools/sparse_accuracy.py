"""The digits models made sparse, by us and without re-fit, for tools/accuracy_table.py."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx_prune import Calibration, Model, analyze, sparsify
from onnx_prune.analysis.graph import array_of, tensor_of
from onnx_prune.analysis.patterns.pattern import parse_pattern
from onnx_prune.analysis.plan import Plan
from onnx_prune.passes.measure.places import MATRICES, find_places
from onnx_prune.passes.measure.statistics import gather
from onnx_prune.passes.measure.stream import Stream
from onnx_prune.passes.pipeline import shrunk

PATTERNS = ("2:4", "4x1@75%", "80%", "90%")
OURS = "onnx-prune"
WANDA = "Wanda-style, no re-fit"
MAGNITUDE = "magnitude, no re-fit"


def made_sparse(
    model: Model, pattern: str, calibration: Calibration
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """What each method makes of a model."""
    yield OURS, sparsify(model, pattern, calibration=calibration).model.proto
    yield WANDA, masked(model, pattern, calibration, lambda squares: squares)
    yield MAGNITUDE, masked(model, pattern, calibration, np.ones_like)


def masked(
    model: Model,
    pattern: str,
    calibration: Calibration,
    weigh: Callable[[np.ndarray], np.ndarray],
) -> onnx.ModelProto:
    """Every layer at the same ratio, the smallest w² times ``weigh`` of the mean square of its input go.

    With these squares themselves it is the metric of Wanda (Sun et al., "A Simple and Effective Pruning
    Approach for Large Language Models", ICLR 2024); with ones, magnitude.
    """
    folded = shrunk(model, Plan((), {}))
    analysis, wanted = analyze(folded), parse_pattern(pattern)
    values: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(folded.proto, calibration.batches(), Path(folder))
        for place in find_places(analysis.walk, folded, stream, stream):
            layer = place.layer
            if place.fact.form not in MATRICES or wanted.misfit(layer.outputs, layer.run):
                continue
            moments = gather(analysis, place.fact, layer, stream)
            grams = np.stack([moments.gram(g, centred=False) for g in range(layer.groups)])
            squares = np.einsum("gkk->gk", grams)[:, None, layer.order]
            weight = layer.columns(array_of(stream.weights[place.weight]))
            kept = np.empty((layer.groups, layer.inputs, layer.outputs))
            kept[:, layer.order] = wanted.choose(weight**2 * weigh(squares), layer.run).transpose(0, 2, 1)
            values[place.weight] = layer.weight(kept) != 0
    for tensor in folded.proto.graph.initializer:
        if tensor.name in values:
            value = array_of(tensor)
            tensor.CopyFrom(
                tensor_of(np.where(values[tensor.name], value, 0).astype(value.dtype), tensor.name)
            )
    return folded.proto
