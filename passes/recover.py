"""Give a pruned model its accuracy back without training: fit every linear layer again, one after the other.

Each layer's weight and bias are fitted by least squares to what the dense model computes at that place, given
what the pruned model really reads there, whose earlier layers are fitted already (after He et al., "Channel
pruning for accelerating very deep neural networks", ICCV 2017), with a ridge towards the weights there are
(`passes.measure.gram`). A layer whose result is added to something known by then, as a branch is to its skip
path, is fitted to the sum, and makes up for what went wrong before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..analysis.graph import Array, array_of, tensor_of
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.selection import Selection
from ..analysis.threads import threads_for
from .data.stretch import WEIGHT
from .execute import Arrays
from .measure.gram import Fit, Matrix
from .measure.places import Place, find_places
from .measure.reach import first_readers
from .measure.statistics import drawn_rows
from .measure.stream import THREADS, Stream

LEAST_ROWS = 16384
ROWS_A_FEATURE = 6
_SAME = 1e-6  # a layer that reproduces the dense one to this is left as it is


@dataclass(frozen=True)
class Refit:
    """What fitting one layer did: the error of its outputs over their energy, before and after."""

    node: str
    before: float
    after: float


# New coefficients of a layer, bias included, from what was measured and those there are; None: they stay.
Solver = Callable[[Place, Fit, Matrix], Matrix | None]


def least_squares(place: Place, fit: Fit, start: Matrix) -> Matrix | None:
    """The coefficients that fit best."""
    return None if fit.error(start) < _SAME else fit.solve(start)


def recover(
    analysis: Analysis,
    pruned: Model,
    selection: Selection,
    batches: Callable[[], Iterator[Arrays]],
    folder: Path,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
    variants: int = 0,
    solver: Solver = least_squares,
    nearest: bool = False,
    threads: int = THREADS,
) -> tuple[Model, tuple[Refit, ...]]:
    """Fit the layers of ``pruned`` again, which keeps ``selection`` of the analysed dense model.

    Args:
        folder: for activations on disk; emptied by the caller.
        progress: called with the name of each layer.
        variants: of every batch that follow it, and are held out with it.
        solver: how the coefficients of a layer are found.
        nearest: fit only the layers that read what was cut (`passes.measure.reach`), for what one cut does by
            itself.
        threads: to run the models with.

    Raises:
        ModelError: ONNX Runtime cannot run one of the models on these inputs.
    """
    dense = Stream(analysis.model.proto, batches(), folder / "dense", threads)
    small = Stream(pruned.proto, batches(), folder / "pruned", threads)
    done = []
    new: dict[str, Array] = {}
    inputs: dict[int, tuple[int, str]] = {}
    walk = analyze(pruned).walk
    places = find_places(walk, pruned, dense, small)
    if nearest:
        reached = first_readers(walk, analysis.walk, selection, {p.node.key: p.fact for p in places})
        places = [place for place in places if place.node.key in reached]
    furthest = 0  # the dense model may run its layers in another order
    for place in places:
        furthest = max(furthest, place.dense + 1)
        dense.hold(place.node.key, furthest)
        if place.sum is not None:
            dense.hold(place.sum[0], furthest)
    for place in places:
        progress(place.node.name)
        with threads_for(place.layer.inputs):
            refit = _Refitter(analysis, selection, dense, small, place, seed, variants, solver).run()
        if refit is None:
            continue
        told, values = refit
        done.append(told)
        for name, value in values.items():
            small.set_weight(name, value)
            new[name] = value
        if place.bias is not None and not place.node.has(place.fact.bias or 0) and place.bias in values:
            inputs[place.position] = (place.fact.bias or 0, place.bias)
            small.set_input(place.position, place.fact.bias or 0, place.bias)
    return Model(_with(pruned.proto, new, inputs), pruned.path), tuple(done)


def _with(
    proto: onnx.ModelProto, new: dict[str, Array], inputs: dict[int, tuple[int, str]]
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    left = dict(new)
    for tensor in copy.graph.initializer:
        if tensor.name in left:
            tensor.CopyFrom(tensor_of(left.pop(tensor.name), tensor.name))
    copy.graph.initializer.extend(tensor_of(value, name) for name, value in left.items())
    for position, (i, name) in inputs.items():
        _set_input(copy.graph.node[position], i, name)
    return copy


def _set_input(node: onnx.NodeProto, i: int, name: str) -> None:
    while len(node.input) <= i:
        node.input.append("")
    node.input[i] = name


class _Refitter:
    def __init__(
        self,
        analysis: Analysis,
        selection: Selection,
        dense: Stream,
        small: Stream,
        place: Place,
        seed: int,
        variants: int,
        solver: Solver,
    ) -> None:
        self.analysis, self.selection, self.seed = analysis, selection, seed
        self.dense, self.small, self.place, self.variants = dense, small, place, variants
        self.solver = solver

    def run(self) -> tuple[Refit, dict[str, Array]] | None:
        place, layer = self.place, self.place.layer
        weight = array_of(self.small.weights[place.weight])
        if place.fact.form == "shift":
            return self._shift(weight)
        free = place.bias is not None or self._added_after()
        start = self._start(weight, free)
        fit = Fit(layer.groups, layer.inputs + free, layer.outputs)
        wanted = -(-max(LEAST_ROWS, ROWS_A_FEATURE * fit.inputs) // self.small.batches)
        for batch, (x, own, y) in enumerate(self._runs()):
            rows = drawn_rows(layer.count(y), wanted, (self.seed, place.position, batch))
            features = layer.features_at(x, rows, own)
            if free:
                ones = np.ones((*features.shape[:2], 1), np.float32)
                features = np.concatenate([features, ones], axis=2)
            given, variant = divmod(batch, 1 + self.variants)
            fit.add(features, layer.outputs_at(y, rows), given, WEIGHT if variant else 1.0)
        solved = self.solver(place, fit, start)
        if solved is None:
            return None
        values = self._values(weight, solved[:, : layer.inputs], solved[:, layer.inputs :].reshape(-1))
        return Refit(place.node.name, fit.error(start), fit.error(solved)), values

    def _values(self, weight: Array, matrix: Matrix, bias: Matrix) -> dict[str, Array]:
        """The new weight and bias by name."""
        place, layer = self.place, self.place.layer
        if place.fact.form == "scale":
            factor = matrix.reshape(-1)
            values = {place.weight: weight * factor}
            if place.bias is not None:
                values[place.bias] = array_of(self.small.weights[place.bias]) * factor + bias
        else:
            values = {place.weight: layer.weight(matrix)}
            if place.bias is not None:
                values[place.bias] = bias / layer.bias_scale
        return {name: value.astype(weight.dtype) for name, value in values.items()}

    def _start(self, weight: Array, free: bool) -> Matrix:
        place, layer = self.place, self.place.layer
        # A scale reads its own output, where nothing changes at first.
        scale = place.fact.form == "scale"
        matrix = np.ones((layer.groups, 1, 1)) if scale else layer.matrix(weight)
        if not free:
            return matrix
        bias = np.zeros((layer.groups, 1, layer.outputs))
        if place.fact.form != "scale" and place.bias in self.small.weights:
            stored = array_of(self.small.weights[place.bias or ""])
            bias += layer.bias_scale * stored.astype(np.float64).reshape(layer.groups, 1, -1)
        return np.concatenate([matrix, bias], axis=1)

    def _runs(self) -> Iterator[tuple[Array, Array, Array]]:
        """Of every batch: what the layer reads and gives in the pruned model, and what it should give."""
        place = self.place
        data, key = place.node.inputs[place.fact.data], place.node.key
        wanted = self.dense.advance(place.dense + 1, [key])
        if place.sum is not None:
            total, other, position = place.sum
            sums = self.dense.peek(position + 1, [total])
            read = self.small.advance(place.position, [data, other])
        else:
            sums = None
            read = self.small.advance(place.position, [data])
        own = self.small.peek(place.position + 1, [key]) if place.fact.form == "scale" else None
        for dense, small in zip(wanted, read, strict=True):
            if place.sum is not None and sums is not None:
                y = self._restricted(place.sum[0], next(sums)[place.sum[0]]) - small[place.sum[1]]
            else:
                y = self._restricted(key, dense[key])
            y = y - self._constant(y)
            yield small[data], next(own)[key] if own is not None else y, y

    def _constant(self, y: Array) -> Any:
        """What a bias adds that cannot be fitted, and stays."""
        place = self.place
        i = place.fact.bias
        if place.bias is not None or i is None or not place.node.has(i):
            return y.dtype.type(0)
        name = place.node.inputs[i]
        if name not in self.small.weights:
            return y.dtype.type(0)
        value = array_of(self.small.weights[name])
        if place.fact.form in ("window", "spread"):
            value = value.reshape(-1, *[1] * (y.ndim - 2))
        return (value * place.layer.bias_scale).astype(y.dtype)

    def _restricted(self, name: str, y: Array) -> Array:
        """What the pruned model keeps of a tensor of the dense one."""
        for k, axis in enumerate(self.analysis.walk.axes_of[name] or ()):
            kept = self.selection.positions(axis)
            if kept is not None:
                y = y.take(kept, axis=k)
        return y

    def _added_after(self) -> bool:
        """Whether a bias is added next, which is fitted in its turn."""
        key = self.place.node.key
        readers = [
            k
            for k in range(self.place.position + 1, len(self.small.nodes))
            if key in self.small.nodes[k].input
        ]
        return len(readers) == 1 and self.small.nodes[readers[0]].output[0] in self.place.shifts

    def _shift(self, term: Array) -> tuple[Refit, dict[str, Array]] | None:
        """The mean of what is missing is added to the term."""
        missing, rows, energy = np.zeros(term.shape), 0, 0.0
        squares = 0.0
        for x, _, y in self._runs():
            left = (y.astype(np.float64) - x - term).reshape(-1, term.shape[0])
            missing += left.sum(axis=0)
            squares += float(np.square(left).sum())
            energy += float(np.square(y, dtype=np.float64).sum())
            rows += len(left)
        mean = missing / max(1, rows)
        before = squares / (energy or 1.0)
        if before < _SAME:
            return None
        after = before - rows * float(np.square(mean).sum()) / (energy or 1.0)
        return Refit(self.place.node.name, before, after), {
            self.place.weight: (term + mean).astype(term.dtype)
        }
