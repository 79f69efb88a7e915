"""Layers that could be factors of lower rank, which ranks are worth a look, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from .axes import Axis, find, flatten
from .budget import aligned, rounded
from .dtypes import bits, dtypes
from .facts import Contraction, Work
from .graph import Node
from .groups import Analysis
from .parameters import element_bytes
from .resources import Term
from .selection import Selection
from .truncation import Ranks, Truncation
from .walk import Walk

DENSE = Ranks()
_STEPS = 16  # ranks looked at, of each end of a layer
_OPTIONS = 24  # pairs of them that are kept
# Operators that only lay a constant out anew.
_LAYOUT = ("Transpose", "Identity")


def _none() -> Axis:
    """An axis that a dense layer has no positions of."""
    return Axis("atom", 0)


@dataclass(frozen=True, eq=False)
class Widths:
    """What ranks add to a layer, as axes whose sizes are read off `of`: so costs stay sums of products.

    Attributes:
        dense: -1 where there are factors, whose cost is then not that of the dense layer.
        first, last: channels between the first factor and the window, and between the window and the last.
        reads, writes: those of the other end of the window, where it has the channels of the layer itself.
        inside: both, where it has neither.
    """

    dense: Axis = field(default_factory=_none)
    first: Axis = field(default_factory=_none)
    last: Axis = field(default_factory=_none)
    reads: Axis = field(default_factory=_none)
    writes: Axis = field(default_factory=_none)
    inside: Axis = field(default_factory=_none)

    def of(self, ranks: Ranks) -> dict[Axis, int]:
        first, last = ranks.inputs or 0, ranks.outputs or 0
        return {
            self.dense: -1 if ranks else 0,
            self.first: first,
            self.last: last,
            self.reads: 0 if first else last,
            self.writes: 0 if last else first,
            self.inside: first * last,
        }


@dataclass(frozen=True, eq=False)
class LowRankLayer:
    """A node that multiplies with a learned matrix, or slides one over a window.

    Attributes:
        weight: the initializer that the matrix is made from.
        step: of the node, as it is counted in `analysis.activations`.
        inner, outer: axes of what goes in and what comes out.
        kernel: sizes of the window.
        others: axes of the positions the window takes; with the others of the multiply-accumulates.
        before: positions there are before the window slides, for each there is after it.
        stored, computed: bytes of an element of the weight, and of the output.
    """

    weight: str
    node: Node
    step: int
    inner: Axis
    outer: Axis
    kernel: tuple[int, ...]
    others: tuple[Axis, ...]
    before: float
    stored: float
    computed: float
    widths: Widths = field(default_factory=Widths)

    def terms(self, name: str) -> list[Term]:
        """What ranks add to what the model uses of a resource, by the axes of `widths`.

        The channels in the middle count in the memory of the whole layer, as if its input and its output were
        there as well: no less than there is.
        """
        between, window = self.widths, prod(self.kernel)
        if name == "memory":
            where = (self.step, self.step)
            return [
                Term(self.computed * self.before, (*self.others, between.first), *where),
                Term(self.computed, (*self.others, between.last), *where),
            ]
        scale = self.stored if name == "bytes" else 1.0
        others, before = (self.others, self.before) if name == "macs" else ((), 1.0)
        return [
            Term(scale * window, (*others, self.inner, self.outer, between.dense)),
            Term(scale * before, (*others, self.inner, between.first)),
            Term(scale * window, (*others, self.inner, between.reads)),
            Term(scale * window, (*others, between.writes, self.outer)),
            Term(scale * window, (*others, between.inside)),
            Term(scale, (*others, between.last, self.outer)),
        ]

    def extra(self, ranks: Ranks, name: str, selection: Selection) -> float:
        """What ranks add to the use of a resource under a selection: less than nothing, where they save."""
        if not ranks:
            return 0.0
        sizes = self.widths.of(ranks)
        return sum(
            term.scale * prod(sizes[axis] if axis in sizes else selection.count(axis) for axis in term.axes)
            for term in self.terms(name)
        )

    def dense(self, name: str, selection: Selection) -> float:
        """What the layer itself uses of a resource that is no memory for activations."""
        term = self.terms(name)[0]
        return term.scale * prod(selection.count(axis) for axis in term.axes if axis is not self.widths.dense)

    def fitting(self, ranks: Ranks, selection: Selection) -> Ranks:
        """Ranks without a factor that is no narrower than what a selection leaves of the layer; none where
        they save nothing there."""
        inner, outer = selection.count(self.inner), selection.count(self.outer)
        window = prod(self.kernel)
        first = ranks.inputs if ranks.inputs is not None and ranks.inputs < inner else None
        last = ranks.outputs
        if last is not None and last >= min(outer, (inner if first is None else first) * window):
            last = None
        found = Ranks(first, last)
        saves = any(self.extra(found, name, selection) < 0 for name in ("macs", "params"))
        return found if saves else DENSE

    def candidates(self, multiple: int | None) -> tuple[list[int | None], list[int | None]]:
        """Ranks at the two ends to look at, None the last of each.

        Args:
            multiple: of which they are; None for what suits channels of a convolution, where it is one.
        """
        window = prod(self.kernel)
        inner, outer = self.inner.size, self.outer.size

        def ladder(most: float, steps: int, size: int) -> list[int | None]:
            """Ranks below ``most``, evenly spaced, of an end of so many channels."""
            spaced = [max(1, round(most * k / steps)) for k in range(1, steps)]
            if multiple is not None:
                spaced = [rounded(rank, multiple) for rank in spaced]
            elif self.node.op == "Conv":
                spaced = [aligned(rank, size) for rank in spaced]
            return [*sorted({rank for rank in spaced if rank < most}), None]

        if window == 1:
            return [None], ladder(inner * outer / (inner + outer), 2 * _STEPS, outer)
        return (
            ladder(min(inner, window * outer), _STEPS, inner),
            ladder(min(window * inner, outer), _STEPS, outer),
        )


@dataclass(frozen=True, eq=False)
class RankCurve:
    """What a layer loses by lower ranks.

    Attributes:
        options: the pairs of ranks that no other pair beats in both error and cost, dense first.
        errors: of each, in the unit of `scores.Ranking.errors`.
    """

    layer: LowRankLayer
    options: tuple[Ranks, ...]
    errors: NDArray[np.float64]


def rank_curve(
    layer: LowRankLayer, truncation: Truncation, factor: float, multiple: int | None, names: Collection[str]
) -> RankCurve:
    """The options of a layer.

    Args:
        truncation: of its weight.
        factor: by what its error is taken times.
        multiple: of which ranks are; see `LowRankLayer.candidates`.
        names: of the resources they are to save: the shares of the layer that are left of each are summed.
    """
    whole = Selection({})
    dense = {name: layer.dense(name, whole) for name in names}
    found = []
    for ranks, error in truncation.errors(*layer.candidates(multiple)):
        cost = sum(layer.extra(ranks, name, whole) / dense[name] for name in names)
        if cost < 0 and layer.fitting(ranks, whole) == ranks:
            found.append((error, cost, ranks))
    best: list[tuple[float, Ranks]] = []
    least = 0.0
    for error, cost, ranks in sorted(found, key=lambda each: each[:2]):
        if cost < least:
            best.append((error, ranks))
            least = cost
    best = [best[k] for k in _spaced(len(best), _OPTIONS)]
    options = (DENSE, *(ranks for _, ranks in best))
    return RankCurve(layer, options, factor * np.array([0.0, *(error for error, _ in best)]))


def _spaced(count: int, most: int) -> Sequence[int]:
    """At most so many of ``count`` numbers, evenly spaced, the ends among them."""
    return range(count) if count <= most else np.linspace(0, count - 1, most).round().astype(int).tolist()


def find_layers(analysis: Analysis, ignored: Collection[str] = ()) -> dict[str, LowRankLayer]:
    """The layers of the outermost graph that could be factors of lower rank, by the name of their weight.

    A weight that is read more than once, or that can be fed, stays as it is.

    Args:
        ignored: names of nodes and tensors; layers on one of them are left out.
    """
    walk, graph = analysis.walk, analysis.model.proto.graph
    reads = Counter(name for node in graph.node for name in node.input)
    reads.update(info.name for info in (*graph.input, *graph.output))
    stored = {tensor.name for tensor in graph.initializer}
    outermost = {node.output[0] for node in graph.node if node.output}
    makers = {name: node for node in walk.nodes for name in node.outputs}
    works = {work.node.index: work for work in walk.work}
    steps = {node.index: step for step, node in enumerate(walk.nodes)}
    stored_as = {c.name: element_bytes(c) for c, _, _ in analysis.parameter_uses}
    types = dtypes(walk)
    found = {}
    for contraction in walk.contractions:
        node = contraction.node
        if node.key not in outermost or contraction.in_place or node.index not in works:
            continue
        for i, k in contraction.places:
            weight = _source(node.inputs[i], makers, reads)
            if weight in stored and reads[weight] == 1:
                shape = _shape(walk, contraction, works[node.index], i, k)
                if shape is None or weight not in stored_as:
                    continue
                computed = bits(types[node.outputs[0]]) / 8
                layer = LowRankLayer(
                    weight, node, steps[node.index], *shape, stored=stored_as[weight], computed=computed
                )
                if not _names(layer).intersection(ignored):
                    found[weight] = layer
    return found


def _source(name: str, makers: dict[str, Node], reads: Counter[str]) -> str:
    """The tensor that ``name`` is another layout of, read by nothing else on the way."""
    while name in makers and makers[name].op in _LAYOUT and reads[name] == 1:
        name = makers[name].inputs[0]
    return name


def _names(layer: LowRankLayer) -> set[str]:
    return {layer.weight, layer.node.proto.name, *layer.node.inputs, *layer.node.outputs} - {""}


def _shape(
    walk: Walk, contraction: Contraction, work: Work, i: int, k: int
) -> tuple[Axis, Axis, tuple[int, ...], tuple[Axis, ...], float] | None:
    """Of the layer whose input ``i`` is the weight, of which axis ``k`` is summed over: ``inner`` to
    ``before`` of `LowRankLayer`; None if it is another kind of layer."""
    node = contraction.node
    data = next((place for place in contraction.places if place[0] != i), None)
    types = walk.axes(node, i)
    if data is None or work.scale != 1 or len(types) < 2 or (len(types) > 2 and k != 1):
        return None
    inner, outer = find(types[k]), find(types[1 - k])
    kernel = [axis.size for axis in types[2:]]
    features = walk.axes(node, data[0])
    if inner.kind == "ragged" or features[data[1]].size != inner.size:
        return None  # in groups
    left = flatten(work.axes, "prod")
    for axis in flatten([inner, outer, *types[2:]], "prod"):
        same = next(
            (a for a in left if a is axis or (a.kind == axis.kind == "fix" and a.size == axis.size)), None
        )
        if same is not None:
            left.remove(same)
        elif axis.size > 1:
            return None
    before = 1.0
    if kernel:
        out = walk.axes_of.get(node.outputs[0]) or []
        before = prod(a.size for a in features[2:]) / max(1, prod(a.size for a in out[2:]))
    return inner, outer, tuple(kernel), tuple(left), before
