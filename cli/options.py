"""Options and arguments that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Export = Annotated[
    Path | None,
    typer.Option("--export", metavar="FILE.json", help="Also write the kept positions of every weight."),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="TRAINED.onnx", help="Take weights that were trained elsewhere."),
]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="What to compile for: cpu.")]
Threads = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads to run with.")]
