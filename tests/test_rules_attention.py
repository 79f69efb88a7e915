"""Attention as one operator: heads and widths, grouped heads, caches, masks and rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from casebook import Net
from certified import Shapes, certified
from graphs import pruned, reasons
from onnx import TensorProto, helper
from onnx_prune import Model, analyze
from onnx_prune.analysis.selection import Selection

MS = "com.microsoft::"
FEATURES, STEPS = 6, 5


def small(g: Net, x: str) -> str:
    """Small enough for a softmax that does not saturate."""
    return str(g("Mul", x, g.scalar(0.02)))


def tokens(g: Net) -> str:
    return small(g, g.whole(2, STEPS, FEATURES))


def projections(g: Net, *sizes: int) -> list[str]:
    """The products of one tensor with weights "q", "k" and "v"."""
    x = tokens(g)
    return [
        str(g("MatMul", x, g.weight(FEATURES, size, name=name)))
        for name, size in zip("qkv", sizes, strict=True)
    ]


def projected(g: Net, y: str, size: int) -> Model:
    return g.build(g("MatMul", y, g.weight(size, 3, name="o")))


def of(shapes: Shapes, names: str) -> list[tuple[int, ...]]:
    return [shapes[name] for name in names.split()]


def attribute(model: Model, op: str, name: str) -> Any:
    (node,) = (n for n in model.proto.graph.node if n.op_type == op)
    (found,) = (a for a in node.attribute if a.name == name)
    return helper.get_attribute_value(found)


def attention(
    heads: int = 4,
    key_heads: int = 4,
    width: int = 4,
    value_width: int = 4,
    mask: tuple[int, ...] = (),
    opset: int = 23,
    **attrs: Any,
) -> Model:
    """Attention of the standard domain with heads inside the last axis."""
    g = Net(opset=opset)
    given = projections(g, heads * width, key_heads * width, key_heads * value_width)
    if mask:
        given.append(g.weight(*mask, name="mask"))
    y = g("Attention", *given, q_num_heads=heads, kv_num_heads=key_heads, **attrs)
    return projected(g, y, heads * value_width)


# ---------------------------------------------------------------------- the standard operator


def test_heads_and_widths_of_equal_sizes() -> None:
    assert of(certified(attention()), "q k v o") == [(6, 4), (6, 4), (6, 4), (4, 3)]


def test_widths_of_values_are_free_of_those_of_keys() -> None:
    assert of(certified(attention(value_width=6)), "q k v o") == [(6, 4), (6, 4), (6, 6), (6, 3)]


def test_counts_of_heads_are_written() -> None:
    smaller, _, _ = pruned(attention(heads=8, key_heads=4))
    assert attribute(smaller, "Attention", "q_num_heads") == 2
    assert attribute(smaller, "Attention", "kv_num_heads") == 2


def test_the_default_scale_stays_that_of_the_whole_width() -> None:
    smaller, _, _ = pruned(attention(width=16))
    assert attribute(smaller, "Attention", "scale") == 0.25


def test_a_scale_that_is_given_stays() -> None:
    model = attention(scale=0.75)
    certified(model)
    assert attribute(pruned(model)[0], "Attention", "scale") == 0.75


@pytest.mark.parametrize(("heads", "key_heads", "kept"), [(8, 4, (2, 2)), (8, 2, (2, 1)), (8, 1, (4, 1))])
def test_heads_of_keys_go_with_the_queries_they_serve(
    heads: int, key_heads: int, kept: tuple[int, int]
) -> None:
    shapes = certified(attention(heads, key_heads))
    assert of(shapes, "q k v") == [(6, 2 * kept[0]), (6, 2 * kept[1]), (6, 2 * kept[1])]


@pytest.mark.parametrize(
    ("mask", "kept"),
    [
        ((4, STEPS, STEPS), (2, STEPS, STEPS)),
        ((2, 1, STEPS, STEPS), (2, 1, STEPS, STEPS)),
        ((1, 4, STEPS, STEPS), (1, 2, STEPS, STEPS)),
    ],
)
def test_a_mask_for_each_head_goes_with_the_heads(mask: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert certified(attention(mask=mask))["mask"] == kept


def test_masks_of_grouped_heads() -> None:
    assert certified(attention(8, 4, mask=(8, STEPS, STEPS)))["mask"] == (2, STEPS, STEPS)


def by_head(causal: int = 0, outputs: int = 1) -> Model:
    """Every axis of queries, keys and values is free and of the same size."""
    g = Net(opset=23)
    shape = (4, 4, 4, 4)
    q, k, v = (g("Mul", g.free(*shape, name=name), g.scalar(0.0005)) for name in "qkv")
    made = g("Attention", q, k, v, is_causal=causal, outputs=outputs)
    if outputs == 1:
        return g.build(g.use(made, *shape))
    return g.build(*(g.use(y, *shape, name=name) for y, name in zip(made, "zyuw"[:outputs], strict=True)))


def test_every_axis_of_heads_that_stand_apart() -> None:
    """Batch, heads, steps and widths; the softmax runs over the steps of the keys that are kept."""
    shapes = certified(by_head(), kind="renormalising")
    assert {shapes[f"{name}{k}"] for name in "qkv" for k in range(4)} == {(3, 2)}
    assert {shapes[f"z{k}"] for k in range(4)} == {(2, 2)}


def test_caches_and_scores_as_outputs() -> None:
    shapes = certified(by_head(outputs=4), kind="renormalising")
    assert {shapes[f"{name}{k}"] for name in "zyu" for k in range(4)} == {(2, 2)}


def test_steps_of_a_causal_attention_stay() -> None:
    shapes = certified(by_head(causal=1))
    assert of(shapes, "q2 k2 v2 z2") == [(3, 4), (3, 4), (3, 4), (4, 2)]
    assert of(shapes, "q1 q3 v3 z1") == [(3, 2), (3, 2), (3, 2), (2, 2)]


def test_a_cache_that_is_an_input_keeps_heads_and_widths() -> None:
    g = Net(opset=23)
    q, k, v = projections(g, 32, 16, 16)
    past = [g.input(2, 4, 3, 4, name=name) for name in ("past_key", "past_value")]
    y, keys, values = g("Attention", q, k, v, "", *past, q_num_heads=8, kv_num_heads=4, outputs=3)
    model = g.build(g("MatMul", y, g.weight(32, 3, name="o")), keys, values)
    shapes = certified(model)  # every second query of a group goes
    assert of(shapes, "q k v o") == [(6, 16), (6, 16), (6, 16), (16, 3)]


def test_a_mask_shorter_than_the_keys_pins_steps_by_analysis_only() -> None:
    """ONNX Runtime wants a mask of full length."""
    told = [r for r in reasons(attention(mask=(STEPS, 3), opset=24)) if "steps" in r]
    assert told


# ---------------------------------------------------------------------- rotary embeddings


def rotation(
    op: str = "RotaryEmbedding",
    apart: bool = False,
    turned: int = 0,
    interleaved: int = 0,
    rows: bool = True,
    count: bool = True,
) -> Model:
    """Four heads of eight; ``rows``: tables are looked up by position, else given for each token."""
    g = Net(opset=17 if op.startswith(MS) else 23)
    x = g("MatMul", tokens(g), g.weight(FEATURES, 32, name="q"))
    if apart:
        x = g("Transpose", g("Reshape", x, g.ints(2, STEPS, 4, 8)), perm=[0, 2, 1, 3])
    half = (turned or 8) // 2
    tables = [g.weight(*((7, half) if rows else (2, STEPS, half)), name=name) for name in ("cos", "sin")]
    at = g.const([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]], np.int64)
    attrs = {"interleaved": interleaved} | ({"num_heads": 4} if count else {})
    if turned:
        attrs["rotary_embedding_dim"] = turned
    if op.startswith(MS):
        x = g(op, x, at, *tables, **attrs)
    else:
        x = g(op, x, *tables, *([at] if rows else []), **attrs)
    if apart:
        x = g("Reshape", g("Transpose", x, perm=[0, 2, 1, 3]), g.ints(2, STEPS, 32))
    return projected(g, x, 32)


@pytest.mark.parametrize("op", ["RotaryEmbedding", MS + "RotaryEmbedding"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations_lose_widths_in_pairs(op: str, apart: bool, interleaved: int) -> None:
    shapes = certified(rotation(op, apart, interleaved=interleaved))
    assert of(shapes, "q cos sin o") == [(6, 8), (7, 2), (7, 2), (8, 3)]


@pytest.mark.parametrize("op", ["RotaryEmbedding", MS + "RotaryEmbedding"])
@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotations_of_a_part_of_the_width(op: str, interleaved: int) -> None:
    model = rotation(op, turned=4, interleaved=interleaved)
    assert of(certified(model), "q cos sin o") == [(6, 8), (7, 1), (7, 1), (8, 3)]
    assert attribute(pruned(model)[0], "RotaryEmbedding", "rotary_embedding_dim") == 2


def test_angles_for_each_token() -> None:
    assert of(certified(rotation(rows=False)), "q cos") == [(6, 8), (2, STEPS, 2)]


def test_heads_are_counted_by_the_tables_where_no_attribute_does() -> None:
    assert of(certified(rotation(MS + "RotaryEmbedding", count=False)), "q cos") == [(6, 8), (7, 2)]


# ---------------------------------------------------------------------- fused by ONNX Runtime


def multi_head(
    value_width: int = 4,
    bias: bool = False,
    extra: dict[int, Any] | None = None,
    apart: bool = False,
    outputs: int = 1,
    **attrs: Any,
) -> Model:
    """MultiHeadAttention of four heads; ``extra``: weights or numbers of further inputs, by place."""
    g = Net()
    q, k, v = projections(g, 16, 16, 4 * value_width)
    if apart:
        k, v = (g("Transpose", g("Reshape", x, g.ints(2, STEPS, 4, -1)), perm=[0, 2, 1, 3]) for x in (k, v))
    inputs = [q, k, v, *[""] * 3]
    if bias:
        inputs[3] = g.weight(32 + 4 * value_width, name="bias")
    for place, value in (extra or {}).items():
        is_shape = isinstance(value, tuple)
        inputs[place] = g.weight(*value, name="extra") if is_shape else g.const(value, np.int32)
    made = g(MS + "MultiHeadAttention", *inputs, num_heads=4, outputs=outputs, **attrs)
    y = made if outputs == 1 else made[0]
    rest = [] if outputs == 1 else [g("ReduceSum", x, keepdims=0) for x in made[1:]]
    return g.build(g("MatMul", y, g.weight(4 * value_width, 3, name="o")), *rest)


def test_multi_head_attention_with_its_biases() -> None:
    shapes = certified(multi_head(bias=True))
    assert of(shapes, "q k v bias o") == [(6, 4), (6, 4), (6, 4), (12,), (4, 3)]


def test_multi_head_attention_with_wider_values() -> None:
    shapes = certified(multi_head(value_width=6, bias=True))
    assert of(shapes, "q v bias o") == [(6, 4), (6, 6), (14,), (6, 3)]


def test_scores_with_a_bias_for_each_head() -> None:
    assert certified(multi_head(extra={5: (1, 4, STEPS, STEPS)}))["extra"] == (1, 2, STEPS, STEPS)


@pytest.mark.parametrize("padding", [[3, 4], [[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]])
def test_padding_of_keys_is_left_alone(padding: Any) -> None:
    assert certified(multi_head(extra={4: padding}))["q"] == (6, 4)


@pytest.mark.parametrize("attrs", [{"unidirectional": 1}, {"scale": 0.7}, {"scale": 0.0}])
def test_multi_head_attention_with_attributes(attrs: dict[str, Any]) -> None:
    assert certified(multi_head(**attrs))["q"] == (6, 4)


def test_keys_with_heads_apart() -> None:
    assert of(certified(multi_head(apart=True)), "q k v") == [(6, 4), (6, 4), (6, 4)]


def test_keys_and_values_as_outputs() -> None:
    assert certified(multi_head(outputs=3), kind="renormalising")["q"] == (6, 4)


def test_packed_queries_keys_and_values_are_pinned_by_analysis_only() -> None:
    """ONNX Runtime has no kernel for them on this processor."""
    g = Net()
    x = g("Reshape", g("MatMul", tokens(g), g.weight(FEATURES, 48, name="w")), g.ints(2, STEPS, 4, 3, 4))
    model = projected(g, g(MS + "MultiHeadAttention", x, num_heads=4), 16)
    assert any("in one tensor" in reason for reason in reasons(model))


def packed(
    value_width: int = 4,
    extra: dict[int, Any] | None = None,
    outputs: int = 1,
    **attrs: Any,
) -> Model:
    """Attention whose weight projects eight features to four heads."""
    g = Net()
    columns = 32 + 4 * value_width
    x = g("MatMul", tokens(g), g.weight(FEATURES, 8, name="in"))
    inputs = [x, g.weight(8, columns, name="w"), g.weight(columns, name="bias"), *[""] * 3]
    for place, value in (extra or {}).items():
        is_shape = isinstance(value, tuple)
        inputs[place] = g.weight(*value, name="extra") if is_shape else g.const(value, np.int32)
    if value_width != 4:
        attrs["qkv_hidden_sizes"] = [16, 16, 4 * value_width]
    made = g(MS + "Attention", *inputs, num_heads=4, outputs=outputs, **attrs)
    y = made if outputs == 1 else made[0]
    rest = [] if outputs == 1 else [g("ReduceSum", made[1], keepdims=0)]
    return g.build(g("MatMul", y, g.weight(4 * value_width, 3, name="o")), *rest)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (packed(), [(6, 4), (4, 12), (12,), (4, 3)]),
        (packed(value_width=6), [(6, 4), (4, 14), (14,), (6, 3)]),
        (packed(unidirectional=1), [(6, 4), (4, 12), (12,), (4, 3)]),
        (packed(scale=0.3), [(6, 4), (4, 12), (12,), (4, 3)]),
        (packed(extra={3: [3, 4]}), [(6, 4), (4, 12), (12,), (4, 3)]),
        (packed(extra={5: (2, 4, STEPS, STEPS)}), [(6, 4), (4, 12), (12,), (4, 3)]),
    ],
    ids=["plain", "wider values", "causal", "scale", "lengths", "bias by head"],
)
def test_attention_with_one_weight_for_three(model: Model, kept: list[tuple[int, ...]]) -> None:
    assert of(certified(model), "in w bias o") == kept


def test_the_parts_of_one_weight_for_three_are_written() -> None:
    smaller, _, _ = pruned(packed(value_width=6))
    assert attribute(smaller, "Attention", "qkv_hidden_sizes") == [4, 4, 6]
    assert attribute(smaller, "Attention", "num_heads") == 2
    assert attribute(smaller, "Attention", "scale") == 0.5


def test_a_cache_in_one_tensor_ties_keys_and_values() -> None:
    shapes = certified(packed(outputs=2), kind="renormalising")
    assert of(shapes, "w bias") == [(4, 12), (12,)]


def test_steps_of_one_weight_for_three() -> None:
    """Tokens that are free can go: the softmax runs over the kept ones."""
    g = Net()
    x = g("Mul", g.free(1, 6, 8), g.scalar(0.002))
    weight, bias, added = g.weight(8, 48, name="w"), g.weight(48), g.weight(1, 4, 6, 6, name="by")
    inputs = [x, weight, bias, "", "", added]
    y = g(MS + "Attention", *inputs, num_heads=4)
    shapes = certified(g.build(g.use(y, 1, 6, 16)), kind="renormalising")
    assert of(shapes, "a1 a2 by z1 z2") == [(3, 3), (3, 4), (1, 2, 3, 3), (3, 2), (4, 2)]


def quantised(zero: int | None, by_column: bool = False, dtype: Any = np.int8) -> Model:
    g = Net()
    x = g("MatMul", tokens(g), g.weight(FEATURES, 8, name="in"))
    x = g("QuantizeLinear", x, g.scalar(0.01), g.const(128, np.uint8))
    weight = g.const(g.rng.integers(0, 9, (8, 48)), dtype, name="w")
    bias = g.const(g.rng.standard_normal(48) * 0.1, name="bias")
    scale = g.const(g.rng.random(48) * 0.1, name="scale") if by_column else g.scalar(0.05)
    zeros = [] if zero is None else [g.const(np.full(48, zero) if by_column else zero, dtype, name="zero")]
    inputs = [x, weight, bias, g.scalar(0.01), scale, "", g.const(128, np.uint8), *zeros]
    return projected(g, g(MS + "QAttention", *inputs, num_heads=4), 16)


def test_quantised_attention() -> None:
    assert of(certified(quantised(None)), "in w bias o") == [(6, 4), (4, 12), (12,), (4, 3)]


def test_quantised_attention_with_scales_by_column() -> None:
    shapes = certified(quantised(0, by_column=True))
    assert of(shapes, "w scale zero") == [(4, 12), (12,), (12,)]


@pytest.mark.parametrize("by_column", [False, True])
def test_quantised_attention_with_another_zero_loses_heads_alone(by_column: bool) -> None:
    """No width could be masked by writing a zero."""
    shapes = certified(quantised(3, by_column, np.uint8))
    assert of(shapes, "in w bias o") == [(6, 4), (4, 24), (24,), (8, 3)]


def grouped(
    key_heads: int = 2,
    one_tensor: bool = False,
    past: int = 0,
    turned: bool = False,
    extra: dict[int, tuple[int, ...]] | None = None,
    **attrs: Any,
) -> Model:
    """GroupQueryAttention of eight heads of sixteen."""
    g = Net()
    x = small(g, g.whole(1, STEPS, FEATURES))
    if one_tensor:
        given = [g("MatMul", x, g.weight(FEATURES, 16 * (8 + 2 * key_heads), name="q")), "", ""]
    else:
        sizes = zip("qkv", (8, key_heads, key_heads), strict=True)
        given = [g("MatMul", x, g.weight(FEATURES, 16 * n, name=name)) for name, n in sizes]
    caches = [g.input(1, key_heads, past, 16, name=name) for name in ("pk", "pv")] if past else ["", ""]
    lengths = [g.const([STEPS + past - 1], np.int32), g.const([STEPS + past], np.int32)]
    tables = [g.weight(16, 8, name=name) for name in ("cos", "sin")] if turned else ["", ""]
    inputs = [*given, *caches, *lengths, *tables, "", "", ""]
    for place, shape in (extra or {}).items():
        inputs[place] = g.weight(*shape, name="extra")
    op = MS + "GroupQueryAttention"
    counts = {"num_heads": 8, "kv_num_heads": key_heads}
    y, keys, values = g(op, *inputs, outputs=3, do_rotary=int(turned), **counts, **attrs)
    z = g("MatMul", y, g.weight(128, 3, name="o"))
    if past:
        return g.build(z, keys, values)
    return g.build(z)


@pytest.mark.parametrize("turned", [False, True])
def test_grouped_heads_go_whole(turned: bool) -> None:
    shapes = certified(grouped(turned=turned))
    assert of(shapes, "q k v o") == [(6, 32), (6, 16), (6, 16), (32, 3)]


def test_grouped_heads_in_one_tensor() -> None:
    assert of(certified(grouped(one_tensor=True, turned=True)), "q o") == [(6, 64), (32, 3)]


def test_grouped_heads_with_a_cache_that_is_an_input() -> None:
    shapes = certified(grouped(past=3))
    assert of(shapes, "q k v o") == [(6, 64), (6, 32), (6, 32), (64, 3)]


@pytest.mark.parametrize(
    ("extra", "kept"),
    [({10: (1, 8, STEPS, STEPS)}, (1, 2, STEPS, STEPS)), ({11: (8,)}, (2,))],
    ids=["bias", "sink"],
)
def test_what_grouped_heads_have_each(extra: dict[int, tuple[int, ...]], kept: tuple[int, ...]) -> None:
    assert certified(grouped(extra=extra))["extra"] == kept


def test_one_head_of_keys_for_all() -> None:
    shapes = certified(grouped(key_heads=1))
    assert of(shapes, "q k v o") == [(6, 64), (6, 16), (6, 16), (64, 3)]


def test_the_work_of_an_attention_is_counted() -> None:
    scores = 2 * 4 * STEPS * STEPS * (4 + 6)
    projections = 2 * STEPS * (6 * 16 + 6 * 16 + 6 * 24 + 24 * 3)
    assert analyze(attention(value_width=6)).macs(Selection({})) == scores + projections


def test_an_attention_with_dynamic_steps() -> None:
    g = Net(opset=23)
    x = g("Mul", g.input("N", "T", FEATURES, name="x"), g.scalar(0.1))
    q, k, v = (g("MatMul", x, g.weight(FEATURES, 16, name=name)) for name in "qkv")
    y = g("Attention", q, k, v, q_num_heads=4, kv_num_heads=4, is_causal=1)
    y = g("MatMul", y, g.weight(16, 3, name="o"))
    model = g.build(y)
    assert model.proto.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert of(certified(model), "q k v o") == [(6, 4), (6, 4), (6, 4), (4, 3)]
