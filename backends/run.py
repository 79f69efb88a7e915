"""Compile a model for a target, and time models against another runtime."""

from __future__ import annotations

from collections.abc import Sequence

from ..analysis.errors import UsageError
from ..analysis.model import Model
from ..passes.clocks import CLOCKS
from .base import Backend
from .clock import stopwatch
from .cpu import CpuArtifact, CpuBackend
from .measure import Timing, compare
from .onnxruntime import OnnxRuntimeBackend

# What `plan` and `prune` can measure a budget of time on.
CLOCKS["cpu"] = lambda dense: stopwatch(CpuBackend(), dense)
CLOCKS["onnxruntime"] = lambda dense: stopwatch(OnnxRuntimeBackend(), dense)


def compile(model: Model, target: str = "cpu", threads: int = 1) -> CpuArtifact:
    """Compile a model with Apache TVM; the artifact runs, and saves itself as one .so.

    Args:
        target: what to compile for; "cpu" is this machine's processor.
        threads: threads its kernels run on.

    Example:
        ``compile(load("smaller.onnx")).save(Path("smaller.so"))``

    Raises:
        UsageError: there is no such target, or ``threads`` is not positive.
        BackendError: TVM is not installed, or cannot take the model.
    """
    _check_target(target)
    return CpuBackend(threads).compile(model.proto)


def bench(
    models: Sequence[tuple[str, Model]],
    target: str = "cpu",
    against: str = "onnxruntime",
    threads: int = 1,
) -> list[Timing]:
    """Time models compiled by TVM and in the runtime ``against``, interleaved on the same random inputs.

    Axes whose size is known only at run time have one position.

    Example:
        ``bench([("dense", load("model.onnx")), ("pruned", load("smaller.onnx"))])``

    Raises:
        UsageError: there is no such target or runtime, or ``threads`` is not positive.
        BackendError: TVM is not installed, or one of the runtimes cannot take a model.
    """
    _check_target(target)
    if against != OnnxRuntimeBackend.name:
        raise UsageError(f"there is no runtime '{against}' to compare with; choose {OnnxRuntimeBackend.name}")
    backends: list[Backend] = [OnnxRuntimeBackend(threads), CpuBackend(threads)]
    return compare([(name, model.proto) for name, model in models], backends, against)


def _check_target(target: str) -> None:
    if target != "cpu":
        raise UsageError(f"there is no target '{target}'; choose cpu")
