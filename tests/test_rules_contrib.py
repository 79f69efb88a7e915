"""Operators that ONNX Runtime's optimisers write: what each was made of shrinks as before."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from casebook import Net
from certified import Shapes, assert_same_by_functions, certified
from graphs import reasons
from onnx import TensorProto, helper
from onnx_prune import Model, analyze

MS = "com.microsoft::"


def of(shapes: Shapes, names: str) -> list[tuple[int, ...]]:
    return [shapes[name] for name in names.split()]


# ---------------------------------------------------------------------- position by position


@pytest.mark.parametrize(
    ("op", "bias"),
    [("Gelu", False), ("QuickGelu", False), ("FastGelu", False), ("FastGelu", True), ("BiasGelu", True)],
)
def test_activations(op: str, bias: bool) -> None:
    g = Net()
    x = g("Mul", g.free(4, 4, 4), g.scalar(0.02))
    y = g(MS + op, x, *([g.weight(4, name="bias")] if bias else []))
    shapes = certified(g.build(g.use(y, 4, 4, 4)))
    assert {shapes[f"a{k}"] for k in range(3)} == {(3, 2)}
    assert not bias or shapes["bias"] == (2,)


def test_a_triangle_stays_and_its_batch_shrinks() -> None:
    g = Net()
    shapes = certified(g.build(g.use(g(MS + "Trilu", g.free(4, 4, 4)), 4, 4, 4)))
    assert of(shapes, "a0 a1 a2") == [(3, 2), (3, 4), (3, 4)]


@pytest.mark.parametrize("op", ["BiasAdd", "BiasSplitGelu"])
def test_kernels_for_certain_widths_pin_by_analysis_only(op: str) -> None:
    """ONNX Runtime has no kernel for this processor, and elsewhere for a few widths alone."""
    g = Net()
    x = g("MatMul", g.whole(1, 5, 6), g.weight(6, 8))
    more = [g("MatMul", g.whole(1, 5, 6), g.weight(6, 8))] if op == "BiasAdd" else []
    y = g(MS + op, x, g.weight(8), *more)
    model = g.build(g("MatMul", y, g.weight(8 if more else 4, 3)))
    assert not analyze(model).groups
    assert any("certain widths" in reason for reason in reasons(model))


def test_dropout_with_a_bias_and_a_residual_as_functions() -> None:
    """ONNX Runtime has no kernel for this processor."""
    g = Net()
    x, residual = g.free(4, 4), g.free(4, 4, name="b")
    y = g(MS + "BiasDropout", x, g.weight(4, name="bias"), residual)
    nodes = [helper.make_node("Add", ["x", "bias"], ["s"]), helper.make_node("Add", ["s", "r"], ["y"])]
    function = written_out("BiasDropout", ["x", "bias", "r"], ["y"], nodes)
    shapes = assert_same_by_functions(g.build(g.use(y, 4, 4)), [function])
    assert of(shapes, "a0 a1 b0 b1 bias") == [(3, 2)] * 4 + [(2,)]


def written_out(
    op: str,
    inputs: list[str],
    outputs: list[str],
    nodes: list[onnx.NodeProto],
    attributes: tuple[str, ...] = (),
) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_function("written.out", op, inputs, outputs, nodes, opsets, attributes)


# ---------------------------------------------------------------------- products and convolutions


@pytest.mark.parametrize("turns", list(product((0, 1), repeat=4)), ids=str)
def test_products_of_turned_operands(turns: tuple[int, int, int, int]) -> None:
    names = ("transA", "transB", "transBatchA", "transBatchB")
    g = Net()
    shape = (4, 4, 4, 4)
    attrs = dict(zip(names, turns, strict=True))
    y = g(MS + "FusedMatMul", g.free(*shape), g.free(*shape, name="b"), alpha=0.5, **attrs)
    shapes = certified(g.build(g.use(y, *shape)))
    assert {shapes[f"{name}{k}"] for name in "ab" for k in range(4)} == {(3, 2)}


@pytest.mark.parametrize("op", ["FusedMatMul", "TransposeMatMul"])
def test_products_of_matrices(op: str) -> None:
    g = Net()
    y = g(MS + op, g.free(8, 6), g.weight(4, 8, name="w"), transA=1, transB=1)
    shapes = certified(g.build(g.use(y, 6, 4)))
    assert of(shapes, "a0 a1 w z0 z1") == [(3, 4), (3, 3), (2, 4), (3, 2), (2, 2)]


def test_products_with_a_vector() -> None:
    g = Net()
    y = g(MS + "FusedMatMul", g.free(4, 4, 8), g.weight(8, name="w"), alpha=0.5)
    shapes = certified(g.build(g.use(y, 4, 4)))
    assert of(shapes, "a0 a1 a2 w") == [(3, 2), (3, 2), (3, 4), (4,)]


def test_general_products() -> None:
    g = Net()
    given = [g.free(8, 8), g.weight(8, 8, name="w"), g.weight(8, name="bias")]
    y = g(MS + "FusedGemm", *given, transA=1, transB=1, alpha=0.5, beta=2.0, activation="Relu")
    shapes = certified(g.build(g.use(y, 8, 8)))
    assert of(shapes, "a0 a1 w bias z0 z1") == [(3, 4), (3, 4), (4, 4), (4,), (4, 2), (4, 2)]


@pytest.mark.parametrize(("group", "inner"), [(1, 4), (2, 2), (8, 1)])
@pytest.mark.parametrize("added", [False, True])
def test_convolutions(group: int, inner: int, added: bool) -> None:
    g = Net()
    x = g.conv(g.whole(1, 3, 5, 5), 3, 8)
    given = [x, g.weight(8, 8 // group, 3, 3, name="w"), g.weight(8, name="bias")]
    if added:
        given.append(g("Conv", g.inputs[0].name, g.weight(8, 3, 1, 1, name="other")))
    y = g(MS + "FusedConv", *given, group=group, pads=[1] * 4, activation="Relu")
    shapes = certified(g.build(g.conv(y, 8, 2)))
    assert of(shapes, "w bias") == [(4, inner, 3, 3), (4,)]
    assert not added or shapes["other"] == (4, 3, 1, 1)


# ---------------------------------------------------------------------- normalisations


def skip(op: str, shape: tuple[int, ...] = (4, 4, 8), vectors: str = "pqr", both: bool = True) -> Model:
    """``vectors``: scale, shift and bias that are there; ``both``: the sum is an output as well."""
    g = Net()
    x, other = (g("Mul", g.free(*s, name=n), g.scalar(0.1)) for s, n in (((4, 4, 8), "a"), (shape, "b")))
    slots = "pqr" if op == "SkipLayerNormalization" else "pr"
    given = [x, other, *(g.weight(8, name=n) if n in vectors else "" for n in slots)]
    if not both:
        return g.build(g.use(g(MS + op, *given), 4, 4, 8))
    y, _, _, added = g(MS + op, *given, outputs=4)
    g.nodes[-1].output[1] = g.nodes[-1].output[2] = ""
    return g.build(g.use(y, 4, 4, 8), g.use(added, 4, 4, 8, name="y"))


@pytest.mark.parametrize("op", ["SkipLayerNormalization", "SkipSimplifiedLayerNormalization"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("vectors", ["p", "pq", "pr", "pqr"])
def test_sums_that_are_normalised(op: str, both: bool, vectors: str) -> None:
    if op == "SkipSimplifiedLayerNormalization":
        vectors = vectors.replace("q", "")
    shapes = certified(skip(op, vectors=vectors, both=both), kind="renormalising")
    assert of(shapes, "a0 a1 a2 b0 b1 b2") == [(3, 2), (3, 2), (3, 4)] * 2
    assert of(shapes, " ".join(vectors)) == [(4,)] * len(vectors)
    assert of(shapes, "z2 y2" if both else "z2") == [(4, 2)] * (1 + both)


@pytest.mark.parametrize("shape", [(4, 8), (1, 4, 8)])
def test_a_skip_by_broadcast(shape: tuple[int, ...]) -> None:
    shapes = certified(skip("SkipLayerNormalization", shape), kind="renormalising")
    assert of(shapes, "a0 a1 a2") == [(3, 2), (3, 2), (3, 4)]
    assert shapes[f"b{len(shape) - 1}"] == (3, 4)


def embedded(segments: bool = True, mask: bool = True, positions: bool = False, both: bool = True) -> Model:
    g = Net()
    g.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT32, [2, 5]))
    tables = [g.weight(rows, 8, name=name) for name, rows in (("words", 40), ("places", 9), ("kinds", 3))]
    kinds = g.const([[0, 0, 1, 1, 2]] * 2, np.int32)
    given = ["ids", kinds, *tables, g.weight(8, name="p"), g.weight(8, name="q")]
    given.append(g.const([[1, 1, 1, 1, 0]] * 2, np.int32) if mask else "")
    given.append(g.const([[4, 3, 2, 1, 0]] * 2, np.int32) if positions else "")
    if not segments:
        given[1] = given[4] = ""
    made = g(MS + "EmbedLayerNormalization", *given, outputs=3)
    outputs = [made[0], made[2]] if both else [made[0]]
    if not both:
        g.nodes[-1].output[2] = ""
    return g.build(*(g("MatMul", y, g.weight(8, 3, name=f"o{k}")) for k, y in enumerate(outputs)))


@pytest.mark.parametrize(
    "options",
    [{}, {"segments": False}, {"mask": False}, {"positions": True}, {"both": False}],
    ids=str,
)
def test_embeddings_that_are_normalised(options: dict[str, bool]) -> None:
    shapes = certified(embedded(**options), kind="renormalising")
    assert of(shapes, "words places p q o0") == [(40, 4), (9, 4), (4,), (4,), (4, 3)]
    assert options.get("segments", True) is False or shapes["kinds"] == (3, 4)


def test_quantised_embeddings_that_are_normalised() -> None:
    g = Net()
    g.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT32, [2, 5]))
    shape = {"words": (40, 8), "places": (9, 8), "kinds": (3, 8), "p": (8,), "q": (8,)}
    tables = [g.const(g.rng.integers(0, 255, s), np.uint8, name=name) for name, s in shape.items()]
    scales = [g.scalar(0.1 + 0.01 * k) for k in range(5)]
    zeros = [g.const(120 + k, np.uint8) for k in range(5)]
    given = ["ids", g.const([[0, 0, 1, 1, 2]] * 2, np.int32), *tables, "", *scales, *zeros]
    y, _ = g(MS + "QEmbedLayerNormalization", *given, outputs=2)
    shapes = certified(g.build(g("MatMul", y, g.weight(8, 3, name="o"))), kind="renormalising")
    assert of(shapes, "words places kinds p q o") == [(40, 4), (9, 4), (3, 4), (4,), (4,), (4, 3)]


def group_norm_written_out(op: str, last: bool) -> onnx.FunctionProto:
    """As the operator's documentation defines it."""
    n = helper.make_node
    inputs, outputs, nodes, x = ["x", "gamma", "beta"], ["y"], [], "x"
    if op == "SkipGroupNorm":
        inputs, outputs, x = [*inputs, "skip", "bias"], ["y", "sum"], "sum"
        nodes = [n("Add", ["x", "skip"], ["xs"]), n("Add", ["xs", "bias"], ["sum"])]
    groups = n("Constant", [], ["groups"])
    kind = onnx.AttributeProto.INT
    groups.attribute.append(onnx.AttributeProto(name="value_int", ref_attr_name="groups", type=kind))
    to_first = [0, 3, 1, 2] if last else [0, 1, 2, 3]
    nodes += [
        n("Transpose", [x], ["first"], perm=to_first),
        n("Shape", ["first"], ["shape"]),
        n("Constant", [], ["zero"], value_ints=[0]),
        n("Constant", [], ["rest"], value_ints=[-1]),
        n("Constant", [], ["small"], value_float=1e-5),
        groups,
        n("Unsqueeze", ["groups", "zero"], ["count"]),
        n("Concat", ["zero", "count", "rest"], ["target"], axis=0),
        n("Reshape", ["first", "target"], ["blocks"]),
        n("ReduceMean", ["blocks"], ["mean"], axes=[2]),
        n("Sub", ["blocks", "mean"], ["centred"]),
        n("Mul", ["centred", "centred"], ["squares"]),
        n("ReduceMean", ["squares"], ["variance"], axes=[2]),
        n("Add", ["variance", "small"], ["positive"]),
        n("Sqrt", ["positive"], ["deviation"]),
        n("Div", ["centred", "deviation"], ["normal"]),
        n("Reshape", ["normal", "shape"], ["image"]),
        n("Transpose", ["image"], ["channels_last"], perm=[0, 2, 3, 1]),
        n("Mul", ["channels_last", "gamma"], ["scaled"]),
        n("Add", ["scaled", "beta"], ["shifted"]),
        n("Transpose", ["shifted"], ["y"], perm=[0, 1, 2, 3] if last else [0, 3, 1, 2]),
    ]
    return written_out(op, inputs, outputs, nodes, ("groups", "activation", "channels_last"))


