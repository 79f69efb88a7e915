"""What follows a kernel that is written loop by loop, done where the kernel stores its results."""

from __future__ import annotations

from typing import Any

import tvm_ffi
from tvm import ir, s_tir, tirx


def finished_in_place(schedule: Any) -> Any:
    """A schedule, begun anew, of a function whose first block stores what the other makes of its results.

    The first block names what it stores by the only region it writes. The schedule as it is where nothing
    follows, or more than a pass over the results, element by element.
    """
    function = schedule.mod["main"]
    root = function.body.block
    stages = list(root.body) if isinstance(root.body, tirx.SeqStmt) else [root.body]
    if len(stages) != 2:
        return schedule
    kernel, follower = (_block(stage) for stage in stages)
    made = kernel.writes[0].source
    axes, store = [axis.var for axis in follower.iter_vars], follower.body
    if not isinstance(store, tirx.BufferStore) or not _elementwise(store, made, axes):
        return schedule

    def finish(stored: Any) -> Any:
        if not stored.buffer.same_as(made):
            return stored
        at = dict(zip(axes, stored.indices, strict=True))
        value = tvm_ffi.structural_map(
            store.value,
            [
                (ir.Var, lambda var: at.get(var, var)),
                (ir.TensorLoad, lambda load: stored.value if load.source.same_as(made) else load),
            ],
        )
        return tirx.BufferStore(store.buffer, value, stored.indices)

    stage = tvm_ffi.structural_map(stages[0], (tirx.BufferStore, finish))
    final = (ir.Var, lambda var: store.buffer if var.same_as(made) else var)
    body = tvm_ffi.structural_map(stage, final)
    kept = [buffer for buffer in root.alloc_buffers if not buffer.same_as(made)]
    block = s_tir.SBlock([], [], [], root.name_hint, body, alloc_buffers=kept, annotations=root.annotations)
    return s_tir.Schedule(function.with_body(s_tir.SBlockRealize([], True, block)))


def _block(stage: Any) -> Any:
    """The block within loops."""
    while isinstance(stage, tirx.For):
        stage = stage.body
    return stage.block


def _elementwise(store: Any, made: Any, axes: list[Any]) -> bool:
    """Whether an element is made of the one at its place, and of no other of the buffer ``made``."""
    places = [store.indices]

    def visit(node: Any) -> None:
        if isinstance(node, ir.TensorLoad) and node.source.same_as(made):
            places.append(node.indices)

    tvm_ffi.structural_walk(store.value, visit)
    shapes_agree = list(made.ty.shape) == list(store.buffer.ty.shape)
    return shapes_agree and all(
        len(place) == len(axes) and all(i.same_as(axis) for i, axis in zip(place, axes, strict=True))
        for place in places
    )
