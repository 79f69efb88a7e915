"""What ``onnx-prune compile`` and ``bench`` show of other machines than this: emulated, or on a tracker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from ..backends.emulator.gpu_report import EmulatedGpu
from ..backends.emulator.report import Emulated
from ..backends.remote import RemoteTiming
from .show import ROWS, console, grid, say

if TYPE_CHECKING:
    from ..backends.tvm.cuda.assemble import Resources


def show_assembled(target: str, kernels: Sequence[Resources]) -> None:
    """What the most demanding kernels of a GPU take."""
    registers, shared = (max(getattr(k, field) for k in kernels) for field in ("registers", "shared"))
    spilled = [kernel.kernel for kernel in kernels if kernel.spilled]
    spills = f"; {len(spilled)} have too few registers: {', '.join(spilled[:3])}" if spilled else ""
    say(
        f"{len(kernels)} kernels assembled for {target}: at most {registers} registers a thread and"
        f" {shared:,} bytes of shared memory a block{spills}"
    )


def show_emulated_gpu(found: Sequence[EmulatedGpu], kernels: bool) -> None:
    """A row for each model; with ``kernels`` a table of what its kernels take."""
    first = found[0]
    title = f"tensor cores of {first.arch} emulated, {first.precision}"
    table = grid(
        "model", "error", "kernels", "on tensor cores", "mma.sp", "registers", "spilled", title=title
    )
    for each in found:
        table.add_row(
            escape(each.model),
            f"{each.error:.1e}",
            str(len(each.kernels)),
            str(len(each.emulated)),
            str(each.sparse_products or ""),
            str(max(kernel.registers for kernel in each.kernels)),
            str(sum(kernel.spilled > 0 for kernel in each.kernels) or "none"),
        )
    console.print(table)
    for each in found if kernels else ():
        shown = grid(f"kernels of {escape(each.model)}", "registers", "spilled bytes", "shared bytes")
        for kernel in each.kernels:
            numbers = (kernel.registers, kernel.spilled, kernel.shared)
            shown.add_row(escape(kernel.kernel), *(f"{number:,}" for number in numbers))
        console.print(shown)
    say("assembled for the GPU, and its products computed here from the same source; it was not run on a GPU")


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
