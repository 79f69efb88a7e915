"""Time layers and nets with zeros against dense ones in other runtimes; write docs/sparse_benchmarks.md.

Usage: python tools/sparse_bench.py [--layers] [--curves] [--nets] [--tune SECONDS]

All three parts where none is asked for. What is measured is kept in docs/sparse_benchmarks.json, by machine.
Weights are random, and so are their zeros; the times of ONNX Runtime and OpenVINO are those of the same layer
or net without zeros, which they do not skip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import onnx
from bench import DATABASE, DOCS, PEERS, machine
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx_prune import Model, prune
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.measure import interleaved, ratio
from onnx_prune.backends.tvm.workloads import VERSION
from onnx_prune.models import zoo
from onnx_prune.passes.execute import random_inputs

DATA, TABLE, FIGURE = (DOCS / f"sparse_benchmarks.{kind}" for kind in ("json", "md", "svg"))
CHAIN = 4
Mask = Callable[[np.random.Generator, int, int], NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """A product of ``positions`` rows, or a convolution of a square image of so many positions."""

    outputs: int
    inputs: int
    positions: int
    kernel: int = 0

    @property
    def name(self) -> str:
        if self.kernel:
            side = round(self.positions**0.5)
            return f"{self.kernel}×{self.kernel} {self.inputs}→{self.outputs} at {side}²"
        return f"product {self.outputs}×{self.inputs}×{self.positions}"

    def model(self, mask: Mask | None = None) -> onnx.ModelProto:
        """Of a single row there are several in a chain: one takes no longer than it takes to call it."""
        rng = np.random.default_rng(0)
        columns = self.inputs * max(1, self.kernel) ** 2
        nodes, initializers = [], []
        count = CHAIN if self.positions == 1 else 1
        for number in range(count):
            weights = rng.standard_normal((self.outputs, columns)).astype(np.float32) / columns**0.5
            if mask is not None:
                weights *= mask(rng, *weights.shape)
            names = [f"x{number}" if number else "x", f"w{number}"]
            result = [f"x{number + 1}" if number + 1 < count else "y"]
            if self.kernel:
                weights = weights.reshape(self.outputs, self.inputs, self.kernel, self.kernel)
                nodes.append(helper.make_node("Conv", names, result, pads=[self.kernel // 2] * 4))
            else:
                weights = np.ascontiguousarray(weights.T)
                nodes.append(helper.make_node("MatMul", names, result))
            initializers.append(numpy_helper.from_array(weights, names[1]))
        side = round(self.positions**0.5)
        shape = (1, self.inputs, side, side) if self.kernel else (self.positions, self.inputs)
        out = (1, self.outputs, side, side) if self.kernel else (self.positions, self.outputs)
        infos = [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size)
            for name, size in (("x", shape), ("y", out))
        ]
        graph = helper.make_graph(nodes, "layer", infos[:1], infos[1:], initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def blocks(rows: int, ratio: float) -> Mask:
    """Blocks of so many outputs by one column, the share ``ratio`` of them zero."""

    def mask(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
        kept = rng.random((-(-outputs // rows), columns)) >= ratio
        return np.repeat(kept, rows, 0)[:outputs]

    return mask


def two_of_four(rows: int) -> Mask:
    """Two of four consecutive columns, shared by so many outputs."""

    def mask(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
        places = np.argsort(rng.random((-(-outputs // rows), columns // 4, 4)), -1) < 2
        return np.repeat(places.reshape(-1, columns), rows, 0)[:outputs]

    return mask


LAYERS = [Layer(512, 512, 196, 1), Layer(256, 1152, 784, 1), Layer(768, 3072, 128), Layer(128, 128, 784, 3)]
LAYERS += [Layer(1024, 1024, 1)]
# Masks, and the bars for products and pointwise convolutions, for 3×3, and for a single row.
PATTERNS: dict[str, tuple[Mask, tuple[float, float, float]]] = {
    "4x1 at 50%": (blocks(4, 0.5), (1.8, 1.8, 2.0)),
    "4x1 at 75%": (blocks(4, 0.75), (3.3, 3.3, 4.0)),
    "4x1 at 90%": (blocks(4, 0.9), (7.0, 7.0, 9.0)),
    "single at 80%": (blocks(1, 0.8), (2.6, 2.6, 3.0)),
    "single at 90%": (blocks(1, 0.9), (4.3, 4.8, 6.0)),
    "2:4 of 4 rows": (two_of_four(4), (1.8, 1.7, 1.9)),
}
HEAD = """# Benchmarks of zeros

