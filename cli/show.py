"""What commands say: tables and progress on stderr, JSON where it was asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import onnx_prune as api
import rich.box
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from ..analysis.report.summary import Row, cost_rows
from ..passes.save import check_writable, save_text

console = Console(stderr=True)

ROWS = 25  # of a table on the screen; --json has them all


def emit(target: str | None, data: dict[str, Any]) -> None:
    """Write JSON to a file, or to stdout for "-"."""
    text = json.dumps(data, indent=2, allow_nan=False) if target else ""
    if target == "-":
        print(text)
    elif target:
        save_text(text + "\n", target)


def check_outputs(*paths: str | Path | None) -> None:
    """Before any long work.

    Raises:
        OutputError: one of the files cannot be written.
    """
    for path in paths:
        if path is not None and str(path) != "-":
            check_writable(path)


@contextmanager
def step(seconds: dict[str, float], name: str) -> Iterator[Status]:
    """Show what is going on, and note how long it took."""
    start = time.perf_counter()
    with console.status(name) as status:
        yield status
    seconds[name] = round(time.perf_counter() - start, 4)


def grid(*columns: str, title: str | None = None) -> Table:
    """An empty table whose first column is text and whose others are numbers."""
    made = Table(title=title, box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return made


def print_rows(rows: Sequence[Row]) -> None:
    """Before and after."""
    made = grid("", "before", "after", "change")
    for row in rows:
        made.add_row(row.name, row.before, row.after, row.change)
    console.print(made)


def print_costs(before: api.Cost, after: api.Cost) -> None:
    """What a model costs before and after."""
    print_rows(cost_rows(before, after))
    print_uncounted(before)


def print_uncounted(cost: api.Cost) -> None:
    """Nodes whose arithmetic is not known."""
    if cost.uncounted:
        names = ", ".join(cost.uncounted[:3]) + (", …" if len(cost.uncounted) > 3 else "")
        console.print(f"MACs leave out {len(cost.uncounted)} nodes: {names}", markup=False)


def say(text: str) -> None:
    """A line. Names of files and tensors may hold what rich takes for markup, and lines must stay whole."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def say_measured(plan: api.Plan) -> None:
    """What was measured to find a plan, if anything was."""
    time, accuracy = plan.options.get("latency"), plan.options.get("accuracy")
    if time:
        how = "takes by the table" if time.get("predicted") else "takes"
        say(f"{how} {time['ms']:.3g} ms on {time['target']}, {time['share']:.0%} of the dense model")
    if accuracy:
        where = "samples kept apart" if accuracy["apart"] else "samples that layers are fitted on too"
        say(
            f"accuracy {accuracy['after']:.2%}, of {accuracy['before']:.2%}, on {accuracy['samples']} {where}"
        )


def verdict_json(verdict: api.Verdict) -> dict[str, Any]:
    """A certificate for machines."""
    error = verdict.max_relative_error
    return {
        "ok": verdict.ok,
        "kind": verdict.kind,
        # JSON has no infinity: an output of another shape has no error to speak of.
        "max_relative_error": error if error < float("inf") else None,
        "message": verdict.message,
    }


def report(verdict: api.Verdict) -> None:
    """A certificate for people.

    Raises:
        CheckError: it does not hold.
    """
    if not verdict.ok:
        raise api.CheckError(f"the certificate does not hold: {verdict.message}")
    say(f"certificate holds ({verdict.kind}): {verdict.message}")


def warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """What ``warnings`` calls: a line for a user, without the place in the code."""
    console.print(
        f"[bold yellow]warning:[/] {escape(' '.join(str(message).split()))}", soft_wrap=True, highlight=False
    )


def fail(message: str, status: int) -> None:
    """Say what went wrong and exit."""
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)
    sys.exit(status)
