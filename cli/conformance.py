"""``onnx-prune conformance``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import onnx_prune as api
import typer
from rich.markup import escape

from . import options
from .app import app, examples
from .show import check_outputs, console, emit, grid, say, step

_TOLD = 10  # failures on the screen; --json has them all


@app.command(
    epilog=examples(
        "conformance --profile nvidia-2:4 -o suite",
        "conformance suite --run onnxruntime",
        "conformance suite --run 'mytool {model} {inputs} {outputs}' --json results.json",
    )
)
def conformance(
    suite: Annotated[
        Path | None, typer.Argument(metavar="SUITE", help="The folder of a suite to run.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            "--profile", metavar="NAME", help="Write the suite of this profile, or of a file *.toml."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where to write it: a new folder.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUNTIME",
            help="onnxruntime, tvm, or a command that reads {model} and {inputs}/input_0.pb and writes"
            " {outputs}/output_0.pb; status 77 says that it does not support a model.",
        ),
    ] = None,
    json_: options.Json = None,
) -> None:
    """Write models that test how a runtime handles a profile's weights, or run them; status 3 if it fails."""
    writes, runs = profile is not None and output is not None, suite is not None and run is not None
    if writes == runs or (profile is None) != (output is None) or (suite is None) != (run is None):
        raise api.UsageError("give --profile and -o to write a suite, or a suite and --run to run it")
    check_outputs(json_)
    seconds: dict[str, float] = {}
    if profile is not None and output is not None:
        with step(seconds, "write") as status:
            written = api.write_suite(profile, output, progress=status.update)
        say(f"wrote {len(written.entries)} cases for {written.profile} to {output}")
        emit(json_, {"profile": written.profile, "cases": len(written.entries), "seconds": seconds})
        return
    assert suite is not None and run is not None
    with step(seconds, "run") as status:
        results = list(api.run_suite(suite, run, progress=status.update))
    _print_results(results)
    emit(
        json_, {"suite": str(suite), "runtime": run, "cases": [_json(r) for r in results], "seconds": seconds}
    )
    failed = sum(result.outcome == "failed" for result in results)
    if failed:
        raise api.CheckError(f"{failed} of {len(results)} cases failed")


def _json(result: api.CaseResult) -> dict[str, Any]:
    return {
        "case": result.entry.name,
        "rule": result.entry.rule,
        "about": result.entry.about,
        "sparse": result.entry.sparse,
        "outcome": result.outcome,
        "text": result.text,
        "took": None if result.took is None else list(result.took),
    }


def _print_results(results: list[api.CaseResult]) -> None:
    tells = any(result.took is not None for result in results)
    table = grid("rule", "cases", "passed", "failed", "unsupported", *(["taken as sparse"] if tells else []))
    for rule in dict.fromkeys(result.entry.rule for result in results):
        found = [result for result in results if result.entry.rule == rule]
        outcomes = Counter(result.outcome for result in found)
        told = [result for result in found if result.took is not None]
        cells = [str(outcomes[outcome]) for outcome in ("passed", "failed", "unsupported")]
        if tells:
            cells.append(f"{sum(bool(r.took) for r in told)} of {sum(r.entry.sparse for r in told)}")
        table.add_row(escape(rule), str(len(found)), *cells)
    console.print(table)
    failed = [result for result in results if result.outcome == "failed"]
    for result in failed[:_TOLD]:
        say(f"{result.entry.name}: {result.text}")
    if len(failed) > _TOLD:
        say(f"… and {len(failed) - _TOLD} more: see --json")
