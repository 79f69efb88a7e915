"""``onnx-prune sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.errors import UsageError
from ..analysis.report import heat
from ..passes.save import save_text
from . import options
from .app import app, examples
from .show import ROWS, check_outputs, console, grid, say, step

_COLUMNS = 5  # of a table that fits a terminal
_PICTURES = {".svg": heat.svg, ".html": heat.page}


@app.command(
    epilog=examples(
        "sensitivity model.onnx --calibration images.npz --plot sensitivity.svg",
        "sensitivity model.onnx --calibration images.npz --json curves.json --ratios 0.25,0.5,0.75 --jobs 4",
        "plan model.onnx -o plan.json --macs 50% --calibration images.npz --sensitivity curves.json",
    )
)
def sensitivity(
    model: options.ModelPath,
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="DATA",
            help="Classes of the calibration inputs, to measure accuracy too: FILE.npy or module:function.",
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option("--ratios", metavar="R,R,…", help="Fractions of a group to remove: 0.1,0.2,…,0.9."),
    ] = None,
    criterion: options.Criterion = None,
    recover: options.Recover = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the measurements: .svg or .html.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", min=1, help="Processes to run; one for each core by default."),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            "--cluster", metavar="ADDRESS", help="Run on the workers of this Dask scheduler: tcp://host:8786."
        ),
    ] = None,
    json_: options.Json = None,
) -> None:
    """Measure what the outputs lose when one group of channels alone shrinks, for each group."""
    if plot is not None and plot.suffix.lower() not in _PICTURES:
        raise UsageError(f"--plot '{plot}' is of no kind that can be drawn: choose .svg or .html")
    check_outputs(plot, json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "measure") as status:
        measured = api.sensitivity(
            loaded,
            calibration=calibration,
            samples=samples,
            labels=labels,
            criterion=criterion,
            recover=recover,
            jobs=jobs,
            cluster=cluster,
            progress=status.update,
            **({} if ratios is None else {"ratios": _fractions(ratios)}),
        )
    _print_curves(measured)
    say(f"measured on {measured.calibration['source']} in {seconds['measure']:.0f} s")
    if plot is not None:
        save_text(_PICTURES[plot.suffix.lower()](measured, model.name), plot)
        say(f"wrote {plot}")
    if json_ == "-":
        print(measured.to_json(), end="")
    elif json_:
        save_text(measured.to_json(), json_)
        say(f"wrote {json_}")


def _fractions(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--ratios '{text}' are no fractions: write 0.25,0.5,0.75") from None


def _print_curves(measured: api.Sensitivity) -> None:
    """The most sensitive groups first: accuracy where there are labels, else the error of the outputs."""
    points = [k for k, ratio in enumerate(measured.ratios) if ratio]
    every = -(-len(points) // _COLUMNS)
    points = points[::-every][::-1]
    what = "error of the outputs" if measured.accuracy is None else "accuracy"
    table = grid(
        "group", "units", *(f"{measured.ratios[k]:.0%}" for k in points), title=f"{what}, by what is removed"
    )
    ordered = sorted(measured.curves, key=lambda curve: -curve.measured[-1])
    for curve in ordered[:ROWS]:
        more = f" +{len(curve.groups) - 1}" if len(curve.groups) > 1 else ""
        values = [heat.percent(curve.measured[k]) for k in points]
        if curve.accuracy is not None:
            values = [f"{curve.accuracy[k]:.1%}" for k in points]
        table.add_row(escape(curve.groups[0] + more), str(curve.size), *values)
    console.print(table)
    if len(ordered) > ROWS:
        say(f"… and {len(ordered) - ROWS} less sensitive groups: see --json and --plot")
    if measured.accuracy is not None:
        say(f"accuracy of the whole model: {measured.accuracy:.2%}")
