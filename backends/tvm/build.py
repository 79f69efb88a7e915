"""The pipeline: an ONNX model in, a TVM executable out."""

from __future__ import annotations

import logging
from typing import Any

import onnx
import tvm
from tvm import relax, s_tir
from tvm.s_tir import dlight

from ...analysis.errors import BackendError
from .frontend import import_model, prepare
from .lower import lower
from .schedules.conv import Conv, Depthwise
from .schedules.elementwise import Elementwise
from .schedules.gemm import Gemm
from .schedules.pool import Pool
from .schedules.reduction import Reduction
from .schedules.rows import Rows

_LOG = logging.getLogger(__name__)

# Splits loops whose last step is partial, instead of testing every step.
_CONFIG = {"s_tir.LoopPartition": {"partition_const_loop": True}}


def host_target(threads: int) -> Any:
    """This machine's CPU. Sums may be reordered, which vectorising them needs; NaN and signs of zero too."""
    fast = {f"fast-math-{flag}": True for flag in ("reassoc", "contract", "nsz")}
    cpu = tvm.get_global_func("target.llvm_get_system_cpu")()
    return tvm.target.Target({"kind": "llvm", "mcpu": cpu, "num-cores": threads, **fast})


def build(proto: onnx.ModelProto, threads: int) -> Any:
    """Compile a model for this machine.

    Raises:
        BackendError: the model cannot be imported or lowered.
    """
    module = import_model(prepare(proto))
    target = host_target(threads)
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=_CONFIG):
            return tvm.compile(schedule(lower_graph(module), threads), target=target)
    except tvm.error.InternalError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"TVM cannot compile the model: {lines[-1][:300]}") from None


def lower_graph(module: Any) -> Any:
    """Relax passes from imported operators to fused functions."""
    t = relax.transform
    before = [
        t.DecomposeOpsForInference(),
        t.CanonicalizeBindings(),
        t.FoldConstant(),
        t.DeadCodeElimination(),
    ]
    after = [
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.DeadCodeElimination(),
        t.FuseOps(),
        t.FuseTIR(),
        t.DeadCodeElimination(),
    ]
    module = tvm.transform.Sequential(before)(module)
    return tvm.transform.Sequential(after)(lower(module))


def schedule(module: Any, threads: int) -> Any:
    """The rules, the most particular first; what none of them takes stays a plain loop nest."""
    rules = [Conv, Depthwise, Gemm, Rows, Pool, Elementwise, Reduction]
    return dlight.ApplyDefaultSchedule(*(_Safe(rule(threads)) for rule in rules))(module)


class _Safe:
    """A rule that passes on a function it cannot schedule: slow code is better than none."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def apply(self, func: Any, target: Any, tunable: bool = False) -> Any:
        try:
            return self.rule.apply(func, target, tunable)
        except s_tir.ScheduleError as error:
            _LOG.debug("%s cannot schedule a kernel: %s", type(self.rule).__name__, error)
            return None
