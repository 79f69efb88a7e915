"""Cases of normalisations, reductions and rankings."""

from __future__ import annotations

from typing import Any

from casebook import SIZE, Net, add, case

S = SIZE
C = 8
CUBE = (S, S, S)
IMAGE = (S, S, S, S)


def _soft(g: Net, x: str) -> str:
    """Scaled so that a normalisation does not saturate."""
    return str(g("Mul", x, g.scalar(0.05)))


@case("BatchNormalization", "a0123 z0123 p:0 q:0 r:0", exact=False)
def four_parameters(g: Net) -> str:
    p, q, r, s = (g.weight(S, name=n) for n in "pqrs")
    return g.use(g("BatchNormalization", g.free(*IMAGE), p, q, r, g("Abs", s)), *IMAGE)


@case("BatchNormalization", "a01 z01 p:0 q:0 r:0", exact=False)
def of_a_matrix(g: Net) -> str:
    p, q, r = (g.weight(S, name=n) for n in "pqr")
    return g.use(g("BatchNormalization", g.free(S, S), p, q, r, g.const(range(1, S + 1))), S, S)


@case("InstanceNormalization", "a0123 z0123 p:0 q:0", exact=False)
def every_axis_free(g: Net) -> str:
    y = g("InstanceNormalization", g.free(*IMAGE), g.weight(S, name="p"), g.weight(S, name="q"))
    return g.use(y, *IMAGE)


def _groups(name: str, shrinks: str, opset: int, channels: int, groups: int, parameters: int) -> None:
    def body(g: Net) -> str:
        scale, bias = g.weight(parameters, name="p"), g.weight(parameters, name="q")
        y = g("GroupNormalization", g.free(S, channels, S), scale, bias, num_groups=groups)
        return g.use(y, S, channels, S)

    add("GroupNormalization", name, shrinks, body, exact=False, opset=opset)


_groups("two groups", "a01 z01 p:0 q:0", 21, C, 2, C)
_groups("four groups", "a01 z01 p:0 q:0", 21, 16, 4, 16)
_groups("four groups of two", "a01 z01 p:0 q:0", 21, C, 4, C)
_groups("one group", "a01 z01 p:0 q:0", 21, C, 1, C)
_groups("a scale for each group", "a0 z0", 18, C, 2, 2)


def _layer(op: str, name: str, shape: tuple[int, ...], first: int, opset: int, bias: bool) -> None:
    rank = len(shape)
    sizes = shape[first:]

    def body(g: Net) -> str:
        inputs = [_soft(g, g.free(*shape)), g.weight(*sizes, name="p")]
        if bias:
            inputs.append(g.weight(*sizes, name="q"))
        return g.use(g(op, *inputs, axis=first), *shape)

    axes = "".join(str(k) for k in range(rank))
    where = [f"{n}:{k}" for n in ("pq" if bias else "p") for k in range(len(sizes))]
    add(op, name, f"a{axes} z{axes} {' '.join(where)}", body, exact=False, opset=opset)


for _op, _opset, _bias in (
    ("LayerNormalization", 17, True),
    ("RMSNormalization", 23, False),
    ("SimplifiedLayerNormalization", 17, False),
):
    _layer(_op, "the last axis", CUBE, -1, _opset, _bias)
    _layer(_op, "two axes", IMAGE, 2, _opset, _bias)


@case("LayerNormalization", "a0123 z0123 p:1 q:0", exact=False)
def parameters_by_broadcast(g: Net) -> str:
    x = _soft(g, g.free(*IMAGE))
    return g.use(g("LayerNormalization", x, g.weight(1, S, name="p"), g.weight(S, name="q"), axis=2), *IMAGE)


@case("LayerNormalization", "a012 z012 y01 v01 p:0 q:0", exact=False)
def its_statistics(g: Net) -> list[str]:
    p, q = g.weight(S, name="p"), g.weight(S, name="q")
    y, mean, deviation = g("LayerNormalization", _soft(g, g.free(*CUBE)), p, q, outputs=3)
    return [g.use(y, *CUBE), g.use(mean, S, S, 1, name="y"), g.use(deviation, S, S, 1, name="v")]


def _of_heads(op: str, opset: int, parameters: int, size: int) -> None:
    """Both factors of an axis are axes of the normalisation, so both shrink."""

    def body(g: Net) -> str:
        inputs = [g.weight(size, name="pq"[i]) for i in range(parameters)]
        return g.joined(g(op, g.heads((1, 4, 4)), *inputs))

    add(op, "of heads", "a:1/4 z:0/4", body, exact=False, opset=opset)


_of_heads("InstanceNormalization", 17, 2, 4)
_of_heads("LayerNormalization", 17, 2, 4)
_of_heads("RMSNormalization", 23, 1, 4)
_of_heads("SimplifiedLayerNormalization", 17, 1, 4)


