"""The type of an axis: how its positions map to the units that can be removed.

Six kinds. One object describes one axis, never one channel, so a graph with millions of channels has a
few types for each node.

======  ==================================================================================
atom    ``size`` units, each can be removed alone. The only kind that is ever *bound* to another.
fix     nothing can be removed; ``why`` says why.
prod    row-major product of ``parts`` (a Reshape that merged axes): kept = outer product.
sum     ``parts`` one after another (Concat, Split, Slice, Pad).
view    position j is position ``index[j]`` of ``parts[0]`` (Gather, flips, shuffles).
ragged  ``parts[g]`` on block g of the tensor's other channel axis (weights of grouped convolutions).
======  ==================================================================================

Because only atoms are bound, a Reshape met late refines every axis that was typed earlier: one forward
walk over the graph is enough. `unify` says "the same axis", `cut` and `factor` ask an axis to show more
structure, `tie` joins index maps position by position, `pin` forbids.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np

from .components import Index, components

Kind = Literal["atom", "fix", "prod", "sum", "view", "ragged"]


class AxisMismatch(Exception):
    """Two axes of different sizes were said to be the same: the rule does not fit this node."""


class Axis:
    """An axis type. Built by `atom`, `fix`, `prod`, `total`, `view`, `ragged`; read through `find`."""

    __slots__ = ("index", "kind", "link", "parts", "pool", "size", "why")

    def __init__(
        self,
        kind: Kind,
        size: int,
        parts: Sequence[Axis] = (),
        index: Index | None = None,
        why: str = "",
    ) -> None:
        self.kind = kind
        self.size = int(size)
        self.parts = tuple(parts)
        self.index = index
        self.why = why
        self.link: Axis | None = None  # what a bound atom stands for
        self.pool: Axis = self  # atoms that are ranked together, see `pool_of`

    def __repr__(self) -> str:
        axis = find(self)
        if axis.kind == "atom":
            return f"atom{axis.size}"
        if axis.kind == "fix":
            return f"fix{axis.size}"
        return f"{axis.kind}({', '.join(map(repr, axis.parts))})"


def find(axis: Axis) -> Axis:
    """What ``axis`` stands for now, with the chain of links shortened."""
    if axis.link is None:
        return axis
    root = axis.link
    while root.link is not None:
        root = root.link
    while axis is not root and axis.link is not None:
        axis.link, axis = root, axis.link
    return root


# ---------------------------------------------------------------------------------- building

ONE = Axis("fix", 1, why="it has a single position")


def atom(size: int) -> Axis:
    """``size`` free units; a single position can never go, so it is `ONE`."""
    return Axis("atom", size) if size > 1 else fix(size, ONE.why)


def fix(size: int, why: str) -> Axis:
    return ONE if size == 1 else Axis("fix", size, why=why)


def flatten(axes: Sequence[Axis], kind: Kind) -> list[Axis]:
    """The axes with nested products (or sums) of the same ``kind`` laid open."""
    out: list[Axis] = []
    stack = list(reversed(axes))
    while stack:
        axis = find(stack.pop())
        if axis.kind == kind:
            stack.extend(reversed(axis.parts))
        else:
            out.append(axis)
    return out


def prod(axes: Sequence[Axis]) -> Axis:
    factors = [axis for axis in flatten(axes, "prod") if axis.size != 1 or axis.kind != "fix"]
    if not factors:
        return ONE
    return factors[0] if len(factors) == 1 else Axis("prod", math.prod(f.size for f in factors), factors)


def total(axes: Sequence[Axis]) -> Axis:
    """The concatenation of ``axes`` (kind ``sum``)."""
    segments = [axis for axis in flatten(axes, "sum") if axis.size]
    if not segments:
        return fix(0, "it is empty")
    return segments[0] if len(segments) == 1 else Axis("sum", sum(s.size for s in segments), segments)


def view(axis: Axis, index: Index | Sequence[int]) -> Axis:
    axis = find(axis)
    index = np.asarray(index, dtype=np.int64)
    if axis.kind == "view":
        assert axis.index is not None
        return view(axis.parts[0], axis.index[index])
    if axis.kind == "fix":
        return fix(len(index), axis.why)
    return Axis("view", len(index), (axis,), index)


def ragged(blocks: Sequence[Axis]) -> Axis:
    return Axis("ragged", find(blocks[0]).size, blocks)


def pool_of(axis: Axis) -> Axis:
    """The representative of the pool of an atom: pieces of one axis compete with each other."""
    root = axis
    while root.pool is not root:
        root = root.pool
    while axis is not root:
        axis.pool, axis = root, axis.pool
    return root


def atoms(axis: Axis) -> Iterator[Axis]:
    """Every free atom inside ``axis``, with repetitions."""
    stack = [axis]
    while stack:
        axis = find(stack.pop())
        if axis.kind == "atom":
            yield axis
        stack.extend(reversed(axis.parts))


def units(axis: Axis) -> Iterable[Axis]:
    """Every free atom inside ``axis``, each once."""
    axis = find(axis)
    if axis.kind == "atom":
        return (axis,)
    return () if axis.kind == "fix" else dict.fromkeys(atoms(axis))


def reason(axis: Axis) -> str | None:
    """Why nothing of ``axis`` can go, or None when something can."""
    if next(atoms(axis), None) is not None:
        return None
    stack, reasons = [axis], []
    while stack:
        axis = find(stack.pop())
        if axis.kind == "fix" and axis.why not in reasons:
            reasons.append(axis.why)
        stack.extend(reversed(axis.parts))
    told = [r for r in reasons if r != ONE.why] or reasons
    return "; ".join(told)


# ---------------------------------------------------------------------------------- operations


def pin(axis: Axis, why: str) -> None:
    """Nothing of ``axis`` may go, because ``why``."""
    axis = find(axis)
    if axis.kind == "fix":
        return
    stack = [axis]
    while stack:
        axis = find(stack.pop())
        if axis.kind == "atom":
            axis.link = fix(axis.size, why)
        stack.extend(axis.parts)


def _pieces(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """Bind an atom to a sum of new atoms of ``sizes``, ranked together as before.

    A piece of one position is free as well: others are left of the axis it was cut from.
    """
    pieces = [Axis("atom", size) for size in sizes]
    for piece in pieces:
        piece.pool = pool_of(axis)
    axis.link = Axis("sum", axis.size, pieces)
    return pieces


def cut(axis: Axis, at: int) -> tuple[Axis, Axis]:
    """The first ``at`` positions of ``axis``, and the rest (0 < at < size)."""
    axis = find(axis)
    if not 0 < at < axis.size:
        raise AxisMismatch(f"cannot cut {axis.size} positions at {at}")
    if axis.kind == "atom":
        head, tail = _pieces(axis, [at, axis.size - at])
        return head, tail
    if axis.kind == "fix":
        return fix(at, axis.why), fix(axis.size - at, axis.why)
    if axis.kind == "view":
        assert axis.index is not None
        return view(axis.parts[0], axis.index[:at]), view(axis.parts[0], axis.index[at:])
    if axis.kind == "sum":
        return _cut_sum(axis, at)
    if axis.kind == "ragged":
        raise AxisMismatch("a ragged axis cannot be cut")
    # A product distributes over its outer factor; a cut inside a row splits that row off.
    factors = flatten([axis], "prod")
    outer, inner = factors[0], prod(factors[1:])
    rows, rest = divmod(at, inner.size)
    left: list[Axis] = []
    if rows:
        if rows == outer.size:
            raise AxisMismatch("cut past the end of a product")
        head, outer = cut(outer, rows)
        left = [prod([head, inner])]
    if not rest:
        return total(left), prod([outer, inner])
    right: list[Axis] = []
    row = outer
    if outer.size > 1:
        row, outer = cut(outer, 1)
        right = [prod([outer, inner])]
    pin(row, "a slice cuts through a row of a product")
    first, second = cut(inner, rest)
    return total([*left, first]), total([second, *right])


def _cut_sum(axis: Axis, at: int) -> tuple[Axis, Axis]:
    for i, part in enumerate(axis.parts):
        if at < part.size:
            head, tail = cut(part, at)
            return total([*axis.parts[:i], head]), total([tail, *axis.parts[i + 1 :]])
        at -= part.size
        if at == 0:
            return total(axis.parts[: i + 1]), total(axis.parts[i + 1 :])
    raise AxisMismatch("cut past the end of a sum")


def cuts(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """``axis`` in consecutive pieces of ``sizes`` (zero allowed), which add up to its size."""
    axis = find(axis)
    if sum(sizes) != axis.size:
        raise AxisMismatch(f"pieces of {list(sizes)} do not make {axis.size} positions")
    sizes_left = [size for size in sizes if size]
    pieces: list[Axis] = []
    if axis.kind == "atom" and len(sizes_left) > 1:
        pieces = _pieces(axis, sizes_left)
    elif axis.kind == "sum" and [part.size for part in axis.parts] == sizes_left:
        pieces = list(axis.parts)
    else:
        for size in sizes_left[:-1]:
            piece, axis = cut(axis, size)
            pieces.append(piece)
        pieces.append(axis)
    rest = iter(pieces)
    return [next(rest) if size else fix(0, "it is empty") for size in sizes]


def factor(axis: Axis, low: int) -> tuple[Axis, Axis]:
    """``axis`` as (high, low) with axis = prod(high, low) and ``low`` positions in the inner factor."""
    axis = find(axis)
    if low <= 0 or axis.size % low:
        raise AxisMismatch(f"{axis.size} positions do not factor by {low}")
    high = axis.size // low
    if low == 1:
        return axis, ONE
    if high == 1:
        return ONE, axis
    if axis.kind == "atom":
        outer, inner = atom(high), atom(low)
        axis.link = Axis("prod", axis.size, [outer, inner])
        return outer, inner
    if axis.kind == "fix":
        return fix(high, axis.why), fix(low, axis.why)
    if axis.kind == "prod":
        return _factor_prod(axis, low)
    if axis.kind == "sum" and all(part.size % low == 0 for part in axis.parts):
        pairs = [factor(part, low) for part in axis.parts]
        for _, inner in pairs[1:]:
            unify(pairs[0][1], inner)
        return total([outer for outer, _ in pairs]), pairs[0][1]
    if axis.kind == "view":
        assert axis.index is not None
        rows = axis.index.reshape(high, low)
        if (rows == rows[:, :1]).all():
            return view(axis.parts[0], rows[:, 0]), fix(low, "copies of one position")
    blocks = cuts(axis, [low] * high)
    for block in blocks[1:]:
        unify(blocks[0], block)
    return fix(high, "a reshape ties its blocks together"), blocks[0]


def _factor_prod(axis: Axis, low: int) -> tuple[Axis, Axis]:
    factors = flatten([axis], "prod")
    last, rest = factors[-1], prod(factors[:-1])
    if last.size == low:
        return rest, last
    if last.size % low == 0:
        outer, inner = factor(last, low)
        return prod([rest, outer]), inner
    if low % last.size == 0 and rest.size % (low // last.size) == 0:
        outer, inner = factor(rest, low // last.size)
        return outer, prod([inner, last])
    why = f"a reshape splits {axis.size} positions across the factors {[f.size for f in factors]}"
    pin(axis, why)
    return fix(axis.size // low, why), fix(low, why)


def unify(a: Axis, b: Axis) -> None:
    """Say that ``a`` and ``b`` are the same axis, position by position.

    Raises:
        AxisMismatch: they have different sizes.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise AxisMismatch(f"axes of {a.size} and {b.size} positions cannot be the same")
    if a.kind == "fix":
        pin(b, a.why)
    elif b.kind == "fix":
        pin(a, b.why)
    elif a.kind == "ragged" or b.kind == "ragged":
        ragged_one, other = (a, b) if a.kind == "ragged" else (b, a)
        for block in ragged_one.parts:
            unify(block, other)
    elif a.kind == "atom" or b.kind == "atom":
        if a.kind != "atom":
            a, b = b, a
        if b.kind == "atom":
            pool_of(a).pool = pool_of(b)
        elif any(inner is a for inner in atoms(b)):
            tie(a, b)
            return
        a.link = b
    elif a.kind == "view" or b.kind == "view":
        if not _same_view(a, b):
            tie(a, b)
    elif a.kind == "sum" or b.kind == "sum":
        _unify_segments(a, b)
    else:
        _unify_factors(a, b)


