"""How long `validate` takes for models of 1 GB, and how much memory, beside reading them.

Writes docs/validate_speed.md. ``python tools/validate_speed.py``; needs 4 GB of disk.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

DOCS = Path(__file__).parent.parent / "docs"
INPUTS, HIDDEN, GIGABYTE = 2048, 8192, 1 << 30
ROUNDS = 3

# What the kernel says of a process's own memory: other figures begin with the peak of whoever forked it.
PEAK = "; print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
VALIDATE = "import sys, onnx_prune; onnx_prune.validate(sys.argv[1], ['nvidia-2:4'])" + PEAK
READ = "import sys, onnx; onnx.load(sys.argv[1])" + PEAK
NOTHING = "import onnx, onnx_prune" + PEAK


def model(dtype: type[np.generic], operator: str) -> onnx.ModelProto:
    """Layers of two products each, 1 GB of weights that satisfy 2:4."""
    rng = np.random.default_rng(0)
    wide = rng.integers(1, 100, (HIDDEN, INPUTS)).astype(dtype)
    wide.reshape(-1, 4)[:, :2] = 0
    narrow = rng.integers(1, 100, (INPUTS, HIDDEN)).astype(dtype)
    narrow.reshape(-1, 4)[:, 1:3] = 0
    nodes, weights, x = [], [], "x"
    for layer in range(round(GIGABYTE / (2 * wide.nbytes))):
        for name, value in ((f"up.{layer}", wide), (f"down.{layer}", narrow)):
            turned = value if operator == "Gemm" else np.ascontiguousarray(value.T)
            weights.append(numpy_helper.from_array(turned, name))
            attributes = {"transB": 1} if operator == "Gemm" else {}
            nodes.append(helper.make_node(operator, [x, name], [f"y.{name}"], **attributes))
            x = f"y.{name}"
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ends = [helper.make_tensor_value_info(name, element, [1, INPUTS]) for name in ("x", x)]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(code: str, path: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of a process of its own."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return seconds, int(done.stdout.split()[1]) / 1024


def row(name: str, path: Path) -> str:
    # Interleaved: whatever slows one slows the others.
    rounds = [[run(code, path) for code in (READ, VALIDATE, NOTHING)] for _ in range(ROUNDS)]
    read, validated, start = (statistics.median(r[k][0] for r in rounds) for k in range(3))
    ratio = statistics.median(r[1][0] / r[0][0] for r in rounds)
    whole, memory = (max(r[k][1] for r in rounds) for k in range(2))
    cells = f"{read:.2f} s", f"{validated:.2f} s", f"{ratio:.2f}", f"{start:.2f} s", f"{whole:.0f} MB"
    return f"| {name} | " + " | ".join(cells) + f" | {memory:.0f} MB |"


def main() -> None:
    lines = [
        "# Time and memory of validate",
        "",
        "Made by `make validate-speed`: models of 1 GB, in the page cache. Whole processes, medians of"
        f" {ROUNDS} interleaved rounds, and of their ratios; *read* is `onnx.load`, *start* imports both"
        " packages and does nothing. Memory is the largest peak (the bars: 3 times the time to read,"
        " 500 MB).",
        "",
        "| weights | read | validate | times read | start | memory to read | memory to validate |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for dtype, operator, beside in (
            (np.float32, "Gemm", False),
            (np.float32, "MatMul", True),
            (np.float16, "Gemm", False),
            (np.float16, "MatMul", True),
        ):
            path = Path(folder) / "model.onnx"
            for old in Path(folder).iterdir():
                old.unlink()
            onnx.save(model(dtype, operator), path, save_as_external_data=beside, location="weights")
            where = "beside the model" if beside else "in the model's file"
            lines.append(row(f"{np.dtype(dtype).name}, {operator}, {where}", path))
    (DOCS / "validate_speed.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
