"""Cases of convolutions, pooling, resampling and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
from casebook import SIZE, Net, add, case

S = SIZE
IMAGE = (1, S, S, S)
C = 8  # channels that divide into groups


def _image(g: Net, channels: int = S, side: int = S, batch: int = 1) -> str:
    """Free channels, and spatial axes that would be free if nothing pinned them."""
    return g.free(batch, channels, side, side)


def _conv(name: str, shrinks: str, c: int, w: tuple[int, ...], out: tuple[int, ...], **attrs: Any) -> None:
    def body(g: Net) -> str:
        y = g("Conv", _image(g, c), g.weight(*w, name="w"), g.weight(w[0], name="bias"), **attrs)
        return g.use(y, *out)

    add("Conv", name, shrinks, body)


SAME = {"pads": [1, 1, 1, 1]}
_conv("plain", "a1 w:0 w:1 bias:0 z1", S, (S, S, 3, 3), IMAGE, **SAME)
_conv("square kernel of as many taps as channels", "a1 w:0 w:1 bias:0 z1", S, (S, S, S, S), (1, S, 1, 1))
_conv("strided", "a1 w:0 w:1 bias:0 z1", S, (C, S, 3, 3), (1, C, 2, 2), strides=[2, 2])
_conv("dilated", "a1 w:0 w:1 bias:0 z1", S, (C, S, 3, 3), (1, C, 2, 2), dilations=[2, 2])
_conv(
    "padded by name",
    "a1 w:0 w:1 bias:0 z1",
    S,
    (C, S, 3, 3),
    (1, C, 3, 3),
    auto_pad="SAME_UPPER",
    strides=[2, 2],
)
_conv("depthwise", "a1 w:0 bias:0 z1", C, (C, 1, 3, 3), (1, C, S, S), group=C, **SAME)
_conv("depthwise with a multiplier", "a1 w:0 bias:0 z1", C, (3 * C, 1, 1, 1), (1, 3 * C, S, S), group=C)
_conv("two groups", "a1 w:0 w:1 bias:0 z1", C, (C, 4, 3, 3), (1, C, S, S), group=2, **SAME)
_conv("four groups, wider", "a1 w:0 w:1 bias:0 z1", 16, (24, 4, 1, 1), (1, 24, S, S), group=4)
_conv("groups of one filter", "a1 w:1", C, (2, 4, 1, 1), (1, 2, S, S), group=2)


@case("Conv", "a0 a1 w:0 w:1 z0 z1")
def a_free_batch(g: Net) -> str:
    return g.use(g("Conv", _image(g, batch=S), g.weight(S, S, 1, 1, name="w")), S, S, S, S)


@case("Conv", "a1 w:0 w:1 z1")
def one_dimension(g: Net) -> str:
    return g.use(g("Conv", g.free(1, S, S), g.weight(S, S, 3, name="w")), 1, S, 4)


@case("Conv", "a1 b01 z1")
def a_computed_weight(g: Net) -> str:
    return g.use(g("Conv", _image(g), g.free(S, S, 1, 1, name="b")), *IMAGE)


@case("Conv", "a1 b01 z1")
def a_computed_weight_in_groups(g: Net) -> str:
    return g.use(g("Conv", _image(g, C), g.free(C, 4, 1, 1, name="b"), group=2), 1, C, S, S)


@case("Conv", "a1 w:0 w:1 z1")
def two_in_a_row_by_one_weight(g: Net) -> str:
    w = g.weight(S, S, 1, 1, name="w")
    h = g("Clip", g("Conv", _image(g), w), g.scalar(-9), g.scalar(9))
    return g.use(g("Conv", h, w), *IMAGE)


def _transposed(name: str, shrinks: str, c: int, w: tuple[int, ...], out: tuple[int, ...], **a: Any) -> None:
    def body(g: Net) -> str:
        bias = g.weight(w[1] * a.get("group", 1), name="bias")
        return g.use(g("ConvTranspose", _image(g, c), g.weight(*w, name="w"), bias, **a), *out)

    add("ConvTranspose", name, shrinks, body)


_transposed("plain", "a1 w:0 w:1 bias:0 z1", S, (S, S, 3, 3), IMAGE, **SAME)
_transposed("strided", "a1 w:0 w:1 bias:0 z1", S, (S, C, 2, 2), (1, C, 12, 12), strides=[2, 2])
_transposed("depthwise", "a1 w:0 bias:0 z1", C, (C, 1, 3, 3), (1, C, S, S), group=C, **SAME)
_transposed("depthwise with a multiplier", "a1 w:0 bias:0 z1", 4, (4, 4, 1, 1), (1, 16, S, S), group=4)


_transposed("four groups of two", "", C, (C, 2, 1, 1), (1, C, S, S), group=4)


@case("ConvTranspose", "v:0 z1")
def two_groups(g: Net) -> str:
    """Their channels stay; what reads them goes on as usual."""
    h = g("ConvTranspose", _image(g, C), g.weight(C, C, 1, 1, name="w"), group=2)
    return g.use(g("Conv", h, g.weight(S, 16, 1, 1, name="v")), *IMAGE)


@case("ConvTranspose", "a0 a1 w:0 w:1 z0 z1")
def a_free_batch_(g: Net) -> str:
    return g.use(g("ConvTranspose", _image(g, batch=S), g.weight(S, S, 1, 1, name="w")), S, S, S, S)


def _pool(op: str, side: int, name: str = "every axis free", opset: int = 17, **attrs: Any) -> None:
    def body(g: Net) -> str:
        y = g("Round", g(op, _image(g, batch=S), **attrs))
        return g.use(y, S, S, side, side)

    add(op, name, "a01 z01", body, opset=opset)


for _op in "MaxPool AveragePool LpPool".split():
    _pool(_op, S, kernel_shape=[3, 3], **SAME)
    _pool(_op, 3, "strided", kernel_shape=[2, 2], strides=[2, 2])
_pool("MaxPool", 3, "rounded up", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
_pool("AveragePool", 3, "padded by name", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_LOWER")
_pool("GlobalAveragePool", 1)
_pool("GlobalMaxPool", 1)
_pool("GlobalMaxPool", 1, "again, by other numbers")


@case("MaxPool", "a1 v:1")
def with_indices(g: Net) -> list[str]:
    """The flat indices count through the channels, so these stay."""
    h = g("Conv", _image(g), g.weight(S, S, 1, 1, name="v"))
    y, index = g("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2], outputs=2)
    rest = g("Mod", g("Cast", index, to=1), g.scalar(7), fmod=1)
    return [g.use(y, 1, S, 3, 3), g.use(rest, 1, S, 3, 3, name="y")]


@case("Resize", "a01 z01")
def by_scales(g: Net) -> str:
    y = g("Resize", _image(g, batch=S), "", g.const([1, 1, 2, 2]), mode="nearest")
    return g.use(y, S, S, 12, 12)


@case("Resize", "a01 z01")
def to_sizes(g: Net) -> str:
    y = g("Resize", _image(g, batch=S), "", "", g.ints(S, S, 9, 4), mode="nearest")
    return g.use(y, S, S, 9, 4)


@case("Resize", "a01 z01", opset=18)
def some_axes_to_sizes(g: Net) -> str:
    y = g("Resize", _image(g, batch=S), "", "", g.ints(9, 4), mode="nearest", axes=[2, 3])
    return g.use(y, S, S, 9, 4)


@case("Upsample", "a01 z01", opset=9)
def by_scales_(g: Net) -> str:
    return g.use(g("Upsample", _image(g, batch=S), g.const([1, 1, 2, 2]), mode="nearest"), S, S, 12, 12)


@case("DepthToSpace", "a01 z01")
def depth_first(g: Net) -> str:
    return g.use(g("DepthToSpace", _image(g, 24, S, S), blocksize=2), S, S, 12, 12)


@case("DepthToSpace", "a01 z01")
def columns_first(g: Net) -> str:
    return g.use(g("DepthToSpace", _image(g, 24, S, S), blocksize=2, mode="CRD"), S, S, 12, 12)


@case("DepthToSpace", "a01 z01")
def as_many_channels_as_positions(g: Net) -> str:
    return g.use(g("DepthToSpace", _image(g, 16, 4, S), blocksize=2, mode="CRD"), S, 4, 8, 8)


@case("SpaceToDepth", "a01 z01")
def every_axis_free(g: Net) -> str:
    return g.use(g("SpaceToDepth", _image(g, S, S, S), blocksize=2), S, 24, 3, 3)


@case("SpaceToDepth", "a01 z01")
def as_many_channels_as_positions_(g: Net) -> str:
    return g.use(g("SpaceToDepth", _image(g, 4, 4, S), blocksize=2), S, 16, 2, 2)


def _of_heads(op: str, *inputs: tuple[int, ...], shape: tuple[int, ...] = (1, 4, 4), **attrs: Any) -> None:
    """Both factors of an axis are axes of the product, so both shrink."""

    def body(g: Net) -> str:
        weights = [g.weight(*sizes, name=f"w{i}") for i, sizes in enumerate(inputs)]
        return g.joined(g(op, g.heads(shape), *weights, **attrs))

    add(op, "of heads", "a:1/4 z:0/4", body)


_of_heads("Conv", (4, 4, 1))
_of_heads("ConvTranspose", (4, 4, 1), shape=(4, 4, 1))
_of_heads("MatMul", (4, 4))
_of_heads("Gemm", (4, 4), shape=(4, 4))
_of_heads("Einsum", (4, 4), equation="bij,ki->bkj")


# ------------------------------------------------------------------ products


def _product(name: str, shrinks: str, x: tuple[int, ...], y: tuple[int, ...]) -> None:
    def body(g: Net) -> str:
        out = np.matmul(np.zeros(x), np.zeros(y)).shape
        left = g("Clip", g.free(*x), g.scalar(-50), g.scalar(50))
        return g.use(g("MatMul", left, g.free(*y, name="b")), *out)

    add("MatMul", name, shrinks, body)


_product("square", "a01 b01 z01", (S, S), (S, S))
_product("batches", "a0123 b0123 z0123", (S, S, S, S), (S, S, S, S))
_product("fewer batch axes", "a0123 b012 z0123", (S, S, S, S), (S, S, S))
_product("a matrix for all", "a012 b01 z012", (S, S, S), (S, S))
_product("ones in a batch", "a023 b012 z0123", (S, 1, S, S), (S, S, S))
_product("a row on the left", "a0 b012 z01", (S,), (S, S, S))
_product("a row on the right", "a012 b0 z01", (S, S, S), (S,))


@case("MatMul", "a012 w:0 w:1 z012")
def a_weight_on_the_right(g: Net) -> str:
    return g.use(g("MatMul", g.free(S, S, S), g.weight(S, S, name="w")), S, S, S)


@case("MatMul", "a012 w:0 w:1 z012")
def a_weight_on_the_left(g: Net) -> str:
    return g.use(g("MatMul", g.weight(S, S, name="w"), g.free(S, S, S)), S, S, S)


def _gemm(name: str, shrinks: str, c: tuple[int, ...] | None, weight: bool, **attrs: Any) -> None:
    def body(g: Net) -> str:
        right = g.weight(S, S, name="w") if weight else g.free(S, S, name="b")
        inputs = [g.free(S, S), right, *([g.weight(*c, name="c")] if c is not None else [])]
        return g.use(g("Gemm", *inputs, **attrs), S, S)

    add("Gemm", name, shrinks, body)


_gemm("plain", "a01 b01 z01", None, False)
_gemm("left transposed", "a01 b01 z01", None, False, transA=1)
_gemm("right transposed", "a01 b01 z01", None, False, transB=1)
_gemm("a weight transposed", "a01 w:0 w:1 c:0 z01", (S,), True, transB=1, alpha=2.0)
_gemm("a weight, both transposed", "a01 w:0 w:1 c:0 c:1 z01", (S, S), True, transA=1, transB=1)
_gemm("a column added", "a01 w:0 w:1 c:0 z01", (S, 1), True, beta=3.0)
_gemm("nothing transposed", "a01 w:0 w:1 c:0 c:1 z01", (S, S), True)


def _einsum(name: str, equation: str, shrinks: str, *operands: tuple[int, ...], out: int) -> None:
    def body(g: Net) -> str:
        inputs = [g.free(*sizes, name="abc"[i]) for i, sizes in enumerate(operands)]
        small = [g("Clip", x, g.scalar(-30), g.scalar(30)) for x in inputs]
        return g.use(g("Einsum", *small, equation=equation), *[S] * out)

    add("Einsum", name, shrinks, body)


_einsum("a product that turns", "ij, jk -> ki", "a01 b01 z01", (S, S), (S, S), out=2)
_einsum("letters in order", "ij,jk", "a01 b01 z01", (S, S), (S, S), out=2)
_einsum("scores", "bhid,bhjd->bhij", "a0123 b0123 z0123", (S,) * 4, (S,) * 4, out=4)
_einsum("dots", "...ij,...kj->...ki", "a0123 b123 z0123", (S,) * 4, (1, S, S, S), out=4)
_einsum("dots of two ranks", "i...j,jk->i...k", "a0123 b01 z0123", (S,) * 4, (S, S), out=4)
_einsum("implicit dots", "...ij,jk", "a012 b01 z012", (S,) * 3, (S, S), out=3)
_einsum("a sum over one operand", "ijk->ki", "a012 z01", (S,) * 3, out=2)
_einsum("no sum", "ij,jk->kji", "a01 b01 z012", (S, S), (S, S), out=3)
_einsum("three operands", "ab,bc,cd->da", "a01 b01 c01 z01", *[(S, S)] * 3, out=2)
_einsum("a diagonal", "iij->ji", "a012 z01", (S,) * 3, out=2)
_einsum("a trace", "iij->j", "a012 z0", (S,) * 3, out=1)


@case("Einsum", "a012 w:0 w:1 w:2 z01")
def two_axes_of_a_weight(g: Net) -> str:
    return g.use(g("Einsum", g.free(S, S, S), g.weight(S, S, S, name="w"), equation="thd,hdo->to"), S, S)
