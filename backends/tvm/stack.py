"""Small buffers of kernels are on the stack, where LLVM makes registers of them.

TVM 0.27 asks an allocator for every buffer of our kernels, even of 64 bytes, so that all of their sums would
be in memory.
"""

from __future__ import annotations

import math
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

PIPELINE = "onnx_prune"  # the name under which TVM finds these passes
_MOST = 1 << 14  # bytes; TVM's threads have a stack of some megabytes


@tirx.transform.prim_func_pass(opt_level=0, name="onnx_prune.OnStack")
class OnStack:
    """Small buffers of a constant size are not lowered to calls of an allocator.

    Before: ``x = alloc_buffer((64,), "float32")``.
    After: the same with the annotation ``disable_lower_builtin``, at which TVM leaves it to LLVM.
    """

    def transform_function(self, function: Any, module: Any, context: Any) -> Any:
        return function.with_body(tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, _on_stack)))


def _on_stack(allocation: Any) -> Any:
    kind = allocation.buffer.ty
    if not all(isinstance(size, tirx.IntImm) for size in kind.shape):
        return allocation
    bits = math.prod(size.value for size in kind.shape) * tvm.DataType(str(kind.dtype)).bits
    if bits > 8 * _MOST:
        return allocation
    annotations = {**dict(allocation.annotations), "disable_lower_builtin": tirx.IntImm("bool", 1)}
    return tirx.AllocBuffer(allocation.buffer, annotations)


def _pipeline() -> tuple[Any, Any, Any]:
    """TVM's own, with that step before its last ones for the processor that calls kernels."""
    lowering, host, device = tvm.tirx.get_tir_pipeline("s_tir")
    return lowering, lambda: tvm.transform.Sequential([OnStack(), host()]), device


tvm.tirx.register_tir_pipeline(PIPELINE, _pipeline)
