"""Time kernels for a GPU on this machine's, next to cuBLAS and cuSPARSELt through PyTorch; a table on stdout.

Usage: python tools/gpu_bench.py        (needs a GPU of NVIDIA; PyTorch with CUDA for the comparison)

Each product is timed in all its choices, and the fastest is shown. Nothing is compared where PyTorch is not
installed, or has no kernel for a product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import tvm
from cuda_table import blocks, two_of_four
from onnx_prune.backends.cuda import CudaBackend
from onnx_prune.backends.tvm.cuda.fragments import FP16
from onnx_prune.backends.tvm.cuda.gpu import GPUS
from onnx_prune.backends.tvm.cuda.product import Layer, packed
from onnx_prune.backends.tvm.cuda.reading import Rows
from onnx_prune.backends.tvm.cuda.tensor_core import Form, TensorCore
from onnx_prune.backends.tvm.schedules.common import Core
from sparse_bench import Mask
from tvm import s_tir

SHAPES = [(768, 768, 128), (3072, 768, 128), (4096, 4096, 512), (4096, 4096, 4096)]  # outputs, columns, rows
ROUNDS, CALLS = 20, 50


def masks() -> dict[str, tuple[Form, Mask]]:
    return {
        "dense": (Form("dense", FP16), lambda rng, outputs, columns: np.ones((outputs, columns), bool)),
        "2:4": (Form("two_of_four", FP16), two_of_four),
        "16x16 75%": (Form("blocks", FP16, 16), blocks(16, 0.75)),
        "32x32 75%": (Form("blocks", FP16, 32), blocks(32, 0.75)),
    }


def fastest(layer: Layer, matrix: Any, backend: CudaBackend) -> tuple[float, float]:
    """Milliseconds of the best choice, and its largest error over the largest result."""
    device, rng = tvm.cuda(), np.random.default_rng(1)
    x = rng.standard_normal(layer.source.shape).astype(np.float32)
    arrays = packed(matrix, layer.form)
    wanted = x @ matrix.T
    found = []
    for warps in layer.choices(GPUS[backend.arch]):
        schedule = TensorCore(Core()).schedule(s_tir.Schedule(layer.kernel(arrays, warps)))
        kernel = schedule.mod["main"].with_attr("global_symbol", "main")
        made = tvm.compile(tvm.IRModule({"main": kernel}), target=tvm.target.Target(dict(backend.target())))
        result = np.zeros((*layer.source.lead, layer.outputs), np.float32)
        given = [tvm.runtime.tensor(array, device) for array in (x, *arrays.arrays, result)]
        timer = made.mod.time_evaluator("main", device, number=CALLS, repeat=ROUNDS)
        milliseconds = 1e3 * median(timer(*given).results)
        error = float(np.abs(given[-1].numpy() - wanted).max() / np.abs(wanted).max())
        found.append((milliseconds, error))
    return min(found)


def torch_times(matrix: Any, rows: int) -> dict[str, float]:
    """Milliseconds of cuBLAS, and of cuSPARSELt for two of four; none without PyTorch."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    weights = torch.tensor(matrix, dtype=torch.float16, device="cuda")
    x = torch.randn(matrix.shape[1], rows, dtype=torch.float16, device="cuda")
    runs: dict[str, Callable[[], Any]] = {"cuBLAS": lambda: weights @ x}
    try:
        sparse = torch.sparse.to_sparse_semi_structured(weights)
        runs["cuSPARSELt"] = lambda: sparse @ x
    except RuntimeError:
        pass  # not two of four, or no such library
    times = {}
    for name, call in runs.items():
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        taken = []
        for _ in range(ROUNDS):
            begin.record()
            for _ in range(CALLS):
                call()
            end.record()
            torch.cuda.synchronize()
            taken.append(begin.elapsed_time(end) / CALLS)
        times[name] = median(taken)
    return times


def main() -> None:
    if not tvm.cuda().exist:
        sys.exit("TVM finds no GPU here")
    backend = CudaBackend(arch="sm_" + tvm.cuda().compute_version.replace(".", ""), precision="fp16")
    print("| outputs x columns x rows | weights | ms | error | cuBLAS ms | cuSPARSELt ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    for outputs, columns, rows in SHAPES:
        for label, (form, mask) in masks().items():
            rng = np.random.default_rng(0)
            matrix = (rng.standard_normal((outputs, columns)) * mask(rng, outputs, columns)).astype(
                np.float32
            )
            milliseconds, error = fastest(Layer(Rows((rows,), columns), outputs, form), matrix, backend)
            theirs = torch_times(matrix, rows)
            other = [f"{theirs[name]:.4f}" if name in theirs else "" for name in ("cuBLAS", "cuSPARSELt")]
            print(f"| {outputs} x {columns} x {rows} | {label} | {milliseconds:.4f} | {error:.1e} |", end=" ")
            print(" | ".join(other), "|", flush=True)


if __name__ == "__main__":
    main()
