"""The command ``onnx-prune``: parses, calls the API, prints. Tables and progress go to stderr."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, TextIO

import onnx_prune as api
import rich.box
import typer
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from . import options
from .analysis.errors import OnnxPruneError, PluginWarning, UsageError
from .analysis.explain import explain as explain_axes
from .analysis.explain import find_place
from .analysis.report.summary import Row, analysis_json, cost_json, cost_rows, pin_reasons, recovery_json
from .passes.save import check_writable, save_text


def _examples(*commands: str) -> str:
    return "\n\n".join(["Examples:", *(f"`onnx-prune {command}`" for command in commands)])


app = typer.Typer(
    name="onnx-prune",
    help="Prune ONNX models at graph level, prove the result, compile it.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 3 a check did not hold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)

_ROWS = 25  # of a table on the screen; --json has them all


def _percent(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"{option} '{text}' is no percentage: write 50%") from None


def _budget(
    ratio: float | None, macs: str | None, params: str | None, drop: list[str] | None
) -> dict[str, Any]:
    given = sum(value is not None for value in (ratio, macs, params))
    if given > 1 or not (given or drop):
        raise UsageError("give exactly one of --ratio, --macs and --params (none with --drop alone)")
    return {"ratio": ratio, "macs": _percent(macs, "--macs"), "params": _percent(params, "--params")}


def _emit(target: str | None, data: dict[str, Any]) -> None:
    text = json.dumps(data, indent=2, allow_nan=False) if target else ""
    if target == "-":
        print(text)
    elif target:
        save_text(text + "\n", target)


def _check_outputs(*paths: str | Path | None) -> None:
    for path in paths:
        if path is not None and str(path) != "-":
            check_writable(path)


@contextmanager
def _step(seconds: dict[str, float], name: str) -> Iterator[Status]:
    """Show what is going on, and note how long it took."""
    start = time.perf_counter()
    with console.status(name) as status:
        yield status
    seconds[name] = round(time.perf_counter() - start, 4)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _print_rows(rows: Sequence[Row]) -> None:
    table = _table("", "before", "after", "change")
    for row in rows:
        table.add_row(row.name, row.before, row.after, row.change)
    console.print(table)


def _print_costs(before: api.Cost, after: api.Cost) -> None:
    _print_rows(cost_rows(before, after))
    _print_uncounted(before)


def _print_uncounted(cost: api.Cost) -> None:
    if cost.uncounted:
        names = ", ".join(cost.uncounted[:3]) + (", …" if len(cost.uncounted) > 3 else "")
        console.print(f"MACs leave out {len(cost.uncounted)} nodes: {names}", markup=False)


def _say(text: str) -> None:
    # Names of files and tensors may hold what rich takes for markup, and lines must stay whole.
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_blocks(analysis: api.Analysis) -> None:
    if not analysis.blocks:
        return
    table = _table(
        "block", "params", "MACs", "nodes", title=f"{len(analysis.blocks)} residual blocks for --drop"
    )
    for block in analysis.blocks[:_ROWS]:
        table.add_row(escape(block.id), f"{block.params:,}", f"{block.macs:,}", str(len(block.nodes)))
    console.print(table)


@app.command(
    epilog=_examples(
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
    _check_outputs(graph, json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "load"):
        loaded = api.load(model)
    with _step(seconds, "analyze"):
        analysis = api.analyze(loaded)
        cost = api.measure(loaded, analysis)
    told = explain_axes(analysis, *find_place(analysis, explain)) if explain is not None else None
    if graph is not None:
        from .analysis.report import picture  # what lays it out takes a while to load

        with _step(seconds, "draw"):
            draw = picture.svg if graph.suffix.lower() == ".svg" else picture.page
            save_text(draw(analysis, model.name), graph)
    if told is None:
        _print_analysis(analysis, cost)
    for sentence in told.sentences() if told else ():
        _say(sentence)
    if graph is not None:
        _say(f"wrote {graph}")
    # Analysis removes nothing: before and after are the same, in the form every command gives.
    data = cost_json(cost, cost) | analysis_json(analysis) | {"seconds": seconds}
    _emit(json_, data | ({"explanation": told.to_json()} if told else {}))


def _print_analysis(analysis: api.Analysis, cost: api.Cost) -> None:
    table = _table("group", "units", "axes", "params/unit", "removal", title=f"{len(analysis.groups)} groups")
    for group in sorted(analysis.groups, key=lambda g: -g.size * g.params_per_unit)[:_ROWS]:
        cells = (str(group.size), str(len(group.members)), f"{group.params_per_unit:,.0f}", group.exactness)
        table.add_row(escape(group.id), *cells)
    console.print(table)
    if len(analysis.groups) > _ROWS:
        _say(f"… and {len(analysis.groups) - _ROWS} smaller groups: see --json")
    _print_blocks(analysis)
    pinned = _table("pinned because", "axes", title=f"{len(analysis.pins)} pinned axes of weights")
    for reason, count in pin_reasons(analysis)[:_ROWS]:
        pinned.add_row(escape(reason), str(count))
    console.print(pinned)
    _say(f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.bytes:,} bytes of weights")
    _print_uncounted(cost)


@app.command(
    epilog=_examples(
        "plan model.onnx -o plan.json --ratio 0.5",
        "plan model.onnx -o plan.json --macs 50% --multiple 8 --ignore conv1 --calibration images.npz",
    )
)
def plan(
    model: options.ModelPath,
    output: options.Output,
    ratio: options.Ratio = None,
    macs: options.Macs = None,
    params: options.Params = None,
    multiple: options.Multiple = 1,
    ignore: options.Ignore = None,
    criterion: options.Criterion = None,
    recover: options.Recover = None,
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    drop: options.Drop = None,
    export: options.Export = None,
    json_: options.Json = None,
) -> None:
    """Choose the channels to remove, as a file to review and replay."""
    budget = _budget(ratio, macs, params, drop)
    _check_outputs(output, export, json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "load"):
        loaded = api.load(model)
    with _step(seconds, "analyze"):
        analysis = api.analyze(loaded)
    with _step(seconds, "plan") as status:
        chosen = api.plan(
            analysis,
            **budget,
            multiple=multiple,
            ignore=ignore or (),
            criterion=criterion,
            recover=recover,
            calibration=calibration,
            samples=samples,
            drop=drop or (),
            progress=status.update,
        )
        before = api.measure(loaded, analysis)
        after = api.predict(api.analyze(api.without_blocks(loaded, chosen.blocks)), chosen)
    save_text(chosen.to_json(), output)
    if export:
        save_text(api.export_lists(loaded, chosen), export)
    _print_costs(before, after)
    removed = sum(entry.size - len(entry.keep) for entry in chosen.entries)
    _say(f"wrote {output}: {removed} channels of {len(chosen.entries)} groups go")
    _emit(
        json_,
        cost_json(before, after)
        | analysis_json(analysis)
        | {"plan": json.loads(chosen.to_json()), "plan_digest": chosen.digest, "seconds": seconds},
    )


@app.command(
    epilog=_examples(
        "apply model.onnx plan.json -o smaller.onnx",
        "apply model.onnx plan.json -o smaller.onnx --calibration images.npz",
    )
)
def apply(
    model: options.ModelPath,
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan made for this model.")],
    output: options.Output,
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    weights: options.Weights = None,
    json_: options.Json = None,
) -> None:
    """Remove the channels a plan names."""
    _check_outputs(output, json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "load"):
        loaded, chosen = api.load(model), api.load_plan(plan)
    with _step(seconds, "apply") as status:
        if weights is not None:  # in place of fitting them
            chosen = replace(chosen, options=chosen.options | {"recover": "none"})
            smaller = api.take_weights(api.apply(loaded, chosen), api.load(weights))
        else:
            smaller = api.apply(
                loaded, chosen, calibration=calibration, samples=samples, progress=status.update
            )
    before, after = api.measure(loaded), api.measure(smaller)
    with _step(seconds, "save"):
        api.save(smaller, output)
    _print_costs(before, after)
    _say(f"wrote {output}")
    _emit(json_, cost_json(before, after) | {"plan_digest": chosen.digest, "seconds": seconds})


@app.command(
    epilog=_examples(
        "prune model.onnx -o smaller.onnx --ratio 0.5",
        "prune model.onnx -o smaller.onnx --macs 50% --calibration images.npz --json -",
        "prune model.onnx -o smaller.onnx --ratio 0.5 --criterion l2 --recover none",
    )
)
def prune(
    model: options.ModelPath,
    output: options.Output,
    ratio: options.Ratio = None,
    macs: options.Macs = None,
    params: options.Params = None,
    multiple: options.Multiple = 1,
    ignore: options.Ignore = None,
    criterion: options.Criterion = None,
    recover: options.Recover = None,
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    drop: options.Drop = None,
    save_plan: Annotated[
        Path | None,
        typer.Option("--save-plan", metavar="PLAN.json", help="Also write the plan that was carried out."),
    ] = None,
    export: options.Export = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the certificate.")] = False,
    json_: options.Json = None,
) -> None:
    """Plan, apply and verify in one go. Nothing is written when the certificate does not hold."""
    budget = _budget(ratio, macs, params, drop)
    _check_outputs(output, save_plan, export, json_)
    with console.status("load") as status:
        loaded = api.load(model)
        result = api.prune(
            loaded,
            **budget,
            multiple=multiple,
            ignore=ignore or (),
            criterion=criterion,
            recover=recover,
            calibration=calibration,
            samples=samples,
            drop=drop or (),
            check=not no_verify,
            progress=status.update,
        )
    verdict = result.verdict
    if verdict is None or verdict.ok:
        if save_plan:
            save_text(result.plan.to_json(), save_plan)
        if export:
            save_text(api.export_lists(loaded, result.plan), export)
        api.save(result.model, output)
    _print_costs(result.before, result.after)
    _emit(
        json_,
        cost_json(result.before, result.after)
        | analysis_json(result.analysis)
        | {
            "verify": _verdict_json(verdict) if verdict else None,
            "recover": recovery_json(result.refits),
            "calibration": result.calibration,
            "plan_digest": result.plan.digest,
            "seconds": result.seconds,
        },
    )
    if verdict:
        _report(verdict)
    if result.calibration is not None:
        _say(f"calibrated on {result.calibration}")
    if result.refits:
        fitted = recovery_json(result.refits)
        _say(
            f"fitted {fitted['layers']} layers again: mean error of their outputs"
            f" {fitted['error_before']:.1%} before, {fitted['error_after']:.1%} after"
        )
    _say(f"wrote {output}")


def _verdict_json(verdict: api.Verdict) -> dict[str, Any]:
    error = verdict.max_relative_error
    return {
        "ok": verdict.ok,
        "kind": verdict.kind,
        # JSON has no infinity: an output of another shape has no error to speak of.
        "max_relative_error": error if error < float("inf") else None,
        "message": verdict.message,
    }


def _report(verdict: api.Verdict) -> None:
    if not verdict.ok:
        raise api.CheckError(f"the certificate does not hold: {verdict.message}")
    _say(f"certificate holds ({verdict.kind}): {verdict.message}")


@app.command(epilog=_examples("verify model.onnx smaller.onnx --plan plan.json"))
def verify(
    model: options.ModelPath,
    pruned: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The pruned model.")],
    plan: Annotated[Path, typer.Option("--plan", metavar="PLAN.json", help="The plan it was pruned by.")],
    json_: options.Json = None,
) -> None:
    """Check that a pruned model equals the masked original."""
    _check_outputs(json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "load"):
        original, smaller, chosen = api.load(model), api.load(pruned), api.load_plan(plan)
    with _step(seconds, "verify"):
        verdict = api.verify(original, smaller, chosen)
    costs = cost_json(api.measure(original), api.measure(smaller))
    _emit(json_, costs | {"verify": _verdict_json(verdict), "seconds": seconds})
    _report(verdict)


@app.command("compile", epilog=_examples("compile smaller.onnx -o smaller.so --target cpu"))
def compile_(
    model: options.ModelPath,
    output: options.Output,
    target: options.Target = "cpu",
    threads: options.Threads = 1,
    json_: options.Json = None,
) -> None:
    """Compile a model with Apache TVM into one shared library with its weights inside."""
    # A description of the library's inputs and outputs goes beside it.
    _check_outputs(output, output.with_name(output.name + ".json"), json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "load"):
        loaded = api.load(model)
    with _step(seconds, "compile"):
        artifact = api.compile(loaded, target, threads)
    with _step(seconds, "save"):
        artifact.save(output)
    size = output.stat().st_size
    _say(f"wrote {output} ({size:,} bytes)")
    _emit(
        json_,
        {"output": str(output), "bytes": size, "target": target, "threads": threads, "seconds": seconds},
    )


@app.command(
    epilog=_examples(
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
    _check_outputs(json_)
    seconds: dict[str, float] = {}
    with _step(seconds, "bench"):
        timings = api.bench([(str(path), api.load(path)) for path in models], target, against, threads)
    table = _table("model", "runtime", "median ms", f"÷ {against}")
    for timing in timings:
        table.add_row(escape(timing.model), timing.runtime, f"{timing.median_ms:.3f}", f"{timing.ratio:.2f}")
    console.print(table)
    _emit(json_, {"runs": [asdict(timing) for timing in timings], "seconds": seconds})


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 3 a check did not hold."""
    debug = bool(os.environ.get("ONNX_PRUNE_DEBUG"))
    if not debug:  # what libraries warn their developers of says nothing to a user
        warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=PluginWarning)
    warnings.showwarning = _warn
    try:
        app()  # reports wrong usage and Ctrl-C itself
    except OnnxPruneError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        if debug:
            raise
        _fail(
            f"{type(error).__name__}: {error} — this is a bug in onnx-prune;"
            " set ONNX_PRUNE_DEBUG=1 for the traceback",
            1,
        )


def _warn(
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


def _fail(message: str, status: int) -> None:
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True, highlight=False)
    sys.exit(status)
