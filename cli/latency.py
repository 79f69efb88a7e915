"""``onnx-prune latency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.errors import UsageError
from ..analysis.report import curves
from ..backends.run import POINTS
from ..backends.table import Table
from ..passes.save import save_text
from . import amounts, options
from .app import app, examples
from .show import ROWS, check_outputs, console, emit, grid, say, step


@app.command(
    epilog=examples(
        "latency model.onnx -o times.json --plot times.svg",
        "latency model.onnx -o times.json --time 5m",
        "plan model.onnx -o plan.json --latency 60% --latency-table times.json",
    )
)
def latency(
    model: options.ModelPath,
    output: options.Output,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw milliseconds against channels.")
    ] = None,
    points: Annotated[
        int, typer.Option("--points", metavar="N", min=2, help="Counts of channels of an axis.")
    ] = POINTS,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="TIME", help="For how long, 90s, 5m, 1h; until all is measured."),
    ] = None,
    target: options.Target = "cpu",
    threads: options.Threads = 1,
    database: options.Database = None,
    json_: options.Json = None,
) -> None:
    """Measure how long the kernels of a model take with fewer channels; go on where the file ends."""
    if plot is not None and plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot '{plot}' is of no kind that can be drawn: choose .svg")
    check_outputs(output, plot, json_)
    limit = None if time is None else amounts.seconds(time, "--time")
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "measure") as status:

        def show(table: Table) -> None:
            status.update(f"measure {table.known + 1} of {table.known + table.missing}")

        table = api.latency_table(loaded, output, points, limit, target, threads, database, show)
    _print(table)
    say(f"wrote {output} ({table.known} times)")
    if table.missing:
        say(f"{table.missing} times are to be measured yet: run it again to go on")
    if plot is not None:
        save_text(_drawn(table, model.name), plot)
        say(f"wrote {plot}")
    emit(
        json_,
        {
            "output": str(output),
            "known": table.known,
            "missing": table.missing,
            "dense_ms": table.dense_ms,
            "seconds": seconds,
        },
    )


def _print(table: Table) -> None:
    """The whole kernels, those that take longest first."""
    known = [(k.call, k.ms[k.call.sizes][-1]) for k in table.kernels if k.call.sizes in k.ms]
    known.sort(key=lambda each: -each[0].calls * each[1])
    rows = grid("kernel", "runs", "ms each", "GFLOP/s")
    for call, ms in known[:ROWS]:
        rows.add_row(escape(call.name), str(call.calls), f"{ms:.4f}", f"{call.flops / ms / 1e6:.1f}")
    console.print(rows)
    if len(known) > ROWS:
        say(f"… and {len(known) - ROWS} kernels that take less")
    if table.dense_ms is not None:
        say(f"the model takes {table.dense_ms:.3f} ms, these kernels by themselves {table.kernels_ms:.3f} ms")


def _drawn(table: Table, name: str) -> str:
    panels = [
        curves.Panel(
            f"{kernel.call.name} ×{kernel.call.calls}",
            "ms",
            [curves.Curve(axis, points) for axis, points in kernel.curves()],
        )
        for kernel in table.kernels
        if kernel.curves()
    ]
    processor = table.target.get("mcpu", table.target["kind"])
    threads = f"{table.threads} thread{'s' if table.threads > 1 else ''}"
    told = (
        f"Milliseconds of a run of each kernel against one count of its channels, all others whole; measured"
        f" on {processor}, {threads}. ×n: how often the model runs it."
    )
    return curves.svg(panels, f"{name}: time of its kernels", told)
