"""Which layers can make up for a cut: the first ones that read what it changed."""

from __future__ import annotations

from collections.abc import Mapping

from ...analysis.facts import Contraction, Linear, Normalisation
from ...analysis.graph import Node, subgraphs, walk_graphs
from ...analysis.selection import Selection
from ...analysis.walk import Walk
from .stream import read_by


def first_readers(
    walk: Walk, dense: Walk, selection: Selection, layers: Mapping[str, Linear]
) -> frozenset[str]:
    """Keys of the layers that, fitted again, make up for what ``selection`` took away.

    Positions that go change nothing until a node mixes them with others. From there on what is computed
    differs from the dense model, up to the first layers with a matrix that can be fitted; factors and terms
    for each channel on the way, or right after such a layer, are fitted as well.

    Args:
        walk: of the pruned model; ``dense``: of the model that ``selection`` is about.
        layers: of the pruned model that can be fitted, by `Node.key`.
    """
    facts: list[Contraction | Normalisation] = [*walk.contractions, *walk.normalisations]
    mixing = {fact.node.key for fact in facts if _shrinks(fact, dense, selection)}
    changed: set[str] = set()
    fitted: set[str] = set()
    found = set()
    for node in walk.nodes:
        fact = layers.get(node.key)
        shift = fact is not None and fact.form == "shift" and node.inputs[fact.data] in fitted
        moved = not mixing.isdisjoint(_made_by(node)) or any(name in changed for name in read_by(node.proto))
        if not (moved or shift):
            continue
        if fact is not None:
            found.add(node.key)
        if fact is not None and (shift or fact.form not in ("scale", "shift")):
            fitted.update(node.outputs)
        else:
            changed.update(node.outputs)
    return frozenset(found)


def _shrinks(fact: Contraction | Normalisation, dense: Walk, selection: Selection) -> bool:
    """Whether positions go from an axis that the node mixes; yes where the dense model does not tell."""
    places = fact.places if isinstance(fact, Contraction) else fact.inputs
    computed = [(fact.node.inputs[i], k) for i, k in places if fact.node.inputs[i] in dense.axes_of]
    if not computed:
        return True
    return any(selection.shrinks(axes[k]) for name, k in computed if (axes := dense.axes_of[name]))


def _made_by(node: Node) -> set[str]:
    """The outputs of a node, and of the nodes in its bodies."""
    bodies = [graph for body in subgraphs(node.proto) for graph in walk_graphs(body)]
    return {*node.outputs, *(name for graph in bodies for inner in graph.node for name in inner.output)}
