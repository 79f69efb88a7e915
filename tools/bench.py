"""Time dense and pruned models in ONNX Runtime, OpenVINO and TVM, interleaved, write docs/benchmarks.md.

Usage: python tools/bench.py [--tune SECONDS] [--case THREADSxBATCH ...] [--kernels] [NAME ...]

What is measured is kept in docs/benchmarks.json as it is measured; names or cases renew their rows only. With
--tune, kernels of each model are tuned first for so many seconds, and TVM runs twice: untuned and tuned.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import onnx
from onnx_prune import Model, load, prune
from onnx_prune.backends.base import Backend
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved, ratio
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.execute import random_inputs
from openvino_peer import OpenVinoBackend
from rebatch import rebatched
from tvm.target import codegen

PEERS: dict[str, Callable[[int], Backend]] = {"onnxruntime": OnnxRuntimeBackend, "openvino": OpenVinoBackend}
KINDS = ("tvm", "tuned")
CONVOLUTIONAL = ["tv_resnet50", "tv_mobilenet_v2", "tv_densenet121", "tv_vgg11_bn", "tv_squeezenet1_1"]
CONVOLUTIONAL += ["timm_convnext_atto", "x_unet"]
NETS = [*CONVOLUTIONAL, "timm_vit_tiny_patch16_224", "hf_bert", "hf_gpt2_tied"]
DIGITS = ["digits_resnet", "digits_mobilenet", "digits_vit"]
CASES = ["1x1", "2x1", "1x8", "2x8"]  # threads, batch
DOCS = Path(__file__).parent.parent / "docs"
DATA, TABLE = DOCS / "benchmarks.json", DOCS / "benchmarks.md"
MATTERS = 0.02  # of the time of all kernels
DATABASE = Path(__file__).parent.parent / "demo" / "tuned"
HEAD = """# Benchmarks

Made by `make bench` on {machine}: fp32, medians of interleaved rounds. A ratio is TVM's time over that of
the faster of ONNX Runtime and OpenVINO; below 1 is faster. *Pruned* has half of the multiply-accumulates
(`--macs 50% --multiple 8`) and is compared with these runtimes on the pruned file, or with their best time on
the dense one. *Tuned*, where it was measured, is after `tools/bench.py --tune 15`, 15 seconds for each
file. Models of batch 8 are the same graphs, the sizes in their reshapes counting it. Rows may be of
several runs, kept in `benchmarks.json`; on a shared machine milliseconds of different rows do not compare.

## Geometric means over the zoo graphs

| threads | batch | dense | tuned | convolutional | tuned | pruned | tuned | pruned to dense | tuned |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
COLUMNS = """
| model | ONNX Runtime ms | OpenVINO ms | TVM ms | ratio | tuned | pruned: ratio | tuned | to dense | tuned |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

KERNELS = f"""
## Share of the peak

Multiply-adds of TVM's kernels, dense models of batch 1 untuned on one thread, over what the processor could
do in that time (see [bench.md](bench.md)); and the three kernels that are furthest from it, of those with at
least {MATTERS:.0%} of the time. What is far below half waits for its weights to come from memory, where few
positions use each.

| model | all kernels | worst |
| --- | --- | --- |
"""

Row = dict[str, Any]


def model_of(name: str, pruned: bool, batch: int) -> onnx.ModelProto:
    model = load(FOLDER / f"{name}.onnx") if name in DIGITS else Model(zoo.load(name))
    if pruned:
        model = prune(model, macs=0.5, multiple=8, check=False, criterion="l2", recover="none").model
    return rebatched(model.proto, batch) if batch > 1 else model.proto


def measured(proto: onnx.ModelProto, threads: int, tune: float) -> Row:
    """Milliseconds of each runtime, and the larger of TVM's ratios to the others."""
    backends: dict[str, Backend] = {name: make(threads) for name, make in PEERS.items()}
    backends["tvm"] = CpuBackend(threads)
    if tune:
        CpuBackend(threads, database=DATABASE).tune(proto, tune)
        backends["tuned"] = CpuBackend(threads, database=DATABASE)
    feed = random_inputs(proto, dynamic=1)
    artifacts = {name: backend.compile(proto) for name, backend in backends.items()}
    times = interleaved({name: partial(a.run, feed) for name, a in artifacts.items()})
    row: Row = {name: median(times[name]) for name in backends}
    for name in times.keys() - PEERS.keys():
        row[f"{name} ratio"] = max(ratio(times[name], times[peer]) for peer in PEERS)
    return row