Made by `make sparse-bench`: one thread, fp32, medians of interleaved rounds. Numbers say how many times
as fast a layer or net with zeros is here as it is *dense* in the faster of ONNX Runtime and OpenVINO,
neither of which skips zeros. Weights and the places of zeros are random. *Kernels* is the version that
was measured, {version} is that of today.

Layers: by default, / tuned where it was, (the bar); *dense* where the compiler took a dense kernel.
Inputs and outputs stay where they are in memory, for all runtimes. The product of one row is one of
four in a chain, for a single one takes no longer than the call.

Nets: zeros in blocks of four outputs by one column in all matrices but the first and the last.
Milliseconds; *TVM dense* is this compiler on the net before it got zeros.

Where skipping begins to pay: the ratio of zeros from which on kernels that skip them, taken or not, are
faster than the faster dense runtime. The compiler takes a dense kernel where that is faster still.

![Times as fast by ratio of zeros](sparse_benchmarks.svg)
"""
NETS_HEAD = """
| net | pruned | zeros | ONNX Runtime | OpenVINO | TVM dense | TVM | gain | tuned | bar | layers that skip |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
CURVES_HEAD = """
| skipping pays from | 4x1 | single |
| --- | --- | --- |
"""
RATIOS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
# Nets, the share of MACs pruned before, the ratio of zeros in blocks of four outputs, and the bar.
NETS = [
    ("tv_resnet50", 0.0, 0.8, 2.6),
    ("tv_mobilenet_v2", 0.0, 0.8, 1.7),
    ("hf_bert", 0.0, 0.8, 3.0),
    ("timm_vit_tiny_patch16_224", 0.0, 0.8, 2.5),
    ("tv_resnet50", 0.5, 0.75, 5.0),
]


def with_zeros(model: onnx.ModelProto, mask: Mask, ends: bool = False) -> onnx.ModelProto:
    """Zeros in every matrix and every convolution that is not depthwise, but the first and the last.

    Args:
        ends: these too.
    """
    model, rng = onnx.ModelProto.FromString(model.SerializeToString()), np.random.default_rng(0)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    turned = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Transpose"}
    found: dict[str, bool] = {}  # whether outputs come first
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        name = turned.get(node.input[1], node.input[1])
        if name in weights and not (node.op_type == "Conv" and weights[name].dims[1] == 1):
            transposed = any(a.name == "transB" and a.i for a in node.attribute) or name != node.input[1]
            found.setdefault(name, node.op_type == "Conv" or transposed)
    for name in list(found) if ends else list(found)[1:-1]:
        value = numpy_helper.to_array(weights[name])
        # (outputs, taps, channels): a pattern runs along the channels of a tap.
        rows = np.moveaxis(value, 1, -1) if found[name] else value.T
        kept = mask(rng, len(rows), rows[0].size).reshape(rows.shape)
        value = value * (np.moveaxis(kept, -1, 1) if found[name] else kept.T)
        weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))
    return model


def measured(
    dense: onnx.ModelProto, sparse: onnx.ModelProto, backend: CpuBackend, alone: bool = False
) -> dict[str, Any]:
    """Milliseconds, and the time of the faster of the others on the dense model over that on the sparse."""
    artifact, feed = backend.compile(sparse), random_inputs(dense, dynamic=1)
    runs = {name: make(1).compile(dense) for name, make in PEERS.items()}
    every = {**runs, "tvm": artifact}
    times = interleaved({name: a.bound(feed) if alone else partial(a.run, feed) for name, a in every.items()})
    wanted, got = PEERS["onnxruntime"](1).compile(sparse).run(feed), artifact.run(feed)
    return {
        **{name: median(each) for name, each in times.items()},
        "speedup": min(ratio(times[peer], times["tvm"]) for peer in PEERS),
        "error": max(float(np.abs(wanted[k] - got[k]).max() / np.abs(wanted[k]).max()) for k in got),
        "skips": sum(layer.sparse for layer in artifact.sparse),
        "layers": len(artifact.sparse),
    }


