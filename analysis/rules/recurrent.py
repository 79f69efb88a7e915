"""Recurrent layers: their input features can go, and the units of their state with all gates."""

from __future__ import annotations

from ..axes import Axis, factor, pin, unify
from ..facts import Alone, Contraction, CountBaked, Work
from ..graph import Node
from ..walk import Walk
from .linear import operand
from .registry import Outputs, Unsupported, rule


@rule("LSTM", "GRU", "RNN")
def recurrent(walk: Walk, node: Node) -> Outputs:
    x, w, r = (walk.axes(node, i) for i in range(3))
    if len(x) != 3 or len(w) != 3 or len(r) != 3:
        raise Unsupported("its inputs have other ranks than the operator wants")
    hidden, directions = r[2], w[0]
    batch_first = bool(node.attrs.get("layout", 0))
    time, batch = (x[1], x[0]) if batch_first else (x[0], x[1])
    pin(directions, "the directions of a recurrent layer")
    pin(time, "a recurrent layer runs along it")
    unify(directions, r[0])
    for axis in (w[1], r[1]):
        gates(axis, hidden)
    for i in range(3, len(node.inputs)):
        if not node.has(i):
            continue
        given = walk.axes(node, i)
        if i == 4:  # lengths of the sequences
            unify(given[0], batch)
        elif i in (5, 6):  # initial state
            unify(given[1 if batch_first else 0], directions)
            unify(given[0 if batch_first else 1], batch)
            unify(given[2], hidden)
        else:  # biases of all gates, peepholes
            unify(given[0], directions)
            gates(given[1], hidden)
    unify(x[2], w[2])
    walk.contractions += [Contraction(node, ((0, 2), (1, 2))), Contraction(node, ((2, 2),), in_place=True)]
    walk.baked.append(CountBaked(node, "hidden_size", hidden))
    walk.work += [Work(node, 1, (time, batch, *w)), Work(node, 1, (time, batch, *r))]
    walk.operands += [operand(node, 1, 0, w, -1), operand(node, 2, None, r, -1)]
    walk.alone += [Alone([x[2]]), Alone([hidden])]
    if batch_first:
        return [[batch, time, directions, hidden], *([[batch, directions, hidden]] * (len(node.outputs) - 1))]
    return [[time, directions, batch, hidden], *([[directions, batch, hidden]] * (len(node.outputs) - 1))]


def gates(axis: Axis, hidden: Axis) -> None:
    """``axis`` holds the units of the state once for each gate."""
    gate, unit = factor(axis, hidden.size)
    pin(gate, "the gates of a recurrent cell")
    unify(unit, hidden)
