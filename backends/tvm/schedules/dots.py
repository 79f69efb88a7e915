"""Sums of products of bytes, by instructions that add four products to each 32-bit lane of a vector.

Four consecutive inputs are multiplied by the four weights of each output, and an output is a lane. So inputs
are read four at a time, and weights are packed by four.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import s_tir, te, tirx
from tvm.script import tirx as T

from . import conv, gemm
from .common import LANES, Dots, ceil_div, extent, i64
from .tile import Tile

FOUR = 4  # products of a lane


# ---------------------------------------------------------------------- convolutions


def pack_conv(weights: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """(O, I, KH, KW) as (O/8t, I/8, KH, KW, 2, 8t, 4), zero padded."""
    packed = conv.pack_weights(weights, tile, LANES)
    *outer, lanes, width = packed.shape
    fours = packed.reshape(*outer, lanes // FOUR, FOUR, width)
    return np.ascontiguousarray(fours.swapaxes(-1, -2))


def conv2d(
    x: Any, weights: Any, window: conv.Window, size: tuple[int, int], blocks: int, tile: Tile, zero: int
) -> Any:
    """Sums (N, O/8, OH, OW, 8) of x (N, I/8, H, W, 8), int32 of bytes.

    Args:
        blocks: O/8, rounded up.
        zero: what x is padded with.
    """
    oh, ow = window.out(size)
    flat = conv.is_pointwise(window)
    if flat:
        data, rows = conv.in_line(x, tile.columns), 1
        columns = ceil_div(oh * ow, tile.columns) * tile.columns
    else:
        rows, columns = ceil_div(oh, tile.rows) * tile.rows, ceil_div(ow, tile.columns) * tile.columns
        reach = conv.reach(window, (rows, columns))
        data = conv.pad_image(x, window, *reach, size, tirx.const(zero, x.dtype))
    outer, inner, kh, kw, halves, width, _ = weights.shape
    axes = [("rc", inner), ("ry", kh), ("rx", kw), ("rh", halves), ("rv", i64(FOUR))]
    rc, ry, rx, rh, rv = (te.reduce_axis((i64(0), e), name) for name, e in axes)
    (sy, sx), (dy, dx) = window.strides, window.dilations

    def product(b: Any, o: Any, i: Any, j: Any, u: Any) -> Any:
        read = data[b, rc, i * sy + ry * dy, j * sx + rx * dx, rh * i64(FOUR) + rv]
        weight = weights[o, rc, ry, rx, rh, u, rv]
        return te.sum(read.astype("int32") * weight.astype("int32"), axis=[rc, ry, rx, rh, rv])

    sums = te.compute(
        (x.shape[0], outer, i64(rows), i64(columns), width),
        product,
        name="conv_sum",
        attrs={"dots.conv": f"{tile.channels},{tile.rows},{tile.columns},{tile.outer},{int(flat)}"},
    )
    t = tile.channels

    def at(b: Any, o: Any, i: Any, j: Any, v: Any) -> Any:
        place = (i64(0), i * i64(ow) + j) if flat else (i, j)
        return sums[b, tirx.floordiv(o, i64(t)), *place, tirx.floormod(o, i64(t)) * i64(LANES) + v]

    return te.compute((x.shape[0], i64(blocks), i64(oh), i64(ow), i64(LANES)), at, name="conv_out")


class DotConv(conv.Conv):
    """Schedule of `conv2d` with whatever elementwise operators were fused after it."""

    label = "dots.conv"

    def sum(self, schedule: Any, sums: Any, at: Any) -> None:
        dots = self.core.dots
        assert dots is not None
        schedule.set_scope(sums, 0, "local")
        schedule.compute_at(sums, at, preserve_unit_loops=True)
        y, x, lane, rc, ry, rx, rh, rv = schedule.get_loops(sums)[-8:]
        schedule.reorder(rc, ry, rx, rh, y, x, lane, rv)
        for loop in (rh, y, x):
            schedule.unroll(loop)
        _dot(schedule, sums, lane, rc, dots)


# ---------------------------------------------------------------------- products


def pack_matrix(weights: NDArray[Any], columns: int) -> NDArray[Any]:
    """(K, N), K a multiple of four, as (N/columns, K/4, columns, 4), zero padded."""
    panels = gemm.pack_weights(weights, columns)
    count, k, _ = panels.shape
    return np.ascontiguousarray(panels.reshape(count, k // FOUR, FOUR, columns).swapaxes(-1, -2))


def matmul(x: gemm.Read, lead: Sequence[int], k: int, weights: Any, n: int, tile: Sequence[int]) -> Any:
    """Sums (*lead, n) of a matrix x (rows, k) times packed weights, int32 of bytes."""
    mr, nr, outer = tile
    m = math.prod(lead)
    padded = ceil_div(m, mr) * mr
    fours = te.reduce_axis((i64(0), i64(k // FOUR)), "k")
    one = te.reduce_axis((i64(0), i64(FOUR)), "v")

    def product(i: Any, panel: Any, j: Any) -> Any:
        row = i if padded == m else tirx.min(i, i64(m - 1))
        read, weight = x([row, fours * i64(FOUR) + one]), weights[panel, fours, j, one]
        return te.sum(read.astype("int32") * weight.astype("int32"), axis=[fours, one])

    sums = te.compute(
        (i64(padded), weights.shape[0], i64(nr)),
        product,
        name="gemm_sum",
        attrs={"dots.gemm": f"{mr},{nr},{outer}"},
    )
    return gemm.arranged(sums, lead, n)


class DotGemm(gemm.Gemm):
    """Schedule of `matmul` with whatever elementwise operators were fused after it."""

    label, batched_label = "dots.gemm", ""

    def sum(self, schedule: Any, sums: Any) -> None:
        assert self.core.dots is not None
        i, p, j, k, v = schedule.get_loops(sums)[-5:]
        schedule.reorder(k, i, p, j, v)
        schedule.unroll(i)
        _dot(schedule, sums, j, k, self.core.dots)


def _dot(schedule: Any, sums: Any, lane: Any, first: Any, dots: Dots) -> None:
    """A loop over lanes, with one over four products in it, becomes instructions."""
    if dots.half is not None and extent(schedule, lane) % dots.lanes:
        dots = dots.half
    vectors, lane = schedule.split(lane, [None, dots.lanes])
    schedule.unroll(vectors)
    init = schedule.decompose_reduction(sums, first)
    schedule.tensorize(lane, _intrinsic(dots))
    schedule.vectorize(schedule.get_loops(init)[-1])
    for loop in schedule.get_loops(init)[-4:-1]:
        schedule.unroll(loop)


# ---------------------------------------------------------------------- the instruction


def _intrinsic(dots: Dots) -> str:
    """The name of the tensor intrinsic of an instruction, which is registered if it is not yet."""
    name = f"onnx_prune.{dots.instruction}"
    if s_tir.TensorIntrin.get(name, allow_missing=True) is None:
        s_tir.TensorIntrin.register(name, *_described(dots))
    return name


def _described(dots: Dots) -> tuple[Any, Any]:
    """What the instruction computes, and how it is called."""
    data, lanes = dots.data, dots.lanes
    words, some, many = f"int32x{lanes}", f"{data}x4", f"int8x{4 * lanes}"

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def computed(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), dtype=data, offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), dtype="int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), dtype="int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], dtype="int32") * T.cast(B[vi, vk], dtype="int32")

    @T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]
    def called(a: T.handle, b: T.handle, c: T.handle) -> None:
        A = T.match_buffer(a, (4,), dtype=data, offset_factor=1)
        B = T.match_buffer(b, (lanes, 4), dtype="int8", offset_factor=1)
        C = T.match_buffer(c, (lanes,), dtype="int32", offset_factor=1, scope="local")
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            spread = T.broadcast(T.reinterpret(A.vload([0], some), dtype="int32"), lanes)
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(dots.instruction),
                C.vload([0], dtype=words),
                T.reinterpret(spread, dtype=many),
                B.vload([0, 0], dtype=many),
                dtype=words,
            )

    return computed, called
