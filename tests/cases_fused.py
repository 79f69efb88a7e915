"""Cases of attention as one operator, and of what ONNX Runtime's optimisers fuse."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from casebook import SIZE, Net, add, case

S = SIZE
MS = "com.microsoft::"
HEADS, WIDTH, STEPS = 4, 4, 4


def _small(g: Net, x: str) -> str:
    """Small enough for a softmax that does not saturate."""
    return str(g("Mul", x, g.scalar(0.01)))


def _tokens(g: Net, size: int, name: str) -> str:
    return _small(g, g.free(1, STEPS, size, name=name, fixed=[1]))


@case("Attention", "a1 a3 b1 b3 c1 c3 z1 z3", exact=False, opset=23)
def by_head(g: Net) -> str:
    shape = (1, HEADS, STEPS, WIDTH)
    q, k, v = (_small(g, g.free(*shape, name=name, fixed=[2])) for name in "abc")
    return g.use(g("Attention", q, k, v), *shape, keep=[2])


@case("Attention", "a2 b2 c2 z2", exact=False, opset=23)
def side_by_side(g: Net) -> str:
    q, k, v = (_tokens(g, HEADS * WIDTH, name) for name in "abc")
    y = g("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS)
    return g.use(y, 1, STEPS, HEADS * WIDTH, keep=[1])


@case("Attention", "a2 b2 c2 z2", exact=False, opset=23)
def fewer_keys_than_queries(g: Net) -> str:
    q, k, v = (_tokens(g, n * WIDTH, name) for n, name in ((8, "a"), (4, "b"), (4, "c")))
    y = g("Attention", q, k, v, q_num_heads=8, kv_num_heads=4)
    return g.use(y, 1, STEPS, 8 * WIDTH, keep=[1])


@case("Attention", "a1 a3 b1 b3 c1 c3 mask:0 z1 z3", exact=False, opset=23)
def with_a_mask_for_each_head(g: Net) -> str:
    shape = (1, HEADS, STEPS, WIDTH)
    q, k, v = (_small(g, g.free(*shape, name=name, fixed=[2])) for name in "abc")
    return g.use(g("Attention", q, k, v, g.weight(HEADS, STEPS, STEPS, name="mask")), *shape, keep=[2])


@case("RotaryEmbedding", "a1 a3 cos:1 sin:1 z1 z3", exact=False, opset=23)
def halves(g: Net) -> str:
    cos, sin = (g.const(g.rng.standard_normal((8, 3)), name=name) for name in ("cos", "sin"))
    x = g.free(1, HEADS, STEPS, 6, fixed=[2])
    return g.use(
        g("RotaryEmbedding", x, cos, sin, g.const([[0, 2, 1, 3]], np.int64)), 1, HEADS, STEPS, 6, keep=[2]
    )


@case("RotaryEmbedding", "a1 a3 cos:1 sin:1 z1 z3", exact=False, opset=23)
def neighbours(g: Net) -> str:
    cos, sin = (g.const(g.rng.standard_normal((8, 3)), name=name) for name in ("cos", "sin"))
    x = g.free(1, HEADS, STEPS, 6, fixed=[2])
    return g.use(
        g("RotaryEmbedding", x, cos, sin, g.const([[0, 2, 1, 3]], np.int64), interleaved=1),
        1,
        HEADS,
        STEPS,
        6,
        keep=[2],
    )


@case("RotaryEmbedding", "a2 cos:1 sin:1 z2", exact=False, opset=23)
def heads_in_a_row(g: Net) -> str:
    cos, sin = (g.const(g.rng.standard_normal((8, 2)), name=name) for name in ("cos", "sin"))
    x = g.free(1, STEPS, HEADS * 4, fixed=[1])
    return g.use(
        g("RotaryEmbedding", x, cos, sin, g.const([[0, 2, 1, 3]], np.int64), num_heads=HEADS),
        1,
        STEPS,
        HEADS * 4,
        keep=[1],
    )


@case(MS + "RotaryEmbedding", "a2 cos:1 sin:1 z2", exact=False)
def by_positions(g: Net) -> str:
    cos, sin = (g.const(g.rng.standard_normal((8, 2)), name=name) for name in ("cos", "sin"))
    x = g.free(1, STEPS, HEADS * 4, fixed=[1])
    positions = g.const([[0, 2, 1, 3]], np.int64)
    y = g(MS + "RotaryEmbedding", x, positions, cos, sin)
    return g.use(y, 1, STEPS, HEADS * 4, keep=[1])


@case(MS + "MultiHeadAttention", "a2 b2 c2 bias:0 z2", exact=False)
def three_projections(g: Net) -> str:
    q, k, v = (_tokens(g, HEADS * WIDTH, name) for name in "abc")
    bias = g.const(g.rng.standard_normal(3 * HEADS * WIDTH), name="bias")
    y = g(MS + "MultiHeadAttention", q, k, v, bias, num_heads=HEADS)
    return g.use(y, 1, STEPS, HEADS * WIDTH, keep=[1])


@case(MS + "Attention", "a2 w:0 w:1 bias:0 z2", exact=False)
def one_weight_for_three(g: Net) -> str:
    size = HEADS * WIDTH
    weight = g.const(g.rng.standard_normal((S, 3 * size)), name="w")
    bias = g.const(g.rng.standard_normal(3 * size), name="bias")
    y = g(MS + "Attention", _tokens(g, S, "a"), weight, bias, num_heads=HEADS)
    return g.use(y, 1, STEPS, size, keep=[1])


def _activation(op: str, inputs: str, exact: bool = False) -> None:
    def body(g: Net) -> str:
        given = {"x": lambda: g.free(S, S), "b": lambda: g.weight(S, name="bias")}
        return g.use(g(MS + op, *(given[letter]() for letter in inputs)), S, S)

    add(MS + op, inputs, "a01 z01" + (" bias:0" if "b" in inputs else ""), body, exact=exact)


for _op, _inputs in (
    ("Gelu", "x"),
    ("FastGelu", "x"),
    ("FastGelu", "xb"),
    ("BiasGelu", "xb"),
    ("QuickGelu", "x"),
):
    _activation(_op, _inputs)


def _product(
    name: str, shrinks: str, left: Callable[[Net], str], out: tuple[int, ...], **attrs: float
) -> None:
    def body(g: Net) -> str:
        return g.use(g(MS + "FusedMatMul", left(g), g.weight(S, S, name="w"), **attrs), *out)

    add(MS + "FusedMatMul", name, shrinks, body)


_product("plain", "a01 w:0 w:1 z01", lambda g: g.free(S, S), (S, S), alpha=2.0)
_product("transposed right", "a01 w:0 w:1 z01", lambda g: g.free(S, S), (S, S), transB=1)
_product("transposed left", "a01 w:0 w:1 z01", lambda g: g.free(S, S), (S, S), transA=1)
_product("of a stack", "a012 w:0 w:1 z012", lambda g: g.free(S, S, S), (S, S, S), transA=1)


@case(MS + "FusedGemm", "a01 w:0 w:1 c:0 z01")
def with_an_activation(g: Net) -> str:
    y = g(MS + "FusedGemm", g.free(S, S), g.weight(S, S, name="w"), g.weight(S, name="c"), activation="Relu")
    return g.use(y, S, S)


@case(MS + "FusedConv", "a1 w:0 w:1 bias:0 b1 z1")
def added_to_another(g: Net) -> str:
    image = (1, S, S, S)
    parts = [
        g.free(*image),
        g.weight(S, S, 1, 1, name="w"),
        g.weight(S, name="bias"),
        g.free(*image, name="b"),
    ]
    return g.use(g(MS + "FusedConv", *parts, activation="Relu"), *image)


def _skip(op: str, vectors: str, both: bool) -> None:
    def body(g: Net) -> list[str]:
        x, skip = (_small(g, g.free(1, S, S, name=name)) for name in "ab")
        weights = [g.weight(S, name=name) for name in vectors]
        y, _, _, added = g(MS + op, x, skip, *weights, outputs=4)
        out = [g.use(y, 1, S, S)]
        return [*out, g.use(added, 1, S, S, name="y")] if both else out

    shrinks = "a12 b12 z12 " + " ".join(f"{name}:0" for name in vectors) + (" y12" if both else "")
    add(MS + op, "with its sum" if both else "alone", shrinks, body, exact=False)


for _both in (False, True):
    _skip("SkipLayerNormalization", "stu", _both)
    _skip("SkipSimplifiedLayerNormalization", "s", _both)


@case(MS + "EmbedLayerNormalization", "words:1 places:1 kinds:1 scale:0 shift:0 z2", exact=False)
def three_tables(g: Net) -> str:
    ids, kinds = (g("Cast", g("Abs", g.const([[1, 0, 2, 1]], np.int64)), to=6) for _ in range(2))
    tables = [g.weight(rows, S, name=name) for rows, name in ((5, "words"), (8, "places"), (3, "kinds"))]
    y, _ = g(
        MS + "EmbedLayerNormalization",
        ids,
        kinds,
        *tables,
        g.weight(S, name="scale"),
        g.weight(S, name="shift"),
        outputs=2,
    )
    return g.use(y, 1, 4, S, keep=[1])
