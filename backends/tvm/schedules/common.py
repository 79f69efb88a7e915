"""What the schedule rules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import s_tir, tirx

WORTH_THREADS = 4e5  # floating-point operations below which starting threads costs more
WORTH_PASS = 1 << 16  # elements of a pass over a tensor, likewise
LANES = 8  # channels of a block: a vector, or part of a wider one, or two narrower ones
LINE = 64  # bytes of a line of the cache


@dataclass(frozen=True)
class Dots:
    """An instruction that adds four products of bytes to each 32-bit lane of a vector.

    Attributes:
        instruction: as LLVM names it.
        lanes: of the vector.
        data: type of one of the factors; the other, the weights, are int8.
        half: the same of vectors half as long, for what does not fill these; None where there is none.
    """

    instruction: str
    lanes: int
    data: str
    half: Dots | None = None


@dataclass(frozen=True)
class Core:
    """The processor that kernels are made for.

    Attributes:
        threads: kernels with enough work run on so many.
        lanes: floats of a vector, a multiple of eight: narrower registers count in pairs.
        registers: how many such vectors it keeps.
        halves: whether it reads numbers of half precision as fast as others.
        gathers: whether it reads elements that are anywhere as fast together as one by one.
        picks: whether it takes a vector of elements of two others, each by its number, in one instruction.
        elements: whether it multiplies a vector by an element of another in one instruction.
        dots: how it multiplies bytes; None where that is no faster than multiplying floats.
    """

    threads: int = 1
    lanes: int = LANES
    registers: int = 16
    halves: bool = False
    gathers: bool = False
    picks: bool = False
    elements: bool = False
    dots: Dots | None = None


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def pieces(total: int, *sizes: int) -> Iterator[tuple[int, int, int]]:
    """So many in pieces of falling sizes, then what is left: where they begin, their count, their size."""
    done = 0
    for size in sizes:
        if count := (total - done) // size:
            yield done, count, size
            done += count * size
    if done < total:
        yield done, 1, total - done


def i64(value: int) -> Any:
    return tirx.const(int(value), "int64")


def i32(value: int) -> Any:
    return tirx.const(int(value), "int32")


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


def joined(sizes: Sequence[int], at: Sequence[Any]) -> Any:
    """The place of a position when its axes, of these sizes, are one."""
    place = i64(0)
    for size, index in zip(sizes, at, strict=True):
        place = place * i64(size) + index
    return place


def apart(sizes: Sequence[int], place: Any) -> tuple[Any, ...]:
    """The axes, of these sizes, of a place for which they are one: what `joined` was made of."""
    found = []
    for size in reversed(sizes[1:]):
        found.append(tirx.floormod(place, i64(size)))
        place = tirx.floordiv(place, i64(size))
    return (place, *reversed(found))


def flat(shape: Sequence[int]) -> Any:
    """The index map that joins all axes but the last."""
    return tirx.IndexMap.from_func(lambda *at: [joined(shape[:-1], at[:-1]), at[-1]], ndim=len(shape))


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


def vectorize(schedule: Any, loop: Any, lanes: int) -> None:
    """A loop becomes unrolled vectors and, in them, lanes: a single vector of more lanes would spill."""
    vectors, lane = schedule.split(loop, [None, min(lanes, extent(schedule, loop))])
    schedule.unroll(vectors)
    schedule.vectorize(lane)


def vectorize_blocks(schedule: Any, blocks: Any, lane: Any, lanes: int) -> None:
    """Blocks of channels that lie beside each other become vectors of all lanes, if that comes out."""
    whole = extent(schedule, blocks) * LANES % lanes == 0
    vectorize(schedule, schedule.fuse(blocks, lane), lanes if whole else LANES)


def unroll_init(schedule: Any, init: Any, count: int) -> None:
    """The block that sets sums to zero as `vectorize` made the sums, and ``count`` loops around unrolled."""
    loops = schedule.get_loops(init)
    for loop in loops[-1 - count : -1]:
        schedule.unroll(loop)
    schedule.vectorize(loops[-1])


def block_flops(schedule: Any, block: Any) -> float:
    flops = 2.0
    for variable in schedule.get(block).iter_vars:
        flops *= int(variable.dom.extent)
    return flops


class Rule:
    """A schedule rule in the manner of TVM's dlight: `schedule` returns None for what is not its own.

    Args:
        core: what it schedules for.
    """

    def __init__(self, core: Core) -> None:
        self.core = core

    def threaded(self, schedule: Any, block: Any) -> bool:
        """Whether the work of a block is worth starting threads."""
        return self.core.threads > 1 and block_flops(schedule, block) > WORTH_THREADS

    def apply(self, func: Any, target: Any, tunable: bool = False) -> Any:
        return self.schedule(s_tir.Schedule(func)) if isinstance(func, tirx.PrimFunc) else None

    def schedule(self, schedule: Any) -> Any:
        return None
