"""What each layer loses by lower ranks, measured on what it reads or by its weight alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from ..analysis.facts import Linear
from ..analysis.groups import Analysis, analyze
from ..analysis.lowrank import LowRankLayer, RankCurve, find_layers, rank_curve
from ..analysis.model import Model
from ..analysis.truncation import Truncation
from .base import run_passes
from .cleanup import Cleanup
from .factorize import can_be_factored, channels
from .fold import FoldConstants
from .measure.layers import Layer
from .measure.statistics import Statistics

FOLD = (FoldConstants(), Cleanup())
# Errors of lower rank count that much beside errors of removed channels. What a layer loses is what varies
# least, and what comes after it, fitted in its turn, answers to that less than to a move towards another
# sample, by which influence is measured: on three trained models two to five times less (docs/factorize.md).
_MADE_UP = 0.4
# By weights alone the error of a group counts once, in however many layers its channels are.
_ONCE = 0.05


@dataclass(frozen=True)
class Places:
    """The layers of a model that could be factors, as they stand once constants and norms are folded.

    Attributes:
        layers: by the name of their weight; of the model as it is.
        facts: of the folded one.
        folded: the analysis of that.
    """

    layers: dict[str, LowRankLayer]
    facts: dict[str, Linear]
    folded: Analysis

    @staticmethod
    def of(analysis: Analysis, folded: Model | None = None, ignored: Collection[str] = ()) -> Places:
        """The layers of a model.

        Args:
            folded: the model, or what is left of it, after folding; made when None.
            ignored: names of nodes and tensors whose layers are left out.
        """
        after = analyze(folded or run_passes(analysis.model, FOLD))
        layers = find_layers(analysis, ignored)
        facts = dict(_counterparts(analysis, after, layers))
        return Places({weight: layers[weight] for weight in facts}, facts, after)

    def name(self, weight: str) -> str:
        """What a weight is called in the folded model."""
        fact = self.facts[weight]
        return fact.node.inputs[fact.weight]

    def shape(self, weight: str) -> tuple[int, ...]:
        """Its shape there."""
        return self.folded.walk.constants[self.name(weight)].shape

    def curves(
        self,
        statistics: Statistics | None,
        names: Collection[str],
        multiple: int | None = None,
        progress: Callable[[str], None] = lambda step: None,
    ) -> Iterator[RankCurve]:
        """The error of each layer against its rank, for the ranks that `LowRankLayer.candidates` says.

        Args:
            statistics: of what layers read; by their weights alone when None.
            names: of the resources that ranks are to save.
        """
        for weight, layer in self.layers.items():
            progress(f"lower the rank of {weight}")
            fact = self.facts[weight]
            constant = self.folded.walk.constants[self.name(weight)]
            matrix = Layer(fact, fact.node, constant.shape).matrix(constant.value)[0]
            gram = statistics.gram(layer.node.key) if statistics is not None else None
            factor = _ONCE if statistics is None else _MADE_UP * statistics.influence(layer.node.key)
            truncation = Truncation(matrix, channels(fact, constant.shape), gram)
            if truncation.energy > 0:
                yield rank_curve(layer, truncation, factor, multiple, names)


def _counterparts(
    analysis: Analysis, after: Analysis, layers: dict[str, LowRankLayer]
) -> Iterator[tuple[str, Linear]]:
    """What each layer has become: the node with the name of its output, or with that of a normalisation that
    was folded into it."""
    readers: dict[str, list[str]] = {}
    for node in analysis.walk.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node.outputs[0])
    constants = after.walk.constants
    stored = {tensor.name for tensor in after.model.proto.graph.initializer}
    facts = {
        fact.node.outputs[0]: fact
        for fact in after.walk.linears
        if fact.node.inputs[fact.weight] in stored
        and can_be_factored(fact, constants[fact.node.inputs[fact.weight]].shape)
    }
    for weight, layer in layers.items():
        names = [layer.node.key]
        if len(readers.get(layer.node.key, ())) == 1:
            names += readers[layer.node.key]
        fact = next((facts[name] for name in names if name in facts), None)
        if fact is not None and fact.node.op == layer.node.op:
            yield weight, fact
