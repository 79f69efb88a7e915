"""Turn the units of a group to their principal axes, so that few of them carry most of what is read.

Of units that are one basis of many (`analysis.basis`) none has to be chosen as it is: after a change of basis
the model computes the same, and what the last units carry is little. Removing channels of the turned model
is what principal component analysis does to a layer (SliceGPT: Ashkboos et al., ICLR 2024, for the stream of
a transformer; here for every group that allows it).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from ..analysis.axes import Axis, units
from ..analysis.basis import Bases, Scaled
from ..analysis.criteria import Inputs
from ..analysis.errors import PlanError
from ..analysis.graph import Array, array_of, tensor_of
from ..analysis.groups import Analysis
from ..analysis.model import Model
from ..analysis.obs import Consumer
from ..analysis.selection import Selection, units_along
from ..analysis.threads import threads_for
from .data.stretch import stretched, variants_for
from .measure.layers import Layer
from .measure.statistics import collect

Matrix = NDArray[np.float64]


def principal(
    analysis: Analysis,
    inputs: Inputs,
    groups: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Model, tuple[str, ...]]:
    """A model that computes the same, the units of some groups turned to their principal axes.

    Only values of weights differ.

    Args:
        groups: ids of the groups; None for all that allow it.

    Returns:
        The model, and the ids of the groups that were turned.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
        PlanError: a group of ``groups`` does not allow it.
    """
    bases = Bases(analysis)
    some = [group for group in bases.free if groups is None or group.id in groups]
    for name in sorted(set(groups or ()) - {group.id for group in some}):
        raise PlanError(f"the plan turns group '{name}', which this model does not have or allow to turn")
    if not some:
        return analysis.model, ()
    progress("find principal axes")
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        variants = variants_for(analysis.macs(Selection({})), inputs.samples)
        statistics = collect(
            analysis,
            stretched(inputs.batches, variants, seed),
            Path(folder),
            seed,
            samples=inputs.samples * (1 + variants),
            axes={group.axis for group in some},
        )
    turns = {}
    for group in some:
        consumers = [c for c in statistics.consumers(group.axis) if c.energy > 0]
        if consumers:
            turns[group.axis] = _principal_axes(group.size, consumers)
    return Rotate(turns)(analysis), tuple(group.id for group in some if group.axis in turns)


def _principal_axes(size: int, consumers: list[Consumer]) -> Matrix:
    """An orthogonal matrix whose columns are the axes, those of most energy first."""
    total = np.zeros((size, size))
    for consumer in consumers:
        for rows in _copies(consumer.units):
            total += consumer.gram[np.ix_(rows, rows)] / consumer.energy
    with threads_for(size):
        axes = np.linalg.eigh(total)[1][:, ::-1]
    # An axis and its opposite are as good: the larger part of it is positive.
    largest = np.abs(axes).argmax(axis=0)
    return np.asarray(axes * np.where(axes[largest, np.arange(size)] < 0, -1.0, 1.0))


def _copies(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions that hold all units once, in their order, shape (copies, units); -1 is no unit."""
    present = np.flatnonzero(units >= 0)
    order = present[np.argsort(units[present], kind="stable")]
    return order.reshape(int(units.max()) + 1, -1).T


@dataclass(frozen=True)
class Rotate:
    """Write another basis into the weights.

    Attributes:
        turns: for the axis of each group an orthogonal matrix, whose column j is the new unit j.
    """

    turns: Mapping[Axis, Matrix]

    def __call__(self, analysis: Analysis) -> Model:
        stored = {tensor.name: tensor for tensor in analysis.model.proto.graph.initializer}
        new, settled = self._without_scales(analysis, stored)
        names = {node.index: node.inputs for node in analysis.walk.nodes}
        for (index, i), axes in analysis.walk.uses.items():
            name = analysis.walk.constants[names[index][i]].name
            if name in settled or name not in stored:
                continue
            settled.add(name)
            for k, axis in enumerate(axes):
                for unit, along in units_along(axis).items():
                    if unit in self.turns:
                        value = new[name] if name in new else array_of(stored[name])
                        new[name] = _turned_along(value, k, along, self.turns[unit])
        proto = onnx.ModelProto()
        proto.CopyFrom(analysis.model.proto)
        for tensor in proto.graph.initializer:
            if tensor.name in new:
                tensor.CopyFrom(tensor_of(new[tensor.name], tensor.name))
        return Model(proto, analysis.model.path)

    def _without_scales(
        self, analysis: Analysis, stored: Mapping[str, onnx.TensorProto]
    ) -> tuple[dict[str, Array], set[str]]:
        """Values where a BatchNormalization leaves its factors to the layer before it; what does not turn."""
        new: dict[str, Array] = {}
        settled: set[str] = set()
        for scaled in Bases(analysis).scaled.values():
            _, scale, _, mean, variance = scaled.norm.inputs
            if any(unit in self.turns for unit in units(analysis.walk.uses[scaled.norm.index, 1][0])):
                new |= _unscaled(scaled, stored)
                settled |= {scale, mean, variance}
        return new, settled


def _unscaled(scaled: Scaled, stored: Mapping[str, onnx.TensorProto]) -> dict[str, Array]:
    """Values with which a BatchNormalization only adds, and the layer before it multiplies by its factors."""
    fact, epsilon = scaled.layer, float(scaled.norm.attrs.get("epsilon", 1e-5))
    scale, shift, mean, variance = (array_of(stored[name]) for name in scaled.norm.inputs[1:])
    factors = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
    weight = fact.node.inputs[fact.weight]
    value = array_of(stored[weight])
    layer = Layer(fact, fact.node, value.shape)
    matrix = layer.matrix(value) * factors.reshape(layer.groups, 1, layer.outputs)
    values = [
        (weight, layer.weight(matrix), value),
        (scaled.norm.inputs[1], np.ones_like(scale), scale),
        (scaled.norm.inputs[2], shift - mean * factors, shift),
        (scaled.norm.inputs[3], np.zeros_like(mean), mean),
        (scaled.norm.inputs[4], np.full_like(variance, 1 - epsilon), variance),
    ]
    if fact.bias is not None and fact.node.has(fact.bias):
        bias = array_of(stored[fact.node.inputs[fact.bias]])
        values.append((fact.node.inputs[fact.bias], bias * factors, bias))
    return {name: np.asarray(value, like.dtype) for name, value, like in values}


def _turned_along(value: Array, k: int, along: NDArray[np.int64], turn: Matrix) -> Array:
    """``value`` with the units that ``along`` gives for the positions of axis ``k`` in another basis."""
    moved = np.moveaxis(value.astype(np.float64), k, -1)
    result = moved.copy()
    for rows in _copies(along):
        result[..., rows] = moved[..., rows] @ turn
    return np.ascontiguousarray(np.moveaxis(result, -1, k), value.dtype)
