"""The steps of compilation for GPUs as passes of TVM, next to those of ``onnx_prune.backends.tvm.passes``.

Tidy, CanonicalizeBindings, FoldConstant, DeadCodeElimination, TensorCores,
LegalizeOps, AnnotateTIROpPattern, FoldConstant, DeadCodeElimination, FuseOps, FuseTIR,
DeadCodeElimination, GpuSchedules, LiftWeights
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm.s_tir import dlight

from ..passes import Safe
from ..schedules.common import Core
from .fragments import Precision
from .gpu import Gpu
from .lower import Lowering
from .product import Zeros
from .tensor_core import TensorCore


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.TensorCores")
class TensorCores:
    """Convolutions and products with constant weights become kernels on tensor cores.

    Before: ``relu(conv2d(x, weights))``.
    After: ``relu(call_tir(tensor_core_two_of_four, x, values, metadata))``.

    Args:
        gpu: what for.
        precision: what is multiplied.

    Attributes:
        layers: those with zeros in their weights.
    """

    def __init__(self, gpu: Gpu, precision: Precision) -> None:
        self.gpu, self.precision = gpu, precision
        self.layers: list[Zeros] = []

    def transform_module(self, module: Any, context: Any) -> Any:
        return Lowering(self.gpu, self.precision, self.layers).lower(module)


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.GpuSchedules")
class GpuSchedules:
    """Kernels on tensor cores with what was fused to them, and all others by TVM's own rules."""

    def transform_module(self, module: Any, context: Any) -> Any:
        gpu = dlight.gpu
        rules = [gpu.Matmul(), gpu.GEMV(), gpu.Reduction(), gpu.GeneralReduction(), gpu.Fallback()]
        return dlight.ApplyDefaultSchedule(Safe(TensorCore(Core())), *rules)(module.clone())
