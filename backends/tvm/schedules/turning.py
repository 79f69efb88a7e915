"""Plain images (n, channels, height, width) to channels in blocks of eight, and back; turned in registers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from . import written
from .common import LANES, WORTH_PASS, Core, ceil_div, i64, pieces

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


def lanes(start: Any) -> Any:
    """Indices of a vector."""
    return tirx.Ramp(start, i64(1), LANES)


# Pairs of vectors interleaved, pairs of pairs, halves: three steps that turn eight by eight.
_LOW, _HIGH = (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)
_FIRST, _SECOND = (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)
_LEFT, _RIGHT = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)


def turned(lines: Sequence[Any]) -> list[Any]:
    """Eight vectors of eight lanes: the j-th of what the lanes j hold."""

    def mixed(a: Any, b: Any, order: Sequence[int]) -> Any:
        return script.bind(tirx.Shuffle([a, b], [tirx.const(n, "int32") for n in order]))

    lines = [script.bind(line) for line in lines]
    pairs = [mixed(lines[i], lines[i + 1], order) for i in range(0, 8, 2) for order in (_LOW, _HIGH)]
    fours = [
        mixed(pairs[half + low], pairs[half + low + 2], order)
        for half in (0, 4)
        for low in (0, 1)
        for order in (_FIRST, _SECOND)
    ]
    return [mixed(fours[i], fours[4 + i], order) for order in (_LEFT, _RIGHT) for i in range(4)]
