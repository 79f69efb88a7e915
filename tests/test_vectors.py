"""Kernels use the vectors that the target has: by its assembly, and for wide ones by what they compute."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
TARGETS = {
    "zmm": {"mcpu": "x86-64-v4"},
    "ymm": {"mcpu": "x86-64-v3"},
    "xmm": {"mcpu": "x86-64"},
    "v": {"mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a72"},
}
FAST = {f"fast-math-{flag}": True for flag in ("reassoc", "contract", "nsz")}


def workloads() -> list[Any]:
    """A convolution, the same in chunks of its channels, one that Winograd computes, products, zeros."""
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.schedules.sources import Pixels, Tokens
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse
    from onnx_prune.backends.tvm.workloads import Attention, Batched, Convolution, Product

    every, steps = Window((3, 3), (1, 1), (1, 1), (1, 1, 1, 1)), Window((3, 3), (2, 2), (1, 1), (1, 1, 1, 1))
    return [
        Convolution((1, 64, 14, 14), 96, 64, 96, steps),
        Convolution((1, 512, 7, 7), 64, 512, 64, steps),
        Convolution((2, 40, 9, 9), 64, 40, 64, every),
        Product(50, 60, 70),
        Batched(3, 20, 30, 40),
        Attention(3, 20, 30, 40, 24),
        Sparse(Pixels((1, 64, 14, 14)), 96, Pattern(4, 25)),
        Sparse(Tokens((80,), 60), 70, Pattern(4, 25)),
    ]


def multiplies(assembly: str, register: str) -> tuple[int, int]:
    """Multiply-adds (multiplications before AVX2) of whole vectors, and those of such registers."""
    lines = re.findall(r"^\s*((?:vf(?:n?)madd\w*ps|mulps|fmla)\s.*)$", assembly, re.MULTILINE)
    pattern = r"\bv\d+\.4s" if register == "v" else rf"%{register}\d+"
    return len(lines), sum(re.search(pattern, line) is not None for line in lines)


@pytest.mark.parametrize("register", TARGETS)
def test_the_widest_registers_multiply(register: str) -> None:
    import tvm
    from onnx_prune.backends.tvm.build import kernel_of
    from onnx_prune.backends.tvm.machine import core_of

    target = {"kind": "llvm", "num-cores": 1, **TARGETS[register], **FAST}
    core = core_of(tvm.target.Target(target))
    for workload in workloads():
        kernel, _ = kernel_of(workload, workload.choices(core, False)[0], target)
        every, wide = multiplies(kernel.mod.inspect_source("asm"), register)
        assert wide > every / 2 > 0, workload.description  # bases are turned by blocks of eight


def test_tiles_fit_the_registers() -> None:
    from onnx_prune.backends.tvm.schedules import gemm
    from onnx_prune.backends.tvm.schedules.common import Core
    from onnx_prune.backends.tvm.schedules.tile import tiles

    for core in (Core(registers=8), Core(), Core(lanes=16, registers=32)):
        found = tiles(64, 28, 28, 64, core)
        sums = [tile.vectors(core) * tile.rows * tile.columns for tile in found]
        assert core.registers // 2 < max(sums) < core.registers
        products = [rows * columns // core.lanes for rows, columns in gemm.tiles(64, 512, core)]
        assert core.registers // 2 <= max(products) < core.registers
    assert any(tile.channels % 2 == 0 for tile in tiles(64, 28, 28, 64, Core(lanes=16, registers=32))[:1])


@pytest.mark.parametrize("number", [0, 1, 5, 10])
def test_wide_vectors_compute_the_same(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without them too: LLVM takes them apart."""
    import tvm
    from onnx_prune.backends.tvm import build
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.schedules.common import Core

    wide, target = Core(lanes=16, registers=32), host_target(1)
    for workload in workloads():
        options = workload.choices(wide, False)
        results = []
        for core in (wide, Core(), Core(elements=True)):
            monkeypatch.setattr(build, "core_of", lambda target, core=core: core)
            kernel, operands = build.kernel_of(workload, options[number % len(options)], target)
            draw = np.random.default_rng(number)
            arrays = [
                operand if isinstance(operand, np.ndarray) else draw.standard_normal(operand, np.float32)
                for operand in operands
            ]
            tensors = [tvm.runtime.tensor(array) for array in arrays]
            kernel.jit()["main"](*tensors)
            results.append(tensors[-1].numpy())
        assert np.abs(results[0]).max() > 1
        for other in results[1:]:
            assert np.allclose(results[0], other, rtol=1e-5, atol=1e-5), workload.description
