"""Count instructions of models on emulated processors of 64-bit ARM; write docs/arm_counts.md.

Usage: python tools/arm_table.py [NAME...]

Each net is counted dense, pruned to half of its multiply-adds (`onnx-prune prune --macs 50% --multiple 8`),
and with three quarters of its weights zero in blocks of four outputs, those of depthwise convolutions
aside. Images are smaller than the nets are made for, since emulation is slow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
from onnx_prune import Model, emulate, load, prune
from onnx_prune.backends.emulator.report import Emulated, EmulatedKernel
from onnx_prune.backends.tvm.workloads import VERSION
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER
from sparse_bench import blocks, with_zeros

DOCS = Path(__file__).parent.parent / "docs"
DATA, TABLE = DOCS / "arm_counts.json", DOCS / "arm_counts.md"
SIDE = 64  # of images
NETS = ["digits_resnet", "digits_mobilenet", "digits_vit", "tv_mobilenet_v2", "tv_resnet50", "hf_bert"]
PROCESSORS = ["cortex-a72", "cortex-a76", "neoverse-v1"]
SMALL = 0.005  # of the instructions: kernels below are not looked at
TITLES = ["net", "processor", "version", "kernels", "error", "executed", "FMAs ÷ MACs/4", "sums", "of all"]
TITLES += ["÷ dense", "layers", "÷ MACs"]
HEAD = """# Instructions on 64-bit ARM

Made by `{command}`: compiled by this project, run once under QEMU. Images of the zoo's nets are 64 by 64.
*Pruned* is to half of the multiply-adds by the default criterion and recovery, channels in eights. *75%
4x1* has that share of zeros in all matrices and convolutions but depthwise ones, the first and last too.
*Error* is the largest difference from ONNX Runtime over the largest output. *FMAs* are instructions that
multiply and add four floats each; *÷ MACs/4* compares them with the multiply-adds of kernels that have any,
the worst of which is in brackets: the polynomial of a GELU in a kernel counts as FMAs, not as MACs. *Sums*
are the same with a Relu in place of each Erf: what the layers alone execute. *Of all* is the share of FMAs
in what these kernels executed. *÷ dense* is the share of the dense model's instructions, *layers* that of
the layers that skip zeros alone, with a Relu in place of each Erf; *÷ MACs* divides the former by the share
of the multiply-adds. *Kernels* is the version that was counted, {version} is that of today. These are
counts, no times.

{titles}
"""


def smaller(model: onnx.ModelProto) -> onnx.ModelProto:
    """With images of `SIDE` by `SIDE` for inputs of larger ones."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for info in model.graph.input:
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 4 and dims[2].dim_value > SIDE:
            dims[2].dim_value = dims[3].dim_value = SIDE
    del model.graph.value_info[:]
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    return model


def versions(name: str) -> list[tuple[str, Model]]:
    """A net dense, pruned, with zeros."""
    dense = load(FOLDER / f"{name}.onnx").proto if name.startswith("digits") else smaller(zoo.load(name))
    pruned = prune(Model(dense), macs=0.5, multiple=8, check=False).model
    return [
        ("dense", Model(dense)),
        ("pruned", pruned),
        ("75% 4x1", Model(with_zeros(dense, blocks(4, 0.75), ends=True))),
    ]


def without_erf(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a Relu in place of each Erf, the polynomial of which is no sum of a layer."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for node in model.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Relu"
    return model


def layers_of(counts: Emulated) -> list[EmulatedKernel]:
    """The kernels of layers, those that are hardly anything aside."""
    return [k for k in counts.kernels if k.macs and k.instructions > SMALL * counts.instructions]


def work_of(layers: list[EmulatedKernel]) -> float:
    """Their FMAs over a quarter of their multiply-adds."""
    return 4 * sum(k.vector_fmas for k in layers) / sum(k.macs or 0 for k in layers)


def of_zeros(dense: Emulated, sparse: Emulated) -> float | None:
    """Instructions of the layers that skip zeros over those of the same layers of the dense net."""
    same = {kernel.what for kernel in sparse.kernels}
    skipping = sum(k.instructions for k in sparse.kernels if "zeros" in k.what)
    before = sum(k.instructions for k in dense.kernels if k.macs and k.what not in same)
    return skipping / before if skipping else None


def measured(name: str, processor: str) -> list[dict[str, Any]]:
    models, target = versions(name), f"arm:{processor}"
    found = emulate(models, target)
    sums = found
    if any(node.op_type == "Erf" for node in models[0][1].proto.graph.node):
        sums = emulate([(each, Model(without_erf(model.proto))) for each, model in models], target)
    rows = []
    for each, alone in zip(found, sums, strict=True):
        layers = layers_of(each)
        work = {k.what: 4 * k.vector_fmas / (k.macs or 1) for k in layers}
        share = each.instructions / found[0].instructions
        rows.append(
            {
                "net": name,
                "processor": processor,
                "version": each.model,
                "kernels": VERSION,
                "error": each.error,
                "executed": each.instructions,
                "work": work_of(layers),
                "sums": work_of(layers_of(alone)),
                "worst": max(work.values()),
                "worst_of": max(work, key=work.__getitem__),
                "share": sum(k.vector_fmas for k in layers) / sum(k.instructions for k in layers),
                "dense": share,
                "layers": of_zeros(sums[0], alone),
                "macs": share / (each.macs / found[0].macs),
            }
        )
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    titles = f"| {' | '.join(TITLES)} |\n|{' --- |' * len(TITLES)}"
    text = HEAD.format(command="make arm-counts", version=VERSION, titles=titles)
    for r in rows:
        cells = [r["net"], r["processor"], r["version"], str(r["kernels"])]
        cells += [f"{r['error']:.1e}", f"{r['executed']:,}"]
        cells += [f"{r['work']:.2f} ({r['worst']:.2f})", f"{r['sums']:.2f}", f"{r['share']:.0%}"]
        cells += [f"{r['dense']:.2f}", f"{r['layers']:.2f}" if r["layers"] else "", f"{r['macs']:.2f}"]
        text += f"| {' | '.join(cells)} |\n"
    return text


def main() -> None:
    rows = json.loads(DATA.read_text()) if DATA.exists() else []
    for name in sys.argv[1:] or NETS:
        for processor in PROCESSORS:
            rows = [r for r in rows if (r["net"], r["processor"]) != (name, processor)]
            rows += measured(name, processor)
            order = sorted(rows, key=lambda r: (NETS.index(r["net"]), PROCESSORS.index(r["processor"])))
            DATA.write_text(json.dumps(order, indent=1) + "\n")
            TABLE.write_text(table(order))


if __name__ == "__main__":
    main()
