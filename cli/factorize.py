"""``onnx-prune factorize``."""

from __future__ import annotations

import onnx_prune as api

from . import options
from .amounts import budget
from .app import app, examples
from .prune import carry_out


@app.command(
    epilog=examples(
        "factorize model.onnx -o smaller.onnx --macs 50% --calibration images.npz",
        "factorize model.onnx -o smaller.onnx --bytes 10MB",
    )
)
def factorize(
    model: options.ModelPath,
    output: options.Output,
    macs: options.Macs = None,
    params: options.Params = None,
    bytes_: options.Bytes = None,
    multiple: options.Multiple = None,
    ignore: options.Ignore = None,
    criterion: options.Criterion = None,
    recover: options.Recover = None,
    calibration: options.Calibration = None,
    samples: options.Samples = 256,
    exact: options.Exact = False,
    save_plan: options.SavePlan = None,
    no_verify: options.NoVerify = False,
    json_: options.Json = None,
) -> None:
    """Write layers as factors of lower rank, all channels kept. ``prune --low-rank`` weighs both."""
    chosen: api.Options = {
        "macs": budget(macs, "macs"),
        "params": budget(params, "params"),
        "bytes": budget(bytes_, "bytes"),
        "multiple": multiple,
        "ignore": ignore or (),
        "criterion": criterion,
        "recover": recover,
        "calibration": calibration,
        "samples": samples,
        "exact": exact,
        "low_rank": "only",
    }
    carry_out(model, output, chosen, save_plan, None, no_verify, json_)