def _along(op: str, name: str, opset: int = 17, exact: bool = False, **attrs: Any) -> None:
    def body(g: Net) -> str:
        return g.use(g(op, _soft(g, g.free(*CUBE)), **attrs), *CUBE)

    add(op, name, "a012 z012", body, exact=exact, opset=opset)


for _op in "Softmax LogSoftmax Hardmax".split():
    _along(_op, "the last axis")
    _along(_op, "the first axis", axis=0)
    _along(_op, "the middle axis", axis=-2)
    _along(_op, "all axes from the second", opset=12)
    _along(_op, "all axes from the last", opset=12, axis=-1)
_along("LpNormalization", "the last axis")
_along("LpNormalization", "the middle axis, by magnitude", axis=1, p=1)


@case("MeanVarianceNormalization", "a0123 z0123", exact=False)
def all_but_channels(g: Net) -> str:
    return g.use(g("MeanVarianceNormalization", g.free(*IMAGE)), *IMAGE)


@case("MeanVarianceNormalization", "a012 z012", exact=False)
def the_first_axis(g: Net) -> str:
    return g.use(g("MeanVarianceNormalization", g.free(*CUBE), axes=[0]), *CUBE)


# ------------------------------------------------------------------ reductions

_REDUCE = ["Reduce" + k for k in "Mean Sum Max Min L1 L2 Prod SumSquare LogSum LogSumExp".split()]


def _reduce(op: str, name: str, over: list[int], keep: bool, at: str, opset: int) -> None:
    """``at``: whether the axes are an attribute or an input."""
    sizes = [1 if k in over else S for k in range(3) if keep or k not in over]
    made = "".join(str(k) for k, size in enumerate(sizes) if size > 1)

    def body(g: Net) -> str:
        low = {"ReduceProd": 0.5, "ReduceLogSum": 0.1}.get(op, -3)
        x = g("Clip", _soft(g, g.free(*CUBE)), g.scalar(low), g.scalar(4))
        given = [k - 3 if k == over[-1] else k for k in over]
        attrs: dict[str, Any] = {"axes": given} if at == "attribute" else {}
        inputs = [x] if at == "attribute" else [x, g.ints(*given)]
        return g.use(g(op, *inputs, keepdims=int(keep), **attrs), *sizes)

    add(op, name, f"a012 z{made}", body, exact=False, opset=opset)


for _op in _REDUCE:
    _old = 12 if _op == "ReduceSum" else 17
    _reduce(_op, "the middle axis", [1], True, "attribute", _old)
    _reduce(_op, "the first axis, dropped", [0], False, "input", 18)
    _reduce(_op, "two axes, dropped", [0, 2], False, "input", 18)


@case("ReduceSum", "a012 z012")
def nothing_at_all(g: Net) -> str:
    return g.use(g("ReduceSum", g.free(*CUBE), noop_with_empty_axes=1), *CUBE)


@case("ReduceMax", "a012", exact=False)
def all_axes(g: Net) -> str:
    """Every position counts, so that only what the maximum is taken over changes."""
    return str(g("ReduceMax", g.free(*CUBE), keepdims=0))


def _running(name: str, shrinks: str, axis: int, **attrs: int) -> None:
    def body(g: Net) -> str:
        h = g("CumSum", g.free(*CUBE), g.const(axis, "int64"), **attrs)
        return g.use(h, *CUBE)

    add("CumSum", name, shrinks, body)


_running("the first axis", "a12 z12", 0)
_running("the middle axis, backwards", "a02 z02", -2, reverse=1)
_running("the last axis, without itself", "a01 z01", 2, exclusive=1)


def _best(op: str, name: str, axis: int, keep: int) -> None:
    sizes = [1 if k == axis else S for k in range(3) if keep or k != axis]
    others = "".join(str(k) for k in range(3) if k != axis)
    made = "".join(str(k) for k, size in enumerate(sizes) if size > 1)

    def body(g: Net) -> str:
        y = g(op, g.free(*CUBE), axis=axis, keepdims=keep)
        return g.use(g("Cast", y, to=1), *sizes)

    add(op, name, f"a{others} z{made}", body)


for _op in ("ArgMax", "ArgMin"):
    _best(_op, "the first axis", 0, 1)
    _best(_op, "the middle axis, dropped", 1, 0)
    _best(_op, "the last axis", 2, 1)


def _top(name: str, axis: int, count: int, **attrs: int) -> None:
    others = "".join(str(k) for k in range(3) if k != axis)
    sizes = [count if k == axis else S for k in range(3)]

    def body(g: Net) -> list[str]:
        values, places = g("TopK", g.free(*CUBE), g.ints(count), outputs=2, axis=axis, **attrs)
        return [g.use(values, *sizes), g.use(g("Cast", places, to=1), *sizes, name="y")]

    add("TopK", name, f"a{others} z{others} y{others}", body)


_top("the last axis", 2, 3)
_top("the first axis, the least", 0, 2, largest=0)
_top("the middle axis, all of it", 1, S)
