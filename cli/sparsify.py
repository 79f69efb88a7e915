"""``onnx-prune sparsify``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.report.summary import cost_json, export_json, recovery_json, sparse_json
from . import options
from .app import app, examples
from .show import ROWS, check_outputs, console, emit, grid, say, step, verdict_json


@app.command(
    epilog=examples(
        "sparsify model.onnx -o sparse.onnx --pattern 2:4 --calibration images.npz",
        "sparsify model.onnx -o sparse.onnx --pattern 4x1@75% --ignore conv1 --ignore fc",
        "sparsify model.onnx -o sparse.onnx --pattern 80% --json -",
        "sparsify model.onnx -o sparse.onnx --pattern auto --latency 60%",
        "sparsify model.onnx -o sparse.onnx --pattern 90% --sparse-initializers",
    )
)
def sparsify(
    model: options.ModelPath,
    output: options.Output,
    pattern: Annotated[
        str,
        typer.Option(
            "--pattern",
            metavar="PATTERN",
            help="2:4 keeps 2 of 4 consecutive inputs; 4x1@75% zeroes blocks of 4 outputs by 1 input;"
            " 80% zeroes single weights; auto takes for each layer what --latency needs.",
        ),
    ],
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    ignore: Annotated[
        list[str] | None,
        typer.Option("--ignore", metavar="NAME", help="Leave this node or weight dense. Repeatable."),
    ] = None,
    latency: options.Latency = None,
    target: options.TimedOn = None,
    sparse_initializers: Annotated[
        bool,
        typer.Option(
            "--sparse-initializers",
            help="Store weights as ONNX sparse initializers where the file gets smaller: the same model for"
            " ONNX Runtime, which is checked; other tools may not read them.",
        ),
    ] = False,
    json_: options.Json = None,
) -> None:
    """Put zeros into weights by a pattern; the layers are fitted to it on calibration inputs."""
    check_outputs(output, json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "sparsify") as status:
        result = api.sparsify(
            loaded,
            pattern,
            calibration=calibration,
            samples=samples,
            ignore=ignore or (),
            latency=latency,
            target=target or "cpu",
            progress=status.update,
        )
    export = None
    if sparse_initializers:
        with step(seconds, "store sparsely"):
            export = api.as_sparse_initializers(result.model)
            api.check_sparse_export(result.model, export.model)
    with step(seconds, "save"):
        api.save(export.model if export else result.model, output)
    _print_layers(result)
    before, after = api.measure(loaded), api.measure(result.model)
    emit(
        json_,
        cost_json(before, after)
        | sparse_json(result.layers)
        | {
            "pattern": pattern,
            "ratio": result.ratio,
            "verify": verdict_json(result.verdict),
            "recover": recovery_json(result.refits),
            "calibration": result.calibration,
            "latency": None if result.time is None else {"asked": latency, **asdict(result.time)},
            "sparse_initializers": export_json(export) if export else None,
            "seconds": seconds,
        },
    )
    if result.time is not None:
        say(f"a run takes {result.time.ms:.3f} ms, {result.time.share:.1%} of the dense model's")
    say(f"calibrated on {result.calibration}")
    say(f"wrote {output}: {result.ratio:.1%} of the weights of sparse layers are zero")
    if export:
        _say_export(export)


def _say_export(export: api.SparseExport) -> None:
    say(
        f"{len(export.sparse)} weights are stored sparsely, which is smaller where more than 2/3 are zero"
        f" (float32); {export.larger} stay dense, for which it would be larger;"
        f" file: {export.before:,} bytes → {export.after:,}"
    )


def _print_layers(result: api.Sparsified) -> None:
    table = grid("weight", "shape", "pattern", "zeros", title=f"{len(result.layers)} matrices")
    for layer in sorted(result.layers, key=lambda layer: layer.density)[:ROWS]:
        shape = "×".join(map(str, layer.shape))
        table.add_row(escape(layer.weight), shape, str(layer.pattern or "dense"), f"{1 - layer.density:.1%}")
    console.print(table)
    if len(result.layers) > ROWS:
        say(f"… and {len(result.layers) - ROWS} denser ones: see --json")
    for reason in dict.fromkeys(layer.reason for layer in result.layers if layer.reason):
        count = sum(layer.reason == reason for layer in result.layers)
        say(f"{count} stay dense: {reason}")
