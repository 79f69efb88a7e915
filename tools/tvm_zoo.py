"""Compile every graph of the zoo with TVM, compare with ONNX Runtime, write docs/tvm_zoo.md.

With ``--zeros`` four of five weights of every layer are zero, in blocks of four outputs, and the table goes
to docs/sparse_zoo.md.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx_prune import OnnxPruneError
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.passes.execute import random_inputs
from sparse_bench import blocks, with_zeros

DOCS = Path(__file__).parent.parent / "docs"
TABLE, ZEROS_TABLE = DOCS / "tvm_zoo.md", DOCS / "sparse_zoo.md"
HEAD = """# Zoo graphs compiled with TVM

Made by `make tvm-zoo`. Error: largest difference from ONNX Runtime over max|y|, on one thread and on two.
Compile: seconds for one thread. Ratio: time over ONNX Runtime's, one thread, batch 1, median of interleaved
rounds; below 1 is faster.

| graph | error | compile s | ratio |
| --- | --- | --- | --- |
"""
ZEROS_HEAD = """# Zoo graphs with zeros compiled with TVM

Made by `make sparse-zoo`: 80 % zeros in blocks of four outputs in all weights but those of depthwise
convolutions, first and last layers too. Error: largest difference from ONNX Runtime over max|y|, one thread;
*none has numbers* where ONNX Runtime divides by zero, too. Compile: seconds. Layers that skip: how many of
those with zeros got a kernel that skips them.

| graph | error | compile s | layers that skip |
| --- | --- | --- | --- |
"""
LIMIT_SECONDS = 600
ZEROS = 0.8


def row(name: str) -> str:
    proto = zoo.load(name)
    inputs = random_inputs(proto, dynamic=1)
    reference = OnnxRuntimeBackend(1).compile(proto)
    start = time.perf_counter()
    try:
        artifact = CpuBackend(1).compile(proto)
    except OnnxPruneError as error:
        return f"| {name} | not compiled: {str(error).replace('|', '/')} | | |"
    seconds = time.perf_counter() - start
    wanted = reference.run(inputs)
    results = (artifact.run(inputs), CpuBackend(2).compile(proto).run(inputs))
    error = max(worst(wanted, got) for got in results)
    times = interleaved(
        {"onnxruntime": lambda: reference.run(inputs), "tvm": lambda: artifact.run(inputs)}, 7
    )
    ratio = statistics.median(t / o for o, t in zip(times["onnxruntime"], times["tvm"], strict=True))
    return f"| {name} | {error:.1e} | {seconds:.1f} | {ratio:.2f} |"


def zeros_row(name: str) -> str:
    proto = with_zeros(zoo.load(name), blocks(4, ZEROS), ends=True)
    inputs = random_inputs(proto, dynamic=1)
    wanted = OnnxRuntimeBackend(1).compile(proto).run(inputs)
    start = time.perf_counter()
    try:
        artifact = CpuBackend(1).compile(proto)
    except OnnxPruneError as error:
        return f"| {name} | not compiled: {str(error).replace('|', '/')} | | |"
    seconds = time.perf_counter() - start
    numbers = all(np.isfinite(value).all() for value in wanted.values())
    got = artifact.run(inputs)
    told = f"{worst(wanted, got):.1e}" if numbers else "none has numbers"
    skipping = sum(layer.sparse for layer in artifact.sparse)
    return f"| {name} | {told} | {seconds:.1f} | {skipping} of {len(artifact.sparse)} |"


def worst(wanted: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]) -> float:
    """Largest difference over the largest result, of all outputs."""
    return max(
        float(np.abs(wanted[k].astype(float) - got[k]).max() / max(np.abs(wanted[k]).max(), 1e-30))
        for k in wanted
    )


def in_a_process(name: str, options: list[str]) -> str:
    """A crash in compiled code costs one row."""
    command = [sys.executable, "-W", "ignore", __file__, *options, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"| {name} | not done in {LIMIT_SECONDS} s | | |"
    return done.stdout.strip() or f"| {name} | exit status {done.returncode} | | |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="renew the rows of these only")
    parser.add_argument("--zeros", action="store_true", help="with zeros, docs/sparse_zoo.md")
    parser.add_argument("--row", action="store_true", help="print a row instead (as a process of its own)")
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(zoo.names())):
        parser.error(f"not in the zoo: {', '.join(unknown)}")
    if args.row:
        for name in args.names:
            print(zeros_row(name) if args.zeros else row(name))
        return
    table, head = (ZEROS_TABLE, ZEROS_HEAD) if args.zeros else (TABLE, HEAD)
    rows: dict[str, str] = {}
    if table.exists():
        lines = table.read_text().splitlines()
        rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    rows = {name: rows[name] for name in zoo.names() if name in rows}
    for name in args.names or zoo.names():
        rows[name] = in_a_process(name, ["--row", "--zeros"] if args.zeros else ["--row"])
        print(rows[name], flush=True)
        table.write_text(head + "\n".join(rows[n] for n in sorted(rows)) + "\n")


if __name__ == "__main__":
    main()
