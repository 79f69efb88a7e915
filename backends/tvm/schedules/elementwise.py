"""Everything without a reduction: one pass over the output, inner loops left to LLVM's vectoriser, blocks
of channels aside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tvm import tirx

from .common import LANES, WORTH_PASS, Rule, extent, inline_around

_COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)


def _joined(block: Any) -> list[int]:
    """Axes whose position alone decides which operand of a concatenation an element comes from."""
    variables = [variable.var for variable in block.iter_vars]
    pairs = [(test.a, test.b) for test in _tests(getattr(block.body, "value", None))]
    tested = [one for a, b in pairs for one, other in ((a, b), (b, a)) if isinstance(other, tirx.IntImm)]
    return [n for n, variable in enumerate(variables) if any(one.same_as(variable) for one in tested)]


def _tests(node: Any) -> Iterator[Any]:
    """Comparisons that an expression chooses by."""
    operands = [getattr(node, name, None) for name in ("a", "b", "value")]
    if hasattr(node, "args"):
        operands += list(node.args)
        if getattr(node.op, "name", "").endswith("if_then_else") and isinstance(node.args[0], _COMPARISONS):
            yield node.args[0]
    for operand in operands:
        if operand is not None:
            yield from _tests(operand)


class Elementwise(Rule):
    """Inline chains of elementwise and data-movement blocks into one."""

    def schedule(self, schedule: Any) -> Any:
        blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
        if not blocks or any(int(v.iter_type) != 0 for b in blocks for v in schedule.get(b).iter_vars):
            return None
        out = inline_around(schedule, lambda name: False)
        loops = schedule.get_loops(out)
        joined = _joined(schedule.get(out)) if len(loops) == len(schedule.get(out).iter_vars) else []
        for axis in joined:
            # So that each part of a concatenation is copied by a loop of its own, without tests.
            schedule.annotate(loops[axis], "pragma_loop_partition_hint", 1)
        if joined:
            return schedule
        if self.core.threads > 1 and len(loops) > 1:
            elements = 1
            for loop in loops:
                elements *= extent(schedule, loop)
            if elements >= WORTH_PASS:
                schedule.parallel(schedule.fuse(*loops[:-1]))
        if len(loops) > 1 and extent(schedule, loops[-1]) == LANES:
            # What is the same for all positions would be vectors of these to LLVM.
            schedule.vectorize(loops[-1])
        return schedule
