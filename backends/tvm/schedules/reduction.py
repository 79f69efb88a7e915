"""Reductions that no other family takes: sums, means and windows in plain layouts."""

from __future__ import annotations

from typing import Any

from .common import Rule, annotated, extent, inline_around

_OTHERS = ["conv.tile", "conv.chunked", "winograd.tile", "depthwise.tile", "gemm.tile", "gemm.batched"]
_OTHERS += ["row", "pool"]


class Reduction(Rule):
    """Keep the last spatial loop innermost where the reduced axis is not the contiguous one.

    So that LLVM can vectorise it: whole rows are accumulated instead of one strided element at a time.
    """

    def schedule(self, schedule: Any) -> Any:
        if any(annotated(schedule, family) for family in _OTHERS):
            return None
        inline_around(schedule, lambda name: False)
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        sums = [block for block in blocks if _reduces(schedule, block)]
        if not sums:
            return None
        for block in sums:
            self._schedule(schedule, block)
        return schedule

    def _schedule(self, schedule: Any, block: Any) -> None:
        statement, loops = schedule.get(block), schedule.get_loops(block)
        kinds = [int(variable.iter_type) for variable in statement.iter_vars]
        if len(loops) != len(kinds):
            return
        spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == 0]
        reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != 0]
        if len(spatial) + len(reduced) != len(loops) or not spatial:
            return
        if self.threaded(schedule, block) and len(spatial) > 1:
            outer = schedule.fuse(*spatial[:-1])
            schedule.parallel(outer)
        if _contiguous(statement) or extent(schedule, spatial[-1]) == 1:
            return
        schedule.reorder(*reduced, spatial[-1])
        schedule.decompose_reduction(block, reduced[0])


def _reduces(schedule: Any, block: Any) -> bool:
    return any(int(variable.iter_type) != 0 for variable in schedule.get(block).iter_vars)


def _contiguous(statement: Any) -> bool:
    """Whether a reduced axis is the last one of what is read."""
    reduced = [variable.var for variable in statement.iter_vars if int(variable.iter_type) != 0]
    for region in statement.reads:
        last = region.region[-1].min if len(region.region) else None
        if last is not None and any(last.same_as(var) for var in reduced):
            return True
    return False
