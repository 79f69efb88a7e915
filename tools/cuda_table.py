"""Compile models for GPUs and emulate their tensor cores; write docs/cuda_kernels.md.

Usage: python tools/cuda_table.py [NAME...]

Each net is compiled dense, with two of four zeros along the reduction, and with three quarters of its blocks
zero. Images are smaller than the nets are made for, since emulation is slow.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from arm_table import smaller
from numpy.typing import NDArray
from onnx_prune import Model, emulate_gpu, load
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER
from sparse_bench import with_zeros

DOCS = Path(__file__).parent.parent / "docs"
DATA, TABLE = DOCS / "cuda_kernels.json", DOCS / "cuda_kernels.md"
NETS = ["digits_resnet", "digits_vit", "tv_mobilenet_v2", "tv_resnet50", "hf_bert"]
TARGETS = [("cuda:sm_80", "fp16"), ("cuda:sm_90", "fp16"), ("cuda:sm_80", "tf32")]
HEAD = """# Kernels for GPUs

Made by `{command}`. Every kernel is assembled by nvcc; those on tensor cores ran here, from the same CUDA
source, with their matrix instructions emulated. Images of the zoo's nets are 64 by 64. *Error* is the largest
difference from ONNX Runtime in float32 over the largest output; float16 and tf32 have ten bits of mantissa.
*Kernels* are distinct ones, and in brackets those on tensor cores. *mma.sp* counts instructions in the
assembled code, *skipping* the layers with zeros whose kernels skip them. *Registers* are those of a thread,
*shared* bytes those of a block, of the kernel that takes most; *spilling* kernels have too few. Nothing here
is a time: see [status.md](status.md).

| net | version | target | error | kernels | mma.sp | skipping | registers | spilling | shared |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def blocks(size: int, ratio: float) -> Any:
    """Square blocks of weights, the share ``ratio`` of them zero."""

    def mask(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
        kept = rng.random((-(-outputs // size), -(-columns // size))) >= ratio
        return np.kron(kept, np.ones((size, size), bool))[:outputs, :columns]

    return mask


def two_of_four(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
    """Two of four consecutive columns."""
    places = np.argsort(rng.random((outputs, -(-columns // 4), 4)), -1) < 2
    return places.reshape(outputs, -1)[:, :columns]


def versions(name: str) -> list[tuple[str, Model]]:
    """A net dense, and with zeros."""
    dense = load(FOLDER / f"{name}.onnx").proto if name.startswith("digits") else smaller(zoo.load(name))
    masks = {"2:4": two_of_four, "16x16": blocks(16, 0.75), "32x32": blocks(32, 0.75)}
    return [("dense", Model(dense))] + [(k, Model(with_zeros(dense, mask))) for k, mask in masks.items()]


def row(net: str, target: str, precision: str, found: Any) -> dict[str, Any]:
    return {
        "net": net,
        "version": found.model,
        "target": f"{target} {precision}",
        "error": found.error,
        "kernels": len(found.kernels),
        "emulated": len(found.emulated),
        "sparse_products": found.sparse_products,
        "skipping": sum(layer.sparse for layer in found.sparse),
        "layers": len(found.sparse),
        "registers": max(kernel.registers for kernel in found.kernels),
        "spilling": sum(kernel.spilled > 0 for kernel in found.kernels),
        "shared": max(kernel.shared for kernel in found.kernels),
    }


def shown(each: dict[str, Any]) -> str:
    skipping = f"{each['skipping']} of {each['layers']}" if each["layers"] else ""
    cells = [each["net"], each["version"], each["target"], f"{each['error']:.1e}"]
    cells += [f"{each['kernels']} ({each['emulated']})", each["sparse_products"] or "", skipping]
    cells += [each["registers"], each["spilling"] or "none", f"{each['shared']:,}"]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    names = sys.argv[1:] or NETS
    rows = json.loads(DATA.read_text()) if DATA.exists() else []
    for name in names:
        rows = [each for each in rows if each["net"] != name]
        made = versions(name)
        for target, precision in TARGETS:
            for found in emulate_gpu(made, target, precision):
                rows.append(row(name, target, precision, found))
                print(shown(rows[-1]), flush=True)
        rows.sort(key=lambda each: NETS.index(each["net"]) if each["net"] in NETS else len(NETS))
        DATA.write_text(json.dumps(rows, indent=1) + "\n")
        lines = [HEAD.format(command="make cuda-kernels"), *(shown(each) + "\n" for each in rows)]
        TABLE.write_text("".join(lines))


if __name__ == "__main__":
    main()
