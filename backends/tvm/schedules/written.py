"""What kernels that are written loop by loop are made of, within a PrimFunc under construction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as script

from .common import Rule, annotated, i64


@contextmanager
def block(name: str) -> Iterator[None]:
    """A block without axes: what is allocated in it is of one turn of the loops around."""
    with script.sblock(name):
        script.reads()
        script.writes()
        yield


@contextmanager
def each(count: int, parallel: bool) -> Iterator[Any]:
    """A loop, shared by threads or not."""
    with (script.parallel if parallel else script.serial)(i64(0), i64(count)) as at:
        yield at


@contextmanager
def where(*conditions: Any) -> Iterator[None]:
    """What is done only where all conditions hold; always where there are none."""
    if not conditions:
        yield
        return
    with script.If(tirx.all(*conditions) if len(conditions) > 1 else conditions[0]), script.Then():
        yield


def buffer(*shape: int) -> Any:
    """Memory for float32."""
    return script.sblock_alloc_buffer([i64(size) for size in shape], "float32")


def local(size: int, dtype: str = "float32") -> Any:
    """Memory that becomes registers."""
    return script.sblock_alloc_buffer([i64(size)], dtype, scope="local")


def join_halves(memory: Any, rows: int, lanes: int, join: Callable[[Any, Any], Any], left: int = 1) -> None:
    """Joins the lanes of each of some rows, halves with halves, until ``left`` of them hold all."""
    half = lanes // 2
    while half >= left:
        with script.unroll(i64(0), i64(rows)) as r, script.vectorized(i64(0), i64(half)) as lane:
            at = r * i64(lanes) + lane
            script.buffer_store(memory, join(memory[at], memory[at + i64(half)]), [at])
        half //= 2


def ask_for(element: Any, near: int) -> None:
    """Have the line of an element that is needed soon brought to the cache of a level: 3 is the first one."""
    how = (tirx.const(number, "int32") for number in (0, near, 1))
    script.evaluate(tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(element), *how))


def whole(memory: Any) -> tuple[slice, ...]:
    """The region of all of a buffer."""
    return tuple(slice(i64(0), i64(int(size))) for size in memory.shape)


class Written(Rule):
    """Kernels that are scheduled as they are written, with the annotation ``written``."""

    def schedule(self, schedule: Any) -> Any:
        return None if annotated(schedule, "written") is None else schedule
