"""What ``onnx-prune bench`` shows of other machines than this: emulated, or on a tracker."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from ..backends.emulator.report import Emulated
from ..backends.remote import RemoteTiming
from .show import ROWS, console, grid, say


def show_emulated(found: Sequence[Emulated], kernels: bool) -> None:
    """A row for each model, against the first; with ``kernels`` a table for each of them."""
    first = found[0]
    title = f"instructions of {first.processor} in a run"
    table = grid("model", "error", "MACs", "executed", "FMAs", "÷ first", "cycles", title=title)
    for each in found:
        table.add_row(
            escape(each.model),
            f"{each.error:.1e}",
            f"{each.macs:,.0f}",
            f"{each.instructions:,}",
            f"{each.vector_fmas / each.instructions:.0%}",
            f"{each.instructions / first.instructions:.2f}",
            "" if each.cycles is None else f"{each.cycles:,.0f}",
        )
    console.print(table)
    for each in found if kernels else ():
        console.print(_kernels(each))
    if first.scheduler is None:
        say("llvm-mca is not installed, so there are no cycles: see docs/arm.md")
    else:
        say(f"cycles: what llvm-mca estimates for {first.scheduler}, all data in the first cache; no times")


def _kernels(model: Emulated) -> Table:
    table = grid(f"kernels of {escape(model.model)}", "calls", "executed", "of all", "FMAs", "cycles")
    for kernel in model.kernels[:ROWS]:
        table.add_row(
            escape(kernel.what),
            str(kernel.calls or ""),
            f"{kernel.instructions:,}",
            f"{kernel.instructions / model.instructions:.1%}",
            f"{kernel.vector_fmas / kernel.instructions:.0%}",
            "" if kernel.cycles is None else f"{kernel.cycles:,.0f}",
        )
    return table


def show_remote(found: Sequence[RemoteTiming]) -> None:
    """A row for each model, against the first."""
    table = grid("model", "median ms", "÷ first", "error", title=f"on {found[0].device}")
    for each in found:
        table.add_row(escape(each.model), f"{each.median_ms:.3f}", f"{each.ratio:.2f}", f"{each.error:.1e}")
    console.print(table)