def _same_view(a: Axis, b: Axis) -> bool:
    if a.kind != b.kind or a.index is None or b.index is None:
        return False
    return find(a.parts[0]) is find(b.parts[0]) and bool((a.index == b.index).all())


def _unify_segments(a: Axis, b: Axis) -> None:
    left, right = [a], [b]
    while left:
        a, b = find(left.pop()), find(right.pop())
        if a is b:
            continue
        if a.kind == "sum" and not (a.size == b.size and b.kind == "atom"):
            left.extend(reversed(a.parts))
            right.append(b)
        elif b.kind == "sum" and not (a.size == b.size and a.kind == "atom"):
            right.extend(reversed(b.parts))
            left.append(a)
        elif a.size > b.size:
            a, rest = cut(a, b.size)
            left.append(rest)
            unify(a, b)
        elif b.size > a.size:
            b, rest = cut(b, a.size)
            right.append(rest)
            unify(a, b)
        else:
            unify(a, b)


def _unify_factors(a: Axis, b: Axis) -> None:
    """Common refinement of two products, from the innermost factor outwards."""
    while True:
        a, b = find(a), find(b)
        if a is b:
            return
        if a.kind != "prod" or b.kind != "prod":
            unify(a, b)
            return
        left, right = flatten([a], "prod"), flatten([b], "prod")
        low_a, low_b = left[-1].size, right[-1].size
        if any(f.size == 1 for f in (*left, *right)) or (low_a % low_b and low_b % low_a):
            tie(a, b)
            return
        low = min(low_a, low_b)
        (a, inner_a), (b, inner_b) = factor(a, low), factor(b, low)
        unify(inner_a, inner_b)


