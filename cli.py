"""The command ``onnx-prune``: parses, calls the API, prints. Tables and progress go to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import onnx_prune as api
import rich.box
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .analysis.errors import OnnxPruneError, UsageError
from .passes.save import check_writable, save_text

app = typer.Typer(
    name="onnx-prune",
    help="Prune ONNX models at graph level, prove the result, compile it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
console = Console(stderr=True)

FAILED_CHECK = 3
_ROWS = 25  # of a table on the screen; --json has them all

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to read.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
]
Ratio = Annotated[
    float | None,
    typer.Option("--ratio", help="Remove this fraction of the channels of every group, 0 to below 1."),
]
Macs = Annotated[
    str | None, typer.Option("--macs", metavar="PCT", help="Leave at most this share of the MACs: 50%.")
]
Params = Annotated[
    str | None,
    typer.Option("--params", metavar="PCT", help="Leave at most this share of the parameters: 50%."),
]
Multiple = Annotated[int, typer.Option("--multiple", help="Round kept channels up to a multiple of this.")]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="Leave this node, tensor or group whole. Repeatable."),
]
Criterion = Annotated[str, typer.Option("--criterion", help="How channels are ranked: l2, l1.")]
Recover = Annotated[str, typer.Option("--recover", help="none: kept weights stay untouched.")]
Target = Annotated[str, typer.Option("--target", help="What to compile for: cpu.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads to run with.")]


def _percent(text: str | None, option: str) -> float | None:
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"{option} '{text}' is no percentage: write 50%") from None


def _budget(ratio: float | None, macs: str | None, params: str | None) -> dict[str, float | None]:
    if sum(value is not None for value in (ratio, macs, params)) != 1:
        raise UsageError("give exactly one of --ratio, --macs and --params")
    return {"ratio": ratio, "macs": _percent(macs, "--macs"), "params": _percent(params, "--params")}


def _emit(target: str | None, data: dict[str, Any]) -> None:
    if target == "-":
        print(json.dumps(data, indent=2))
    elif target:
        save_text(json.dumps(data, indent=2) + "\n", target)


def _check_outputs(*paths: str | Path | None) -> None:
    for path in paths:
        if path is not None and str(path) != "-":
            check_writable(path)


@contextmanager
def _status(text: str) -> Iterator[Any]:
    with console.status(text) as status:
        yield status


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, box=rich.box.SIMPLE_HEAD)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    return table


def _cost_table(before: api.Cost, after: api.Cost) -> Table:
    table = _table("", "before", "after", "removed")
    for name, a, b in (
        ("parameters", before.params, after.params),
        ("MACs", before.macs, after.macs),
        ("weight bytes", before.bytes, after.bytes),
    ):
        table.add_row(name, f"{a:,}", f"{b:,}", f"{1 - b / a:.1%}" if a else "–")
    return table


def _cost_json(before: api.Cost, after: api.Cost) -> dict[str, Any]:
    return {
        "params": {"before": before.params, "after": after.params},
        "macs": {"before": before.macs, "after": after.macs},
        "bytes": {"before": before.bytes, "after": after.bytes},
    }


def _groups_json(analysis: api.Analysis) -> list[dict[str, Any]]:
    return [
        {
            "id": group.id,
            "size": group.size,
            "exactness": group.exactness,
            "params_per_unit": group.params_per_unit,
            "members": [asdict(member) for member in group.members],
            "limits": list(group.limits),
            "explanation": group.explain(),
        }
        for group in analysis.groups
    ]


def _pins_json(analysis: api.Analysis) -> list[dict[str, Any]]:
    return [asdict(pin) for pin in analysis.pins]


@app.command(epilog="Example: onnx-prune analyze model.onnx --json -")
def analyze(model: ModelPath, json_: Json = None) -> None:
    """Show which channels depend on which, and what is pinned."""
    _check_outputs(json_)
    with _status("analyzing"):
        loaded = api.load(model)
        analysis = api.analyze(loaded)
        cost = api.measure(loaded, analysis)
    table = _table("group", "units", "axes", "params/unit", "removal", title=f"{len(analysis.groups)} groups")
    for group in sorted(analysis.groups, key=lambda g: -g.size * g.params_per_unit)[:_ROWS]:
        table.add_row(
            group.id,
            str(group.size),
            str(len(group.members)),
            f"{group.params_per_unit:,.0f}",
            group.exactness,
        )
    console.print(table)
    if len(analysis.groups) > _ROWS:
        console.print(f"… and {len(analysis.groups) - _ROWS} smaller groups: see --json")
    reasons: dict[str, int] = {}
    for pin in analysis.pins:
        reasons[pin.reason] = reasons.get(pin.reason, 0) + 1
    pinned = _table("pinned because", "axes", title=f"{len(analysis.pins)} pinned axes of weights")
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1])[:_ROWS]:
        pinned.add_row(reason, str(count))
    console.print(pinned)
    console.print(f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.bytes:,} bytes of weights")
    _emit(
        json_,
        {
            "params": cost.params,
            "macs": cost.macs,
            "bytes": cost.bytes,
            "groups": _groups_json(analysis),
            "pinned": _pins_json(analysis),
        },
    )


@app.command(epilog="Example: onnx-prune plan model.onnx -o plan.json --macs 50% --ignore conv1")
def plan(
    model: ModelPath,
    output: Output,
    ratio: Ratio = None,
    macs: Macs = None,
    params: Params = None,
    multiple: Multiple = 1,
    ignore: Ignore = None,
    criterion: Criterion = "l2",
    recover: Recover = "none",
    json_: Json = None,
) -> None:
    """Choose the channels to remove, as a file to review and replay."""
    budget = _budget(ratio, macs, params)
    _check_outputs(output, json_)
    with _status("planning"):
        analysis = api.analyze(api.load(model))
        chosen = api.plan(
            analysis,
            **budget,
            multiple=multiple,
            ignore=ignore or (),
            criterion=criterion,
            recover=recover,
        )
    save_text(chosen.to_json(), output)
    removed = sum(entry.size - len(entry.keep) for entry in chosen.entries)
    console.print(
        f"{output}: {removed} channels of {len(chosen.entries)} groups go (digest {chosen.digest[:12]})"
    )
    _emit(json_, {"plan": json.loads(chosen.to_json()), "digest": chosen.digest})


@app.command(epilog="Example: onnx-prune apply model.onnx plan.json -o smaller.onnx")
def apply(
    model: ModelPath,
    plan: Annotated[Path, typer.Argument(metavar="PLAN.json", help="A plan made for this model.")],
    output: Output,
    json_: Json = None,
) -> None:
    """Remove the channels a plan names."""
    _check_outputs(output, json_)
    with _status("applying"):
        loaded = api.load(model)
        smaller = api.apply(loaded, api.load_plan(plan))
        before, after = api.measure(loaded), api.measure(smaller)
    api.save(smaller, output)
    console.print(_cost_table(before, after))
    console.print(f"wrote {output}")
    _emit(json_, _cost_json(before, after))


@app.command(epilog="Example: onnx-prune prune model.onnx -o smaller.onnx --ratio 0.5 --json -")
def prune(
    model: ModelPath,
    output: Output,
    ratio: Ratio = None,
    macs: Macs = None,
    params: Params = None,
    multiple: Multiple = 1,
    ignore: Ignore = None,
    criterion: Criterion = "l2",
    recover: Recover = "none",
    save_plan: Annotated[
        Path | None, typer.Option("--save-plan", help="Also write the plan that was carried out.")
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", help="Skip the certificate.")] = False,
    json_: Json = None,
) -> None:
    """Plan, apply and verify in one go. Nothing is written when the certificate does not hold."""
    budget = _budget(ratio, macs, params)
    _check_outputs(output, save_plan, json_)
    with _status("loading") as status:
        result = api.prune(
            api.load(model),
            **budget,
            multiple=multiple,
            ignore=ignore or (),
            criterion=criterion,
            recover=recover,
            check=not no_verify,
            progress=status.update,
        )
    console.print(_cost_table(result.before, result.after))
    verdict = result.verdict
    data = _cost_json(result.before, result.after) | {
        "verify": _verdict_json(verdict) if verdict else None,
        "groups": _groups_json(result.analysis),
        "pinned": _pins_json(result.analysis),
        "plan_digest": result.plan.digest,
        "seconds": result.seconds,
    }
    if verdict is None or verdict.ok:
        api.save(result.model, output)
        if save_plan:
            save_text(result.plan.to_json(), save_plan)
    _emit(json_, data)
    if verdict:
        _report(verdict)
    console.print(f"wrote {output}")


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
    console.print(f"certificate holds ({verdict.kind}): {verdict.message}")


@app.command(epilog="Example: onnx-prune verify model.onnx smaller.onnx --plan plan.json")
def verify(
    model: ModelPath,
    pruned: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The pruned model.")],
    plan: Annotated[Path, typer.Option("--plan", help="The plan it was pruned by.")],
    json_: Json = None,
) -> None:
    """Check that a pruned model equals the masked original."""
    _check_outputs(json_)
    with _status("verifying"):
        verdict = api.verify(api.load(model), api.load(pruned), api.load_plan(plan))
    _emit(json_, {"verify": _verdict_json(verdict)})
    _report(verdict)


@app.command("compile", epilog="Example: onnx-prune compile smaller.onnx -o smaller.so --target cpu")
def compile_(
    model: ModelPath, output: Output, target: Target = "cpu", threads: Threads = 1, json_: Json = None
) -> None:
    """Compile a model with Apache TVM into one shared library with its weights inside."""
    _check_outputs(output, json_)
    with _status("compiling"):
        artifact = api.compile(api.load(model), target, threads)
        artifact.save(output)
    console.print(f"wrote {output} ({output.stat().st_size:,} bytes)")
    _emit(json_, {"output": str(output), "bytes": output.stat().st_size, "target": target})


@app.command(epilog="Example: onnx-prune bench model.onnx smaller.onnx --against onnxruntime --threads 1")
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx", help="Models to time.")],
    target: Target = "cpu",
    against: Annotated[
        str, typer.Option("--against", help="The runtime that ratios compare with: onnxruntime.")
    ] = "onnxruntime",
    threads: Threads = 1,
    json_: Json = None,
) -> None:
    """Time models in TVM and in another runtime, interleaved, batch 1 where it is dynamic."""
    from .backends.cpu import CpuBackend
    from .backends.measure import compare
    from .backends.onnxruntime import OnnxRuntimeBackend

    _check_outputs(json_)
    if target != "cpu":
        raise UsageError(f"there is no target '{target}'; choose cpu")
    if against != OnnxRuntimeBackend.name:
        raise UsageError(f"there is no runtime '{against}' to compare with; choose {OnnxRuntimeBackend.name}")
    loaded = [(str(path), api.load(path).proto) for path in models]
    with _status("compiling and timing"):
        timings = compare(loaded, [OnnxRuntimeBackend(threads), CpuBackend(threads)], against)
    table = _table("model", "runtime", "median ms", f"÷ {against}")
    for timing in timings:
        table.add_row(timing.model, timing.runtime, f"{timing.median_ms:.3f}", f"{timing.ratio:.2f}")
    console.print(table)
    _emit(json_, {"runs": [asdict(timing) for timing in timings]})


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 3 a check did not hold."""
    try:
        app()  # reports wrong usage itself, with status 2
    except OnnxPruneError as error:
        _fail(str(error), error.exit_status)
    except Exception as error:
        if os.environ.get("ONNX_PRUNE_DEBUG"):
            raise
        _fail(
            f"{type(error).__name__}: {error} — this is a bug in onnx-prune;"
            " set ONNX_PRUNE_DEBUG=1 for the traceback",
            1,
        )


def _fail(message: str, status: int) -> None:
    console.print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", soft_wrap=True)
    sys.exit(status)
