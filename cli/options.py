"""Options and arguments that commands share."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import onnx_prune as api
import typer

from ..analysis.errors import UsageError
from ..passes.criteria import CRITERIA
from ..passes.options import TARGET
from .amounts import budget, fraction, limits

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to read.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
]
Database = Annotated[
    Path | None,
    typer.Option("--database", metavar="FOLDER", help="Kernels that 'onnx-prune tune' measured."),
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio", metavar="R", help="Remove this fraction of the channels of every group: 0 to below 1."
    ),
]
Macs = Annotated[
    str | None,
    typer.Option("--macs", metavar="BUDGET", help="Leave at most that many MACs: a share, 50%, or 200M."),
]
Params = Annotated[
    str | None,
    typer.Option("--params", metavar="BUDGET", help="Leave at most that many parameters: 50%, or 5M."),
]
Bytes = Annotated[
    str | None,
    typer.Option("--bytes", metavar="BUDGET", help="Leave at most that many bytes of weights: 50%, or 10MB."),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", metavar="BUDGET", help="Peak of the activations alive at once, at most: 50%, or 2MB."
    ),
]
Latency = Annotated[
    str | None,
    typer.Option(
        "--latency",
        metavar="TIME",
        help="What a run may take on --target, measured: 60%, or 4ms.",
    ),
]
TimedOn = Annotated[
    str | None,
    typer.Option("--target", metavar="NAME", help="Where --latency is measured: cpu (TVM) or onnxruntime."),
]
LatencyTable = Annotated[
    Path | None,
    typer.Option(
        "--latency-table",
        metavar="TABLE.json",
        help="Foretell --latency from what 'onnx-prune latency' measured, in place of measuring it.",
    ),
]
AccuracyDrop = Annotated[
    str | None,
    typer.Option(
        "--accuracy-drop",
        metavar="PCT",
        help="The largest cut that loses at most that many points of accuracy on labelled data: 1%.",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="DATA",
        help="Classes of the calibration inputs, to measure accuracy: FILE.npy or module:function.",
    ),
]
Multiple = Annotated[
    int | None,
    typer.Option(
        "--multiple",
        metavar="N",
        help="Round kept channels up to a multiple of N; by default to what suits each axis, 1 for none.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="Leave this node, tensor or group whole. Repeatable."),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=MIN:MAX",
        help="How many units of the named groups stay: 8:32, 25%:75%, 25%:. Repeatable.",
    ),
]
Exact = Annotated[
    bool,
    typer.Option("--exact", help="Share budgets out by integer programming, which takes up to a minute."),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME",
        help="How channels are ranked: obs (the default, measured),"
        f" {', '.join(sorted(CRITERIA.keys() - {'obs'}))}, or one of a plug-in.",
    ),
]
Recover = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="NAME",
        help="least-squares: fit the layers that stay again (the default); none.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Unlabelled inputs: FILE.npz, a FOLDER of .npy files, module:function; without, synthetic ones.",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="Use at most that many calibration inputs.")
]
Sensitivity = Annotated[
    Path | None,
    typer.Option(
        "--sensitivity",
        metavar="FILE.json",
        help="Share a budget out by measured curves: what 'onnx-prune sensitivity --json' wrote.",
    ),
]
Rotate = Annotated[
    bool,
    typer.Option(
        "--rotate/--no-rotate",
        help="Where layers are fitted again, turn channels that only linear operators use to principal axes.",
    ),
]
Steps = Annotated[
    int,
    typer.Option(
        "--steps", metavar="N", min=1, help="Get there in N steps, and rank what is left again after each."
    ),
]
Drop = Annotated[
    list[str] | None,
    typer.Option(
        "--drop", metavar="BLOCK", help="Remove this residual block whole (analyze lists them). Repeatable."
    ),
]
LowRank = Annotated[
    bool,
    typer.Option(
        "--low-rank",
        help="Where it costs less than removing channels, write layers as factors of lower rank.",
    ),
]
Export = Annotated[
    Path | None,
    typer.Option("--export", metavar="FILE.json", help="Also write the kept positions of every weight."),
]
SavePlan = Annotated[
    Path | None,
    typer.Option("--save-plan", metavar="PLAN.json", help="Also write the plan that was carried out."),
]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Skip the certificate.")]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="TRAINED.onnx", help="Take weights that were trained elsewhere."),
]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="NAME",
        help="What to compile for: cpu is this machine's, arm:cortex-a72, cuda:sm_80.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision", metavar="NAME", help="What a GPU's tensor cores multiply: tf32 or fp16, for 2:4."
    ),
]
Mcpu = Annotated[
    str | None, typer.Option("--mcpu", metavar="CPU", help="The processor of --target arm, by LLVM's name.")
]
Mattr = Annotated[
    str | None, typer.Option("--mattr", metavar="FEATURES", help="Features of it: +dotprod,-sve.")
]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads to run with.")]


def _choice(
    ratio: Ratio = None,
    macs: Macs = None,
    params: Params = None,
    bytes_: Bytes = None,
    memory: Memory = None,
    latency: Latency = None,
    target: TimedOn = None,
    latency_table: LatencyTable = None,
    accuracy_drop: AccuracyDrop = None,
    labels: Labels = None,
    multiple: Multiple = None,
    ignore: Ignore = None,
    limit: Limit = None,
    exact: Exact = False,
    criterion: Criterion = None,
    recover: Recover = None,
    calibration: Calibration = None,
    samples: Samples = 256,
    rotate: Rotate = True,
    steps: Steps = 1,
    drop: Drop = None,
    sensitivity: Sensitivity = None,
    low_rank: LowRank = False,
) -> api.Options:
    """What commands that choose channels are told, as the API takes it."""
    budgets = [value for value in (macs, params, bytes_, memory, latency, accuracy_drop) if value is not None]
    if (ratio is not None and budgets) or not (ratio is not None or budgets or drop):
        raise UsageError(
            "give exactly one of --ratio and budgets, one or several: --macs, --params, --bytes, --memory,"
            " --latency or --accuracy-drop (none with --drop alone)"
        )
    if target is not None and latency is None:
        raise UsageError("--target says where --latency is measured, which is not given")
    if latency_table is not None and latency is None:
        raise UsageError("--latency-table says how long --latency takes, which is not given")
    return {
        "ratio": ratio,
        "macs": budget(macs, "macs"),
        "params": budget(params, "params"),
        "bytes": budget(bytes_, "bytes"),
        "memory": budget(memory, "memory"),
        "latency": latency,
        "target": target or TARGET,
        "latency_table": latency_table,
        "accuracy_drop": fraction(accuracy_drop, "--accuracy-drop"),
        "labels": labels,
        "multiple": multiple,
        "ignore": ignore or (),
        "limits": limits(limit or ()),
        "exact": exact,
        "criterion": criterion,
        "recover": recover,
        "calibration": calibration,
        "samples": samples,
        "rotate": rotate,
        "steps": steps,
        "drop": drop or (),
        "sensitivity": sensitivity,
        "low_rank": "compete" if low_rank else None,
    }


def for_export(chosen: api.Options, export: Path | None) -> api.Options:
    """Options for a plan whose positions are to be those of the source model's own channels."""
    return chosen if export is None else {**chosen, "rotate": False}


def chooses(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `_choice`, which reach it as its parameter ``chosen``."""
    shared = inspect.signature(_choice, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        parameters += shared.values() if name == "chosen" else [parameter]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        chosen = _choice(**{name: values.pop(name) for name in shared})
        command(**values, chosen=chosen)

    told: Any = run
    told.__signature__ = own.replace(parameters=parameters)
    told.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
