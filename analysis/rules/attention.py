"""Attention as one operator: whole heads can go, and widths within heads."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..axes import Axis, cuts, factor, fix, pin, prod, total, unify
from ..facts import (
    Alone,
    Contraction,
    CountBaked,
    DefaultBaked,
    Normalisation,
    Place,
    SameCount,
    SizesBaked,
    Work,
)
from ..graph import Node
from ..walk import Walk
from .quantised import is_zero
from .registry import Axes, Outputs, Unsupported, rule

_MS = "com.microsoft::"
_STEPS = "an attention tells the steps along it by their number"
_CACHE = "the steps of a cache"


class _Heads(NamedTuple):
    """The axes of queries, keys or values."""

    batch: Axis
    heads: Axis
    steps: Axis
    width: Axis


def split_heads(axis: Axis, count: int) -> tuple[Axis, Axis]:
    """(heads, widths) of an axis that holds both."""
    if count <= 0 or axis.size % count:
        raise Unsupported(f"{axis.size} positions are not {count} heads")
    return factor(axis, axis.size // count)


def _laid_out(axes: Axes, count: int) -> _Heads:
    """Heads have an axis of their own, or share the last one with their widths."""
    if len(axes) == 4:
        return _Heads(*axes)
    if len(axes) != 3:
        raise Unsupported("its queries, keys and values come in one tensor")
    heads, width = split_heads(axes[2], count)
    return _Heads(axes[0], heads, axes[1], width)


def _named(node: Node, o: int) -> bool:
    return o < len(node.outputs) and bool(node.outputs[o])


def _grouped_heads(query: Axis, keys: Axis) -> None:
    """Each head of the keys serves as many consecutive heads of the queries (Ainslie et al., "GQA", 2023)."""
    if query.size % keys.size:
        raise Unsupported(f"{query.size} heads of queries do not share {keys.size} heads of keys")
    served, _ = factor(query, query.size // keys.size)
    unify(served, keys)


def _default_scale(walk: Walk, node: Node, width: Axis) -> None:
    """Scores are divided by the root of the width unless a scale is given; Microsoft's 0 means none is."""
    given = node.attrs.get("scale")
    if given is None or (given == 0 and node.op.startswith(_MS)):
        walk.baked.append(DefaultBaked(node, "scale", 1 / math.sqrt(width.size), width))


def _broadcast_to(walk: Walk, node: Node, i: int, scores: Axes) -> list[int]:
    """Tie input ``i``, a mask or bias, to the scores it is broadcast to; its axes that run along the keys."""
    if not node.has(i):
        return []
    given = walk.axes(node, i)
    for axis, whole in zip(given[::-1], scores[::-1], strict=False):
        if axis.size != 1:
            if axis.size < whole.size and whole is scores[-1]:  # a short mask hides the keys after its end
                pin(axis, _STEPS)
                pin(whole, _STEPS)
            else:
                unify(axis, whole)
    return [len(given) - 1] if given and given[-1].size == scores[-1].size != 1 else []


def _work(walk: Walk, node: Node, query: _Heads, keys: Axis, value_width: Axis) -> None:
    rows = (query.batch, query.heads, query.steps, keys)
    walk.work += [Work(node, 1, (*rows, query.width)), Work(node, 1, (*rows, value_width))]


def _cached(walk: Walk, node: Node, i: int, new: _Heads) -> Axis:
    """The steps of input ``i``, a cache with heads apart, and those added to it."""
    if not node.has(i):
        return new.steps
    past = _Heads(*walk.axes(node, i))
    for a, b in zip(past, new, strict=True):
        if a is not past.steps:
            unify(a, b)
    pin(past.steps, _CACHE)
    return fix(past.steps.size + new.steps.size, _CACHE)


def _attend(
    walk: Walk, node: Node, counts: tuple[int, int], mask: int, past: int, told_apart: bool
) -> Outputs:
    """Softmax(Q K' + mask) V of inputs 0, 1 and 2.

    Args:
        counts: heads of the queries, and of keys and values.
        mask: number of the input that is added to the scores or masks them.
        past: number of the input that holds earlier keys; earlier values come after it.
        told_apart: whether steps are told apart by their number.
    """
    q, k, v = (walk.axes(node, i) for i in range(3))
    query, key, value = _laid_out(q, counts[0]), _laid_out(k, counts[1]), _laid_out(v, counts[1])
    for other in (key, value):
        unify(query.batch, other.batch)
    unify(key.heads, value.heads)
    unify(key.steps, value.steps)
    unify(query.width, key.width)
    _grouped_heads(query.heads, key.heads)
    walk.contractions.append(Contraction(node, ((0, len(q) - 1),), in_place=True))  # then any keys do
    _default_scale(walk, node, query.width)
    walk.alone.append(Alone([key.heads, query.width, value.width]))
    seen = _cached(walk, node, past, key)
    _cached(walk, node, past + 1, value)
    masked = _broadcast_to(walk, node, mask, [query.batch, query.heads, query.steps, seen])
    if told_apart or node.has(past):
        pin(query.steps, _STEPS)
        pin(key.steps, _STEPS)
    else:
        places: list[Place] = [(1, len(k) - 2 if len(k) == 4 else 1), (2, len(v) - 2 if len(v) == 4 else 1)]
        made = [(o, axis) for o, axis in ((1, 2), (2, 2), (3, 3)) if _named(node, o)]
        walk.normalisations.append(
            Normalisation(node, (*places, *((mask, axis) for axis in masked)), tuple(made))
        )
    _work(walk, node, query, seen, value.width)
    if len(q) == 4:
        y = [query.batch, query.heads, query.steps, value.width]
    else:
        y = [query.batch, query.steps, prod([query.heads, value.width])]
    return [
        y,
        [query.batch, key.heads, seen, query.width],
        [query.batch, key.heads, seen, value.width],
        [query.batch, query.heads, query.steps, seen],
    ]


