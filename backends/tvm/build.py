"""The pipeline: a Relax module in, a TVM executable out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import tvm
from tvm import relax, tirx

from ...analysis.errors import BackendError
from ..weights import Program, gathered
from . import passes
from .computed import Choice, Operand
from .described import described
from .machine import core_of
from .merge import merge
from .weights import Distinct
from .workloads import Choices, Workload, scheduled


def output_shapes(module: Any) -> tuple[tuple[int | None, ...], ...]:
    """Sizes of the outputs of ``main``; None for a size that depends on values of the inputs."""
    result = module["main"].ret_ty
    fields = list(result.fields) if hasattr(result, "fields") else [result]
    return tuple(
        tuple(int(size) if isinstance(size, tirx.IntImm) else None for size in field.shape)
        for field in fields
    )


class Steps(NamedTuple):
    """What differs between kinds of processors, as passes of TVM.

    Attributes:
        kernels: from operators to kernels.
        schedules: of kernels, with what was fused to them.
        config: of TVM's own passes.
    """

    kernels: Any
    schedules: Any
    config: Mapping[str, Any] = {}


def processor_steps(choices: Choices) -> Steps:
    """For what LLVM compiles for."""
    return Steps(passes.PackedKernels(choices), passes.Schedules(), passes.CONFIG)


@contextmanager
def compiling(description: Mapping[str, Any], config: Mapping[str, Any] = passes.CONFIG) -> Iterator[Any]:
    """TVM's target in whose scope passes run; whatever they raise is a BackendError."""
    target = tvm.target.Target(dict(description))
    try:
        with target, tvm.transform.PassContext(opt_level=3, config=dict(config)):
            yield target
    except Exception as error:  # passes raise whatever their parts raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"TVM cannot compile the model: {lines[-1][:300]}") from error


def build(
    modules: Mapping[str, Any], description: Mapping[str, Any], choices: Choices | None = None
) -> Program:
    """A VM executable of several functions for a processor, and the weights they take.

    Args:
        modules: by the name the function gets, Relax modules as imported, each with one function, ``main``.
        choices: what is known of kernels.
        description: of the target; kernels use as many threads as it has ``num-cores``.

    Raises:
        BackendError: a module cannot be compiled.
    """
    return built(modules, description, processor_steps(choices or Choices()))


def built(modules: Mapping[str, Any], description: Mapping[str, Any], steps: Steps) -> Program:
    """A VM executable of several functions by steps for a target, and the weights they take.

    Raises:
        BackendError: a module cannot be compiled.
    """
    distinct, lowered, weights = Distinct(), {}, {}
    kernels: dict[str, tuple[str, float]] = {}
    with compiling(description, steps.config) as target:
        for name, module in modules.items():
            lifting = passes.LiftWeights(distinct)
            fused = passes.fused(steps.kernels)(module)
            kernels = kernels or described(fused)  # the names of the first module stay as they are
            rest = [passes.kernels(), steps.schedules, lifting]
            lowered[name] = tvm.transform.Sequential(rest)(fused)
            weights[name] = lifting.used
        # Compiled, what calls the kernels takes a tenth of a small model's time less than interpreted.
        executable = relax.build(merge(lowered), target, tir_pipeline=passes.PIPELINE, exec_mode="compiled")
    return Program(executable, gathered(distinct.arrays), weights, kernels)


def workloads_of(module: Any, description: Mapping[str, Any]) -> Choices:
    """The kernels of an imported module that can be computed in several ways on a target.

    Raises:
        BackendError: the module cannot be compiled.
    """
    choices = Choices()
    with compiling(description):
        passes.fused(passes.PackedKernels(choices))(module)
    return choices


def kernel_of(
    workload: Workload, choice: Choice, description: Mapping[str, Any]
) -> tuple[Any, list[Operand]]:
    """A compiled kernel by itself, as function ``main``, and what it takes, the result last."""
    target = tvm.target.Target(dict(description))
    module = scheduled_kernel(workload, choice, target)
    with target, tvm.transform.PassContext(opt_level=3, config=passes.CONFIG):
        kernel = tvm.compile(module, target=target, tir_pipeline=passes.PIPELINE)
    return kernel, workload.operands(choice, core_of(target))


def scheduled_kernel(workload: Workload, choice: Choice, target: Any) -> Any:
    """A module with a kernel for a target of TVM as function ``main``."""
    core = core_of(target)
    function = workload.function(choice, core).with_attr("global_symbol", "main")
    with target, tvm.transform.PassContext(opt_level=3, config=passes.CONFIG):
        return scheduled(workload, function, core).mod
