"""Pooling of packed activations."""

from __future__ import annotations

from typing import Any

from tvm import s_tir, tirx

from .common import WORTH_THREADS, annotated, block_flops


class Pool:
    """Lanes innermost, the window around them."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def apply(self, func: Any, target: Any, tunable: bool = False) -> Any:
        if not isinstance(func, tirx.PrimFunc):
            return None
        schedule = s_tir.Schedule(func)
        found = annotated(schedule, "pool")
        if found is None:
            return None
        block = found[0]
        b, c, i, j, v, ry, rx = schedule.get_loops(block)
        schedule.reorder(b, c, i, j, ry, rx, v)
        schedule.vectorize(v)
        if self.threads > 1 and block_flops(schedule, block) > WORTH_THREADS:
            schedule.parallel(schedule.fuse(b, c))
        init = schedule.decompose_reduction(block, ry)
        schedule.vectorize(schedule.get_loops(init)[-1])
        return schedule