@rule("Attention")
def attention(walk: Walk, node: Node) -> Outputs:
    counts = node.attrs.get("q_num_heads", 0), node.attrs.get("kv_num_heads", 0)
    windows = [node.attrs.get(f"{side}_window_size", -1) for side in ("left", "right")]
    told_apart = bool(node.attrs.get("is_causal", 0)) or node.has(6) or max(windows) >= 0
    outputs = _attend(walk, node, counts, mask=3, past=4, told_apart=told_apart)
    q = walk.axes(node, 0)
    if len(q) == 3:
        heads, _ = split_heads(q[2], counts[0])
        key_heads, _ = split_heads(walk.axes(node, 1)[2], counts[1])
        walk.baked += [CountBaked(node, "q_num_heads", heads), CountBaked(node, "kv_num_heads", key_heads)]
    return outputs


@rule(_MS + "MultiHeadAttention")
def multi_head_attention(walk: Walk, node: Node) -> Outputs:
    q = walk.axes(node, 0)
    if len(q) != 3 or not node.has(1) or not node.has(2):
        raise Unsupported("its queries, keys and values come in one tensor")
    if node.has(8) or node.has(9):
        raise Unsupported("it writes to a cache of a fixed size")
    k, v = walk.axes(node, 1), walk.axes(node, 2)
    count = node.attrs["num_heads"]
    told_apart = bool(node.attrs.get("unidirectional", 0)) or node.has(4)
    outputs = _attend(walk, node, (count, count), mask=5, past=6, told_apart=told_apart)
    if node.has(3):  # the biases of queries, keys and values
        if len(k) != 3 or len(v) != 3:
            raise Unsupported("it adds a bias to keys that have heads apart")
        unify(walk.axes(node, 3)[0], total([q[2], k[2], v[2]]))
        walk.contractions.append(Contraction(node, ((3, 0),), in_place=True))
    walk.baked.append(CountBaked(node, "num_heads", split_heads(q[2], count)[0]))
    return outputs


@rule(_MS + "Attention")
def packed_attention(walk: Walk, node: Node) -> Outputs:
    """Projections and attention in one: the weight holds queries, keys and values side by side."""
    if node.has(6):
        raise Unsupported("it writes to a cache of a fixed size")
    outputs, _ = _project_and_attend(walk, node, mask=3, past=4, bias=5)
    return outputs


@rule(_MS + "QAttention")
def quantised_attention(walk: Walk, node: Node) -> Outputs:
    """`packed_attention` of a quantised weight, all of whose parts have as many columns."""
    outputs, parts = _project_and_attend(walk, node, mask=5, past=8, bias=None)
    columns = total(list(parts))
    for i in (4, 7):  # scale and zero point of the weight
        if node.has(i) and walk.axes(node, i) and walk.axes(node, i)[0].size != 1:
            unify(walk.axes(node, i)[0], columns)
    for i in (3, 6):
        if node.has(i) and any(axis.size != 1 for axis in walk.axes(node, i)):
            raise Unsupported("its input has more than one scale")
    widths = [split_heads(part, node.attrs["num_heads"])[1] for part in parts]
    walk.same_counts.append(SameCount((widths[0], widths[2]), f"{node.name} splits its weight in three"))
    if not is_zero(walk, node, 7):
        for width in widths:
            pin(width, f"{node.name} has no width within heads that could be left out: its zero is not 0")
    return outputs


