"""Time the kernels of a compiled model one by one, and tell how near they are to what the processor can."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax

from ..base import Kernel
from . import build, passes
from .described import described, plain
from .machine import core_of
from .workloads import Choices, Product

_WARM, _RUNS, _PEAK_RUNS = 3, 15, 15
_IN_CACHE = Product(12, 1024, 16)  # of the first cache, with no time lost but to start and end
_SKIP_NOTHING = 0


def profile(
    module: Any, target: Mapping[str, Any], choices: Choices, feed: Sequence[NDArray[Any]]
) -> tuple[Kernel, ...]:
    """Kernels of a module as imported, those that take the most time in a run first; last, what is between.
    Calls are interpreted here, for only there a clock can stand: compiled ones take less between kernels.

    Args:
        feed: inputs of ``main``, in order.

    Raises:
        BackendError: the module cannot be compiled.
    """
    with build.compiling(target) as native:
        fused = passes.fused(passes.PackedKernels(choices))(module)
        names = described(fused)
        steps = [passes.kernels(), passes.Schedules()]
        ready = tvm.transform.Sequential(steps)(fused)
        executable = tvm.compile(ready, target=native, tir_pipeline=passes.PIPELINE)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    clock = _Clock()
    main, arguments = machine["main"], [tvm.runtime.tensor(array) for array in feed]
    whole = []
    for _ in range(_WARM + _RUNS):
        start = time.perf_counter()
        main(*arguments)
        whole.append(time.perf_counter() - start)
    machine.set_instrument(clock)
    runs = []
    for _ in range(_RUNS):
        clock.times = []
        main(*arguments)
        runs.append(clock.times)
    peak = peak_flops(target)
    return tuple(_kernels(median(whole[_WARM:]), runs, names, peak))


def peak_flops(target: Mapping[str, Any]) -> float:
    """Floating-point operations a second of a product that stays in the first cache, on one thread."""
    alone = {**target, "num-cores": 1}
    core = core_of(tvm.target.Target(alone))
    kernel, operands = build.kernel_of(_IN_CACHE, _IN_CACHE.choices(core, far=False)[0], alone)
    tensors = [tvm.runtime.tensor(np.ones(shape, np.float32)) for shape in operands]
    timer = kernel.jit().time_evaluator("main", tvm.cpu(), number=1, repeat=_PEAK_RUNS, min_repeat_ms=2)
    return float(_IN_CACHE.flops / min(timer(*tensors).results) * int(target["num-cores"]))


class _Clock:
    """Called by TVM's machine before and after each function."""

    def __init__(self) -> None:
        self.times: list[tuple[str, float]] = []
        self._start = 0.0

    def __call__(self, function: Any, name: str, before: bool, result: Any, *arguments: Any) -> int:
        now = time.perf_counter()
        if not before and not name.startswith("vm.builtin"):
            self.times.append((name, now - self._start))
        self._start = time.perf_counter()
        return _SKIP_NOTHING


def _kernels(
    whole: float,
    runs: Sequence[Sequence[tuple[str, float]]],
    names: Mapping[str, tuple[str, float]],
    peak: float,
) -> Iterator[Kernel]:
    spent: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    flops: defaultdict[str, float] = defaultdict(float)
    for call in zip(*runs, strict=True):
        what, work = names.get(call[0][0], (plain(call[0][0]), 0.0))
        spent[what] += median(seconds for _, seconds in call)
        calls[what] += 1
        flops[what] += work
    # The clock slows down what TVM's machine does itself, not the kernels.
    rest = max(0.0, whole - sum(spent.values()))
    for what, seconds in sorted(spent.items(), key=lambda each: -each[1]):
        share = flops[what] / seconds / peak if flops[what] else None
        yield Kernel(what, calls[what], seconds * 1e3, share)
    yield Kernel("between kernels", 1, rest * 1e3, None)
