"""Plain images (n, channels, height, width) to channels in blocks of eight, and back; turned in registers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from . import written
from .common import LANES, WORTH_PASS, Core, ceil_div, i64, pieces
from .sources import lanes, turned

Shape = tuple[int, int, int, int]


def pack(shape: Shape, dtype: str, core: Core) -> Any:
    """A PrimFunc of a plain image and of (n, blocks of channels, height, width, 8), padded with zeros."""

    def emit(x: Any, made: Any, b: Any, k: Any, p: Any, count: int, whole: int) -> None:
        nothing = tirx.Broadcast(tirx.const(0, dtype), LANES)
        if count == LANES:
            lines = [x[b, k * LANES + j, i64(0), lanes(p)] if j < whole else nothing for j in range(LANES)]
            for j, value in enumerate(turned(lines)):
                script.buffer_store(made, value, [b, k, i64(0), p + j, lanes(i64(0))])
            return
        with script.serial(i64(0), i64(count)) as q, script.unroll(i64(0), i64(LANES)) as j:
            value = x[b, k * LANES + j, i64(0), p + q]
            if whole < LANES:
                value = tirx.if_then_else(j < whole, value, tirx.const(0, dtype))
            script.buffer_store(made, value, [b, k, i64(0), p + q, j])

    return _function(shape, dtype, core, (shape, packed_shape(shape)), emit)


def unpack(shape: Shape, dtype: str, core: Core) -> Any:
    """A PrimFunc of (n, blocks of channels, height, width, 8) and of the plain image of ``shape``."""

    def emit(x: Any, made: Any, b: Any, k: Any, p: Any, count: int, whole: int) -> None:
        if count == LANES:
            lines = [x[b, k, i64(0), p + j, lanes(i64(0))] for j in range(LANES)]
            for j, value in enumerate(turned(lines)[:whole]):
                script.buffer_store(made, value, [b, k * LANES + j, i64(0), lanes(p)])
            return
        with script.unroll(i64(0), i64(whole)) as j, script.serial(i64(0), i64(count)) as q:
            script.buffer_store(made, x[b, k, i64(0), p + q, j], [b, k * LANES + j, i64(0), p + q])

    return _function(shape, dtype, core, (packed_shape(shape), shape), emit)


def packed_shape(shape: Shape) -> tuple[int, ...]:
    """(n, blocks of channels, height, width, 8) for a plain image."""
    n, c, h, w = shape
    return n, ceil_div(c, LANES), h, w, LANES


def _function(
    shape: Shape,
    dtype: str,
    core: Core,
    sides: tuple[tuple[int, ...], tuple[int, ...]],
    emit: Callable[..., None],
) -> Any:
    """A PrimFunc of two buffers, which ``emit`` writes by blocks of channels and up to eight positions.

    Positions count along the columns: what is beyond a row is in the next one.
    """
    n, c, h, w = shape
    parallel = core.threads > 1 and math.prod(shape) > WORTH_PASS
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"tirx.noalias": True})
        x, made = (
            script.arg(name, script.buffer([i64(d) for d in side], dtype))
            for name, side in zip(("x", "result"), sides, strict=True)
        )
        with script.sblock("root"), script.sblock("turning"):
            script.sblock_attr({"written": 1})
            script.reads(x[written.whole(x)])
            script.writes(made[written.whole(made)])
            for first, count, whole in pieces(c, LANES):
                loops = script.serial(i64(0), i64(n)), written.each(count, parallel)
                with loops[0] as b, loops[1] as at, written.block("turning_block"):
                    k = i64(first // LANES) + at
                    for start, turns, some in pieces(h * w, LANES):
                        with script.serial(i64(0), i64(turns)) as q:
                            emit(x, made, b, k, i64(start) + q * i64(LANES), some, whole)
    return builder.get()
