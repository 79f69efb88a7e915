"""Rotary embeddings: widths of heads go in pairs."""

from __future__ import annotations

from ..axes import cut, factor, pin, unify
from ..facts import Alone, CountBaked
from ..graph import Node
from ..walk import Walk
from .attention import split_heads
from .registry import Axes, Outputs, rule

_MS = "com.microsoft::"
_PAIRS = "a rotary embedding turns positions in pairs"
_STEPS = "a rotary embedding turns each step by another angle"


@rule("RotaryEmbedding")
def rotary_embedding(walk: Walk, node: Node) -> Outputs:
    return [_rotate(walk, node, tables=(1, 2), steps=3)]


@rule(_MS + "RotaryEmbedding")
def rotary_embedding_ms(walk: Walk, node: Node) -> Outputs:
    return [_rotate(walk, node, tables=(2, 3), steps=1)]


def _rotate(walk: Walk, node: Node, tables: tuple[int, int], steps: int) -> Axes:
    """Turn the widths of input 0 (batch, heads, steps, widths), or (batch, steps, heads and widths).

    Args:
        tables: numbers of the inputs with cosines and sines, whose last axes have one entry for a pair.
        steps: number of the input that says which row of the tables a step takes.
    """
    x = walk.axes(node, 0)
    angles = [walk.axes(node, i) for i in tables]
    turned = node.attrs.get("rotary_embedding_dim", 0)
    width = x[-1]
    given = node.attrs.get("num_heads", 0)
    if len(x) == 3:
        heads, width = split_heads(width, given or width.size // (turned or 2 * angles[0][-1].size))
    else:
        heads = x[1]
    if given:
        walk.baked.append(CountBaked(node, "num_heads", heads))
    walk.alone.append(Alone([heads]))
    rotary = cut(width, turned)[0] if 0 < turned < width.size else width
    if turned:
        walk.baked.append(CountBaked(node, "rotary_embedding_dim", rotary))
    if node.attrs.get("interleaved", 0):
        half, pair = factor(rotary, 2)
    else:
        pair, half = factor(rotary, rotary.size // 2)
    pin(pair, _PAIRS)
    walk.alone.append(Alone([half]))
    rows = [x[0], x[1 if len(x) == 3 else 2]]
    if node.has(steps) and [axis.size for axis in walk.axes(node, steps)] == [axis.size for axis in rows]:
        for axis, row in zip(walk.axes(node, steps), rows, strict=True):
            unify(axis, row)
    elif node.has(steps):  # the first of consecutive steps
        pin(rows[1], _STEPS)
    for table in angles:
        unify(table[-1], half)
        if len(table) == 2:
            pin(table[0], f"{node.name} looks up positions computed at run time")
        else:
            for axis, row in zip(table, rows, strict=False):
                unify(axis, row)
    return x
