"""Give a pruned model its accuracy back without training: fit every linear layer again, one after the other.

Each layer's weight and bias are fitted by least squares to what the dense model computes at that place, given
what the pruned model really reads there, whose earlier layers are fitted already (after He et al., "Channel
pruning for accelerating very deep neural networks", ICCV 2017), with a ridge towards the weights there are
(`passes.gram`). A layer whose result is added to something known by then, as a branch is to its skip path, is
fitted to the sum, and makes up for what went wrong before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from ..analysis.facts import Linear
from ..analysis.graph import Array, Node, array_of, constant_of, tensor_of
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.selection import Selection
from ..analysis.truncation import Ranks, Truncation
from .execute import Arrays
from .factorize import channels
from .gram import Fit, Gram, Matrix
from .layers import Layer, can_be_read
from .statistics import drawn_rows
from .stream import Stream, read_by

LEAST_ROWS = 16384
ROWS_A_FEATURE = 6
_SAME = 1e-6  # a layer that reproduces the dense one to this is left as it is


@dataclass(frozen=True)
class Refit:
    """What fitting one layer did: the error of its outputs over their energy, before and after."""

    node: str
    before: float
    after: float


@dataclass(frozen=True)
class _Place:
    """A layer of the pruned model that can be fitted."""

    fact: Linear
    node: Node
    layer: Layer
    position: int  # in the pruned model
    dense: int  # in the dense one
    weight: str
    bias: str | None  # its name, new where the node has none yet; None where there can be none
    shifts: frozenset[str]  # outputs of nodes that add a term to be fitted
    sum: tuple[str, str, int] | None = (
        None  # a sum it goes into, the other operand, the sum's place when dense
    )


def recover(
    analysis: Analysis,
    pruned: Model,
    selection: Selection,
    batches: Callable[[], Iterator[Arrays]],
    folder: Path,
    seed: int = 0,
    progress: Callable[[str], None] = lambda name: None,
    variants: int = 0,
    ranks: Mapping[str, Ranks] = MappingProxyType({}),
) -> tuple[Model, tuple[Refit, ...]]:
    """Fit the layers of ``pruned`` again, which keeps ``selection`` of the analysed dense model.

    Args:
        folder: for activations on disk; emptied by the caller.
        progress: called with the name of each layer.
        variants: of every batch that follow it, and are held out with it.
        ranks: of weights that are to become factors (`passes.factorize`), by name. They are fitted with that
            rank, and layers after them make up for what is lost.

    Raises:
        ModelError: ONNX Runtime cannot run one of the models on these inputs.
    """
    dense = Stream(analysis.model.proto, batches(), folder / "dense")
    small = Stream(pruned.proto, batches(), folder / "pruned")
    done = []
    new: dict[str, Array] = {}
    inputs: dict[int, tuple[int, str]] = {}
    places = _places(analysis, pruned, dense, small)
    furthest = 0  # the dense model may run its layers in another order
    for place in places:
        furthest = max(furthest, place.dense + 1)
        dense.hold(place.node.key, furthest)
        if place.sum is not None:
            dense.hold(place.sum[0], furthest)
    for place in places:
        progress(place.node.name)
        rank = ranks.get(place.weight, Ranks())
        refit = _Refitter(analysis, selection, dense, small, place, seed, variants, rank).run()
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


def _places(analysis: Analysis, pruned: Model, dense: Stream, small: Stream) -> list[_Place]:
    """Layers in the order in which the pruned model runs them."""
    reads = Counter(name for node in small.nodes for name in read_by(node))
    positions = {node.output[0]: k for k, node in enumerate(small.nodes)}
    before = {node.output[0]: k for k, node in enumerate(dense.nodes)}
    outputs = {output.name for output in pruned.proto.graph.output}
    walk = analyze(pruned).walk
    linears = [fact for fact in walk.linears if fact.node.inputs[fact.data] in small.dependent]
    shifts = frozenset(
        fact.node.outputs[0]
        for fact in linears
        if fact.form == "shift"
        and (term := fact.node.inputs[fact.weight]) in small.weights
        and reads[term] == 1
        and len(small.weights[term].dims) == 1
        and small.weights[term].dims[0] > 1
    )
    sizes = {name: [a.size for a in axes] for name, axes in walk.axes_of.items() if axes is not None}
    found = []
    for fact in linears:
        node, key = fact.node, fact.node.outputs[0]
        weight = node.inputs[fact.weight]
        # What was folded into the node since has given it the name of its own output.
        if key not in positions or key not in before or not can_be_read(fact):
            continue
        if weight not in small.weights or reads[weight] > 1:
            continue  # a weight in use elsewhere stays what it is
        constant = constant_of(small.weights[weight])
        shape = tuple(constant.shape)
        matrix = fact.form in ("window", "spread", "rows", "columns", "gemm")
        if (matrix and len(shape) < 2) or (fact.form in ("rows", "columns") and len(shape) != 2):
            continue
        if fact.form in ("scale", "shift") and (len(shape) != 1 or shape[0] < 2):
            continue
        bias = _bias(fact, node, small, reads, outputs)
        layer = Layer(fact, node, shape)
        if fact.form == "scale" and bias is None and fact.bias is not None and node.has(fact.bias):
            continue
        total = _sum_with_known(key, small, positions, before, shifts, outputs, sizes)
        found.append(_Place(fact, node, layer, positions[key], before[key], weight, bias, shifts, total))
    return sorted(found, key=lambda place: place.position)


def _sum_with_known(
    key: str,
    small: Stream,
    positions: dict[str, int],
    before: dict[str, int],
    shifts: frozenset[str],
    outputs: set[str],
    sizes: dict[str, list[int]],
) -> tuple[str, str, int] | None:
    """A sum of the layer's result with something that is known by then, as of a branch with its skip path.

    Fitting the sum and not the branch makes up for what went wrong before.
    """
    operand = key
    for _ in range(2):
        readers = [node for node in small.nodes[positions[key] + 1 :] if operand in read_by(node)]
        if operand in outputs or len(readers) != 1 or readers[0].op_type != "Add":
            return None
        total = readers[0].output[0]
        if total not in shifts:
            break
        operand = total
    others = [name for name in readers[0].input if name != operand]
    if len(others) != 1 or total not in before or total in shifts:
        return None
    if sizes.get(total) != sizes.get(key):
        return None  # the sum broadcasts
    known = positions.get(others[0], len(small.nodes)) < positions[key]
    return (total, others[0], before[total]) if known else None


def _bias(fact: Linear, node: Node, small: Stream, reads: Counter[str], outputs: set[str]) -> str | None:
    if fact.bias is None:
        return None
    if not node.has(fact.bias):
        return f"{node.key}.bias" if fact.form in ("window", "spread", "gemm") else None
    name = node.inputs[fact.bias]
    if name not in small.weights or reads[name] > 1:
        return None
    shape = tuple(small.weights[name].dims)
    return name if len(shape) == 1 and shape[0] > 1 else None


class _Refitter:
    def __init__(
        self,
        analysis: Analysis,
        selection: Selection,
        dense: Stream,
        small: Stream,
        place: _Place,
        seed: int,
        variants: int,
        ranks: Ranks,
    ) -> None:
        self.analysis, self.selection, self.seed = analysis, selection, seed
        self.dense, self.small, self.place, self.variants = dense, small, place, variants
        self.ranks = ranks

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
            fit.add(features, layer.outputs_at(y, rows), batch // (1 + self.variants))
        gram = fit.all
        energy = gram.energy or 1.0
        error = gram.error(start) / energy
        if error < _SAME and not self.ranks:
            return None
        solved = fit.solve(start)
        if self.ranks:
            solved = self._of_rank(solved, gram)
        values = self._values(weight, solved[:, : layer.inputs], solved[:, layer.inputs :].reshape(-1))
        return Refit(place.node.name, error, gram.error(solved) / energy), values

    def _of_rank(self, solved: Matrix, gram: Gram) -> Matrix:
        """The nearest coefficients of the wanted ranks; a bias goes along with what is lost on average."""
        layer, products = self.place.layer, gram.features[0]
        count, weight = layer.inputs, solved[0, : layer.inputs]
        seen = products[:count, :count]
        bias = solved[0, count:]  # a row, or none
        mean = products[count:, :count] / max(1, gram.rows)
        seen = seen - gram.rows * mean.T @ mean
        inputs = channels(self.place.fact, layer.shape)
        lower = Truncation(weight, inputs, seen).factors(self.ranks).product()
        return np.concatenate([lower, bias + mean @ (weight - lower)])[None]

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
