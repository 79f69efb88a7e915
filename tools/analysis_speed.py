"""Time analysis against loading and shape inference, and on generated nets; write docs/analysis_speed.md."""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_prune import analyze, load, plan
from onnx_prune.models import zoo
from onnx_prune.passes.shrink import shrink

TABLE = Path(__file__).parent.parent / "docs" / "analysis_speed.md"
RUNS = 5
SIZES = (1_000, 10_000, 100_000)
HEAD = """# How fast the analysis is

Made by `make speed`; CPU seconds on one core, median of {runs} runs, the things compared taking turns.

"""


class Net:
    """Builds convolutional nets of 8 channels, one node at a time."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.weights: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []

    def conv(self, x: str, inner: int, outer: int = 8) -> str:
        name = f"c{len(self.nodes)}"
        weight = self.rng.standard_normal((outer, inner, 1, 1)).astype(np.float32)
        self.weights.append(numpy_helper.from_array(weight, f"{name}.weight"))
        self.nodes.append(helper.make_node("Conv", [x, f"{name}.weight"], [name], kernel_shape=[1, 1]))
        return name

    def node(self, op: str, *inputs: str, **attributes: int) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def model(self, y: str) -> onnx.ModelProto:
        self.nodes.append(helper.make_node("Identity", [y], ["y"]))
        x, out = (helper.make_tensor_value_info(n, 1, [1, c, 4, 4]) for n, c in (("x", 3), ("y", 4)))
        graph = helper.make_graph(self.nodes, "g", [x], [out], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def residual(size: int) -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 3)
    while len(net.nodes) < size - 2:
        branch = net.conv(net.node("Relu", net.conv(x, 8)), 8)
        x = net.node("Relu", net.node("Add", branch, x))
    return net.model(net.conv(x, 8, 4))


def wide(branches: int) -> onnx.ModelProto:
    net = Net()
    parts = [net.conv("x", 3) for _ in range(branches)]
    return net.model(net.conv(net.node("Concat", *parts, axis=1), 8 * branches, 4))


def dense(blocks: int) -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 3)
    for _ in range(blocks):
        channels = 8
        for _ in range(64):
            x = net.node("Concat", x, net.conv(x, channels), axis=1)
            channels += 8
        x = net.conv(x, channels)
    return net.model(net.conv(x, 8, 4))


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def against_inference(path: str) -> tuple[float, float, float]:
    """(seconds of load and shape inference, analysis over them, analysis with loading over them)."""
    floor, alone, both = [], [], []
    for _ in range(RUNS):
        floor.append(cpu(lambda: onnx.shape_inference.infer_shapes(onnx.load(path))))
        start = time.process_time()
        model = load(path)
        loading = time.process_time() - start
        alone.append(cpu(lambda: analyze(model)))  # noqa: B023
        both.append(loading + alone[-1])
    seconds = statistics.median(floor)
    return seconds, statistics.median(alone) / seconds, statistics.median(both) / seconds


def measure(path: str) -> None:
    """Print the seconds of each step on one file, and the peak memory: run in a process of its own."""
    model = load(path)
    start = time.process_time()
    analysis = analyze(model)
    analysed = time.process_time()
    chosen = plan(analysis, ratio=0.5, criterion="l2", recover="none")
    planned = time.process_time()
    shrink(model, chosen, analysis)
    steps = [analysed - start, planned - analysed, time.process_time() - planned]
    # Not getrusage: what it says of the peak includes that of the process this one was forked from.
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps([*steps, peak]))


def steps(proto: onnx.ModelProto, folder: str) -> list[float]:
    """Analysis, plan and rewrite in CPU seconds, and peak MB: the median of three processes."""
    path = f"{folder}/net.onnx"
    onnx.save(proto, path)
    runs = [
        json.loads(subprocess.run([sys.executable, __file__, path], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    return sorted(runs, key=lambda run: sum(run[:3]))[1]


def main() -> None:
    text = [HEAD.format(runs=RUNS), "## Against `onnx.load` and `infer_shapes`, on the zoo", ""]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in zoo.names():
            path = f"{folder}/{name}.onnx"
            onnx.save(zoo.load(name), path)
            rows.append((name, *against_inference(path)))
            print(f"{name} {rows[-1][2]:.2f} {rows[-1][3]:.2f}", flush=True)
            Path(path).unlink()
        for what, k in (("analysis alone", 2), ("loading included", 3)):
            values = sorted(row[k] for row in rows)
            p90 = values[math.ceil(0.9 * len(values)) - 1]
            text.append(f"- {what}: median {statistics.median(values):.2f}, p90 {p90:.2f}")
        text += ["", "| graph | load + infer, ms | analysis | with loading |", "| --- | --- | --- | --- |"]
        text += [f"| {n} | {1e3 * s:.1f} | {a:.2f} | {b:.2f} |" for n, s, a, b in rows]
        text += ["", "## Generated nets", ""]
        text += ["| net | nodes | analysis, s | plan, s | rewrite, s | together, s | µs a node | peak, MB |"]
        text += ["| --- " * 8 + "|"]
        totals = []
        nets: list[tuple[str, Callable[[int], onnx.ModelProto], tuple[int, ...]]] = [
            ("residual", residual, SIZES),
            ("{} branches into one Concat", wide, (500, 1000, 2000, 4000)),
            ("{} dense blocks of 64 layers", dense, (1, 2, 4, 8)),
        ]
        for title, make, sizes in nets:
            for size in sizes:
                proto = make(size)
                a, p, r, peak = steps(proto, folder)
                count, total = len(proto.graph.node), a + p + r
                totals.append(total)
                text.append(
                    f"| {title.format(size)} | {count} | {a:.2f} | {p:.2f} | {r:.2f} | {total:.2f} |"
                    f" {1e6 * total / count:.0f} | {peak:.0f} |"
                )
                print(text[-1], flush=True)
        exponent = math.log(totals[2] / totals[0]) / math.log(SIZES[2] / SIZES[0])
        text += ["", f"Growth from {SIZES[0]:,} to {SIZES[2]:,} residual nodes: exponent {exponent:.2f}."]
    TABLE.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    measure(sys.argv[1]) if len(sys.argv) > 1 else main()