def as_view(axis: Axis) -> tuple[Axis | None, Index]:
    """Any axis as (atom, unit of each position); -1 where a position cannot go.

    A product removes whole rows or whole columns, which no index map can say: it keeps its largest free
    factor and pins the others.
    """
    axis = find(axis)
    if axis.kind == "atom":
        return axis, np.arange(axis.size)
    if axis.kind == "fix":
        return None, np.full(axis.size, -1)
    if axis.kind == "view":
        assert axis.index is not None
        base, index = as_view(axis.parts[0])
        return base, index[axis.index]
    if axis.kind == "ragged":
        for block in axis.parts[1:]:
            unify(axis.parts[0], block)
        return as_view(axis.parts[0])
    if axis.kind == "prod":
        return _product_as_view(axis)
    parts = [as_view(part) for part in axis.parts]
    bases = list({id(base): base for base, _ in parts if base is not None}.values())
    if len(bases) <= 1:
        return (bases[0] if bases else None), np.concatenate([index for _, index in parts])
    joint = atom(sum(base.size for base in bases))
    offsets, offset = {}, 0
    for base in bases:
        offsets[id(base)] = offset
        base.link = view(joint, np.arange(offset, offset + base.size))
        offset += base.size
    shifted = [i if base is None else np.where(i < 0, -1, i + offsets[id(base)]) for base, i in parts]
    return joint, np.concatenate(shifted)


