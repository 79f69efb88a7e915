"""The pipeline: a Relax module in, a TVM executable out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import tvm
from tvm import relax, s_tir, te, tirx
from tvm.s_tir import dlight

from ...analysis.errors import BackendError
from ..weights import Program, gathered
from .constants import constant_bytes, tidy
from .lower import lower
from .machine import last_cache
from .merge import merge
from .schedules.conv import ChunkedConv, Conv, Depthwise
from .schedules.elementwise import Elementwise
from .schedules.gemm import Gemm
from .schedules.pool import Pool
from .schedules.reduction import Reduction
from .schedules.rows import Rows
from .schedules.winograd import Winograd
from .weights import Distinct, lift
from .workloads import Choice, Choices, Workload, scheduled

_LOG = logging.getLogger(__name__)

# Splits loops whose last step is partial, instead of testing every step.
_CONFIG = {"s_tir.LoopPartition": {"partition_const_loop": True}}


def output_shapes(module: Any) -> tuple[tuple[int | None, ...], ...]:
    """Sizes of the outputs of ``main``; None for a size that depends on values of the inputs."""
    result = module["main"].ret_ty
    fields = list(result.fields) if hasattr(result, "fields") else [result]
    return tuple(
        tuple(int(size) if isinstance(size, tirx.IntImm) else None for size in field.shape)
        for field in fields
    )


@contextmanager
def compiling(description: Mapping[str, Any]) -> Iterator[Any]:
    """TVM's target in whose scope passes run; whatever they raise is a BackendError."""
    target = tvm.target.Target(dict(description))
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=_CONFIG):
            yield target
    except Exception as error:  # passes raise whatever their parts raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"TVM cannot compile the model: {lines[-1][:300]}") from error


def build(
    modules: Mapping[str, Any], description: Mapping[str, Any], choices: Choices | None = None
) -> Program:
    """A VM executable of several functions, and the weights they take.

    Args:
        modules: by the name the function gets, Relax modules as imported, each with one function, ``main``.
        choices: what is known of kernels.
        description: of the target; kernels use as many threads as it has ``num-cores``.

    Raises:
        BackendError: a module cannot be compiled.
    """
    known, threads = choices or Choices(), int(description["num-cores"])
    distinct, lowered, weights = Distinct(), {}, {}
    with compiling(description) as target:
        for name, module in modules.items():
            ready = schedule(lower_graph(module, known), threads)
            lowered[name], weights[name] = lift(ready, distinct)
        executable = tvm.compile(merge(lowered), target=target)
    return Program(executable, gathered(distinct.arrays), weights)


def workloads_of(module: Any) -> Choices:
    """The kernels of an imported module that can be computed in several ways.

    Raises:
        BackendError: the module cannot be compiled.
    """
    choices = Choices()
    with tvm.transform.PassContext(opt_level=3, config=_CONFIG):
        lower_graph(module, choices)
    return choices


def kernel_of(
    workload: Workload, choice: Choice, description: Mapping[str, Any]
) -> tuple[Any, list[tuple[int, ...]]]:
    """A compiled kernel by itself, as function ``main``, and the shapes of its arguments, the result last."""
    tensors = workload.tensors(choice)
    function = te.create_prim_func(list(tensors)).with_attr("global_symbol", "main")
    shapes = [tuple(int(size) for size in tensor.shape) for tensor in tensors]
    target = tvm.target.Target(dict(description))
    with target, tvm.transform.PassContext(opt_level=3, config=_CONFIG):
        schedule = scheduled(workload, function, int(description["num-cores"]))
        return tvm.compile(schedule.mod, target=target), shapes


def lower_graph(module: Any, choices: Choices) -> Any:
    """Relax passes from imported operators to fused kernels."""
    return as_kernels(fuse(module, choices))


def as_kernels(module: Any) -> Any:
    """Functions of several kernels as one each."""
    t = relax.transform
    return tvm.transform.Sequential([t.FuseTIR(), t.DeadCodeElimination()])(module)


def fuse(module: Any, choices: Choices) -> Any:
    """Relax passes from imported operators to functions of several kernels that become one."""
    t = relax.transform
    before = [t.CanonicalizeBindings(), t.FoldConstant(), t.DeadCodeElimination()]
    after = [
        t.LegalizeOps(),
        t.AnnotateTIROpPattern(),
        t.FoldConstant(),
        t.DeadCodeElimination(),
        t.FuseOps(),
    ]
    module = t.DecomposeOpsForInference()(tidy(module))
    module = tvm.transform.Sequential(before)(module)
    choices.far = constant_bytes(module["main"]) > last_cache()
    return tvm.transform.Sequential(after)(lower(module, choices))


def schedule(module: Any, threads: int) -> Any:
    """The rules, the most particular first; what none of them takes stays a plain loop nest."""
    rules = [Conv, ChunkedConv, Winograd, Depthwise, Gemm, Rows, Pool, Elementwise, Reduction]
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
