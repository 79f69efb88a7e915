"""What the consumers of every group read, measured on calibration inputs; what criteria go by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...analysis.axes import Axis, find
from ...analysis.facts import Linear
from ...analysis.graph import Array
from ...analysis.groups import Analysis
from ...analysis.obs import Consumer
from ...analysis.selection import units_along
from ...analysis.threads import threads_for
from ..execute import Arrays
from .gram import Matrix, Rows
from .layers import Layer, can_be_read
from .stream import Stream

# Rows of features drawn for a Gram matrix of K features: this many at least, and so many times K.
LEAST_ROWS = 8192
ROWS_A_FEATURE = 4
_LEAST_INFLUENCE = 1e-9
_ELEMENTS = 1 << 26  # of activations of a batch that are held at once


def drawn_rows(count: int, wanted: int, seed: Sequence[int]) -> NDArray[np.int64]:
    """``wanted`` of ``count`` rows, ascending; all where there are no more."""
    if count <= wanted:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, wanted, replace=False))


@dataclass
class Moments:
    """Sums of features and their products, shape (groups, K) and (groups, K, K)."""

    sums: Matrix
    products: Matrix
    rows: int = 0
    _waiting: Rows = field(default_factory=Rows)

    @staticmethod
    def empty(groups: int, inputs: int) -> Moments:
        return Moments(np.zeros((groups, inputs)), np.zeros((groups, inputs, inputs), np.float32))

    def add(self, features: NDArray[np.float32]) -> None:
        self._sum(self._waiting.gather(features))

    def _sum(self, features: NDArray[np.float32] | None) -> None:
        if features is None:
            return
        self.sums += features.sum(axis=1, dtype=np.float64)
        with threads_for(features.shape[2]):
            self.products += features.transpose(0, 2, 1) @ features
        self.rows += features.shape[1]

    def gram(self, g: int, centred: bool) -> Matrix:
        """Of group ``g``; around the mean, which a bias takes up, when ``centred``."""
        self._sum(self._waiting.rest())
        gram = self.products[g].astype(np.float64) / max(1, self.rows)
        mean = self.sums[g] / max(1, self.rows)
        return np.asarray(gram - np.outer(mean, mean) if centred else gram)


@dataclass(frozen=True)
class _Probe:
    """One contraction to measure: the tensors it reads, and how to make features of them."""

    position: int
    output: str
    tensors: tuple[str, ...]
    moments: tuple[Moments, ...]
    add: Callable[[Arrays, int], None]
    consumers: Callable[[Axis, bool], Iterator[Consumer]]
    atoms: frozenset[Axis]


class Statistics:
    """Consumers of groups of an analysed model, with their Gram matrices. Made by `collect`."""

    def __init__(self, probes: list[_Probe]) -> None:
        self._probes = probes
        self._influence: dict[str, float] = {}

    @property
    def outputs(self) -> list[str]:
        """What the measured nodes compute."""
        return [probe.output for probe in self._probes]

    def weigh(self, influence: dict[str, float]) -> None:
        """Take errors of these outputs times a factor each; see `passes.measure.influence`."""
        self._influence = influence

    def gram(self, output: str) -> Matrix | None:
        """Of what the node reads that computes ``output``, around the mean; None where it is not measured."""
        return next((p.moments[0].gram(0, centred=True) for p in self._probes if p.output == output), None)

    def influence(self, output: str) -> float:
        """By what errors of an output are taken times."""
        return self._influence.get(output, 1.0)

    def consumers(self, axis: Axis, centred: bool = True) -> list[Consumer]:
        """What reads the units of a group's axis.

        Args:
            centred: take features around their means where a bias makes up for these.
        """
        return [
            replace(
                consumer,
                energy=consumer.energy / max(_LEAST_INFLUENCE, self.influence(probe.output)),
            )
            for probe in self._probes
            if axis in probe.atoms
            for consumer in probe.consumers(axis, centred)
        ]


def collect(
    analysis: Analysis,
    batches: Iterator[Arrays],
    folder: Path,
    seed: int = 0,
    samples: int = 256,
    axes: Collection[Axis] | None = None,
    layers: Collection[str] = (),
) -> Statistics:
    """Run the model once and measure every contraction over the units of a group.

    Args:
        axes: of the groups; None for all.
        folder: for activations on disk; emptied by the caller.
        samples: how many samples there will be, by which rows are shared out.
        layers: outputs of nodes that are measured although no group is read there.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    proto = analysis.model.proto
    stream = Stream(proto, batches, folder)
    atoms = {group.axis for group in analysis.groups} if axes is None else set(axes)
    probes = sorted(_probes(analysis, stream, atoms, seed, layers), key=lambda probe: probe.position)
    typed = analysis.walk.axes_of
    sizes = {name: int(np.prod([a.size for a in types or ()])) for name, types in typed.items()}
    k = 0
    while k < len(probes):
        elements, last = 0, k
        while last < len(probes) and (last == k or elements <= _ELEMENTS):
            elements += (
                sum(sizes.get(name, 0) for name in probes[last].tensors) * samples // max(1, stream.batches)
            )
            last += 1
        some = probes[k:last]
        wanted = sorted({name for probe in some for name in probe.tensors})
        for batch, arrays in enumerate(stream.advance(some[-1].position, wanted)):
            for probe in some:
                probe.add(arrays, batch)
        k = last
    return Statistics(probes)


