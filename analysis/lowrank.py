"""Layers that could be factors of lower rank, which ranks are worth a look, and what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .allocate import Term
from .axes import Axis, find, flatten
from .facts import Contraction, Work
from .graph import Node
from .groups import Analysis
from .selection import Selection
from .truncation import Ranks, Truncation
from .walk import Walk

Kind: TypeAlias = Literal["macs", "params"]

DENSE = Ranks()
_STEPS = 16  # ranks looked at, of each end of a layer
_OPTIONS = 24  # pairs of them that are kept
# Operators that only lay a constant out anew.
_LAYOUT = ("Transpose", "Identity")


@dataclass(frozen=True, eq=False)
class LowRankLayer:
    """A node that multiplies with a learned matrix, or slides one over a window.

    Attributes:
        weight: the initializer that the matrix is made from.
        inner, outer: axes of what goes in and what comes out.
        kernel: sizes of the window.
        others: with ``scale`` and these two the multiply-accumulates, but for the kernel.
        before: positions there are before the window slides, for each there is after it.
    """

    weight: str
    node: Node
    inner: Axis
    outer: Axis
    kernel: tuple[int, ...]
    others: tuple[Axis, ...]
    scale: int
    before: float

    def terms(self, ranks: Ranks, kind: Kind) -> tuple[Term, ...]:
        """What the layer costs with these ranks."""
        first, last = ranks.inputs, ranks.outputs
        scale, others = (self.scale, self.others) if kind == "macs" else (1, ())
        width = (first or 1) * (last or 1) * prod(self.kernel)
        ends = ((self.inner,) if first is None else ()) + ((self.outer,) if last is None else ())
        terms = [Term(scale * width, (*others, *ends))]
        if first is not None:
            terms.append(Term(scale * first * (self.before if kind == "macs" else 1), (*others, self.inner)))
        if last is not None:
            terms.append(Term(scale * last, (*others, self.outer)))
        return tuple(terms)

    def cost(self, ranks: Ranks, kind: Kind, selection: Selection) -> int:
        """`terms`, of what a selection leaves."""
        terms = self.terms(ranks, kind)
        return round(sum(t.scale * prod(selection.count(axis) for axis in t.axes) for t in terms))

    def fitting(self, ranks: Ranks, selection: Selection) -> Ranks:
        """Ranks without a factor that is no narrower than what a selection leaves of the layer."""
        inner, outer = selection.count(self.inner), selection.count(self.outer)
        window = prod(self.kernel)
        first = ranks.inputs if ranks.inputs is not None and ranks.inputs < inner else None
        last = ranks.outputs
        if last is not None and last >= min(outer, (inner if first is None else first) * window):
            last = None
        return Ranks(first, last)

    def candidates(self, multiple: int) -> tuple[list[int | None], list[int | None]]:
        """Ranks at the two ends to look at, multiples of a number, None the last of each."""
        window = prod(self.kernel)
        inner, outer = self.inner.size, self.outer.size
        if window == 1:
            most = inner * outer / (inner + outer)
            return [None], [*_ladder(most, 2 * _STEPS, multiple), None]
        return (
            [*_ladder(min(inner, window * outer), _STEPS, multiple), None],
            [*_ladder(min(window * inner, outer), _STEPS, multiple), None],
        )


def _ladder(most: float, steps: int, multiple: int) -> list[int]:
    """Ranks below ``most``, evenly spaced."""
    wanted = {-(-max(1, round(most * k / steps)) // multiple) * multiple for k in range(1, steps)}
    return sorted(rank for rank in wanted if rank < most)


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
    layer: LowRankLayer, truncation: Truncation, factor: float, multiple: int, kind: Kind
) -> RankCurve:
    """The options of a layer.

    Args:
        truncation: of its weight.
        factor: by what its error is taken times.
        kind: the cost they are to save.
    """
    whole = Selection({})
    dense = layer.cost(DENSE, kind, whole)
    found = []
    for ranks, error in truncation.errors(*layer.candidates(multiple)):
        cost = layer.cost(ranks, kind, whole)
        if cost < dense and layer.fitting(ranks, whole) == ranks:
            found.append((error, cost, ranks))
    best: list[tuple[float, Ranks]] = []
    least = dense
    for error, cost, ranks in sorted(found):
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
    found = {}
    for contraction in walk.contractions:
        node = contraction.node
        if node.key not in outermost or contraction.in_place or node.index not in works:
            continue
        for i, k in contraction.places:
            weight = _source(node.inputs[i], makers, reads)
            if weight in stored and reads[weight] == 1:
                layer = _layer(walk, contraction, works[node.index], weight, i, k)
                if layer is not None and not _names(layer).intersection(ignored):
                    found[weight] = layer
    return found


def _source(name: str, makers: dict[str, Node], reads: Counter[str]) -> str:
    """The tensor that ``name`` is another layout of, read by nothing else on the way."""
    while name in makers and makers[name].op in _LAYOUT and reads[name] == 1:
        name = makers[name].inputs[0]
    return name


def _names(layer: LowRankLayer) -> set[str]:
    return {layer.weight, layer.node.proto.name, *layer.node.inputs, *layer.node.outputs} - {""}


def _layer(
    walk: Walk, contraction: Contraction, work: Work, weight: str, i: int, k: int
) -> LowRankLayer | None:
    """The layer whose input ``i`` is the weight, of which axis ``k`` is summed over; None if it is another
    kind of layer."""
    node = contraction.node
    data = next((place for place in contraction.places if place[0] != i), None)
    types = walk.axes(node, i)
    if data is None or len(types) < 2 or (len(types) > 2 and k != 1):
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
    return LowRankLayer(weight, node, inner, outer, tuple(kernel), tuple(left), work.scale, before)


def extra(layer: LowRankLayer, ranks: Ranks, kind: Kind, selection: Selection) -> int:
    """What ranks add to the cost of a selection: less than nothing, where they save."""
    return layer.cost(ranks, kind, selection) - layer.cost(DENSE, kind, selection)
