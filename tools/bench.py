"""Time dense and pruned models in ONNX Runtime and TVM, interleaved, write docs/benchmarks.md."""

from __future__ import annotations

import platform
from pathlib import Path

import onnx
from onnx_prune import Model, load, prune
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import compare
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER

NETS = ["tv_resnet50", "tv_mobilenet_v2", "tv_densenet121", "timm_vit_tiny_patch16_224", "hf_bert", "x_unet"]
TABLE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `make bench`: one thread, batch 1, fp32, medians of interleaved rounds on {machine}. *Ratio* is TVM's
time over ONNX Runtime's on the same file, the median over rounds; below 1 is faster. *Pruned* is at
`--ratio 0.5 --multiple 1`, or with `--multiple 8`. On a shared machine milliseconds of different rows do not
compare.

| model | ONNX Runtime ms | TVM ms | ratio |
| --- | --- | --- | --- |
"""


def versions(name: str, model: Model) -> list[tuple[str, onnx.ModelProto]]:
    pruned = prune(model, ratio=0.5, multiple=1, check=False, criterion="l2", recover="none").model
    aligned = prune(model, ratio=0.5, multiple=8, check=False, criterion="l2", recover="none").model
    return [
        (name, model.proto),
        (f"{name}, pruned", pruned.proto),
        (f"{name}, pruned, multiple 8", aligned.proto),
    ]


def main() -> None:
    rows = []
    names = ["digits_resnet", "digits_mobilenet", "digits_vit", *NETS]
    for name in names:
        model = load(FOLDER / f"{name}.onnx") if name.startswith("digits") else Model(zoo.load(name))
        for label, proto in versions(name, model):
            reference, tvm = compare(
                [(label, proto)], [OnnxRuntimeBackend(1), CpuBackend(1)], OnnxRuntimeBackend.name
            )
            rows.append(f"| {label} | {reference.median_ms:.2f} | {tvm.median_ms:.2f} | {tvm.ratio:.2f} |")
            print(rows[-1], flush=True)
            TABLE.write_text(HEAD.format(machine=_machine()) + "\n".join(rows) + "\n")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
