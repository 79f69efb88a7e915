"""What all targets of TVM share: a model is imported, lowered for a processor, and tuned for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx

from ..analysis.batch import batch_of, entangled
from ..analysis.dynamic import symbols
from ..analysis.errors import BackendError, UsageError
from ..analysis.model import Model
from .artifact import Batch, Compiled, require_tvm
from .base import Progress, TensorSpec, signature
from .processor import Linker
from .quiet import native_log_hidden
from .table import Call
from .tracker import Tracker
from .weights import Program

if TYPE_CHECKING:
    from .tvm.skip import HasZeros


class Lowered(NamedTuple):
    """What imported modules became, and those of their layers that have zeros in their weights."""

    program: Program
    layers: Sequence[HasZeros]


@dataclass(frozen=True)
class Compiler(ABC):
    """Apache TVM for one kind of processor.

    Attributes:
        threads: threads the compiled kernels run on.
        dims: sizes of the inputs' symbolic dimensions by name; all others are compiled as 1.
        batches: sizes of the batch to compile for: the first dimension of all inputs, where ``dims`` leaves
            it open. Batches of other sizes are run in pieces.
        database: a folder of measured kernels (`tune`): the fastest known are taken.

    Raises:
        UsageError: ``threads`` or a size is not positive.
    """

    threads: int = 1
    dims: Mapping[str, int] = field(default_factory=dict)
    database: Path | None = None
    batches: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads make no sense; ask for at least 1")
        for name, size in self.dims.items():
            if size < 1:
                raise UsageError(f"a size '{name}' of {size} makes no sense; it must be at least 1")
        if not self.batches or min(self.batches) < 1:
            raise UsageError(f"batches of {list(self.batches)} make no sense; each must be at least 1")

    @abstractmethod
    def target(self) -> Mapping[str, Any]:
        """TVM's description of the processor.

        Raises:
            UsageError: LLVM does not know it.
        """

    @abstractmethod
    def lowered(self, modules: Mapping[str, Any], target: Mapping[str, Any]) -> Lowered:
        """A program of imported modules, by the names of their functions.

        Raises:
            BackendError: TVM cannot compile a module.
        """

    def compiled(self, model: onnx.ModelProto) -> Compiled:
        """Machine code and weights of ``model``, for one set of sizes.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        require_tvm()
        from .tvm import build, frontend, skip

        batch = self._batch(model)
        modules: dict[str, Any] = {}
        shapes = []
        with native_log_hidden():
            for name, dims in self._functions(batch).items():
                fixed = frontend.static(model, dims)
                modules[name] = frontend.import_model(fixed)
                shapes.append(build.output_shapes(modules[name]))
            inputs, outputs = signature(fixed)
            target = self.target()
            made = self.lowered(modules, target)
            layers = skip.told(made.layers, fixed)
        given = tuple(
            TensorSpec(spec.name, spec.dtype, _common(each, batch))
            for spec, *each in zip(outputs, *shapes, strict=True)
        )
        if batch is not None:
            inputs = tuple(TensorSpec(s.name, s.dtype, (batch.symbol, *s.shape[1:])) for s in inputs)
        return Compiled(made.program, inputs, given, target, batch, layers)

    def _batch(self, model: onnx.ModelProto) -> Batch | None:
        symbol = batch_of(model)
        if symbol is None or symbol in self.dims:
            if tuple(self.batches) != (1,):
                raise BackendError(
                    "the model has no batch to compile for several sizes of: a first dimension of all inputs"
                    " whose size is known only at run time"
                )
            return None
        others = {name: self.dims.get(name, 1) for name in symbols(model.graph) if name != symbol}
        sizes = tuple(dict.fromkeys(self.batches))
        return Batch(symbol, sizes, entangled(Model(model), symbol, others))

    def _functions(self, batch: Batch | None) -> dict[str, Mapping[str, int]]:
        """What symbols stand for in each function that is compiled, by its name."""
        if batch is None:
            return {"main": self.dims}
        return {batch.function(size): {**self.dims, batch.symbol: size} for size in batch.sizes}


class ProcessorCompiler(Compiler):
    """Apache TVM for what LLVM compiles for."""

    def linker(self) -> Linker | None:
        """What links for it; None for TVM's own way on this machine.

        Raises:
            BackendError: there is none.
        """
        return None

    def lowered(self, modules: Mapping[str, Any], target: Mapping[str, Any]) -> Lowered:
        from .tvm import build
        from .tvm.workloads import Choices

        choices = Choices(self._known(target))
        return Lowered(build.build(modules, target, choices), choices.layers)

    def _known(self, target: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fastest way that was measured of each kernel, on a target."""
        from .tvm.database import Database

        return {} if self.database is None else Database(self.database).best(target)

    def tune(
        self,
        model: onnx.ModelProto,
        seconds: float,
        progress: Callable[[Progress], None] = lambda progress: None,
        tracker: Tracker | None = None,
    ) -> Progress:
        """Time kernels of ``model`` for so long, those with the most work first, into the database.

        What the database knows already is not timed again, so that an interrupted run goes on where it was.

        Args:
            tracker: of machines with the same kind of processor as this one, which time kernels in its place:
                as many at once as there are.

        Returns:
            How far it came.

        Raises:
            UsageError: there is no database.
            BackendError: TVM is not installed, or cannot take the model; or the tracker does not answer, or
                has no such device.
        """
        folder = self.to_tune()
        from .tvm import tune
        from .tvm.database import Database
        from .tvm.devices import Device, Here, Lent

        devices: list[Device] = (
            [Here()] if tracker is None else [Lent(tracker, self.linker())] * tracker.devices()
        )
        with native_log_hidden():
            modules = self.modules(model)
            return tune.tune(modules, self.target(), Database(folder), seconds, progress, devices)

    def to_tune(self) -> Path:
        """The folder of the database.

        Raises:
            UsageError: there is no database.
            BackendError: TVM is not installed.
        """
        if self.database is None:
            raise UsageError("tuning needs a database to keep what it finds")
        require_tvm()
        return self.database

    def modules(self, model: onnx.ModelProto) -> list[Any]:
        """The modules of a model, one for each size of the batch.

        Raises:
            BackendError: TVM cannot take the model.
        """
        return [imported(model, dims) for dims in self._functions(self._batch(model)).values()]

    def kernels(self, model: onnx.ModelProto) -> tuple[list[Call], int]:
        """The kernels of ``model`` that a latency table tells the times of, and bytes of its weights.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        require_tvm()
        from .tvm import build, families
        from .tvm.constants import constant_bytes

        with native_log_hidden():
            module = imported(model, self.dims)
            found = build.workloads_of(module, self.target())
            return families.calls_of(found.seen), constant_bytes(module["main"])


def imported(model: onnx.ModelProto, dims: Mapping[str, int]) -> Any:
    """A module for one set of sizes."""
    from .tvm import frontend

    return frontend.import_model(frontend.static(model, dims))


def _common(shapes: Sequence[tuple[int | None, ...]], batch: Batch | None) -> tuple[int | str | None, ...]:
    """The shape of an output for all sizes of the batch; None for sizes that differ."""
    first, *others = shapes
    shape: list[int | str | None] = [
        size if all(size == other[k] for other in others) else None for k, size in enumerate(first)
    ]
    if batch is not None and batch.obstacle is None:
        shape[0] = batch.symbol
    return tuple(shape)
