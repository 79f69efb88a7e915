"""Everything without a reduction: one pass over the output, inner loops left to LLVM's vectoriser."""

from __future__ import annotations

from typing import Any

from .common import Rule, extent, inline_around

_WORTH_THREADS = 1 << 16  # elements


class Elementwise(Rule):
    """Inline chains of elementwise and data-movement blocks into one."""

    def schedule(self, schedule: Any) -> Any:
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if not blocks or any(int(v.iter_type) != 0 for b in blocks for v in schedule.get(b).iter_vars):
            return None
        out = inline_around(schedule, lambda name: False)
        loops = schedule.get_loops(out)
        if self.threads > 1 and len(loops) > 1:
            elements = 1
            for loop in loops:
                elements *= extent(schedule, loop)
            if elements >= _WORTH_THREADS:
                schedule.parallel(schedule.fuse(*loops[:-1]))
        return schedule
