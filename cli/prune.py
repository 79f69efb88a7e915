"""``onnx-prune plan``, ``apply``, ``prune`` and ``verify``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer

from ..analysis.report.summary import analysis_json, cost_json, recovery_json
from ..passes.save import save_text
from . import options
from .app import app, examples
from .show import (
    check_outputs,
    console,
    emit,
    print_costs,
    report,
    say,
    say_measured,
    step,
    verdict_json,
)


@app.command(
    epilog=examples(
        "plan model.onnx -o plan.json --ratio 0.5",
        "plan model.onnx -o plan.json --macs 50% --multiple 8 --ignore conv1 --calibration images.npz",
    )
)
@options.chooses
def plan(
    model: options.ModelPath,
    output: options.Output,
    chosen: api.Options,
    export: options.Export = None,
    json_: options.Json = None,
) -> None:
    """Choose the channels to remove, as a file to review and replay."""
    check_outputs(output, export, json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with step(seconds, "analyze"):
        analysis = api.analyze(loaded)
    with step(seconds, "plan") as status:
        made = api.plan(
            analysis,
            **options.for_export(chosen, export),
            progress=status.update,
        )
        before = api.measure(loaded, analysis)
        after = api.predict(api.analyze(api.without_blocks(loaded, made.blocks)), made)
    save_text(made.to_json(), output)
    if export:
        save_text(api.export_lists(loaded, made), export)
    print_costs(before, after)
    say_measured(made)
    removed = sum(entry.size - len(entry.keep) for entry in made.entries)
    factors = f", {len(made.ranks)} layers become factors of lower rank" if made.ranks else ""
    say(f"wrote {output}: {removed} channels of {len(made.entries)} groups go{factors}")
    emit(
        json_,
        cost_json(before, after)
        | analysis_json(analysis)
        | {"plan": json.loads(made.to_json()), "plan_digest": made.digest, "seconds": seconds},
    )


@app.command(
    epilog=examples(
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
    check_outputs(output, json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded, chosen = api.load(model), api.load_plan(plan)
    with step(seconds, "apply") as status:
        if weights is not None:  # in place of fitting them
            chosen = replace(chosen, options=chosen.options | {"recover": "none"})
            smaller = api.take_weights(api.apply(loaded, chosen), api.load(weights))
        else:
            smaller = api.apply(
                loaded, chosen, calibration=calibration, samples=samples, progress=status.update
            )
    before, after = api.measure(loaded), api.measure(smaller)
    with step(seconds, "save"):
        api.save(smaller, output)
    print_costs(before, after)
    say(f"wrote {output}")
    emit(json_, cost_json(before, after) | {"plan_digest": chosen.digest, "seconds": seconds})


@app.command(
    epilog=examples(
        "prune model.onnx -o smaller.onnx --ratio 0.5",
        "prune model.onnx -o smaller.onnx --macs 50% --calibration images.npz --json -",
        "prune model.onnx -o smaller.onnx --ratio 0.5 --criterion l2 --recover none",
    )
)
@options.chooses
def prune(
    model: options.ModelPath,
    output: options.Output,
    chosen: api.Options,
    save_plan: options.SavePlan = None,
    export: options.Export = None,
    no_verify: options.NoVerify = False,
    json_: options.Json = None,
) -> None:
    """Plan, apply and verify in one go. Nothing is written when the certificate does not hold."""
    carry_out(model, output, chosen, save_plan, export, no_verify, json_)


def carry_out(
    model: Path,
    output: Path,
    chosen: api.Options,
    save_plan: Path | None,
    export: Path | None,
    no_verify: bool,
    json_: str | None,
) -> None:
    """Plan, apply, verify and write a model, and say what was done."""
    check_outputs(output, save_plan, export, json_)
    with console.status("load") as status:
        loaded = api.load(model)
        result = api.prune(
            loaded,
            **options.for_export(chosen, export),
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
    print_costs(result.before, result.after)
    say_measured(result.plan)
    emit(
        json_,
        cost_json(result.before, result.after)
        | analysis_json(result.analysis)
        | {
            "verify": verdict_json(verdict) if verdict else None,
            "recover": recovery_json(result.refits),
            "ranks": json.loads(result.plan.to_json()).get("ranks", {}),
            "calibration": result.calibration,
            "latency": result.plan.options.get("latency"),
            "accuracy": result.plan.options.get("accuracy"),
            "plan_digest": result.plan.digest,
            "seconds": result.seconds,
        },
    )
    if verdict:
        report(verdict)
    if result.plan.ranks:
        say(f"wrote {len(result.plan.ranks)} layers as factors of lower rank")
    if result.calibration is not None:
        say(f"calibrated on {result.calibration}")
    if result.refits:
        fitted = recovery_json(result.refits)
        say(
            f"fitted {fitted['layers']} layers again: mean error of their outputs"
            f" {fitted['error_before']:.1%} before, {fitted['error_after']:.1%} after"
        )
    say(f"wrote {output}")


@app.command(epilog=examples("verify model.onnx smaller.onnx --plan plan.json"))
def verify(
    model: options.ModelPath,
    pruned: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The pruned model.")],
    plan: Annotated[Path, typer.Option("--plan", metavar="PLAN.json", help="The plan it was pruned by.")],
    json_: options.Json = None,
) -> None:
    """Check that a pruned model equals the masked original."""
    check_outputs(json_)
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        original, smaller, chosen = api.load(model), api.load(pruned), api.load_plan(plan)
    with step(seconds, "verify"):
        verdict = api.verify(original, smaller, chosen)
    costs = cost_json(api.measure(original), api.measure(smaller))
    emit(json_, costs | {"verify": verdict_json(verdict), "seconds": seconds})
    report(verdict)
