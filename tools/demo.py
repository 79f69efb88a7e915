"""Prune a trained model, prove it, compile it, and show what changed. Writes the folder demo/."""

from __future__ import annotations

import statistics
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

import onnx_prune
from onnx_prune.analysis.report.html import Row, write_html
from onnx_prune.backends.base import Artifact
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models.digits import FOLDER, accuracy, load_digits
from onnx_prune.passes.execute import execute, random_inputs
from onnx_prune.passes.save import save_text

MODEL = FOLDER / "digits_resnet.onnx"
# About half the MACs. The kept weights stay untouched, so accuracy shows what recovery has to bring back.
RATIO = 0.3
OUT = Path("demo")


def main() -> None:
    console = Console(stderr=True)
    OUT.mkdir(exist_ok=True)
    with console.status("pruning") as status:
        dense = onnx_prune.load(MODEL)
        result = onnx_prune.prune(dense, ratio=RATIO, progress=status.update)
        onnx_prune.save(result.model, OUT / "digits_resnet_pruned.onnx")
        save_text(result.plan.to_json(), OUT / "plan.json")
        status.update("compiling with TVM and timing")
        runs: dict[str, Artifact] = {}
        for name, model in (("dense", dense), ("pruned", result.model)):
            runs[f"{name} onnxruntime"] = OnnxRuntimeBackend(1).compile(model.proto)
            compiled = CpuBackend(1).compile(model.proto)
            compiled.save(OUT / f"digits_resnet_{name}.so")
            runs[f"{name} tvm"] = compiled
        inputs = random_inputs(dense.proto, dynamic=1)
        times = interleaved({name: (lambda a=artifact: a.run(inputs)) for name, artifact in runs.items()})
        digits = load_digits("test")
        right = {
            name: accuracy(lambda x, p=model.proto: execute(p, {"x": x})["logits"], digits)
            for name, model in (("dense", dense), ("pruned", result.model))
        }
    sizes = [MODEL.stat().st_size, (OUT / "digits_resnet_pruned.onnx").stat().st_size]
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = [
        Row("accuracy, 540 test images", f"{right['dense']:.2%}", f"{right['pruned']:.2%}", ""),
        Row.counts("MACs", result.before.macs, result.after.macs),
        Row.counts("parameters", result.before.params, result.after.params),
        Row.counts("file, bytes", *sizes),
        Row.times("ONNX Runtime, 1 thread", median["dense onnxruntime"], median["pruned onnxruntime"]),
        Row.times("TVM, 1 thread", median["dense tvm"], median["pruned tvm"]),
    ]
    table = Table("", "dense", "pruned", "change", box=rich.box.SIMPLE_HEAD, title=f"digits_resnet, ratio {RATIO}")
    for row in rows:
        table.add_row(row.name, row.before, row.after, row.change)
    verdict = result.verdict
    assert verdict is not None
    certificate = f"{'holds' if verdict.ok else 'DOES NOT HOLD'} ({verdict.kind}): {verdict.message}"
    console.print(table)
    console.print(f"certificate {certificate}")
    write_html(OUT / "report.html", "digits_resnet", rows, certificate, result.analysis, result.plan)
    console.print(f"wrote {OUT}/report.html, the plan, the pruned model and both compiled libraries")


if __name__ == "__main__":
    main()
