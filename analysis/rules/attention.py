"""Attention as one operator: whole heads can go, and widths within heads."""

from __future__ import annotations

import math

from ..axes import Axis, cut, cuts, factor, fix, pin, prod, total, unify
from ..facts import Alone, Contraction, CountBaked, DefaultBaked, SizesBaked, Work
from ..graph import Node
from ..walk import Walk
from .registry import Axes, Outputs, Unsupported, rule

_MS = "com.microsoft::"
_PAIRS = "rotary embeddings turn positions in pairs"


def _heads(axis: Axis, count: int) -> tuple[Axis, Axis]:
    """(heads, widths) of an axis that holds both."""
    if count <= 0 or axis.size % count:
        raise Unsupported(f"{axis.size} positions are not {count} heads")
    return factor(axis, axis.size // count)


def _grouped_heads(query: Axis, keys: Axis) -> None:
    """Each head of the keys serves as many consecutive heads of the queries (Ainslie et al., "GQA", 2023)."""
    served, _ = factor(query, query.size // keys.size)
    unify(served, keys)


def _scores(walk: Walk, node: Node, key: int, along: int, width: Axis) -> None:
    """The products of queries and keys sum over widths, and the default scale counts them."""
    walk.contractions.append(Contraction(node, ((0, along), (key, along)), in_place=True))
    walk.baked.append(DefaultBaked(node, "scale", 1 / math.sqrt(width.size), width))


def _cache(walk: Walk, node: Node, i: int, batch: Axis, heads: Axis, steps: Axis, width: Axis) -> Axes:
    """Types of a cache (batch, heads, steps, width) after ``steps`` more; input ``i`` is the one before."""
    before = 0
    if node.has(i):
        past = walk.axes(node, i)
        for a, b in zip((past[0], past[1], past[3]), (batch, heads, width), strict=True):
            unify(a, b)
        pin(past[2], "the steps of a cache")
        before = past[2].size
    return [batch, heads, fix(before + steps.size, "the steps of a cache"), width]


@rule("Attention")
def attention(walk: Walk, node: Node) -> Outputs:
    q, k, v = (walk.axes(node, i) for i in range(3))
    if len(q) == 4:
        heads, width, key_heads, key_width, value_heads, value_width = q[1], q[3], k[1], k[3], v[1], v[3]
        steps, seen = q[2], k[2]
    else:
        count, key_count = node.attrs.get("q_num_heads", 0), node.attrs.get("kv_num_heads", 0)
        (heads, width), (key_heads, key_width) = _heads(q[2], count), _heads(k[2], key_count)
        value_heads, value_width = _heads(v[2], key_count)
        steps, seen = q[1], k[1]
        walk.baked += [CountBaked(node, "q_num_heads", heads), CountBaked(node, "kv_num_heads", key_heads)]
    unify(key_heads, value_heads)
    unify(width, key_width)
    unify(seen, v[-2])
    unify(q[0], k[0])
    unify(q[0], v[0])
    _grouped_heads(heads, key_heads)
    _scores(walk, node, 1, 3 if len(q) == 4 else 2, width)
    walk.alone.append(Alone([key_heads, width, value_width]))
    keys = _cache(walk, node, 4, q[0], key_heads, seen, width)
    values = _cache(walk, node, 5, q[0], key_heads, seen, value_width)
    if node.has(3):
        mask = walk.axes(node, 3)
        whole = [q[0], heads, steps, keys[2]]
        for given, axis in zip(mask[::-1], whole[::-1], strict=False):
            if given.size != 1:
                unify(given, axis)
    walk.work += [
        Work(node, 1, (q[0], heads, steps, keys[2], width)),
        Work(node, 1, (q[0], heads, steps, keys[2], value_width)),
    ]
    y = [q[0], heads, steps, value_width] if len(q) == 4 else [q[0], steps, prod([heads, value_width])]
    return [y, keys, values, [q[0], heads, steps, keys[2]]]


@rule("RotaryEmbedding")
def rotary_embedding(walk: Walk, node: Node) -> Outputs:
    return [_rotate(walk, node, cos=1, sin=2)]


@rule(_MS + "RotaryEmbedding")
def rotary_embedding_ms(walk: Walk, node: Node) -> Outputs:
    return [_rotate(walk, node, cos=2, sin=3)]


def _rotate(walk: Walk, node: Node, cos: int, sin: int) -> Axes:
    x = walk.axes(node, 0)
    halves = [walk.axes(node, i)[-1] for i in (cos, sin)]
    turned = node.attrs.get("rotary_embedding_dim", 0)
    width = x[-1]
    if len(x) == 3:
        count = node.attrs.get("num_heads", 0)
        heads, width = _heads(width, count or width.size // (turned or 2 * halves[0].size))
        if count:
            walk.baked.append(CountBaked(node, "num_heads", heads))
        walk.alone.append(Alone([heads]))
    rotary = width
    if turned and turned < width.size:
        rotary, _ = cut(width, turned)
        walk.baked.append(CountBaked(node, "rotary_embedding_dim", rotary))
    elif turned:
        walk.baked.append(CountBaked(node, "rotary_embedding_dim", width))
    if node.attrs.get("interleaved", 0):
        half, pair = factor(rotary, 2)
    else:
        pair, half = factor(rotary, rotary.size // 2)
    pin(pair, _PAIRS)
    for given in halves:
        unify(given, half)
    walk.alone.append(Alone([half]))
    return x


@rule(_MS + "MultiHeadAttention")
def multi_head_attention(walk: Walk, node: Node) -> Outputs:
    q = walk.axes(node, 0)
    if len(q) != 3 or not node.has(1) or not node.has(2) or len(walk.axes(node, 1)) != 3:
        raise Unsupported("its queries, keys and values come packed, or by head")
    k, v = walk.axes(node, 1), walk.axes(node, 2)
    heads, width = _heads(q[2], node.attrs["num_heads"])
    value_heads, value_width = _heads(v[2], heads.size)
    unify(k[2], q[2])
    unify(value_heads, heads)
    unify(k[1], v[1])
    unify(q[0], k[0])
    unify(q[0], v[0])
    _scores(walk, node, 1, 2, width)
    if node.has(3):
        unify(walk.axes(node, 3)[0], total([q[2], k[2], v[2]]))
        walk.contractions.append(Contraction(node, ((3, 0),), in_place=True))
    walk.baked.append(CountBaked(node, "num_heads", heads))
    walk.alone.append(Alone([heads, width, value_width]))
    keys = _cache(walk, node, 6, q[0], heads, k[1], width)
    values = _cache(walk, node, 7, q[0], heads, k[1], value_width)
    _bias(walk, node, 5, heads)
    walk.work += [
        Work(node, 1, (q[0], heads, q[1], keys[2], width)),
        Work(node, 1, (q[0], heads, q[1], keys[2], value_width)),
    ]
    return [[q[0], q[1], v[2]], keys, values, [q[0], heads, q[1], keys[2]]]


def _bias(walk: Walk, node: Node, i: int, heads: Axis) -> None:
    """An additive bias of the scores may have one layer for each head."""
    if node.has(i):
        bias = walk.axes(node, i)
        if len(bias) == 4 and bias[1].size != 1:
            unify(bias[1], heads)


@rule(_MS + "Attention")
def packed_attention(walk: Walk, node: Node) -> Outputs:
    """Projections and attention in one: the weight holds queries, keys and values side by side."""
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    if node.has(4) or node.attrs.get("do_rotary", 0):
        raise Unsupported("it keeps a cache or turns positions")
    sizes = node.attrs.get("qkv_hidden_sizes") or [w[1].size // 3] * 3
    q, k, v = cuts(w[1], [int(size) for size in sizes])
    heads, width = _heads(q, node.attrs["num_heads"])
    value_heads, value_width = _heads(v, heads.size)
    unify(q, k)
    unify(value_heads, heads)
    unify(x[2], w[0])
    walk.contractions.append(Contraction(node, ((0, 2), (1, 0))))
    walk.contractions.append(Contraction(node, ((1, 1),), in_place=True))
    if node.has(2):
        unify(walk.axes(node, 2)[0], w[1])
        walk.contractions.append(Contraction(node, ((2, 0),), in_place=True))
    _bias(walk, node, 5, heads)
    walk.baked += [
        CountBaked(node, "num_heads", heads),
        SizesBaked(node, len(node.inputs), (q, k, v), attribute="qkv_hidden_sizes"),
        DefaultBaked(node, "scale", 1 / math.sqrt(width.size), width),
    ]
    walk.alone.append(Alone([x[2], heads, width, value_width]))
    walk.work += [
        Work(node, 1, (x[0], x[1], x[2], w[1])),
        Work(node, 1, (x[0], heads, x[1], x[1], width)),
        Work(node, 1, (x[0], heads, x[1], x[1], value_width)),
    ]
    return [[x[0], x[1], v]]


@rule(_MS + "GroupQueryAttention")
def group_query_attention(walk: Walk, node: Node) -> Outputs:
    """Whole heads go; widths stay, since the cache and the rotation count them."""
    q = walk.axes(node, 0)
    if not node.has(1) or not node.has(2):
        raise Unsupported("its queries, keys and values come packed")
    k, v = walk.axes(node, 1), walk.axes(node, 2)
    heads, width = _heads(q[2], node.attrs["num_heads"])
    key_heads, key_width = _heads(k[2], node.attrs["kv_num_heads"])
    value_heads, value_width = _heads(v[2], key_heads.size)
    for axis in (width, key_width, value_width):
        pin(axis, f"{node.name} counts the widths of its heads")
    unify(key_heads, value_heads)
    _grouped_heads(heads, key_heads)
    walk.baked += [CountBaked(node, "num_heads", heads), CountBaked(node, "kv_num_heads", key_heads)]
    walk.alone.append(Alone([key_heads]))
    present: list[Axes] = []
    for i in (3, 4):
        if not node.has(i):
            raise Unsupported("it has no cache to tell the steps by")
        past = walk.axes(node, i)
        unify(past[1], key_heads)
        present.append([*past[:2], fix(past[2].size, "the steps of a cache"), past[3]])
    return [q, *present]
