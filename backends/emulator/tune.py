"""Find the best choice for each kernel of a model on an emulated processor, and keep what it costs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..base import Progress
from .cycles import Model
from .tools import find

_MILLIONS = 1e6
_A_SECOND = 1e9  # costs that the database keeps as one: it orders them, and never shows them


def tune(
    modules: Sequence[Any],
    target: Mapping[str, Any],
    folder: Path,
    seconds: float,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Run the kernels of modules in all their ways under QEMU until ``seconds`` are over.

    Nothing is timed: see `trial`. Kernels that the database knows, measured or estimated, are left.

    Args:
        folder: of the database.
        report: called before each kernel.

    Raises:
        BackendError: a tool is missing, or a program of kernels cannot be run.
    """
    tools, scheduler = find(), Model.find()
    from ..tvm.database import Database
    from ..tvm.tune import open_questions
    from .trial import Emulation

    emulation, database = Emulation(tools, scheduler, target), Database(folder)
    end = time.monotonic() + seconds
    waiting, options, far = open_questions(modules, target, database.best(target))
    progress = Progress(0, len(waiting), 0.0, 0.0, unit=f"million estimated {emulation.unit}")
    while waiting and time.monotonic() < end:
        report(progress)
        workload, calls = waiting.pop()
        choices = options(workload)
        costs = emulation.costs(workload, choices)
        known = {choice: cost for choice, cost in zip(choices, costs, strict=True) if cost is not None}
        if choices[0] not in known:
            progress = progress.with_kernel(0.0, 0.0)
            continue
        best = min(known, key=known.__getitem__)
        database.add(workload, far, best, known[best] / _A_SECOND, target, emulation.unit)
        before, after = (calls * known[choice] / _MILLIONS for choice in (choices[0], best))
        progress = progress.with_kernel(before, after)
    return progress
