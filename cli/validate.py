"""``onnx-prune validate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import onnx_prune as api
import typer
from rich.markup import escape

from ..analysis.report.summary import recovery_json
from ..analysis.report.validation import described, discovery_json, sarif, totals, validation_json
from ..passes.save import save_text
from . import options
from .app import app, examples
from .show import check_outputs, console, emit, grid, report, say, step, verdict_json

_TOLD = 3  # weights of a rule on the screen; --json has them all


@app.command(
    epilog=examples(
        "validate model.onnx --profile nvidia-2:4",
        "validate model.onnx --profile ti-npu,qualcomm-htp --json - --sarif model.sarif",
        "validate model.onnx --profile ours.toml",
        "validate model.onnx --discover",
        "validate model.onnx --profile nvidia-2:4 --fix -o sparse.onnx --calibration images.npz",
    )
)
def validate(
    model: options.ModelPath,
    profile: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME[,NAME]",
            help="Profiles to hold the weights against, or files of them, *.toml. Repeatable.",
        ),
    ] = None,
    discover: Annotated[
        bool,
        typer.Option(
            "--discover", help="Say which patterns the weights have, and how near they are to each profile."
        ),
    ] = False,
    fix: Annotated[
        bool,
        typer.Option("--fix", help="Write the nearest model that satisfies the profiles; with -o."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            "--calibration",
            metavar="DATA",
            help="Fit the layers that get zeros on unlabelled inputs: FILE.npz, a FOLDER of .npy files,"
            " module:function; without, the smallest weights go.",
        ),
    ] = None,
    samples: options.Samples = 256,
    json_: options.Json = None,
    sarif_: Annotated[
        Path | None, typer.Option("--sarif", metavar="FILE", help="Write what is missed as SARIF 2.1.0.")
    ] = None,
) -> None:
    """Hold the weights of a model against the rules of runtimes; status 3 when a hard one is broken."""
    if fix != (output is not None) or (calibration is not None and not fix):
        raise api.UsageError("--fix and -o belong together, and --calibration goes with them")
    if discover == bool(profile) or (discover and fix):
        raise api.UsageError("give --profile to hold the model against profiles, or --discover alone")
    check_outputs(output, json_, sarif_)
    names = [name.strip() for text in profile or () for name in text.split(",") if name.strip()]
    seconds: dict[str, float] = {}
    if discover:
        _discover(model, json_, sarif_, seconds)
        return
    fixed: api.Satisfied | None = None
    with step(seconds, "validate") as status:
        if output is None:
            result = api.validate(model, names, progress=status.update)
        else:
            fixed = api.satisfy(
                api.load(model), names, calibration=calibration, samples=samples, progress=status.update
            )
            result = fixed.after
            api.save(fixed.model, output)
    _print_totals(result)
    _print_missed(result)
    data = {"model": str(model), **validation_json(result), "fix": None, "seconds": seconds}
    if fixed is not None:
        data["fix"] = _fix_json(fixed)
        _say_fixed(fixed, output)
    emit(json_, data)
    if sarif_ is not None:
        save_text(json.dumps(sarif(result, output or model), indent=2) + "\n", sarif_)
        say(f"wrote {sarif_}")
    broken = sum(finding.fails for finding in result.findings)
    if broken:
        raise api.CheckError(f"hard rules are broken in {broken} places: see the table, or --json")


def _discover(model: Path, json_: str | None, sarif_: Path | None, seconds: dict[str, float]) -> None:
    if sarif_ is not None:
        raise api.UsageError("--discover finds nothing wrong that --sarif could tell")
    with step(seconds, "discover") as status:
        found = api.discover(model, progress=status.update)
    with step(seconds, "validate") as status:
        result = api.validate(model, sorted(api.all_profiles()), progress=status.update)
    groups = grid("non-zeros", "weights", "satisfy", "of MACs", "groups that hold", title="groups")
    for one in found.groups:
        counts = str(one.weights), str(one.satisfied), f"{one.macs[1] / max(1, one.macs[0]):.1%}"
        alike = f", {one.pattern.shared} outputs alike" if one.pattern.shared > 1 else ""
        groups.add_row(
            f"{one.pattern.nonzeros} of {one.pattern.of} inputs{alike}", *counts, f"{one.groups:.1%}"
        )
    console.print(groups)
    blocks = grid("zeros in blocks of", "of the weights", "of MACs", title="blocks, outputs by inputs")
    for block in found.blocks:
        blocks.add_row(f"{block.outputs}x{block.inputs}", f"{block.zeros:.1%}", f"{block.skipped:.1%}")
    console.print(blocks)
    _print_totals(result, everything=False)
    data = {"model": str(model), **discovery_json(found), "profiles": validation_json(result)["rules"]}
    emit(json_, data | {"seconds": seconds})


def _fix_json(fixed: api.Satisfied) -> dict[str, Any]:
    return {
        "missed_before": sum(finding.shortfall is not None for finding in fixed.before.findings),
        "zeroed": dict(fixed.zeroed),
        "groups": [_entry(entry) for one in fixed.aligned for entry in one.plan.entries],
        "verify": [verdict_json(one.verdict) for one in fixed.aligned if one.verdict is not None],
        "recover": recovery_json(fixed.refits),
    }


def _entry(entry: api.Entry) -> dict[str, Any]:
    return {"group": entry.group, "before": entry.size, "after": len(entry.keep)}


def _say_fixed(fixed: api.Satisfied, output: Path | None) -> None:
    for one in fixed.aligned:
        say(f"{len(one.plan.entries)} groups of channels became multiples")
        if one.verdict is not None:
            report(one.verdict)
    missed = [sum(f.shortfall is not None for f in one.findings) for one in (fixed.before, fixed.after)]
    count = sum(fixed.zeroed.values())
    say(
        f"wrote {output}: {count:,} weights became zero; rules were missed {missed[0]} times, now {missed[1]}"
    )


def _print_totals(result: api.Validation, everything: bool = True) -> None:
    """What each rule says; those that are about no weight where ``everything`` is told."""
    table = grid("rule", "level", "weights", "satisfy", "of MACs", "near")
    for total in totals(result.findings):
        shares = (f"{total.share:.1%}", f"{total.near:.1%}") if total.eligible else ("", "")
        if not total.eligible and not everything:
            continue
        counts = str(total.eligible), str(total.satisfied)
        table.add_row(escape(f"{total.profile.name}/{total.rule.id}"), total.rule.level, *counts, *shares)
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