def _product_as_view(axis: Axis) -> tuple[Axis | None, Index]:
    factors = flatten([axis], "prod")
    free = [f for f in factors if next(atoms(f), None) is not None]
    if not free:
        return None, np.full(axis.size, -1)
    kept = max(free, key=lambda f: f.size)
    for other in free:
        if other is not kept:
            pin(other, "two products meet that share no factors")
    base, index = as_view(kept)
    at = next(i for i, f in enumerate(factors) if f is kept)
    outer = math.prod(f.size for f in factors[:at])
    inner = math.prod(f.size for f in factors[at + 1 :])
    return base, np.tile(np.repeat(index, inner), outer)


def tie(a: Axis, b: Axis) -> None:
    """Say that ``a`` and ``b`` are the same axis when their structures have no common refinement.

    The pushout of two index maps: positions that must go together become one unit of a new atom, and
    those that meet a pinned position are pinned with it.
    """
    while True:  # writing b as a view can rebind the base of a
        base_a, index_a = as_view(a)
        base_b, index_b = as_view(b)
        if all(base is None or find(base) is base for base in (base_a, base_b)):
            break
    if base_a is None or base_b is None:
        pinned, free = (a, b) if base_a is None else (b, a)
        pin(free, reason(pinned) or "tied to a pinned axis")
        return
    same = base_a is base_b
    if same and (index_a == index_b).all():
        return
    count = base_a.size + (0 if same else base_b.size)
    shift = 0 if same else base_a.size
    classes = components(
        np.where(index_a < 0, count, index_a), np.where(index_b < 0, count, index_b + shift), count + 1
    )
    live = classes[:count] != classes[count]
    names, unit = np.unique(classes[:count][live], return_inverse=True)
    joint = total([atom(len(names)), fix(int(not live.all()), "tied to a pinned axis")])
    index = np.full(count, len(names))
    index[live] = unit
    base_a.link = view(joint, index[: base_a.size])
    if not same:
        base_b.link = view(joint, index[shift:])
