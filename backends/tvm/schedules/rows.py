"""Softmax and LayerNorm: each row computed in one go while it is in cache."""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from ..vecmath import LOG2_E, exp2, f32
from .common import LANES, Rule, annotated, ceil_div, extent, i64, inline_around

_WORTH_THREADS = 64  # rows


def softmax(x: Any) -> Any:
    """Softmax over the last axis."""
    lead, n = list(x.shape[:-1]), x.shape[-1]
    k2 = te.reduce_axis((i64(0), n), "k2")
    top = _largest(x, lead, int(n))
    power = te.compute(x.shape, lambda *i: exp2((x(*i) - top(*i[:-1])) * f32(LOG2_E)), name="row_exp")
    total = te.compute(lead, lambda *i: te.sum(power(*i, k2), axis=[k2]), name="row_sum")
    scale = te.compute(lead, lambda *i: f32(1) / total(*i), name="row_scale")
    return te.compute(x.shape, lambda *i: power(*i) * scale(*i[:-1]), name="row_out")


def _largest(x: Any, lead: list[Any], n: int) -> Any:
    """The maximum of each row. LLVM vectorises no maximum, so vectors are compared first, the last of which
    overlaps the one before.
    """
    if n < LANES:
        k = te.reduce_axis((i64(0), i64(n)), "k")
        return te.compute(lead, lambda *i: te.max(x(*i, k), axis=[k]), name="row_max", attrs={"row": 1})
    k, v = te.reduce_axis((i64(0), i64(ceil_div(n, LANES))), "k"), te.reduce_axis((i64(0), i64(LANES)), "v")

    def vector(*at: Any) -> Any:
        start = k * LANES if n % LANES == 0 else tirx.min(k * LANES, i64(n - LANES))
        return te.max(x(*at[:-1], start + at[-1]), axis=[k])

    tops = te.compute([*lead, i64(LANES)], vector, name="row_lanes")
    return te.compute(lead, lambda *i: te.max(tops(*i, v), axis=[v]), name="row_max", attrs={"row": 1})


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """LayerNorm over the last axis, the variance from centred values."""
    lead, n = list(x.shape[:-1]), x.shape[-1]
    share = f32(1 / int(n))
    k1, k2 = te.reduce_axis((i64(0), n), "k1"), te.reduce_axis((i64(0), n), "k2")
    total = te.compute(lead, lambda *i: te.sum(x(*i, k1), axis=[k1]), name="row_sum", attrs={"row": 1})
    mean = te.compute(lead, lambda *i: total(*i) * share, name="row_mean")
    square = te.compute(
        lead, lambda *i: te.sum((x(*i, k2) - mean(*i)) * (x(*i, k2) - mean(*i)), axis=[k2]), name="row_square"
    )
    scale = te.compute(
        lead, lambda *i: f32(1) / tirx.sqrt(square(*i) * share + f32(epsilon)), name="row_scale"
    )
    return te.compute(
        x.shape,
        lambda *i: (x(*i) - mean(*i[:-1])) * scale(*i[:-1]) * gamma(i[-1]) + beta(i[-1]),
        name="row_out",
    )


class Rows(Rule):
    """Schedule of row operators: every stage inside the loop over rows; LLVM vectorises the inner loops."""

    def schedule(self, schedule: Any) -> Any:
        if annotated(schedule, "row") is None:
            return None
        out = inline_around(schedule, lambda name: name.startswith("row_"))
        loops = schedule.get_loops(out)
        row = schedule.fuse(*loops[:-1]) if len(loops) > 2 else loops[0]
        for block in reversed(schedule.get_child_blocks(schedule.get_sblock("root"))[:-1]):
            schedule.compute_at(block, row, preserve_unit_loops=True)
            if schedule.get(block).name_hint == "row_lanes":
                lane, k = schedule.get_loops(block)[-2:]
                schedule.reorder(k, lane)
                schedule.vectorize(lane)
                init = schedule.decompose_reduction(block, k)
                schedule.vectorize(schedule.get_loops(init)[-1])
        if self.core.threads > 1 and extent(schedule, row) >= _WORTH_THREADS:
            schedule.parallel(row)
        return schedule