@pytest.mark.parametrize(("op", "last"), [("GroupNorm", False), ("GroupNorm", True), ("SkipGroupNorm", True)])
def test_groups_of_channels_as_functions(op: str, last: bool) -> None:
    """ONNX Runtime has no kernel for this processor."""
    g = Net()
    image = g.whole(1, 3, 4, 4)

    def laid_out(name: str) -> str:
        h = g("Conv", image, g.weight(12, 3, 1, 1, name=name))
        return str(g("Transpose", h, perm=[0, 2, 3, 1])) if last else str(h)

    given = [laid_out("w"), g.weight(12, name="gamma"), g.weight(12, name="beta")]
    if op == "SkipGroupNorm":
        given += [laid_out("skip"), g.weight(12, name="bias")]
    attrs: dict[str, Any] = {"groups": 3, "activation": 0, "channels_last": int(last)}
    made = g(MS + op, *given, outputs=2 if op == "SkipGroupNorm" else 1, **attrs)
    outputs = made if op == "SkipGroupNorm" else [made]
    if not last:
        outputs = [g("Transpose", y, perm=[0, 2, 3, 1]) for y in outputs]
    model = g.build(*(g("MatMul", y, g.weight(12, 2, name=f"o{k}")) for k, y in enumerate(outputs)))
    shapes = assert_same_by_functions(model, [group_norm_written_out(op, last)])
    assert of(shapes, "w gamma beta o0") == [(6, 3, 1, 1), (6,), (6,), (6, 2)]
    assert op == "GroupNorm" or of(shapes, "skip bias o1") == [(6, 3, 1, 1), (6,), (6, 2)]
