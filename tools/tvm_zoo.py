"""Compile every graph of the zoo with TVM, compare with ONNX Runtime, write docs/tvm_zoo.md.

Usage: python tools/tvm_zoo.py [NAME ...]    (names renew their rows only)
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from onnx_prune import OnnxPruneError
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.passes.execute import random_inputs

TABLE = Path(__file__).parent.parent / "docs" / "tvm_zoo.md"
HEAD = """# Zoo graphs compiled with TVM

Made by `make tvm-zoo`. Error: largest difference from ONNX Runtime over max|y|, on one thread and on two.
Compile: seconds for one thread. Ratio: time over ONNX Runtime's, one thread, batch 1, median of interleaved
rounds; below 1 is faster.

| graph | error | compile s | ratio |
| --- | --- | --- | --- |
"""
LIMIT_SECONDS = 600


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
    error = max(
        float(np.abs(wanted[k].astype(float) - got[k]).max() / max(np.abs(wanted[k]).max(), 1e-30))
        for got in (artifact.run(inputs), CpuBackend(2).compile(proto).run(inputs))
        for k in wanted
    )
    times = interleaved(
        {"onnxruntime": lambda: reference.run(inputs), "tvm": lambda: artifact.run(inputs)}, 7
    )
    ratio = statistics.median(t / o for o, t in zip(times["onnxruntime"], times["tvm"], strict=True))
    return f"| {name} | {error:.1e} | {seconds:.1f} | {ratio:.2f} |"


def in_a_process(name: str) -> str:
    """A crash in compiled code costs one row."""
    command = [sys.executable, "-W", "ignore", __file__, "--row", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"| {name} | not done in {LIMIT_SECONDS} s | | |"
    return done.stdout.strip() or f"| {name} | exit status {done.returncode} | | |"


def main() -> None:
    if sys.argv[1:2] == ["--row"]:
        print(row(sys.argv[2]))
        return
    rows: dict[str, str] = {}
    if TABLE.exists():
        lines = TABLE.read_text().splitlines()
        rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    rows = {name: rows[name] for name in zoo.names() if name in rows}
    for name in sys.argv[1:] or zoo.names():
        rows[name] = in_a_process(name)
        print(rows[name], flush=True)
        TABLE.write_text(HEAD + "\n".join(rows[n] for n in sorted(rows)) + "\n")


if __name__ == "__main__":
    main()
