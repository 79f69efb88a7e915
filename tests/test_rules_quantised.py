"""Quantised operators: scales and zero points follow the axis they belong to."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from casebook import Net
from certified import Shapes, certified
from graphs import pruned, reasons
from onnx import numpy_helper
from onnx_prune import Model, analyze
from onnx_prune.analysis.axes import find

MS = "com.microsoft::"


def of(shapes: Shapes, names: str) -> list[tuple[int, ...]]:
    return [shapes[name] for name in names.split()]


def point(g: Net, scale: float = 0.5, zero: int = 128) -> list[str]:
    """A scale and a zero point for all."""
    return [g.scalar(scale), g.const(zero, np.uint8)]


def bytes_of(g: Net, *shape: int, name: str = "w", dtype: Any = np.int8) -> str:
    low = 0 if np.dtype(dtype) == np.uint8 else -6
    return g.const(g.rng.integers(low, 7, shape), dtype, name=name)


def scales(g: Net, *shape: int, name: str = "scale") -> str:
    return g.const(2.0 ** g.rng.integers(-3, 1, shape), name=name)


def zeros(g: Net, *shape: int, name: str = "zero", dtype: Any = np.int8) -> str:
    return g.const(g.rng.integers(0, 4, shape), dtype, name=name)


def quantised(g: Net, x: str, scale: float = 0.5, zero: int = 128) -> str:
    return str(g("QuantizeLinear", x, *point(g, scale, zero)))


def real(g: Net, x: str, scale: float = 0.5, zero: int = 128) -> str:
    return str(g("DequantizeLinear", x, *point(g, scale, zero)))


# ---------------------------------------------------------------------- to and from integers


def weight_of_a_product(axis: int, block: int = 0, dtype: Any = np.int8, rows: int = 8) -> Model:
    """A dequantised weight of ``rows`` by 8; scales by axis, or by blocks along it."""
    g = Net(opset=21)
    x = g("MatMul", g.whole(4, 6), g.weight(6, rows, name="a"))
    shape = [rows, 8]
    shape[axis] = -(-shape[axis] // (block or 1))
    if not block:
        shape = [shape[axis]]
    attrs = {"axis": axis} | ({"block_size": block} if block else {})
    given = [bytes_of(g, rows, 8, dtype=dtype), scales(g, *shape), zeros(g, *shape, dtype=dtype)]
    y = g("MatMul", x, g("DequantizeLinear", *given, **attrs))
    return g.build(g("MatMul", y, g.weight(8, 3, name="z")))


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_scales_by_channel_go_with_their_channel(axis: int) -> None:
    model = weight_of_a_product(axis)
    assert of(certified(model), "a w scale zero z") == [(6, 4), (4, 4), (4,), (4,), (4, 3)]


def test_the_scales_that_stay_are_those_of_the_channels_that_stay() -> None:
    model = weight_of_a_product(0)
    smaller, chosen, _ = pruned(model)
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.proto.graph.initializer} for m in (model, smaller)
    )
    (kept,) = (entry.keep for entry in chosen.entries if entry.group.startswith("a:"))
    assert (after["scale"] == before["scale"][list(kept)]).all()
    assert (after["zero"] == before["zero"][list(kept)]).all()


@pytest.mark.parametrize(("axis", "kept"), [(0, (2, 4)), (1, (4, 2))])
@pytest.mark.parametrize("dtype", [np.int8, ml_dtypes.int4])
def test_blocks_that_share_a_scale_go_whole(axis: int, kept: tuple[int, int], dtype: Any) -> None:
    shapes = certified(weight_of_a_product(axis, block=2, dtype=dtype))
    assert of(shapes, "a w scale zero z") == [(6, 4), (4, 4), kept, kept, (4, 3)]


def test_one_block_stays_whole() -> None:
    assert of(certified(weight_of_a_product(0, block=8)), "w scale") == [(8, 4), (1, 4)]


def test_an_axis_whose_last_block_is_not_full_stays() -> None:
    model = weight_of_a_product(0, block=3)
    assert of(certified(model), "w scale") == [(8, 4), (3, 4)]
    assert any("a scale for each 3" in reason for reason in reasons(model))


@pytest.mark.parametrize("domain", ["", MS])
@pytest.mark.parametrize("axis", [None, 0, 1, 2, -1])
def test_activations_quantised_along_an_axis(domain: str, axis: int | None) -> None:
    g = Net(opset=17)
    if axis is None:
        given, attrs = point(g), {}
    else:
        given, attrs = [scales(g, 4), zeros(g, 4, dtype=np.uint8)], {"axis": axis}
    y = g(domain + "QuantizeLinear", g.free(4, 4, 4), *given, **attrs)
    y = g(domain + "DequantizeLinear", y, *given, **attrs)
    shapes = certified(g.build(g.use(y, 4, 4, 4)))
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}
    if axis is not None:
        assert of(shapes, "scale zero") == [(2,), (2,)]


def test_a_convolution_between_quantisations() -> None:
    """As quantisers write it: everything dequantised before, and quantised after."""
    g = Net()
    x = real(g, quantised(g, g.conv(g.whole(1, 3, 5, 5), 3, 8)))
    weight = g(
        "DequantizeLinear", bytes_of(g, 8, 8, 3, 3), scales(g, 8), g.const(np.zeros(8), np.int8), axis=0
    )
    integers = g.const(g.rng.integers(-50, 50, 8), np.int32, name="b")
    bias = g("DequantizeLinear", integers, scales(g, 8, name="by"), axis=0)
    y = real(g, quantised(g, g("Conv", x, weight, bias, pads=[1] * 4)))
    shapes = certified(g.build(g.conv(y, 8, 2)))
    assert of(shapes, "w scale b by") == [(4, 4, 3, 3), (4,), (4,), (4,)]


def test_a_range_found_at_run_time_is_that_of_what_is_kept() -> None:
    g = Net()
    y, scale, zero = g("DynamicQuantizeLinear", g.free(4, 4, 4), outputs=3)
    y = g("DequantizeLinear", y, scale, zero)
    shapes = certified(g.build(g.use(y, 4, 4, 4)), kind="renormalising")
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}


# ---------------------------------------------------------------------- products


def product(op: str, vector: tuple[int, ...]) -> Model:
    """A product of 4 by 8 and 8 by 8 integers; scales and zero points of the right operand in ``vector``."""
    g = Net(opset=21)
    x = quantised(g, g("Mul", g.free(1, 4, 8), g.scalar(0.5)))
    w, scale, zero = bytes_of(g, 8, 8), scales(g, *vector), zeros(g, *vector)
    if op == "MatMulInteger":
        y = g("Cast", g(op, x, w, point(g)[1], zero), to=1)
    elif op == "QLinearMatMul":
        y = real(g, g(op, x, *point(g), w, scale, zero, *point(g, 8.0)), 8.0)
    else:
        bias = g.weight(8, name="bias")
        y = g(MS + op, x, w, g.scalar(0.5), scale, point(g)[1], zero, bias)
    return g.build(g.use(y, 1, 4, 8))


@pytest.mark.parametrize(
    ("op", "vector", "kept"),
    [
        ("MatMulInteger", (8,), (4,)),
        ("MatMulInteger", (), ()),
        ("QLinearMatMul", (8,), (4,)),
        ("QLinearMatMul", (1, 8), (1, 4)),
        ("QLinearMatMul", (), ()),
        ("MatMulIntegerToFloat", (8,), (4,)),
        ("MatMulIntegerToFloat", (1,), (1,)),
    ],
)
def test_products_of_integers(op: str, vector: tuple[int, ...], kept: tuple[int, ...]) -> None:
    shapes = certified(product(op, vector))
    assert of(shapes, "a1 a2 w z1 z2") == [(3, 2), (3, 4), (4, 4), (2, 2), (4, 2)]
    assert shapes["zero"] == kept


def test_zero_points_by_row_by_analysis_only() -> None:
    """ONNX Runtime wants one for the left operand."""
    g = Net()
    x = quantised(g, g.free(4, 8))
    y = g("MatMulInteger", x, bytes_of(g, 8, 8), zeros(g, 4, dtype=np.uint8))
    analysis = analyze(g.build(g.use(g("Cast", y, to=1), 4, 8)))
    (zero,) = (axes for (_, i), axes in analysis.walk.uses.items() if i == 2 and len(axes) == 1)
    assert find(zero[0]) is find(analysis.walk.axes_of[x][0])


@pytest.mark.parametrize("transposed", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("to_float", [False, True])
def test_general_products_of_integers(transposed: tuple[int, int], to_float: bool) -> None:
    g = Net()
    bias = g.const(g.rng.integers(-50, 50, 8), np.int32, name="bias")
    zero = g.const(np.zeros(8), np.int8, name="zero")
    given = [quantised(g, g.free(8, 8)), *point(g), bytes_of(g, 8, 8), scales(g, 8), zero, bias]
    if not to_float:
        given += point(g, 8.0)
    y = g(MS + "QGemm", *given, transA=transposed[0], transB=transposed[1])
    shapes = certified(g.build(g.use(y if to_float else real(g, y, 8.0), 8, 8)))
    assert of(shapes, "a0 a1 w scale zero bias z0 z1") == [
        *[(3, 4)] * 2,
        (4, 4),
        *[(4,)] * 3,
        *[(4, 2)] * 2,
    ]


def test_a_product_quantised_at_run_time() -> None:
    g = Net()
    given = [g.free(1, 4, 8), bytes_of(g, 8, 8), scales(g, 8), zeros(g, 8), g.weight(8, name="bias")]
    y = g(MS + "DynamicQuantizeMatMul", *given)
    shapes = certified(g.build(g.use(y, 1, 4, 8)), kind="renormalising")
    assert of(shapes, "a1 a2 w scale zero bias") == [(3, 2), (3, 4), (4, 4), (4,), (4,), (4,)]


def few_bits(
    bits: int = 4, features: int = 64, flat: bool = False, zero: str = "", accuracy: int = 0
) -> Model:
    """Eight outputs of ``features`` in blocks of sixteen."""
    g = Net(opset=21)
    blocks = -(-features // 16)
    x = g("Mul", g.free(1, 4, features), g.scalar(0.125))
    packed = g.const(g.rng.integers(0, 256, (8, blocks, 2 * bits)), np.uint8, name="w")
    shape = (8 * blocks,) if flat else (8, blocks)
    given = [x, packed, scales(g, *shape), "", "", g.weight(8, name="bias")]
    if zero == "packed":
        held = -(-blocks * bits // 8)
        value = g.rng.integers(0, 256, (8 * held,) if flat else (8, held))
        given[3] = g.const(value, np.uint8, name="zero")
    elif zero == "float":
        given[3] = g.const(g.rng.integers(0, 9, shape), name="zero")
    attrs = {"N": 8, "K": features, "block_size": 16, "bits": bits, "accuracy_level": accuracy}
    return g.build(g.use(g(MS + "MatMulNBits", *given, **attrs), 1, 4, 8))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("accuracy", [0, 4])
def test_blocks_of_few_bits_go_whole(bits: int, accuracy: int) -> None:
    shapes = certified(few_bits(bits, accuracy=accuracy))
    assert of(shapes, "a2 w scale bias z2") == [(3, 32), (4, 2, 2 * bits), (4, 2), (4,), (4, 2)]


def test_scales_of_few_bits_in_a_row() -> None:
    assert certified(few_bits(flat=True))["scale"] == (8,)


def test_sizes_of_few_bits_are_written() -> None:
    smaller, _, _ = pruned(few_bits())
    (node,) = (n for n in smaller.proto.graph.node if n.op_type == "MatMulNBits")
    assert {a.name: a.i for a in node.attribute if a.name in "NK"} == {"N": 4, "K": 32}


@pytest.mark.parametrize(("zero", "kept"), [("float", (4, 2)), ("packed", (4, 2))])
def test_zero_points_of_few_bits(zero: str, kept: tuple[int, int]) -> None:
    """Packed ones hold two blocks in a byte, so that no block can go."""
    shapes = certified(few_bits(zero=zero))
    assert shapes["zero"] == kept
    assert shapes["scale"] == ((4, 4) if zero == "packed" else (4, 2))


def test_packed_zero_points_in_a_row() -> None:
    assert of(certified(few_bits(flat=True, zero="packed")), "zero scale") == [(8,), (16,)]


def test_features_that_do_not_fill_the_last_block_stay() -> None:
    model = few_bits(features=72)
    assert of(certified(model), "a2 w") == [(3, 72), (4, 5, 8)]
    assert any("not full" in reason for reason in reasons(model))


# ---------------------------------------------------------------------- convolutions


def convolution(
    op: str = "QLinearConv", group: int = 1, filters: int = 8, by_filter: bool = True, zero: int = 0
) -> Model:
    g = Net()
    x = quantised(g, g.conv(g.whole(1, 3, 5, 5), 3, 8))
    weight = bytes_of(g, filters, 8 // group, 3, 3)
    shape = (filters,) if by_filter else ()
    at = g.const(np.full(shape, zero), np.int8, name="zero")
    if op == "ConvInteger":
        y = g("Cast", g(op, x, weight, point(g)[1], at, group=group, pads=[1] * 4), to=1)
    else:
        bias = g.const(g.rng.integers(-50, 50, filters), np.int32, name="bias")
        given = [x, *point(g), weight, scales(g, *shape), at, *point(g, 4.0), bias]
        y = real(g, g(op, *given, group=group, pads=[1] * 4), 4.0)
    return g.build(g.conv(y, filters, 2))


@pytest.mark.parametrize(
    ("group", "filters", "kept"),
    [(1, 8, (4, 4, 3, 3)), (2, 8, (4, 2, 3, 3)), (8, 8, (4, 1, 3, 3)), (8, 16, (8, 1, 3, 3))],
    ids=["plain", "grouped", "depthwise", "multiplier"],
)
def test_convolutions_of_integers(group: int, filters: int, kept: tuple[int, ...]) -> None:
    shapes = certified(convolution(group=group, filters=filters))
    assert shapes["w"] == kept
    assert of(shapes, "scale zero bias") == [kept[:1]] * 3


def test_padding_and_removed_channels_have_the_value_of_the_zero_point() -> None:
    """Neither the weight's zero point nor the image's is zero, and windows reach over the edge."""
    assert certified(convolution(by_filter=False, zero=3))["w"] == (4, 4, 3, 3)


@pytest.mark.parametrize("group", [1, 2, 8])
def test_convolutions_to_integers(group: int) -> None:
    shapes = certified(convolution("ConvInteger", group, by_filter=False, zero=2))
    assert shapes["w"] == (4, 1 if group == 8 else 4 // group, 3, 3)


def test_channels_that_are_last_are_pinned() -> None:
    g = Net()
    x = quantised(g, g("Transpose", g.conv(g.whole(1, 3, 5, 5), 3, 8), perm=[0, 2, 3, 1]))
    zero = g.const(np.zeros(8), np.int8)
    given = [x, *point(g), bytes_of(g, 8, 8, 1, 1), scales(g, 8), zero, *point(g)]
    y = g("Transpose", real(g, g(MS + "QLinearConv", *given, channels_last=1)), perm=[0, 3, 1, 2])
    assert any("its channels are last" in reason for reason in reasons(g.build(y)))


# ---------------------------------------------------------------------- on quantised tensors


@pytest.mark.parametrize("op", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("shape", [(4, 4, 4), (4, 4), (4, 1), (1,)])
def test_pairs(op: str, shape: tuple[int, ...]) -> None:
    g = Net()
    a = quantised(g, g.free(4, 4, 4))
    b = quantised(g, g.free(*shape, name="b") if len(shape) > 1 else g.weight(1))
    y = g(MS + op, a, *point(g), b, *point(g), *point(g, 2.0))
    shapes = certified(g.build(g.use(real(g, y, 2.0), 4, 4, 4)))
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}
    assert all(shapes[f"b{k}"] == (3, 2) for k, size in enumerate(shape) if size > 1)


def test_choices() -> None:
    g = Net()
    a, b = (quantised(g, g.free(4, 4, name=name)) for name in "ab")
    where = g("Greater", g.free(4, 4, name="c"), g.scalar(0))
    y = g(MS + "QLinearWhere", where, a, *point(g), b, *point(g), *point(g, 2.0))
    shapes = certified(g.build(g.use(real(g, y, 2.0), 4, 4)))
    assert {shapes[f"{name}{k}"] for name in "abc" for k in range(2)} == {(3, 2)}


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenations(axis: int) -> None:
    g = Net()
    a, b = (quantised(g, g.free(4, 4, 4, name=name)) for name in "ab")
    y = g(MS + "QLinearConcat", *point(g, 2.0), a, *point(g), b, *point(g), axis=axis)
    sizes = [4, 4, 4]
    sizes[axis] = 8
    shapes = certified(g.build(g.use(real(g, y, 2.0), *sizes)))
    assert [shapes[f"z{k}"][0] for k in range(3)] == [size // 2 for size in sizes]


def pointwise(op: str, **attrs: Any) -> Model:
    g = Net()
    x = quantised(g, g("Mul", g.free(4, 4, 4), g.scalar(0.05)), 0.05)
    y = g(MS + op, x, *point(g, 0.05), *point(g, 0.01, 20), **attrs)
    return g.build(g.use(real(g, y, 0.01, 20), 4, 4, 4))


@pytest.mark.parametrize(
    ("op", "attrs"), [("QLinearSigmoid", {}), ("QLinearLeakyRelu", {"alpha": 0.25})], ids=["sigmoid", "leaky"]
)
def test_activations_by_table(op: str, attrs: dict[str, Any]) -> None:
    shapes = certified(pointwise(op, **attrs))
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}


@pytest.mark.parametrize("attrs", [{"opset": 13}, {"opset": 13, "axis": 1}, {"opset": 12, "axis": 1}])
def test_softmax_runs_over_what_is_kept(attrs: dict[str, int]) -> None:
    shapes = certified(pointwise("QLinearSoftmax", **attrs), kind="renormalising")
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}


@pytest.mark.parametrize(
    ("op", "last", "attrs"),
    [
        ("QLinearGlobalAveragePool", 0, {}),
        ("QLinearGlobalAveragePool", 1, {}),
        ("QLinearAveragePool", 0, {"kernel_shape": [3, 3], "pads": [1] * 4}),
    ],
)
def test_pools(op: str, last: int, attrs: dict[str, Any]) -> None:
    g = Net()
    shape, fixed = ((2, 4, 4, 6), (1, 2)) if last else ((2, 6, 4, 4), (2, 3))
    x = quantised(g, g.free(*shape, fixed=fixed))
    y = real(g, g(MS + op, x, *point(g), *point(g), channels_last=last, **attrs))
    keep = () if op == "QLinearGlobalAveragePool" else fixed
    sizes = [1 if k in fixed and not keep else size for k, size in enumerate(shape)]
    shapes = certified(g.build(g.use(y, *sizes, keep=keep)))
    assert shapes[f"a{3 if last else 1}"] == (3, 3)


def test_several_scales_where_one_is_wanted_pin() -> None:
    g = Net()
    a, b = (quantised(g, g.free(4, 4, name=name)) for name in "ab")
    y = g(MS + "QLinearAdd", a, scales(g, 4), zeros(g, 4, dtype=np.uint8), b, *point(g), *point(g))
    assert any("several scales" in reason for reason in reasons(g.build(g.use(real(g, y), 4, 4))))


# ---------------------------------------------------------------------- recurrent


def recurrent(directions: int = 1, zero: int = 0, dtype: Any = np.int8, **attrs: Any) -> Model:
    g = Net()
    x = g("Mul", g("MatMul", g.whole(5, 2, 3), g.weight(3, 8, name="a")), g.scalar(0.1))
    by_unit = (directions, 32) if directions == 1 else (directions,)
    scale = [g.const(0.02 + 0.02 * g.rng.random(by_unit), name=name) for name in ("ws", "rs")]
    at = [g.const(np.full(by_unit, zero), dtype) for _ in range(2)]
    bias = g.const(0.1 * g.rng.standard_normal((directions, 64)), name="b")
    weights = [bytes_of(g, directions, 8, 32, name=name, dtype=dtype) for name in "wr"]
    given = [x, *weights, bias, *[""] * 4, scale[0], at[0], scale[1], at[1]]
    turn = "bidirectional" if directions == 2 else "forward"
    y, last, _ = g(MS + "DynamicQuantizeLSTM", *given, outputs=3, hidden_size=8, direction=turn, **attrs)
    y = g("Reshape", g("Transpose", y, perm=[0, 2, 1, 3]), g.ints(0, 0, -1))
    return g.build(g("MatMul", y, g.weight(8 * directions, 3, name="o")), g("MatMul", last, g.weight(8, 2)))


@pytest.mark.parametrize("directions", [1, 2])
def test_a_state_quantised_at_run_time_loses_units(directions: int) -> None:
    shapes = certified(recurrent(directions), kind="renormalising")
    assert of(shapes, "a w r b o") == [
        (3, 4),
        (directions, 4, 16),
        (directions, 4, 16),
        (directions, 32),
        (4 * directions, 3),
    ]
    assert shapes["ws"] == ((1, 16) if directions == 1 else (2,))


@pytest.mark.parametrize(
    "options",
    [{"zero": 128, "dtype": np.uint8}, {"activations": ["Relu", "Tanh", "Tanh"]}],
    ids=["zero", "activations"],
)
def test_a_state_that_zero_weights_do_not_keep_at_zero_stays(options: dict[str, Any]) -> None:
    shapes = certified(recurrent(**options), kind="renormalising")
    assert of(shapes, "a w r") == [(3, 4), (1, 4, 32), (1, 8, 32)]
