"""Measure the kernels of a latency table."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib import metadata
from statistics import median
from typing import Any

from ...analysis.errors import BackendError
from ..table import Kernel, Sizes, Table, Times
from .build import workloads_of
from .constants import constant_bytes
from .families import call_of, dense, resized
from .trial import BETWEEN, Trials
from .workloads import VERSION, Choices, Dense, Measured

_ROUNDS = 3


class Tabulation:
    """A table and what is needed to fill it in.

    Attributes:
        table: as far as it is known.
    """

    def __init__(self, table: Table, workloads: Mapping[str, Dense], choices: Choices) -> None:
        self.table = table
        self._workloads = workloads
        self._choices = choices

    def go_on(self, before: Table) -> None:
        """Take over the times of a table that was measured in the same way."""
        known = self.table.with_times_of(before)
        same = [k.call for k in known.kernels] == [k.call for k in before.kernels]
        self.table = replace(known, dense_ms=before.dense_ms if same and not known.missing_kernels else None)

    def measure(self, seconds: float | None, report: Callable[[Table], None]) -> None:
        """Measure kernels until all are known or time is over: whole ones first, those of most work first.

        Raises:
            BackendError: a kernel fails.
        """
        end = None if seconds is None else time.monotonic() + seconds
        wanted = [(n, sizes) for n, kernel in enumerate(self.table.kernels) for sizes in kernel.wanted]
        wanted.sort(key=lambda each: each[1] != self.table.kernels[each[0]].call.sizes)
        with ExitStack() as stack:
            trials = [stack.enter_context(Trials(self.table.target, each)) for each in self.table.between]
            for n, sizes in wanted:
                if end is not None and time.monotonic() >= end:
                    return
                kernel = self.table.kernels[n]
                if sizes in kernel.ms:  # known by another kernel of the family
                    continue
                report(self.table)
                self._learn(kernel.call.family, sizes, self._milliseconds(kernel, sizes, trials))

    def _milliseconds(self, kernel: Kernel, sizes: Sizes, trials: Sequence[Trials]) -> Times:
        workload = resized(self._workloads[kernel.call.family], sizes)
        ways = [self._choices.of(workload), *self._choices.options(workload)]
        for choice in dict.fromkeys(ways):  # the next where one cannot be scheduled
            times = [each.seconds(workload, [choice], _ROUNDS)[0] for each in trials]
            if all(times):
                return tuple(median(seconds) * 1e3 for seconds in times)
        raise BackendError(f"the kernel '{kernel.call.name}' with {sizes} channels cannot be timed")

    def _learn(self, family: str, sizes: Sizes, ms: Times) -> None:
        self.table = replace(
            self.table,
            kernels=tuple(
                replace(kernel, ms={**kernel.ms, sizes: ms})
                if kernel.call.family == family and sizes in kernel.wanted
                else kernel
                for kernel in self.table.kernels
            ),
        )


def planned(module: Any, target: Mapping[str, Any], known: Mapping[str, Measured], points: int) -> Tabulation:
    """The table of a module as imported, empty yet.

    Args:
        known: ways to compute kernels that are not the default.
        points: see `Kernel.of`.
    """
    found = workloads_of(module, target)
    ordered = sorted(dense(found.seen).items(), key=lambda each: -each[0].flops * each[1])
    calls = [call_of(workload, times) for workload, times in ordered]
    workloads = {call.family: workload for call, (workload, _) in zip(calls, ordered, strict=True)}
    weights = min(constant_bytes(module["main"]), BETWEEN[True])
    versions = {name: metadata.version(name) for name in ("onnx-prune", "apache-tvm")}
    table = Table(
        dict(target),
        int(target["num-cores"]),
        {**versions, "kernels": VERSION},
        (BETWEEN[False], weights) if weights > 2 * BETWEEN[False] else (weights,),
        tuple(Kernel.of(call, points) for call in calls),
    )
    return Tabulation(table, workloads, replace(found, known=known))
