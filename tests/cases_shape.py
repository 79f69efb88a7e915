"""Cases of operators that lay numbers out anew, join axes or pick positions of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from casebook import SIZE, Net, add, case
from onnx import helper

S = SIZE
CUBE = (S, S, S)
FOUR = (4, 4, 4, 4)


def _reshape(
    name: str, shrinks: str, sizes: Sequence[int], target: Sequence[int], out: Sequence[int] | None = None
) -> None:
    def body(g: Net) -> str:
        return g.use(g("Reshape", g.free(*sizes), g.ints(*target)), *(out or target))

    add("Reshape", name, shrinks, body)


_reshape("two axes merged", "a012 z01", CUBE, (S, S * S))
_reshape("two axes merged in front", "a012 z01", CUBE, (-1, S), (S * S, S))
_reshape("all axes merged", "a0123 z0", FOUR, (256,))
_reshape("an axis split", "a01 z012", (16, 16), (4, 4, 16))
_reshape("split and merged at other places", "a012 z012", (4, 16, 4), (16, 4, 4))
_reshape("split and merged inside", "a012 z012", (16, 4, 16), (16, 16, 4))
_reshape("copied sizes", "a012 z01", CUBE, (0, -1), (S, S * S))
_reshape("ones come and go", "a02 z13", (S, 1, S), (1, S, 1, S))


@case("Reshape", "a01 z012")
def heads_and_back_by_another_order(g: Net) -> str:
    h = g("Reshape", g.free(16, 16), g.ints(4, 4, 16))
    h = g("Reshape", g("Transpose", h, perm=[1, 0, 2]), g.ints(16, 4, 4))
    return g.use(h, 16, 4, 4)


@case("Reshape", "w:0 w:1 z01")
def a_weight_in_another_layout(g: Net) -> str:
    w = g("Reshape", g.weight(16, 4, 4, name="w"), g.ints(4, 4, 16))
    return g.use(g("Einsum", g.whole(3, 4), w, equation="ni,ijk->jkn"), 4, 16, 3, keep=[2])


def _one(op: str, name: str, shrinks: str, sizes: Sequence[int], out: Sequence[int], **attrs: object) -> None:
    add(op, name, shrinks, lambda g: g.use(g(op, g.free(*sizes), **attrs), *out))


_one("Flatten", "after the first", "a0123 z01", FOUR, (4, 64))
_one("Flatten", "before the last", "a0123 z01", FOUR, (64, 4), axis=-1)
_one("Flatten", "in the middle", "a0123 z01", FOUR, (16, 16), axis=2)
_one("Flatten", "all of it", "a0123 z1", FOUR, (1, 256), axis=0)
_one("Transpose", "a cycle", "a012 z012", CUBE, CUBE, perm=[1, 2, 0])
_one("Transpose", "a cycle of four", "a0123 z0123", (S,) * 4, (S,) * 4, perm=[2, 0, 3, 1])
_one("Transpose", "backwards", "a012 z012", CUBE, CUBE)
_one("Squeeze", "whatever is one", "a024 z012", (S, 1, S, 1, S), CUBE)


@case("Transpose", "w:0 w:1 a01 z01")
def a_weight_on_both_sides(g: Net) -> str:
    """One tensor, read as it is and transposed: it stays one."""
    w = g.weight(S, S, name="w")
    h = g("MatMul", g("MatMul", g.free(S, S), w), g("Transpose", w, perm=[1, 0]))
    return g.use(h, S, S)


@case("Squeeze", "a024 z013")
def one_axis(g: Net) -> str:
    return g.use(g("Squeeze", g.free(S, 1, S, 1, S), g.ints(-4)), S, S, 1, S)


@case("Squeeze", "a024 z023", opset=12)
def by_attribute(g: Net) -> str:
    return g.use(g("Squeeze", g.free(S, 1, S, 1, S), axes=[3]), S, 1, S, S)


@case("Unsqueeze", "a012 z024")
def two_axes(g: Net) -> str:
    return g.use(g("Unsqueeze", g.free(*CUBE), g.ints(1, -2)), S, 1, S, 1, S)


@case("Unsqueeze", "a012 z123", opset=12)
def by_attribute_(g: Net) -> str:
    return g.use(g("Unsqueeze", g.free(*CUBE), axes=[0]), 1, S, S, S)


@case("Expand", "a01 z012")
def one_axis_copied(g: Net) -> str:
    return g.use(g("Expand", g.free(S, S, 1), g.ints(1, S, S)), *CUBE)


@case("Expand", "a02 z0123")
def new_axes_in_front(g: Net) -> str:
    return g.use(g("Expand", g.free(S, 1, S), g.ints(S, S, S, S)), *(S,) * 4)


@case("Expand", "a012 b012 z012")
def keys_shared_by_query_heads(g: Net) -> str:
    k = g("Expand", g("Unsqueeze", g.free(2, S, S), g.ints(1)), g.ints(2, 3, S, S))
    k = g("Reshape", k, g.ints(S, S, S))
    return g.use(g("Einsum", g.free(S, S, S, name="b"), k, equation="hij,hkj->hik"), *CUBE)


@case("Tile", "a012 z012")
def one_axis_twice(g: Net) -> str:
    return g.use(g("Tile", g.free(*CUBE), g.ints(1, 2, 1)), S, 2 * S, S)


@case("Tile", "a02 z02")
def from_one(g: Net) -> str:
    return g.use(g("Tile", g.free(S, 1, S), g.ints(2, S, 3)), 2 * S, S, 3 * S)


def _pad(
    name: str, shrinks: str, pads: Sequence[int], out: Sequence[int], opset: int = 17, **a: object
) -> None:
    def body(g: Net) -> str:
        if opset < 11:
            return g.use(g("Pad", g.free(*CUBE), pads=list(pads), value=2.0), *out)
        return g.use(g("Pad", g.free(*CUBE), g.ints(*pads), g.scalar(2), **a), *out)

    add("Pad", name, shrinks, body, opset=opset)


_pad("two axes", "a012 z012", (0, 1, 2, 0, 2, 0), (S, S + 3, S + 2))
_pad("as much again", "a012 z012", (S, 0, 0, 0, S, 0), (2 * S, 2 * S, S))
_pad("cropped", "a012 z012", (-1, 0, 0, -1, 2, -2), (S - 2, S + 2, S - 2))
_pad("mirrored", "a02 z02", (0, 1, 0, 0, 1, 0), (S, S + 2, S), mode="reflect")
_pad("by attribute", "a012 z012", (0, 1, 0, 0, 2, 0), (S, S + 3, S), opset=10)


@case("Pad", "a012 z012", opset=18)
def named_axes(g: Net) -> str:
    y = g("Pad", g.free(*CUBE), g.ints(1, 0, 0, 2), g.scalar(3), g.ints(-1, 0))
    return g.use(y, S + 2, S, S + 1)


@case("ConstantOfShape", "z01")
def larger_than_is_folded(g: Net) -> str:
    sizes = (2049, 2048)
    value = helper.make_tensor("v", 1, [1], [0.5])
    filled = g("ConstantOfShape", g.ints(*sizes), value=value)
    return g.use(g("Add", filled, g.whole(1, 1)), *sizes)


# ------------------------------------------------------------------ joining and parting


def _concat(name: str, axis: int, shrinks: str, *shapes: tuple[int, ...]) -> None:
    def body(g: Net) -> str:
        parts = [g.free(*shape, name="abc"[i]) for i, shape in enumerate(shapes)]
        out = np.concatenate([np.zeros(shape) for shape in shapes], axis).shape
        return g.use(g("Concat", *parts, axis=axis), *out)

    add("Concat", name, shrinks, body)


_concat("the last axis", -1, "a012 b012 c012 z012", CUBE, (S, S, 4), CUBE)
_concat("the first axis", 0, "a012 b012 z012", CUBE, CUBE)
_concat("the middle axis", 1, "a012 b012 c02 z012", CUBE, (S, 4, S), (S, 1, S))


@case("Concat", "a012 z012")
def with_itself(g: Net) -> str:
    h = g.free(*CUBE)
    return g.use(g("Concat", h, h, axis=1), S, 2 * S, S)


@case("Concat", "a01 p:0 p:1 z01")
def with_a_parameter(g: Net) -> str:
    return g.use(g("Concat", g.weight(S, S, name="p"), g.free(S, S), axis=0), 2 * S, S)


def _split(name: str, axis: int, sizes: Sequence[int], given: str, opset: int = 17) -> None:
    total = sum(sizes)
    shape = [total if k == axis % 3 else S for k in range(3)]

    def body(g: Net) -> list[str]:
        inputs, attrs = [g.free(*shape)], {"axis": axis}
        if given == "input":
            inputs.append(g.ints(*sizes))
        elif given == "attribute":
            attrs["split"] = list(sizes)
        elif given == "count":
            attrs["num_outputs"] = len(sizes)
        parts = g("Split", *inputs, outputs=len(sizes), **attrs)
        shapes = [[size if k == axis % 3 else S for k in range(3)] for size in sizes]
        return [g.use(parts[i], *shape, name="zyv"[i]) for i, shape in enumerate(shapes)]

    add("Split", name, "a012 z012 y012" + (" v012" if len(sizes) > 2 else ""), body, opset=opset)


_split("unequal", 1, (S, 3, S), "input")
_split("equal, by default", 2, (S, S), "")
_split("by attribute", 0, (4, 4, S), "attribute", 12)
_split("by their number", -2, (4, 4, 3), "count", 18)


@case("Split", "a012 z012")
def halves_multiplied(g: Net) -> str:
    left, right = g("Split", g.free(S, 2 * S, S), g.ints(S, S), outputs=2, axis=1)
    return g.use(g("Mul", left, right), *CUBE)


def _slice(
    name: str, shrinks: str, starts: list[int], ends: list[int], axes: list[int], steps: list[int] | None
) -> None:
    sizes = [S, 2 * S, S]
    for start, end, axis, step in zip(starts, ends, axes, steps or [1] * len(starts), strict=True):
        stop = None if step < 0 and end < -sizes[axis] else end
        sizes[axis] = len(range(sizes[axis])[slice(start, stop, step)])

    def body(g: Net) -> list[str]:
        h = g.free(S, 2 * S, S)
        bounds = [g.ints(*starts), g.ints(*ends), g.ints(*axes), *([g.ints(*steps)] if steps else [])]
        return [g.use(g("Slice", h, *bounds), *sizes), g.use(h, S, 2 * S, S, name="y")]

    add("Slice", name, shrinks, body)


_slice("the middle", "a012 z012 y012", [2], [8], [1], None)
_slice("the head", "a012 z012 y012", [0], [S], [1], [1])
_slice("the tail", "a012 z012 y012", [-S], [1 << 40], [1], [1])
_slice("every second", "a012 z012 y012", [1], [2 * S], [1], [2])
_slice("backwards", "a012 z012 y012", [-1], [-(1 << 40)], [1], [-1])
_slice("two axes", "a012 z012 y012", [5, 1], [0, 5], [2, -2], [-2, 1])


@case("Slice", "a012 z012", opset=9)
def by_attributes(g: Net) -> str:
    return g.use(g("Slice", g.free(*CUBE), starts=[1, 0], ends=[4, 5], axes=[2, 1]), S, 5, 3)


@case("Slice", "a01 w:0 w:1 z01")
def a_weight_in_pieces(g: Net) -> str:
    w, h = g.weight(S, 2 * S, name="w"), g.free(S, S)
    left, right = (g("Slice", w, g.ints(k * S), g.ints(k * S + S), g.ints(1)) for k in range(2))
    return g.use(g("Add", g("MatMul", h, left), g("MatMul", h, right)), S, S)


# ------------------------------------------------------------------ lookups


def _gather(name: str, shrinks: str, axis: int, index: object) -> None:
    picked = np.array(index, np.int64)
    out = np.take(np.zeros(CUBE), picked, axis=axis).shape

    def body(g: Net) -> list[str]:
        h = g.free(*CUBE)
        y = g("Gather", h, g.const(picked, np.int64), axis=axis)
        return [g.use(y, *out), g.use(h, *CUBE, name="y")]

    add("Gather", name, shrinks, body)


_gather("a permutation", "a012 z012 y012", 1, [2, 0, 1, 4, 5, 3])
_gather("with repeats", "a012 z12 y012", 0, [2, 0, 2, 4, 4, 2])
_gather("from the end", "a012 z01 y012", 2, [-1, 2, -3])
for _k in range(S):
    _gather(f"position {_k} alone", "a02 z01 y02", 1, _k)
_gather("a table of positions", "a02 y02", 1, [[0, 2], [1, 5]])


@case("Gather", "w:1 z1")
def rows_of_a_table(g: Net) -> str:
    index = g("Cast", g("Mod", g("Abs", g.whole(5)), g.scalar(S), fmod=1), to=7)
    return g.use(g("Gather", g.weight(S, S, name="w"), index), 5, S)


@case("Gather", "a012 z012")
def a_roll_and_the_same_unrolled(g: Net) -> str:
    h = g.free(*CUBE)
    rolled = g("Gather", h, g.ints(1, 2, 3, 4, 5, 0), axis=1)
    back = g("Gather", rolled, g.ints(5, 0, 1, 2, 3, 4), axis=1)
    return g.use(g("Add", g("Mul", back, g.scalar(3)), h), *CUBE)
