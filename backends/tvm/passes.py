"""The steps of compilation as passes of TVM, each of use in a pipeline of other passes.

A module has one Relax function, ``main``, of static shapes and float32 where it is to become fast; what a
pass knows nothing of stays as it is. `Integers`, `Tidy` and `PackedKernels` work on operators, before TVM's
own LegalizeOps; `Schedules` on kernels, after FuseTIR; `LiftWeights` at any time. This is how `build` uses
them:

    Integers, Tidy, CanonicalizeBindings, FoldConstant, DeadCodeElimination, PackedKernels,
    LegalizeOps, AnnotateTIROpPattern, FoldConstant, DeadCodeElimination, FuseOps, FuseTIR,
    DeadCodeElimination, Schedules, LiftWeights

`fused` and `kernels` are the stretches of it that hold passes of TVM's own. Schedules want
``tvm.transform.PassContext(config=CONFIG)`` while TVM compiles, and a target that names the processor
(``mcpu``), for that is what TVM vectorises for. They are faster with small buffers in registers, which
``tvm.compile(…, tir_pipeline=PIPELINE)`` does (`stack`).
"""

from __future__ import annotations

import logging
from typing import Any

import tvm
from tvm import relax, s_tir
from tvm.s_tir import dlight

from .constants import constant_bytes, tidy
from .lower import lower, with_integers
from .machine import core_of, last_cache
from .schedules.common import Core
from .schedules.conv import ChunkedConv, Conv, Depthwise
from .schedules.dots import DotConv, DotGemm
from .schedules.elementwise import Elementwise
from .schedules.gemm import Gemm
from .schedules.pool import Pool
from .schedules.reduction import Reduction
from .schedules.rows import Rows
from .schedules.sparse import Sparse
from .schedules.winograd import Winograd
from .schedules.written import Written
from .stack import PIPELINE as PIPELINE
from .weights import Distinct, lift
from .workloads import Choices

_LOG = logging.getLogger(__name__)

CONFIG = {
    # Splits loops whose last step is partial, instead of testing every step.
    "s_tir.LoopPartition": {"partition_const_loop": True},
    # What calls the kernels is compiled with them and tests its own arguments: theirs need no tests, which
    # are up to 200 instructions a call and a fifth of a small model's library.
    "tirx.disable_assert": True,
}


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.Tidy")
class Tidy:
    """Small work on constants is done, BatchNorm becomes one product and one sum, Clip, Min, Max, Sum and
    GELU operators again, and quotients by constants products.

    Before: ``batch_norm(x, gamma, beta, mean, variance)`` with constants.
    After: ``add(multiply(x, scale), shift)``.
    """

    def transform_module(self, module: Any, context: Any) -> Any:
        return relax.transform.DecomposeOpsForInference()(tidy(module))


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.Integers")
class Integers:
    """Layers of quantised numbers become sums of integers, where the processor multiplies bytes faster.

    Before: ``conv2d(dequantize(x, s, z), dequantize(weights, t, 0))``.
    After: ``multiply(astype(subtract(conv2d(x, weights), shift), "float32"), scale)``.
    """

    def transform_module(self, module: Any, context: Any) -> Any:
        return with_integers(module, _core())


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.PackedKernels")
class PackedKernels:
    """Operators become kernels on packed layouts, with constant weights packed for them.

    Before: ``relu(conv2d(x, weights))``.
    After: ``call_tir(pack, x)`` to channels in blocks of eight, ``call_tir(conv2d, …)`` with weights in the
    order they are read, ``relu`` on blocks, and back where a plain tensor is wanted.

    Convolutions (transposed ones too), pools and resizes; products with constant and computed matrices, with
    reshapes and transposes before them folded into what they read; attention; softmax and LayerNorm by rows;
    polynomials for exp, erf and tanh. What is not taken, and a ``main`` with control flow, stays.

    Args:
        choices: how kernels are computed; notes which there are. By default what a static model finds best.
    """

    def __init__(self, choices: Choices | None = None) -> None:
        self.choices = choices or Choices()

    def transform_module(self, module: Any, context: Any) -> Any:
        self.choices.core = _core()
        self.choices.far = constant_bytes(module["main"]) > last_cache(_target())
        # Layers that became one kernel have left their own behind.
        return relax.transform.DeadCodeElimination()(lower(module, self.choices))


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.Schedules")
class Schedules:
    """Each kernel is scheduled by the first rule that takes it; what none takes stays a plain loop nest.

    Before: a ``prim_func`` of loops as TE makes them, with the blocks of its epilogue after it.
    After: register tiles, vectors, loops over threads, the epilogue computed where the tile is; marked
    ``tirx.is_scheduled``.
    """

    def transform_module(self, module: Any, context: Any) -> Any:
        rules = [Sparse, DotConv, DotGemm, Conv, ChunkedConv, Winograd, Depthwise, Gemm, Written, Rows]
        rules += [Pool, Elementwise, Reduction]
        core, own = _core(), module.clone()  # which it writes into
        return dlight.ApplyDefaultSchedule(*(Safe(rule(core)) for rule in rules))(own)


@tvm.transform.module_pass(opt_level=0, name="onnx_prune.LiftWeights")
class LiftWeights:
    """Constants of a kilobyte and more become parameters of ``main``, after its own.

    Before: ``main(x)`` with constants.
    After: ``main(x, weight0, weight1)``; equal constants are one.

    Args:
        distinct: where the arrays go; may hold those of other modules, which are found again.

    Attributes:
        distinct: its ``arrays`` are those the parameters take.
        used: which of them ``main`` takes, in order.
    """

    def __init__(self, distinct: Distinct | None = None) -> None:
        self.distinct = distinct or Distinct()
        self.used: tuple[int, ...] = ()

    def transform_module(self, module: Any, context: Any) -> Any:
        lifted, self.used = lift(module, self.distinct)
        return lifted


def fused(kernels: Any) -> Any:
    """From operators as imported to functions of several kernels that become one.

    Args:
        kernels: the pass that makes kernels of those that get one of ours.
    """
    t = relax.transform
    return tvm.transform.Sequential(
        [
            Integers(),
            Tidy(),
            t.CanonicalizeBindings(),
            t.FoldConstant(),
            t.DeadCodeElimination(),
            kernels,
            t.LegalizeOps(),
            t.AnnotateTIROpPattern(),
            t.FoldConstant(),
            t.DeadCodeElimination(),
            t.FuseOps(),
        ]
    )


def kernels() -> Any:
    """From functions of several kernels to one each."""
    t = relax.transform
    return tvm.transform.Sequential([t.FuseTIR(), t.DeadCodeElimination()])


def _core() -> Core:
    target = _target()
    return Core() if target is None else core_of(target)


def _target() -> Any:
    """The one in scope, or None."""
    return tvm.target.Target.current(allow_none=True)


class Safe:
    """A rule that passes on a function it cannot schedule: slow code is better than none."""

    def __init__(self, rule: Any) -> None:
        self.rule = rule

    def apply(self, func: Any, target: Any, tunable: bool = False) -> Any:
        try:
            return self.rule.apply(func, target, tunable)
        except s_tir.ScheduleError as error:
            _LOG.debug("%s cannot schedule a kernel: %s", type(self.rule).__name__, error)
            return None
