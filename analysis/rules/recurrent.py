"""Recurrent layers: the input features of a cell can go, its state stays."""

from __future__ import annotations

from ..axes import fix, pin, unify
from ..facts import Contraction, Work
from ..graph import Node
from ..walk import Walk
from .registry import Outputs, rule

_STATE = "the state of a recurrent cell"


@rule("LSTM", "GRU", "RNN")
def recurrent(walk: Walk, node: Node) -> Outputs:
    for i in range(len(node.inputs)):
        if not node.has(i):
            continue
        for k, axis in enumerate(walk.axes(node, i)):
            if (i, k) not in ((0, 2), (1, 2)):
                pin(axis, _STATE)
    unify(walk.axes(node, 0)[2], walk.axes(node, 1)[2])
    walk.contractions.append(Contraction(node, ((0, 2), (1, 2))))
    steps = walk.axes(node, 0)[:2]
    walk.work += [Work(node, 1, (*steps, *walk.axes(node, i))) for i in (1, 2)]
    return [
        None if sizes is None else [fix(size, _STATE) for size in sizes] for sizes in walk.output_sizes(node)
    ]
