"""Pooling of packed activations."""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from .common import LANES, Rule, annotated, i64
from .conv import Window


def pool(
    data: Any, window: Window, size: tuple[int, int], out: tuple[int, int], largest: bool, overhangs: bool
) -> Any:
    """Maximum or mean over windows of data (N, C/8, H, W, 8).

    Args:
        size, out: height and width of the input and the result.
        overhangs: whether the last windows reach past the padding.
    """
    (h, w), (top, left) = size, window.padding[:2]
    (sy, sx), (dy, dx) = window.strides, window.dilations
    ry = te.reduce_axis((i64(0), i64(window.kernel[0])), "ry")
    rx = te.reduce_axis((i64(0), i64(window.kernel[1])), "rx")
    fill = tirx.min_value("float32") if largest else tirx.const(0.0, "float32")
    share = tirx.const(1 / math.prod(window.kernel), "float32")

    def at(b: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
        y, x = i * sy + ry * dy - top, j * sx + rx * dx - left
        value = data[b, c, y, x, v]
        if any(window.padding) or overhangs:
            value = tirx.if_then_else(tirx.all(y >= 0, y < h, x >= 0, x < w), value, fill)
        return te.max(value, axis=[ry, rx]) if largest else te.sum(value * share, axis=[ry, rx])

    shape = (data.shape[0], data.shape[1], i64(out[0]), i64(out[1]), i64(LANES))
    return te.compute(shape, at, name="pool", attrs={"pool": 1})


def mean(data: Any, size: tuple[int, int]) -> Any:
    """Mean over the image of data (N, C/8, H, W, 8), as (N, C/8, 1, 1, 8)."""
    ry, rx = te.reduce_axis((i64(0), i64(size[0])), "ry"), te.reduce_axis((i64(0), i64(size[1])), "rx")
    share = tirx.const(1 / math.prod(size), "float32")
    return te.compute(
        (data.shape[0], data.shape[1], i64(1), i64(1), i64(LANES)),
        lambda b, c, i, j, v: te.sum(data[b, c, ry, rx, v] * share, axis=[ry, rx]),
        name="pool",
        attrs={"pool": 1},
    )


class Pool(Rule):
    """Lanes innermost, the window around them."""

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, "pool")
        if found is None:
            return None
        block = found[0]
        b, c, i, j, v, ry, rx = schedule.get_loops(block)
        schedule.reorder(b, c, i, j, ry, rx, v)
        schedule.vectorize(v)
        if self.threaded(schedule, block):
            schedule.parallel(schedule.fuse(b, c))
        init = schedule.decompose_reduction(block, ry)
        schedule.vectorize(schedule.get_loops(init)[-1])
        return schedule
