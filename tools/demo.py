"""Show what pruning did: one table, dense against pruned, and demo/report.html.

`make demo` runs the commands that make the files in demo/ first: the pruned model, its plan, and both models
compiled. Everything here goes through the public Python API.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_prune
import rich.box
from numpy.typing import NDArray
from onnx_prune.analysis.report.html import render
from onnx_prune.analysis.report.summary import Row, cost_rows
from onnx_prune.backends.artifact import load_artifact
from onnx_prune.backends.base import Artifact
from onnx_prune.backends.measure import interleaved
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models.digits import FOLDER, Digits, accuracy, load_digits
from onnx_prune.passes.save import save_text
from rich.console import Console
from rich.table import Table

NAME = "digits_resnet"
OUT = Path("demo")
NOTE = (
    "Times: median of interleaved rounds, one thread, one image a call, on the machine that made this page."
)


def main() -> None:
    files = {"dense": FOLDER / f"{NAME}.onnx", "pruned": OUT / f"{NAME}.onnx"}
    dense, pruned = (onnx_prune.load(path) for path in files.values())
    plan = onnx_prune.load_plan(OUT / "plan.json")
    analysis = onnx_prune.analyze(dense)
    verdict = onnx_prune.verify(dense, pruned, plan)
    artifacts: dict[str, Artifact] = {}
    for name, model in (("dense", dense), ("pruned", pruned)):
        artifacts[f"onnxruntime {name}"] = OnnxRuntimeBackend(1).compile(model.proto)
        artifacts[f"tvm {name}"] = load_artifact(OUT / f"{NAME}_{name}.so")
    digits = load_digits("test")
    right = {name: accuracy(one_by_one(artifact), digits) for name, artifact in artifacts.items()}
    times = interleaved({name: timed(artifact, digits) for name, artifact in artifacts.items()})
    ms = {name: statistics.median(values) for name, values in times.items()}

    rows = [
        Row.shares("accuracy, ONNX Runtime", right["onnxruntime dense"], right["onnxruntime pruned"]),
        Row.shares("accuracy, TVM", right["tvm dense"], right["tvm pruned"]),
        *cost_rows(onnx_prune.measure(dense, analysis), onnx_prune.measure(pruned)),
        Row.counts("file bytes", *(path.stat().st_size for path in files.values())),
        Row.times("latency, ONNX Runtime", ms["onnxruntime dense"], ms["onnxruntime pruned"]),
        Row.times("latency, TVM", ms["tvm dense"], ms["tvm pruned"]),
    ]
    certificate = f"{'holds' if verdict.ok else 'does not hold'} ({verdict.kind}): {verdict.message}"
    notes = [f"Accuracy on {len(digits.labels)} images that were never trained on. {NOTE}"]
    save_text(render(NAME, rows, certificate, verdict.ok, analysis, plan, notes), OUT / "report.html")
    show(rows, certificate)


def one_by_one(artifact: Artifact) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Runs images in batches of one, the size a compiled library is made for."""
    source, result = artifact.inputs[0].name, artifact.outputs[0].name
    return lambda images: np.concatenate(
        [artifact.run({source: images[i : i + 1]})[result] for i in range(len(images))]
    )


def timed(artifact: Artifact, digits: Digits) -> Callable[[], object]:
    feed = {artifact.inputs[0].name: digits.images[:1]}
    return lambda: artifact.run(feed)


def show(rows: list[Row], certificate: str) -> None:
    console = Console(stderr=True)
    table = Table(title=NAME, box=rich.box.SIMPLE_HEAD)
    for column in ("", "dense", "pruned", "change"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.before, row.after, row.change)
    console.print(table)
    console.print(f"certificate {certificate}", soft_wrap=True)
    console.print(f"the report is in {OUT}/report.html")


if __name__ == "__main__":
    main()