def _probes(
    analysis: Analysis, stream: Stream, atoms: set[Axis], seed: int, layers: Collection[str]
) -> Iterator[_Probe]:
    walk = analysis.walk
    positions = {node.output[0]: k for k, node in enumerate(stream.nodes)}
    linears = {fact.node.index: fact for fact in walk.linears if can_be_read(fact)}
    seen: set[int] = set()
    for contraction in walk.contractions:
        node = contraction.node
        places = dict(contraction.places)
        if node.outputs[0] not in positions or node.index in seen or contraction.in_place:
            continue
        always = node.outputs[0] in layers
        fact = linears.get(node.index)
        if fact is not None and {fact.data, fact.weight} <= places.keys():
            probe = _of_weight(
                analysis, fact, places, atoms, positions[node.outputs[0]], stream.batches, seed, always
            )
        elif len(places) == 2 and all(walk.axes_of.get(node.inputs[i]) for i in places):
            probe = _of_computed(
                analysis, node.inputs, places, atoms, positions[node.outputs[0]], stream, seed, always
            )
        else:
            continue
        if probe is not None:
            seen.add(node.index)
            yield probe


def _of_weight(
    analysis: Analysis,
    fact: Linear,
    places: dict[int, int],
    atoms: set[Axis],
    position: int,
    batches: int,
    seed: int,
    always: bool,
) -> _Probe | None:
    walk, node = analysis.walk, fact.node
    constant = walk.constants[node.inputs[fact.weight]]
    if len(constant.shape) < 2 or (fact.form in ("rows", "columns") and len(constant.shape) > 2):
        return None
    layer = Layer(fact, node, constant.shape)
    axis = find(walk.axes(node, fact.weight)[places[fact.weight]])
    blocks = axis.parts if axis.kind == "ragged" else [axis] * layer.groups
    if fact.form == "spread" and layer.groups > 1:
        return None
    along = [units_along(block) for block in blocks]
    reached = frozenset(atom for units in along for atom in units if atom in atoms)
    if not reached and not always:
        return None
    moments, add = _reader(analysis, fact, layer, position, batches, seed)

    def consumers(atom: Axis, centred: bool) -> Iterator[Consumer]:
        matrix = layer.matrix(constant.value)
        for g, units in enumerate(along):
            if atom in units:
                gram = moments.gram(g, centred and has_bias(fact))
                each = matrix.shape[1] // len(units[atom])  # kernel positions of a channel
                energy = float(np.einsum("ko,kl,lo->", matrix[g], gram, matrix[g], optimize=True))
                yield Consumer(gram, matrix[g], np.repeat(units[atom], each), energy)

    return _Probe(position, node.outputs[0], (node.inputs[fact.data],), (moments,), add, consumers, reached)