def _project_and_attend(
    walk: Walk, node: Node, mask: int, past: int, bias: int | None
) -> tuple[Outputs, tuple[Axis, Axis, Axis]]:
    """Attention of the projections of input 0 by weight 1 and bias 2, and the columns of the weight in three.

    Args:
        mask: number of the input that says which keys count.
        past: number of the input that holds earlier keys and values.
        bias: number of the input that is added to the scores.
    """
    x, w = walk.axes(node, 0), walk.axes(node, 1)
    count = node.attrs["num_heads"]
    sizes = node.attrs.get("qkv_hidden_sizes") or [w[1].size // 3] * 3
    q, k, v = cuts(w[1], [int(size) for size in sizes])
    heads, width = split_heads(q, count)
    value_heads, value_width = split_heads(v, count)
    unify(q, k)
    unify(value_heads, heads)
    unify(x[2], w[0])
    walk.contractions.append(Contraction(node, ((0, 2), (1, 0))))
    walk.contractions.append(Contraction(node, ((1, 1),), in_place=True))
    if node.has(2):
        unify(walk.axes(node, 2)[0], w[1])
        walk.contractions.append(Contraction(node, ((2, 0),), in_place=True))
    if node.attrs.get("do_rotary", 0):
        pin(width, f"{node.name} turns positions in pairs")
    seen = _packed_cache(walk, node, past, _Heads(x[0], heads, x[1], width), value_width)
    masked = [] if bias is None else _broadcast_to(walk, node, bias, [x[0], heads, x[1], seen])
    if node.has(mask) or node.has(past) or node.attrs.get("unidirectional", 0):
        pin(x[1], _STEPS)
    else:
        places = [(0, 1), *((bias or 0, axis + back) for axis in masked for back in (-1, 0))]
        made = [(0, 1), *([(1, 3)] if _named(node, 1) else [])]
        walk.normalisations.append(Normalisation(node, tuple(places), tuple(made)))
    _default_scale(walk, node, width)
    walk.baked.append(CountBaked(node, "num_heads", heads))
    if node.op == _MS + "Attention":
        walk.baked.append(SizesBaked(node, len(node.inputs), (q, k, v), attribute="qkv_hidden_sizes"))
    walk.alone.append(Alone([x[2], heads, width, value_width]))
    walk.work.append(Work(node, 1, (x[0], x[1], x[2], w[1])))
    _work(walk, node, _Heads(x[0], heads, x[1], width), seen, value_width)
    two = fix(2, "keys and values")
    return [[x[0], x[1], v], [two, x[0], heads, seen, width]], (q, k, v)


def _packed_cache(walk: Walk, node: Node, i: int, new: _Heads, value_width: Axis) -> Axis:
    """`_cached`, for keys and values in one tensor: they have the same widths."""
    if not node.has(i) and not _named(node, 1):
        return new.steps
    unify(new.width, value_width)
    if not node.has(i):
        return new.steps
    past = walk.axes(node, i)
    pin(past[0], "keys and values")
    for axis, other in zip(past[1:], new, strict=True):
        if other is not new.steps:
            unify(axis, other)
    pin(past[3], _CACHE)
    return fix(past[3].size + new.steps.size, _CACHE)


@rule(_MS + "GroupQueryAttention")
def group_query_attention(walk: Walk, node: Node) -> Outputs:
    """Whole heads go; widths stay, since ONNX Runtime takes multiples of 8 only, or of 16 to turn them."""
    q = walk.axes(node, 0)
    counts = node.attrs["num_heads"], node.attrs["kv_num_heads"]
    if node.has(1):
        k, v = walk.axes(node, 1), walk.axes(node, 2)
    else:
        size = q[2].size // (counts[0] + 2 * counts[1])
        pieces = cuts(q[2], [counts[0] * size, counts[1] * size, counts[1] * size])
        q, k, v = ([*q[:2], piece] for piece in pieces)
    query, key, value = _laid_out(q, counts[0]), _laid_out(k, counts[1]), _laid_out(v, counts[1])
    for axis in (query.width, key.width, value.width):
        pin(axis, f"{node.name} takes widths of certain sizes only")
    for axis in (query.steps, key.steps, value.steps):
        pin(axis, _STEPS)
    unify(key.heads, value.heads)
    _grouped_heads(query.heads, key.heads)
    seen = key.steps
    for i in range(3, len(node.inputs)):
        if not node.has(i):
            continue
        given = walk.axes(node, i)
        if i in (3, 4):  # caches of keys and values
            unify(given[1], key.heads)
            pin(given[2], _CACHE)
            seen = given[2]
        elif i == 10:  # added to the scores, up to the last step that is seen
            pin(given[3], _STEPS)
            for axis, whole in zip(given, (query.batch, query.heads, query.steps), strict=False):
                if axis.size != 1:
                    unify(axis, whole)
        elif i == 11:
            unify(given[0], query.heads)
        else:  # lengths, tables of the rotation, scales of caches and widths
            for axis in given:
                pin(axis, f"{node.name} reads all of it")
    walk.baked += [
        CountBaked(node, "num_heads", query.heads),
        CountBaked(node, "kv_num_heads", key.heads),
    ]
    walk.alone.append(Alone([key.heads]))
    _work(walk, node, query, seen, value.width)
    sizes = walk.output_sizes(node)
    known = sizes[1] if len(sizes) > 1 else None
    if known is not None:  # as long as the cache, or longer by the new steps
        seen = fix(known[2], _CACHE)
    present = [query.batch, key.heads, seen, value.width]
    return [q, present, present, [query.batch, query.heads, query.steps, seen]]
