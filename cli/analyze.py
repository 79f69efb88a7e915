"""``onnx-prune analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.errors import UsageError
from ..analysis.explain import explain as explain_axes
from ..analysis.explain import find_place
from ..analysis.report.summary import analysis_json, cost_json, pin_reasons
from ..passes.save import save_text
from . import options
from .app import app, examples
from .show import ROWS, check_outputs, console, emit, grid, print_uncounted, say, step


@app.command(
    epilog=examples(
        "analyze model.onnx",
        "analyze model.onnx --json -",
        "analyze model.onnx --explain conv1.weight:0",
        "analyze model.onnx --graph groups.html",
    )
)
def analyze(
    model: options.ModelPath,
    explain: Annotated[
        str | None,
        typer.Option(
            "--explain",
            metavar="TENSOR[:AXIS]",
            help="Say what the positions of a tensor are, what shrinks with them and why, what pins them.",
        ),
    ] = None,
    graph: Annotated[
        Path | None, typer.Option("--graph", metavar="FILE", help="Draw the groups: .svg or .html.")
    ] = None,
    json_: options.Json = None,
) -> None:
    """Show which channels depend on which, and what is pinned."""
    if graph is not None and graph.suffix.lower() not in (".svg", ".html"):
        raise UsageError(f"--graph '{graph}' is of no kind that can be drawn: choose .svg or .html")
    check_outputs(graph, json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "analyze"):
        analysis = api.analyze(loaded)
        cost = api.measure(loaded, analysis)
    told = explain_axes(analysis, *find_place(analysis, explain)) if explain is not None else None
    if graph is not None:
        from ..analysis.report import picture  # what lays it out takes a while to load

        with step(seconds, "draw"):
            draw = picture.svg if graph.suffix.lower() == ".svg" else picture.page
            save_text(draw(analysis, model.name), graph)
    if told is None:
        _print_analysis(analysis, cost)
    for sentence in told.sentences() if told else ():
        say(sentence)
    if graph is not None:
        say(f"wrote {graph}")
    # Analysis removes nothing: before and after are the same, in the form every command gives.
    data = cost_json(cost, cost) | analysis_json(analysis) | {"seconds": seconds}
    emit(json_, data | ({"explanation": told.to_json()} if told else {}))


def _print_analysis(analysis: api.Analysis, cost: api.Cost) -> None:
    table = grid("group", "units", "axes", "params/unit", "removal", title=f"{len(analysis.groups)} groups")
    for group in sorted(analysis.groups, key=lambda g: -g.size * g.params_per_unit)[:ROWS]:
        cells = (str(group.size), str(len(group.members)), f"{group.params_per_unit:,.0f}", group.exactness)
        table.add_row(escape(group.id), *cells)
    console.print(table)
    if len(analysis.groups) > ROWS:
        say(f"… and {len(analysis.groups) - ROWS} smaller groups: see --json")
    _print_blocks(analysis)
    pinned = grid("pinned because", "axes", title=f"{len(analysis.pins)} pinned axes of weights")
    for reason, count in pin_reasons(analysis)[:ROWS]:
        pinned.add_row(escape(reason), str(count))
    console.print(pinned)
    say(f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.bytes:,} bytes of weights")
    print_uncounted(cost)


def _print_blocks(analysis: api.Analysis) -> None:
    if not analysis.blocks:
        return
    table = grid(
        "block", "params", "MACs", "nodes", title=f"{len(analysis.blocks)} residual blocks for --drop"
    )
    for block in analysis.blocks[:ROWS]:
        table.add_row(escape(block.id), f"{block.params:,}", f"{block.macs:,}", str(len(block.nodes)))
    console.print(table)
