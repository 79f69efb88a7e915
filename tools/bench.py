"""Time dense and pruned models in ONNX Runtime, OpenVINO and TVM, interleaved, write docs/benchmarks.md.

Usage: python tools/bench.py [NAME ...]    (names renew their rows only; without OpenVINO its column is empty)
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from statistics import geometric_mean

import onnx
from onnx_prune import Model, load, prune
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import compare
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER
from openvino_peer import OpenVinoBackend, installed

CONVOLUTIONAL = ["tv_resnet50", "tv_mobilenet_v2", "tv_densenet121", "tv_vgg11_bn", "tv_squeezenet1_1"]
CONVOLUTIONAL += ["timm_convnext_atto", "x_unet"]
NETS = [*CONVOLUTIONAL, "timm_vit_tiny_patch16_224", "hf_bert", "hf_gpt2_tied"]
DIGITS = ["digits_resnet", "digits_mobilenet", "digits_vit"]
TABLE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `make bench`: one thread, batch 1, fp32, untuned, medians of interleaved rounds on {machine}. Ratios
are TVM's time over the other's on the same file, medians over rounds; below 1 is faster. *Pruned* is at
`--ratio 0.5 --multiple 1`, or with `--multiple 8`. On a shared machine milliseconds of different rows do not
compare.

Geometric mean of the ratio to the faster of the two, dense zoo graphs: {all}; convolutional alone: {conv}.

| model | ONNX Runtime ms | OpenVINO ms | TVM ms | to ONNX Runtime | to OpenVINO |
| --- | --- | --- | --- | --- | --- |
"""


def versions(name: str, model: Model) -> list[tuple[str, onnx.ModelProto]]:
    pruned = prune(model, ratio=0.5, multiple=1, check=False, criterion="l2", recover="none").model
    aligned = prune(model, ratio=0.5, multiple=8, check=False, criterion="l2", recover="none").model
    return [
        (name, model.proto),
        (f"{name}, pruned", pruned.proto),
        (f"{name}, pruned, multiple 8", aligned.proto),
    ]


def row(label: str, proto: onnx.ModelProto) -> str:
    backends = [OnnxRuntimeBackend(1), *([OpenVinoBackend(1)] if installed() else []), CpuBackend(1)]
    timings = {t.runtime: t for t in compare([(label, proto)], backends, CpuBackend.name)}
    ort, tvm, peer = timings["onnxruntime"], timings["tvm"], timings.get("openvino")
    there = (f"{peer.median_ms:.2f}", f"{1 / peer.ratio:.2f}") if peer else ("", "")
    return (
        f"| {label} | {ort.median_ms:.2f} | {there[0]} | {tvm.median_ms:.2f}"
        f" | {1 / ort.ratio:.2f} | {there[1]} |"
    )


def to_the_faster(rows: dict[str, str], names: list[str]) -> str:
    """Geometric mean over dense graphs of the larger of both ratios."""
    cells = [rows[name].split("|")[5:7] for name in names if name in rows]
    largest = [max(float(cell) for cell in pair if cell.strip()) for pair in cells]
    return f"{geometric_mean(largest):.2f}" if len(largest) == len(names) else "not all measured"


def main() -> None:
    rows: dict[str, str] = {}
    if sys.argv[1:] and TABLE.exists():
        lines = [line for line in TABLE.read_text().splitlines() if line.count("|") == 7]
        rows = {line.split("|")[1].strip(): line for line in lines[2:]}
    for name in sys.argv[1:] or [*DIGITS, *NETS]:
        model = load(FOLDER / f"{name}.onnx") if name in DIGITS else Model(zoo.load(name))
        for label, proto in versions(name, model):
            rows[label] = row(label, proto)
            print(rows[label], flush=True)
            means = {"all": to_the_faster(rows, NETS), "conv": to_the_faster(rows, CONVOLUTIONAL)}
            TABLE.write_text(HEAD.format(machine=_machine(), **means) + "\n".join(rows.values()) + "\n")


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return model or platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