def layers(seconds: float) -> dict[str, Any]:
    """Each layer with each pattern, by default and tuned for so long."""
    found: dict[str, Any] = {}
    for layer in LAYERS:
        for name, (mask, _) in PATTERNS.items():
            sparse, tuned = layer.model(mask), CpuBackend(1, database=DATABASE)
            row = measured(layer.model(), sparse, CpuBackend(1), alone=True)
            if seconds:
                start = perf_counter()
                tuned.tune(sparse, seconds)
                row["tuning"] = perf_counter() - start
                row["tuned"] = measured(layer.model(), sparse, tuned, alone=True)["speedup"]
            found.setdefault(layer.name, {})[name] = row
            print(layer.name, name, {key: round(value, 7) for key, value in row.items()}, flush=True)
    return found


def curves() -> dict[str, Any]:
    """Speed-up of kernels that skip zeros, at ratios of zeros, whether it pays or not."""
    found: dict[str, Any] = {}
    for layer in LAYERS:
        for name, rows in (("4x1", 4), ("single", 1)):
            for share in RATIOS:
                with zeros_always_skipped():
                    sparse = layer.model(blocks(rows, share))
                    row = measured(layer.model(), sparse, CpuBackend(1), alone=True)
                found.setdefault(layer.name, {}).setdefault(name, []).append([share, row["speedup"]])
                print(layer.name, name, share, round(row["speedup"], 2), flush=True)
    return found


@contextmanager
def zeros_always_skipped() -> Iterator[None]:
    """Layers are compiled to skip their zeros, even where it does not pay and where they have none."""
    from onnx_prune.backends.tvm import skip
    from onnx_prune.backends.tvm.workloads import Choices

    before = Choices.skips, skip.FULL

    def always(self: Choices, *arguments: Any) -> bool:
        before[0](self, *arguments)
        return True

    Choices.skips, skip.FULL = always, 1.0  # type: ignore[method-assign]
    try:
        yield
    finally:
        Choices.skips, skip.FULL = before  # type: ignore[method-assign]


def nets(seconds: float) -> list[dict[str, Any]]:
    found = []
    for name, pruned, share, bar in NETS:
        dense = zoo.load(name)
        smaller = dense
        if pruned:
            made = prune(Model(dense), macs=pruned, multiple=8, check=False, criterion="l2", recover="none")
            smaller = made.model.proto
        sparse = with_zeros(smaller, blocks(4, share))
        row = {"net": name, "pruned": pruned, "zeros": share, "bar": bar}
        row |= measured(dense, sparse, CpuBackend(1))
        row["unzeroed"] = measured(dense, smaller, CpuBackend(1))["tvm"]
        if seconds:
            tuned = CpuBackend(1, database=DATABASE)
            tuned.tune(sparse, seconds)
            row["tuned"] = measured(dense, sparse, tuned)["speedup"]
        found.append(row)
        print(row, flush=True)
    return found


def table(machines: Mapping[str, Any]) -> str:
    return HEAD.format(version=VERSION) + "".join(section(name, machines[name]) for name in machines)


