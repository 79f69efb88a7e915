"""``onnx-prune compile`` and ``bench``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from . import options
from .app import app, examples
from .show import check_outputs, console, emit, grid, say, step


@app.command("compile", epilog=examples("compile smaller.onnx -o smaller.so --target cpu"))
def compile_(
    model: options.ModelPath,
    output: options.Output,
    target: options.Target = "cpu",
    threads: options.Threads = 1,
    json_: options.Json = None,
) -> None:
    """Compile a model with Apache TVM into one shared library with its weights inside."""
    # A description of the library's inputs and outputs goes beside it.
    check_outputs(output, output.with_name(output.name + ".json"), json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "compile"):
        artifact = api.compile(loaded, target, threads)
    with step(seconds, "save"):
        artifact.save(output)
    size = output.stat().st_size
    say(f"wrote {output} ({size:,} bytes)")
    emit(
        json_,
        {"output": str(output), "bytes": size, "target": target, "threads": threads, "seconds": seconds},
    )


@app.command(
    epilog=examples(
        "bench model.onnx", "bench model.onnx smaller.onnx --against onnxruntime --threads 2 --json -"
    )
)
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", help="Models to time.")],
    target: options.Target = "cpu",
    against: Annotated[
        str,
        typer.Option("--against", metavar="NAME", help="The runtime ratios compare with: onnxruntime."),
    ] = "onnxruntime",
    threads: options.Threads = 1,
    json_: options.Json = None,
) -> None:
    """Time models in TVM and in another runtime, interleaved; sizes known only at run time are 1."""
    check_outputs(json_)
    seconds: dict[str, float] = {}
    with step(seconds, "bench"):
        timings = api.bench([(str(path), api.load(path)) for path in models], target, against, threads)
    table = grid("model", "runtime", "median ms", f"÷ {against}")
    for timing in timings:
        table.add_row(escape(timing.model), timing.runtime, f"{timing.median_ms:.3f}", f"{timing.ratio:.2f}")
    console.print(table)
    emit(json_, {"runs": [asdict(timing) for timing in timings], "seconds": seconds})
