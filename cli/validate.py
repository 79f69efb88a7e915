"""``onnx-prune validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.report.validation import described, sarif, totals, validation_json
from ..passes.save import save_text
from . import options
from .app import app, examples
from .show import check_outputs, console, emit, grid, say, step

_TOLD = 3  # weights of a rule on the screen; --json has them all


@app.command(
    epilog=examples(
        "validate model.onnx --profile nvidia-2:4",
        "validate model.onnx --profile ti-npu,qualcomm-htp --json - --sarif model.sarif",
        "validate model.onnx --profile ours.toml",
    )
)
def validate(
    model: options.ModelPath,
    profile: Annotated[
        list[str],
        typer.Option(
            "--profile",
            metavar="NAME[,NAME]",
            help="Profiles to hold the weights against, or files of them, *.toml. Repeatable.",
        ),
    ],
    json_: options.Json = None,
    sarif_: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Write what is missed as SARIF 2.1.0.")
    ] = None,
) -> None:
    """Hold the weights of a model against the rules of runtimes; status 3 when a hard one is broken."""
    check_outputs(json_, sarif_)
    names = [name.strip() for text in profile for name in text.split(",") if name.strip()]
    seconds: dict[str, float] = {}
    with step(seconds, "validate") as status:
        result = api.validate(model, names, progress=status.update)
    _print_totals(result)
    _print_missed(result)
    emit(json_, {"model": str(model), **validation_json(result), "seconds": seconds})
    if sarif_ is not None:
        save_text(json.dumps(sarif(result, model), indent=2) + "\n", sarif_)
        say(f"wrote {sarif_}")
    broken = sum(finding.fails for finding in result.findings)
    if broken:
        raise api.CheckError(f"hard rules are broken in {broken} places: see the table, or --json")


def _print_totals(result: api.Validation) -> None:
    table = grid("rule", "level", "weights", "satisfy", "of MACs")
    for total in totals(result.findings):
        share = f"{total.share:.1%}" if total.eligible else ""
        counts = str(total.eligible), str(total.satisfied)
        table.add_row(escape(f"{total.profile.name}/{total.rule.id}"), total.rule.level, *counts, share)
    console.print(table)


def _print_missed(result: api.Validation) -> None:
    """The first weights that miss each rule; the hard ones first."""
    missed: dict[tuple[bool, str], list[api.Finding]] = {}
    for finding in result.findings:
        if finding.shortfall is not None:
            rule = f"{finding.rule.level} {finding.profile.name}/{finding.rule.id}"
            missed.setdefault((not finding.fails, rule), []).append(finding)
    for (_, rule), findings in sorted(missed.items(), key=lambda item: item[0][0]):
        say(f"{rule} is missed by {len(findings)}:")
        for finding in findings[:_TOLD]:
            say(f"  '{finding.weight.name}' of {finding.weight.node.name}: {described(finding)}")
        if len(findings) > _TOLD:
            say("  …")
