"""What the schedule rules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import s_tir, tirx

WORTH_THREADS = 4e5  # floating-point operations below which starting threads costs more
LANES = 8  # floats of a vector register (AVX2); wider machines pair them


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def i64(value: int) -> Any:
    return tirx.const(int(value), "int64")


def annotated(schedule: Any, key: str) -> tuple[Any, Any] | None:
    """The block that carries the annotation ``key``, and its value."""
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        annotations = schedule.get(block).annotations
        if key in annotations:
            return block, annotations[key]
    return None


def inline_around(schedule: Any, kept: Callable[[str], bool]) -> Any:
    """Inline every spatial block but the last and those ``kept`` by name; the last block."""
    blocks = schedule.get_child_blocks(schedule.get_sblock("root"))
    for block in blocks[:-1]:
        statement = schedule.get(block)
        if kept(statement.name_hint) or any(int(v.iter_type) != 0 for v in statement.iter_vars):
            continue
        try:
            schedule.compute_inline(block)
        except s_tir.ScheduleError:
            continue
    return last_block(schedule)


def with_axes_joined(schedule: Any, out: Any, index_map: Any) -> Any:
    """A schedule, begun anew, of a function whose last block has axes joined to one.

    Only where indices are simplified can be seen which elements of other blocks a tile of it needs.
    """
    schedule.transform_block_layout(out, index_map)
    return s_tir.Schedule(tirx.transform.StmtSimplify()(schedule.mod))


def last_block(schedule: Any) -> Any:
    return schedule.get_child_blocks(schedule.get_sblock("root"))[-1]


def extent(schedule: Any, loop: Any) -> int:
    return int(schedule.get(loop).extent)


def vectorize(schedule: Any, loop: Any) -> None:
    """Vectorise a loop, longer ones as unrolled vectors: one wide vector would spill."""
    if extent(schedule, loop) > LANES:
        outer, loop = schedule.split(loop, [None, LANES])
        schedule.unroll(outer)
    schedule.vectorize(loop)


def block_flops(schedule: Any, block: Any) -> float:
    flops = 2.0
    for variable in schedule.get(block).iter_vars:
        flops *= int(variable.dom.extent)
    return flops


class Rule:
    """A schedule rule in the manner of TVM's dlight: `schedule` returns None for what is not its own.

    Args:
        threads: kernels with enough work run on so many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def apply(self, func: Any, target: Any, tunable: bool = False) -> Any:
        return self.schedule(s_tir.Schedule(func)) if isinstance(func, tirx.PrimFunc) else None

    def schedule(self, schedule: Any) -> Any:
        return None
