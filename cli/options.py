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

ModelPath = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model to read.")]
Output = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The file to write.")]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
]
Ratio = Annotated[
    float | None,
    typer.Option(
        "--ratio", metavar="R", help="Remove this fraction of the channels of every group: 0 to below 1."
    ),
]
Macs = Annotated[
    str | None, typer.Option("--macs", metavar="PCT", help="Leave at most this share of the MACs: 50%.")
]
Params = Annotated[
    str | None,
    typer.Option("--params", metavar="PCT", help="Leave at most this share of the parameters: 50%."),
]
Multiple = Annotated[
    int, typer.Option("--multiple", metavar="N", help="Round kept channels up to a multiple of N.")
]
Ignore = Annotated[
    list[str] | None,
    typer.Option("--ignore", metavar="NAME", help="Leave this node, tensor or group whole. Repeatable."),
]
Criterion = Annotated[
    str | None,
    typer.Option(
        "--criterion",
        metavar="NAME",
        help="How channels are ranked: obs (the default with --calibration), l2 (without) or l1.",
    ),
]
Recover = Annotated[
    str | None,
    typer.Option(
        "--recover",
        metavar="NAME",
        help="least-squares: fit the layers that stay again (default with --calibration); none.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="Unlabelled inputs: FILE.npz, a FOLDER of .npy files, or module:function.",
    ),
]
Samples = Annotated[
    int, typer.Option("--samples", metavar="N", min=1, help="Use at most that many calibration inputs.")
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
        help="Where it costs less than removing channels, write layers as factors of lower rank"
        " (with --macs or --params).",
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
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="What to compile for: cpu.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads to run with.")]


def percent(text: str | None, option: str) -> float | None:
    """A share written as 50% or 50, as a fraction.

    Raises:
        UsageError: it is none.
    """
    if text is None:
        return None
    try:
        return float(text.strip().removesuffix("%")) / 100
    except ValueError:
        raise UsageError(f"{option} '{text}' is no percentage: write 50%") from None


def _choice(
    ratio: Ratio = None,
    macs: Macs = None,
    params: Params = None,
    multiple: Multiple = 1,
    ignore: Ignore = None,
    criterion: Criterion = None,
    recover: Recover = None,
    calibration: Calibration = None,
    samples: Samples = 256,
    drop: Drop = None,
    low_rank: LowRank = False,
) -> api.Options:
    """What commands that choose channels are told, as the API takes it."""
    given = sum(value is not None for value in (ratio, macs, params))
    if given > 1 or not (given or drop):
        raise UsageError("give exactly one of --ratio, --macs and --params (none with --drop alone)")
    return {
        "ratio": ratio,
        "macs": percent(macs, "--macs"),
        "params": percent(params, "--params"),
        "multiple": multiple,
        "ignore": ignore or (),
        "criterion": criterion,
        "recover": recover,
        "calibration": calibration,
        "samples": samples,
        "drop": drop or (),
        "low_rank": "compete" if low_rank else None,
    }


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