def section(name: str, data: Mapping[str, Any]) -> str:
    """What was measured on one machine."""
    commands = ", ".join(f"`{command}`" for command in data["commands"].values())
    text = f"\n## {name}\n\nKernels {data['kernels']}, measured by {commands}.\n"
    names = [layer.name for layer in LAYERS if layer.name in data.get("layers", {})]
    if names:
        text += "\n| zeros | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|\n"
        for pattern, (_, bars) in PATTERNS.items():
            cells = []
            for layer in LAYERS:
                if layer.name not in names:
                    continue
                row = data["layers"][layer.name][pattern]
                bar = bars[2] if layer.positions == 1 else bars[1] if layer.kernel == 3 else bars[0]
                tuned = f" / {row['tuned']:.2f}" if "tuned" in row else ""
                skips = "" if row["skips"] else " dense"
                cells.append(f"{row['speedup']:.2f}{tuned}{skips} ({bar})")
            text += f"| {pattern} | {' | '.join(cells)} |\n"
        errors = [row["error"] for rows in data["layers"].values() for row in rows.values()]
        text += f"\nLargest difference from ONNX Runtime on the same layer, over max|y|: {max(errors):.1e}."
        took = [row["tuning"] for rows in data["layers"].values() for row in rows.values() if "tuning" in row]
        text += f" Tuning a layer took at most {max(took):.0f} s.\n" if took else "\n"
    if "nets" in data:
        text += NETS_HEAD
        for row in data["nets"]:
            pruned = f"{row['pruned']:.0%} of MACs" if row["pruned"] else ""
            tuned = f"{row['tuned']:.2f}" if "tuned" in row else ""
            cells = [row["net"], pruned, f"{row['zeros']:.0%}", f"{row['onnxruntime']:.2f}"]
            cells += [f"{row['openvino']:.2f}", f"{row['unzeroed']:.2f}", f"{row['tvm']:.2f}"]
            cells += [f"{row['speedup']:.2f}", tuned, str(row["bar"]), f"{row['skips']} of {row['layers']}"]
            text += f"| {' | '.join(cells)} |\n"
    if "curves" in data:
        text += CURVES_HEAD
        for name, found in data["curves"].items():
            cells = [_break_even(found[kind]) for kind in ("4x1", "single")]
            text += f"| {name} | {' | '.join(cells)} |\n"
    return text


def _break_even(points: Sequence[tuple[float, float]]) -> str:
    """The ratio from which on a curve stays above 1."""
    for (low, a), (high, b) in reversed(list(pairwise(points))):
        if a < 1 <= b:
            return f"{low + (high - low) * (1 - a) / (b - a):.0%}"
    return "0%" if points[-1][1] >= 1 else "none"


def draw(machines: Mapping[str, Any]) -> None:
    size = (10, 4 * len(machines))
    figure, axes = plt.subplots(
        len(machines), 2, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for (name, data), row in zip(machines.items(), axes, strict=True):
        for plot, kind in zip(row, ("4x1", "single"), strict=True):
            for layer, found in data["curves"].items():
                plot.plot(*zip(*found[kind], strict=True), marker=".", label=layer)
            plot.axhline(1, color="gray", linewidth=0.8)
            plot.set_title(f"{name}\nzeros: {kind}", fontsize=10)
            plot.set(xlabel="ratio of zeros", yscale="log")
            plot.set_yticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"])
        row[0].set_ylabel("times as fast as dense elsewhere")
    axes[0][0].legend(fontsize=8)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = ("layers", "curves", "nets")
    for part in parts:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--tune", type=float, default=0.0, metavar="SECONDS", help="for each layer or net")
    asked = parser.parse_args()
    machines = json.loads(DATA.read_text()) if DATA.exists() else {}
    # Parts that were measured with other kernels are no part of what is measured with these.
    data = machines.get(machine(), {})
    data = machines[machine()] = (
        data if data.get("kernels") == VERSION else {"kernels": VERSION, "commands": {}}
    )
    for part in [part for part in parts if getattr(asked, part)] or parts:
        made = {"layers": lambda: layers(asked.tune), "curves": curves, "nets": lambda: nets(asked.tune)}
        data[part] = made[part]()
        tuned = f" --tune {asked.tune:g}" if asked.tune and part != "curves" else ""
        data["commands"][part] = f"tools/sparse_bench.py --{part}{tuned}"
        DATA.write_text(json.dumps(machines, indent=1) + "\n")
        TABLE.write_text(table(machines))
        if drawn := {name: found for name, found in machines.items() if "curves" in found}:
            draw(drawn)


if __name__ == "__main__":
    main()
