"""Cases of what Microsoft's operators add to quantisation and attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from casebook import SIZE, Net, add, case

S = SIZE
MS = "com.microsoft::"
HEADS, WIDTH, STEPS = 4, 4, 4


def _small(g: Net, x: str) -> str:
    """Small enough for a softmax that does not saturate."""
    return str(g("Mul", x, g.scalar(0.01)))


def _point(g: Net, scale: float, zero: int = 128) -> list[str]:
    return [g.scalar(scale), g.const(zero, np.uint8)]


def _quantised(g: Net, x: str, scale: float) -> str:
    return str(g("QuantizeLinear", x, *_point(g, scale)))


def _bytes(g: Net, *shape: int, name: str, low: int = -6, dtype: Any = np.int8) -> str:
    return g.const(g.rng.integers(low, 7, shape), dtype, name=name)


@case(MS + "Trilu", "a0 z0")
def _of_a_stack(g: Net) -> str:
    return g.use(g(MS + "Trilu", g.free(S, S, S), upper=0), S, S, S)


@case(MS + "QLinearWhere", "a01 b01 c01 z01")
def _bytes_by_choice(g: Net) -> str:
    a, b = (_quantised(g, g.free(S, S, name=name), 2.0) for name in "ab")
    where = g("Greater", g.free(S, S, name="c"), g.scalar(0))
    y = g(MS + "QLinearWhere", where, a, *_point(g, 2.0), b, *_point(g, 2.0), *_point(g, 2.0))
    return g.use(g("DequantizeLinear", y, *_point(g, 2.0)), S, S)


@case(MS + "QLinearConv", "a1 w:0 w:1 scale:0 bias:0 z1")
def _channels_second(g: Net) -> str:
    image = (1, S, S, S)
    weight = _bytes(g, S, S, 1, 1, name="w")
    scale = g.const(2.0 ** g.rng.integers(0, 3, S), name="scale")
    bias = g.const(g.rng.integers(-9, 9, S), np.int32, name="bias")
    given = [
        _quantised(g, g.free(*image), 2.0),
        *_point(g, 2.0),
        weight,
        scale,
        g.const(np.zeros(S), np.int8),
    ]
    y = g(MS + "QLinearConv", *given, *_point(g, 4.0), bias, channels_last=0)
    return g.use(g("DequantizeLinear", y, *_point(g, 4.0)), *image)


def _few_bits(name: str, shrinks: str, flat: bool = False, zero: str = "", bits: int = 4) -> None:
    def body(g: Net) -> str:
        shape = (32,) if flat else (8, 4)
        x = g("Mul", g.free(S, 64), g.scalar(0.125))
        packed = g.const(g.rng.integers(0, 256, (8, 4, 2 * bits)), np.uint8, name="w")
        scale = g.const(2.0 ** g.rng.integers(-3, 1, shape), name="scale")
        at = ""
        if zero == "packed":
            at = g.const(g.rng.integers(0, 256, (8, bits // 2)), np.uint8, name="zero")
        elif zero:
            at = g.const(g.rng.integers(0, 9, shape), name="zero")
        given = [x, packed, scale, at, "", g.weight(8, name="bias")]
        y = g(MS + "MatMulNBits", *given, N=8, K=64, block_size=16, bits=bits)
        return g.use(y, S, 8)

    add(MS + "MatMulNBits", name, shrinks, body, exact=False)


_few_bits("no zero points", "a01 w:0 w:1 scale:0 scale:1 bias:0 z01")
_few_bits("zero points in floats", "a01 w:0 w:1 scale:0 zero:0 zero:1 bias:0 z01", zero="float")
_few_bits("packed zero points", "a0 w:0 scale:0 zero:0 bias:0 z01", zero="packed")
_few_bits("scales in a row", "a01 w:0 w:1 scale:0 bias:0 z01", flat=True)


def _quantised_attention(name: str, shrinks: str, zero: int, by_column: bool, **attrs: Any) -> None:
    def body(g: Net) -> str:
        size = HEADS * WIDTH
        x = _quantised(g, g("Mul", g.free(1, STEPS, S), g.scalar(0.002)), 0.01)
        weight = _bytes(g, S, 3 * size, name="w", low=0, dtype=np.uint8)
        bias = g.const(0.1 * g.rng.standard_normal(3 * size), name="bias")
        shape = (3 * size,) if by_column else ()
        scale = g.const(0.05 * (1 + g.rng.random(shape)), name="scale")
        at = g.const(np.full(shape, zero), np.uint8, name="zero")
        given = [x, weight, bias, g.scalar(0.01), scale, "", g.const(128, np.uint8), at]
        y = g(MS + "QAttention", *given, num_heads=HEADS, **attrs)
        return g.use(y, 1, STEPS, size)

    add(MS + "QAttention", name, shrinks, body, exact=False)


_quantised_attention("one scale", "a12 w:0 w:1/4 bias:0/4 z12", 0, False)
_quantised_attention("scales by column", "a12 w:0 w:1/4 bias:0/4 scale:0/4 z12", 0, True)
_quantised_attention("another zero", "a2 w:0 w:1 bias:0 z2", 3, False, unidirectional=1)


def _heads(name: str, shrinks: str, outputs: int, mask: tuple[int, ...] = (), **attrs: Any) -> None:
    """Attention of the standard domain whose every axis is free and of the same size."""

    def body(g: Net) -> list[str]:
        shape = (4, 4, 4, 4)
        given = [g("Mul", g.free(*shape, name=n), g.scalar(0.0005)) for n in "abc"]
        if mask:
            given.append(g.weight(*mask, name="mask"))
        made = g("Attention", *given, outputs=outputs, **attrs)
        results = [made] if outputs == 1 else made
        return [g.use(y, *shape, name=n) for y, n in zip(results, "zyvu"[:outputs], strict=True)]

    add("Attention", name, shrinks, body, exact=False, opset=23)


_EVERY = "a0123 b0123 c0123 z0123"
_heads("every axis", _EVERY, 1)
_heads("caches and scores", f"{_EVERY} y0123 v0123 u0:0 u1:0 u2:0 u3:0", 4)
_heads("a mask for each head", f"{_EVERY} mask:0 mask:1 mask:2 mask:3", 1, (4, 4, 4, 4))
_heads("a mask of positions", f"{_EVERY} mask:0 mask:1", 1, (4, 4))
_heads("causal", "a013 b013 c013 z013", 1, is_causal=1)
_heads("a given scale", _EVERY, 1, scale=0.75)


def _in_a_row(op: str, name: str, shrinks: str, opset: int = 17, bias: bool = False, **attrs: Any) -> None:
    """Heads and widths, both of four, in the last axis."""

    def body(g: Net) -> str:
        q, k, v = (_small(g, g.free(4, STEPS, 16, name=n)) for n in "abc")
        given = [q, k, v]
        if bias:
            given += [
                g.const(0.1 * g.rng.standard_normal(48), name="bias"),
                "",
                g.weight(4, 4, 4, 4, name="by"),
            ]
        return g.use(g(op, *given, **attrs), 4, STEPS, 16)

    add(op, name, shrinks, body, exact=False, opset=opset)


_QUARTER = "a2:1/4 b2:1/4 c2:1/4 z2:0/4"
_in_a_row("Attention", "heads in a row", f"{_QUARTER} a1", 23, q_num_heads=4, kv_num_heads=4)
_in_a_row(MS + "MultiHeadAttention", "steps that are free", f"{_QUARTER} a1 b1 c1", num_heads=4)
_in_a_row(MS + "MultiHeadAttention", "one way", f"{_QUARTER} a0", num_heads=4, unidirectional=1)
_in_a_row(
    MS + "MultiHeadAttention",
    "biases",
    f"{_QUARTER} a1 b1 bias:0/4 by:0 by:1 by:2 by:3",
    bias=True,
    num_heads=4,
)


def _packed(name: str, shrinks: str, value_width: int = 4, outputs: int = 1, **attrs: Any) -> None:
    def body(g: Net) -> list[str]:
        columns = 32 + 4 * value_width
        x = g("Mul", g.free(4, STEPS, 8), g.scalar(0.0005))
        given = [
            x,
            g.weight(8, columns, name="w"),
            g.const(0.1 * g.rng.standard_normal(columns), name="bias"),
        ]
        given += ["", "", g.weight(4, 4, 4, 4, name="by")]
        if value_width != 4:
            attrs["qkv_hidden_sizes"] = [16, 16, 4 * value_width]
        made = g(MS + "Attention", *given, num_heads=4, outputs=outputs, **attrs)
        results = [made] if outputs == 1 else made
        shapes = [(4, STEPS, 4 * value_width), (2, 4, 4, STEPS, 4)]
        keeps: list[list[int]] = [[], [0]]
        parts = zip(results, shapes, keeps, "zy"[:outputs], strict=False)
        return [g.use(y, *shape, keep=keep, name=n) for y, shape, keep, n in parts]

    add(MS + "Attention", name, shrinks, body, exact=False)


_packed("every axis", "a012 w:0 w:1/4 bias:0/4 by:0 by:1 by:2 by:3 z1 z2:0/4")
_packed("wider values", "a12 w:0 w:1/3 bias:0/3 by:1 z1 z2:0/4", value_width=8)
_packed("a cache as an output", "a012 w:0 w:1/4 z1 y1234", outputs=2)
_packed("one way", "a2 w:0 w:1/4 z2:0/4 by:1", unidirectional=1)


@case(MS + "GroupQueryAttention", "a2:1/4 b2 c2 bias:1/4 sink:0/4 z2:0/4", exact=False)
def _without_a_cache(g: Net) -> str:
    q, k, v = (
        _small(g, g.free(1, STEPS, 8 * n, name=name, fixed=[1])) for n, name in ((8, "a"), (4, "b"), (4, "c"))
    )
    lengths = [g.const([STEPS - 1], np.int32), g.const([STEPS], np.int32)]
    more = [g.weight(1, 8, STEPS, STEPS, name="bias"), g.weight(8, name="sink")]
    given = [q, k, v, "", "", *lengths, "", "", "", *more]
    y, _, _ = g(MS + "GroupQueryAttention", *given, outputs=3, num_heads=8, kv_num_heads=4)
    return g.use(y, 1, STEPS, 64, keep=[1])


@case(MS + "QEmbedLayerNormalization", "words:1 places:1 kinds:1 p:0 q:0 z2", exact=False)
def _tables_of_bytes(g: Net) -> str:
    ids, kinds = g.const([[1, 0, 2, 1]], np.int32), g.const([[0, 1, 2, 1]], np.int32)
    shapes = {"words": (5, S), "places": (8, S), "kinds": (3, S), "p": (S,), "q": (S,)}
    tables = [_bytes(g, *shape, name=name, low=0, dtype=np.uint8) for name, shape in shapes.items()]
    scales, zeros = [g.scalar(0.1) for _ in tables], [g.const(3, np.uint8) for _ in tables]
    y, _ = g(MS + "QEmbedLayerNormalization", ids, kinds, *tables, "", *scales, *zeros, outputs=2)
    return g.use(y, 1, 4, S, keep=[1])


def _recurrent(name: str, shrinks: str, directions: int, by_unit: bool, start: bool) -> None:
    def body(g: Net) -> list[str]:
        h = 8
        x = g("Mul", g.free(STEPS, 2, S, fixed=[0, 1]), g.scalar(0.1))
        vector = (directions, 4 * h) if by_unit else (directions,)
        scale = [g.const(0.02 * (1 + g.rng.random(vector)), name=n) for n in ("ws", "rs")]
        at = [g.const(np.zeros(vector), np.int8) for _ in range(2)]
        weights = [_bytes(g, directions, rows, 4 * h, name=n) for rows, n in ((S, "w"), (h, "r"))]
        bias = g.const(0.1 * g.rng.standard_normal((directions, 8 * h)), name="b")
        states = [g.const(0.5 * g.rng.standard_normal((directions, 2, h)), name=n) for n in ("h0", "c0")]
        first = states if start else ["", ""]
        given = [x, *weights, bias, "", *first, "", scale[0], at[0], scale[1], at[1]]
        turn = "bidirectional" if directions == 2 else "forward"
        made = g(MS + "DynamicQuantizeLSTM", *given, outputs=3, hidden_size=h, direction=turn)
        sizes = [(STEPS, directions, 2, h), (directions, 2, h), (directions, 2, h)]
        return [
            g.use(y, *size, name=n, keep=range(len(size) - 1))
            for y, size, n in zip(made, sizes, "zyv", strict=True)
        ]

    add(MS + "DynamicQuantizeLSTM", name, shrinks, body, exact=False)


_recurrent("one way", "a2 w:1 w:2 r:1 r:2 b:1 z3 y2 v2", 1, False, False)
_recurrent("both ways from a state", "a2 w:1 w:2 r:1 b:1 h0:2 c0:2 z3 y2 v2", 2, False, True)
_recurrent("scales by unit", "a2 w:1 w:2 r:1 b:1 ws:1 rs:1 z3 y2 v2", 1, True, True)