def has_bias(fact: Linear) -> bool:
    """Whether a bias takes up the mean of what a layer reads: its own, or one that is mostly added next."""
    return fact.bias is not None or fact.form in ("rows", "columns")


def _reader(
    analysis: Analysis, fact: Linear, layer: Layer, position: int, batches: int, seed: int
) -> tuple[Moments, Callable[[Arrays, int], None]]:
    """Moments of what a layer reads, and what adds to them from the tensors of a batch."""
    moments = Moments.empty(layer.groups, layer.inputs)
    wanted = -(-max(LEAST_ROWS, ROWS_A_FEATURE * layer.inputs) // max(1, batches))
    data = fact.node.inputs[fact.data]
    sizes = [a.size for a in analysis.walk.axes_of[fact.node.outputs[0]] or ()]

    def add(arrays: Arrays, batch: int) -> None:
        x = arrays[data]
        # The output is not needed, only its sizes.
        y = np.broadcast_to(np.float32(0), _output_shape(fact, x.shape, sizes))
        rows = drawn_rows(layer.count(y), wanted, (seed, position, batch))
        moments.add(layer.features_at(x, rows, y))

    return moments, add


def gather(analysis: Analysis, fact: Linear, layer: Layer, stream: Stream, seed: int = 0) -> Moments:
    """Moments of what one layer reads; the stream moves on to it.

    Raises:
        ModelError: ONNX Runtime cannot run the model on these inputs.
    """
    position = next(k for k, node in enumerate(stream.nodes) if node.output[0] == fact.node.outputs[0])
    moments, add = _reader(analysis, fact, layer, position, stream.batches, seed)
    for batch, arrays in enumerate(stream.advance(position, [fact.node.inputs[fact.data]])):
        add(arrays, batch)
    return moments


def _output_shape(fact: Linear, x: Sequence[int], y: Sequence[int]) -> tuple[int, ...]:
    """The shape of an output, whose leading axes are those of the data at hand."""
    if fact.form in ("window", "spread"):
        return (x[0], *y[1:])
    if fact.form == "columns":
        return (*x[:-2], y[-2], x[-1])
    return (*(x[:-1] if not fact.node.attrs.get("transA") else x[1:]), y[-1])


def _of_computed(
    analysis: Analysis,
    inputs: Sequence[str],
    places: dict[int, int],
    atoms: set[Axis],
    position: int,
    stream: Stream,
    seed: int,
    always: bool,
) -> _Probe | None:
    """Both operands are computed. Queries and keys are each the weight of the other; a transposed constant is
    one as well, and is seldom without a bias after it."""
    (i, k), (j, m) = places.items()
    if inputs[i] not in stream.dependent:
        (i, k), (j, m) = (j, m), (i, k)
    is_weight = inputs[j] not in stream.dependent
    types = analysis.walk.axes_of[inputs[i]]
    assert types is not None
    along = units_along(types[k])
    reached = frozenset(atom for atom in along if atom in atoms)
    if not reached and not always:
        return None
    size = find(types[k]).size
    moments = Moments.empty(1, size), Moments.empty(1, size)
    wanted = -(-max(LEAST_ROWS, ROWS_A_FEATURE * size) // stream.batches)

    def add(arrays: Arrays, batch: int) -> None:
        for operand, axis, sums in ((i, k, moments[0]), (j, m, moments[1])):
            flat = _rows(arrays[inputs[operand]], axis)
            sums.add(flat[None, drawn_rows(len(flat), wanted, (seed, position, batch))])

    def consumers(atom: Axis, centred: bool) -> Iterator[Consumer]:
        data, other = moments[0].gram(0, centred and is_weight), moments[1].gram(0, centred=False)
        values, vectors = np.linalg.eigh(other)
        # Of all roots the symmetric one: rows of features that do not correlate are as large as these.
        weight = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        yield Consumer(data, weight, along[atom], float(np.einsum("kl,kl->", data, other)))

    return _Probe(
        position, stream.nodes[position].output[0], (inputs[i], inputs[j]), moments, add, consumers, reached
    )


def _rows(value: Array, axis: int) -> NDArray[np.float32]:
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis]).astype(np.float32, copy=False)
