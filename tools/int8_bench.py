"""Time quantised nets here and in ONNX Runtime, count their instructions on 64-bit ARM; write docs/int8.md.

Nets are quantised by ONNX Runtime's own tools: statically, with scales of each output channel, on digits for
nets of digits and on random inputs for others; or dynamically. Zoo nets have random weights, so that only
digits tell of accuracy.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from bench import DOCS, machine
from numpy.typing import NDArray
from onnx_prune import Model, emulate
from onnx_prune.analysis.errors import OnnxPruneError
from onnx_prune.backends.base import Artifact
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved, ratio
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, accuracy, load_digits, unlabelled
from onnx_prune.passes.execute import random_inputs
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from rich.progress import track

NETS = ["digits_resnet", "digits_mobilenet", "digits_vit", "tv_resnet50", "tv_mobilenet_v2", "hf_bert"]
DYNAMIC = ["hf_bert"]
PROCESSOR = "cortex-a76"
HEAD = """# Quantised nets

Made by `make int8-bench` on {machine}: one thread, medians of interleaved rounds in milliseconds.
Nets are quantised by ONNX Runtime's tools: bytes, a scale for each output channel. *Floats* is this compiler
on the net before that. *Gain* is over ONNX Runtime on the quantised net, *over floats* over our own floats.
Accuracy is on held-out digits, here / in ONNX Runtime / of floats; for others *error* is the largest
difference from ONNX Runtime over the largest output: where a quotient is next to a half, a byte is one step
up or down, and all that follows differs. Their weights are random.

| net | ONNX Runtime | floats | bytes | gain | over floats | accuracy | error |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
ARM = """
## 64-bit ARM

Instructions of a run of {processor}, which multiplies bytes by `sdot`, in emulation; counts, no times.

| net | floats | bytes | share |
| --- | --- | --- | --- |
"""


class Batches(CalibrationDataReader):  # type: ignore[misc]
    """What scales are measured on."""

    def __init__(self, feeds: list[dict[str, NDArray[Any]]]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def dense(name: str) -> onnx.ModelProto:
    return onnx.load(FOLDER / f"{name}.onnx") if name in NETS[:3] else zoo.load(name)


def quantised(proto: onnx.ModelProto, digits: bool, dynamic: bool) -> onnx.ModelProto:
    """A net with bytes for weights, and for activations."""
    with tempfile.TemporaryDirectory() as folder:
        before, ready, after = (Path(folder) / f"{name}.onnx" for name in ("before", "ready", "after"))
        onnx.save(proto, before)
        if dynamic:
            quantize_dynamic(before, after)
        else:
            quant_pre_process(str(before), str(ready), skip_symbolic_shape=True)
            images = unlabelled(200)
            feeds = (
                [{"x": images[i : i + 20]} for i in range(0, 200, 20)]
                if digits
                else [random_inputs(proto, dynamic=1, seed=seed) for seed in range(3)]
            )
            quantize_static(ready, after, Batches(feeds), quant_format=QuantFormat.QDQ, per_channel=True)
        return onnx.load(after)


def row(name: str, dynamic: bool) -> str:
    """Times, and how right it is."""
    floats, digits = dense(name), name in NETS[:3]
    bytes_ = quantised(floats, digits, dynamic)
    feed = random_inputs(floats, dynamic=1)
    made: dict[str, Artifact] = {
        "onnxruntime": OnnxRuntimeBackend(1).compile(bytes_),
        "floats": CpuBackend(1).compile(floats),
        "bytes": CpuBackend(1).compile(bytes_),
    }
    times = interleaved({key: lambda one=one: one.run(feed) for key, one in made.items()})
    cells = [f"{median(times[key]):.2f}" for key in made]
    gains = [f"{ratio(times[key], times['bytes']):.2f}" for key in ("onnxruntime", "floats")]
    right, error = "", ""
    if digits:
        test = load_digits()
        runs = [made["bytes"], made["onnxruntime"], made["floats"]]
        right = " / ".join(f"{accuracy(lambda x, one=one: each(one, x), test):.2%}" for one in runs)
    else:
        (wanted, *_), (got, *_) = (list(made[key].run(feed).values()) for key in ("onnxruntime", "bytes"))
        error = f"{np.abs(got - wanted).max() / np.abs(wanted).max():.1e}"
    label = f"{name}, dynamically" if dynamic else name
    return "| " + " | ".join([label, *cells, *gains, right, error]) + " |"


def each(artifact: Artifact, images: NDArray[np.float32]) -> NDArray[Any]:
    """The output for images one by one."""
    return np.concatenate(
        [next(iter(artifact.run({"x": images[i : i + 1]}).values())) for i in range(len(images))]
    )


def counts() -> Iterator[str]:
    """Instructions on ARM, where that can be emulated."""
    for name in NETS[:3]:
        floats = dense(name)
        models = [("floats", Model(floats)), ("bytes", Model(quantised(floats, True, False)))]
        before, after = (found.instructions for found in emulate(models, f"arm:{PROCESSOR}"))
        yield f"| {name} | {before:,} | {after:,} | {after / before:.2f} |"


def main() -> None:
    logging.disable(logging.WARNING)  # of ONNX Runtime's tools, about preparing what is prepared
    jobs = [(name, False) for name in NETS] + [(name, True) for name in DYNAMIC]
    text = HEAD.format(machine=machine()) + "".join(row(*job) + "\n" for job in track(jobs, "nets"))
    try:
        text += ARM.format(processor=PROCESSOR) + "".join(f"{line}\n" for line in counts())
    except OnnxPruneError as error:
        print(f"no counts: {error}")
    (DOCS / "int8.md").write_text(text)


if __name__ == "__main__":
    main()