def kernels(proto: onnx.ModelProto) -> Row:
    """How near to the processor's peak TVM's kernels are on one thread, and the three that are furthest."""
    found = [kernel for kernel in CpuBackend(1).profile(proto) if kernel.share is not None]
    time = sum(kernel.ms for kernel in found)
    worst = sorted((k for k in found if k.ms >= MATTERS * time), key=lambda kernel: kernel.share)[:3]
    return {
        "share": sum(kernel.ms * kernel.share for kernel in found) / time,
        "worst": [[kernel.what, kernel.share, kernel.ms / time] for kernel in worst],
    }


def table(rows: Mapping[str, Mapping[str, Row]], inside: Mapping[str, Row]) -> str:
    """All cases as Markdown."""
    text = HEAD.format(machine=machine())
    for case, models in rows.items():
        threads, batch = case.split("x")
        zoo_rows = {name: row for name, row in models.items() if name in NETS}
        convolutional = {name: row for name, row in zoo_rows.items() if name in CONVOLUTIONAL}
        cells = [_mean(of, "dense", kind) for of in (zoo_rows, convolutional) for kind in KINDS]
        cells += [_mean(zoo_rows, "pruned", kind) for kind in KINDS]
        cells += [_mean(zoo_rows, "dense best", kind) for kind in KINDS]
        text += f"| {threads} | {batch} | {' | '.join(cells)} |\n"
    for case, models in rows.items():
        threads, batch = case.split("x")
        text += f"\n## {threads} thread{'s' * (threads != '1')}, batch {batch}\n{COLUMNS}"
        for name, row in models.items():
            dense = row["dense"]
            cells = [f"{dense[runtime]:.2f}" for runtime in (*PEERS, "tvm")]
            cells += [
                _cell(_ratio(row, of, kind)) for of in ("dense", "pruned", "dense best") for kind in KINDS
            ]
            text += f"| {name} | {' | '.join(cells)} |\n"
    text += KERNELS
    for name, row in inside.items():
        worst = "; ".join(
            f"{what}: {share:.0%} ({part:.0%} of the time)" for what, share, part in row["worst"]
        )
        text += f"| {name} | {row['share']:.0%} | {worst} |\n"
    return text


def _ratio(row: Row, of: str, kind: str) -> float | None:
    """TVM's time over the faster other's: on the dense file, the pruned one, or pruned over dense."""
    if of == "dense best":
        return (
            row["pruned"][kind] / min(row["dense"][peer] for peer in PEERS) if kind in row["pruned"] else None
        )
    found: float | None = row[of].get(f"{kind} ratio")
    return found


def _mean(rows: Mapping[str, Row], of: str, kind: str) -> str:
    found = [value for row in rows.values() if (value := _ratio(row, of, kind)) is not None]
    return _cell(geometric_mean(found) if found and len(found) == len(rows) else None)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--case", action="append", choices=CASES, help="threads x batch; all of them if none")
    parser.add_argument("--kernels", action="store_true", help="only look inside of the dense models")
    parser.add_argument("--tune", type=float, default=0.0, metavar="SECONDS")
    asked = parser.parse_args()
    data = json.loads(DATA.read_text()) if DATA.exists() else {"cases": {}, "kernels": {}}
    rows, inside = data["cases"], data["kernels"]

    def write() -> None:
        ordered = {case: rows[case] for case in CASES if case in rows}
        DATA.write_text(json.dumps({"cases": ordered, "kernels": inside}, indent=1) + "\n")
        TABLE.write_text(table(ordered, inside))

    for name in (asked.names or NETS) if asked.kernels or not asked.case else ():
        inside[name] = kernels(model_of(name, pruned=False, batch=1))
        print(name, inside[name])
        write()
    for case in () if asked.kernels else asked.case or CASES:
        threads, batch = (int(number) for number in case.split("x"))
        for name in asked.names or [*DIGITS, *NETS]:
            if batch > 1 and name in DIGITS:
                continue  # their batch is open already, and their times are overhead
            row = {
                kind: measured(model_of(name, kind == "pruned", batch), threads, asked.tune)
                for kind in ("dense", "pruned")
            }
            rows.setdefault(case, {})[name] = row
            print(case, name, {kind: {k: round(v, 3) for k, v in each.items()} for kind, each in row.items()})
            write()


def machine() -> str:
    """As the system calls the processor, and LLVM, for systems give processors of all years one name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor() or platform.machine()} ({codegen.llvm_get_system_cpu()})"


if __name__ == "__main__":
    main()
