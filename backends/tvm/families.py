"""Which counts of channels a kernel has, and the kernel with others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from ..table import Axis, Call, Sizes
from .schedules.common import LANES
from .workloads import Attention, Batched, Convolution, Dense, Depthwise, Product, Workload

_OUT, _IN = Axis("out", LANES), Axis("in", LANES)


def channels(workload: Dense) -> dict[Axis, int]:
    """The counts that pruning changes: those of channels, and of groups or heads computed alike."""
    match workload:
        case Convolution() if workload.sections > 1:
            return {Axis("groups", 1, linear=True): workload.sections}
        case Convolution() if workload.thin:
            return {_OUT: workload.out}
        case Convolution():
            return {_OUT: workload.out, _IN: workload.inner}
        case Depthwise():
            return {Axis("channels", LANES): workload.data[1]}
        case Product():
            return {Axis("out", 1): workload.columns, Axis("in", 1): workload.depth}
        case Batched() | Attention():
            sizes = {Axis("out", 1): workload.columns, Axis("in", 1): workload.depth}
            return {**sizes, Axis("heads", 1, linear=True): workload.batch}


def resized(workload: Dense, sizes: Sizes) -> Dense:
    """A workload with other counts, in the order of `channels`."""
    match workload:
        case Convolution() if workload.sections > 1:
            (groups,) = sizes
            n, c, *area = workload.data
            each, out = c // workload.sections, workload.out // workload.sections
            return replace(
                workload, data=(n, each * groups, area[0], area[1]), out=out * groups, sections=groups
            )
        case Convolution() if workload.thin:
            return replace(workload, out=sizes[0], outer=sizes[0])
        case Convolution():
            out, inner = sizes
            n, _, rows, columns = workload.data
            return replace(workload, data=(n, inner, rows, columns), out=out, inner=inner, outer=out)
        case Depthwise():
            n, _, rows, columns = workload.data
            return replace(workload, data=(n, sizes[0], rows, columns))
        case Product():
            return replace(workload, columns=sizes[0], depth=sizes[1])
        case Batched() | Attention():
            return replace(workload, columns=sizes[0], depth=sizes[1], batch=sizes[2])


def call_of(workload: Dense, calls: int) -> Call:
    """A workload as a latency table knows it."""
    found = channels(workload)
    nothing = resized(workload, (0,) * len(found))
    family = json.dumps({"kernel": workload.name, **asdict(nothing)}, sort_keys=True)
    return Call(family, _told(workload), tuple(found), tuple(found.values()), calls, workload.flops)


def dense(seen: Mapping[Workload, int]) -> dict[Dense, int]:
    """The workloads that a table tells of: of floats, as they are with no zeros skipped."""
    return {workload: calls for workload, calls in seen.items() if isinstance(workload, Dense)}


def calls_of(seen: Mapping[Workload, int]) -> list[Call]:
    """The kernels of a model, from how often each workload is run in it."""
    return [call_of(workload, calls) for workload, calls in dense(seen).items()]


def _told(workload: Dense) -> str:
    match workload:
        case Convolution() | Depthwise():
            kernel = "×".join(map(str, workload.window.kernel))
            rows, columns = workload.window.out(workload.data[2:])
            stride = max(workload.window.strides)
            how = f" /{stride}" if stride > 1 else ""
            if isinstance(workload, Depthwise):
                return f"depthwise {kernel}{how} {workload.data[1]}, {rows}×{columns}"
            groups = f" in {workload.sections} groups" if workload.sections > 1 else ""
            return f"{kernel}{how} {workload.data[1]}→{workload.out}{groups}, {rows}×{columns}"
        case Product():
            plural = "" if workload.rows == 1 else "s"
            return f"product {workload.depth}→{workload.columns}, {workload.rows} row{plural}"
        case Batched():
            return f"product {workload.depth}→{workload.columns}, {workload.batch}×{workload.rows} rows"
        case Attention():
            heads = f"attention {workload.batch}×{workload.rows} to {workload.keys}"
            return f"{heads}, {workload.depth} and {workload.columns} wide"
