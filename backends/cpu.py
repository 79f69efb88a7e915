"""The TVM backend for this machine's CPU. TVM is imported when a model is compiled or loaded, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import onnx

from ..analysis.errors import UsageError
from ..passes.clocks import LayerClock
from ..passes.execute import random_inputs
from .artifact import CpuArtifact, require_tvm
from .base import Kernel, signature
from .compiler import ProcessorCompiler, imported
from .measure import interleaved
from .quiet import native_log_hidden
from .table import Table
from .threads import use_threads


@dataclass(frozen=True)
class CpuBackend(ProcessorCompiler):
    """Apache TVM on this machine's CPU."""

    name: ClassVar[str] = "tvm"

    def target(self) -> Mapping[str, Any]:
        from .tvm import machine

        return machine.host_target(self.threads)

    def compile(self, model: onnx.ModelProto) -> CpuArtifact:
        """Machine code and weights of ``model``, for one set of sizes.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        return CpuArtifact(**vars(self.compiled(model)))

    def profile(self, model: onnx.ModelProto) -> tuple[Kernel, ...]:
        """What each kernel takes in a run on random inputs, the most first. Symbolic sizes are 1.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        require_tvm()
        from .tvm import frontend, profile
        from .tvm.workloads import Choices

        use_threads(self.threads)
        fixed = frontend.static(model, self.dims)
        feed = random_inputs(fixed, dynamic=1)
        with native_log_hidden():
            module, target = frontend.import_model(fixed), self.target()
            ordered = [feed[spec.name] for spec in signature(fixed)[0]]
            return profile.profile(module, target, Choices(self._known(target)), ordered)

    def layer_times(
        self, model: onnx.ModelProto, report: Callable[[str], None]
    ) -> AbstractContextManager[LayerClock]:
        """A clock of the layers of ``model`` with zeros that they do not have yet, to be opened.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        require_tvm()
        from .tvm import layers

        with native_log_hidden():
            return layers.layer_times(model, self.target(), report)

    def tabulate(
        self,
        model: onnx.ModelProto,
        path: Path,
        points: int,
        seconds: float | None = None,
        progress: Callable[[Table], None] = lambda table: None,
    ) -> Table:
        """Measure the latency table of ``model`` and write it, or go on with the one that is there.

        Args:
            path: is written when it ends, by an exception too.
            points: counts of each axis; see `Kernel.of`.
            seconds: after which it ends with what it has.
            progress: called before each measurement with what is known.

        Raises:
            UsageError: there are fewer than 2 points.
            BackendError: TVM is not installed, cannot take the model, or a kernel of it fails.
            OutputError: the table cannot be written.
        """
        if points < 2:
            raise UsageError(f"{points} points make no curve; ask for at least 2")
        require_tvm()
        from .tvm import tabulate

        with native_log_hidden():
            target = self.target()
            module = imported(model, self.dims)
            planned = tabulate.planned(module, target, self._known(target), points)
            if path.exists():
                planned.go_on(Table.read(path))
            try:
                planned.measure(seconds, progress)
                if not planned.table.missing_kernels and planned.table.dense_ms is None:
                    progress(planned.table)
                    planned.table = replace(planned.table, dense_ms=self._milliseconds(model))
            finally:
                planned.table.save(path)
        return planned.table

    def _milliseconds(self, model: onnx.ModelProto) -> float:
        feed, artifact = random_inputs(model, dynamic=1), self.compile(model)
        return median(interleaved({"dense": lambda: artifact.run(feed)})["dense"])
