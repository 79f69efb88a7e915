"""Time compiled models on a device of a tracker: libraries are linked here, sent there and run in turn."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray

from ..analysis.errors import BackendError
from ..passes.execute import first_line, random_inputs
from ..passes.verify import worst_error
from .artifact import Compiled, require_tvm
from .base import Arrays
from .compiler import ProcessorCompiler
from .measure import ROUNDS, SECONDS, ratio
from .onnxruntime import OnnxRuntimeBackend
from .tracker import NoDevice, Tracker

if TYPE_CHECKING:
    from .tvm.devices import Session

_SESSION = 3600.0  # seconds after which a device that hangs is free again


@dataclass(frozen=True)
class RemoteTiming:
    """How fast a device runs a model.

    Attributes:
        model: its name, as given.
        device: the key of the tracker's devices.
        threads: that kernels run on.
        median_ms: median over the rounds of the time of a call, in milliseconds.
        ratio: median over the rounds of this time divided by that of the first model.
        error: the largest difference from ONNX Runtime's outputs here, over the largest output.
    """

    model: str
    device: str
    threads: int
    median_ms: float
    ratio: float
    error: float


def timed(
    models: Sequence[tuple[str, onnx.ModelProto]], backend: ProcessorCompiler, tracker: Tracker
) -> list[RemoteTiming]:
    """Time models on one device, in turn within each round, on random inputs; sizes known at run time are 1.

    Raises:
        BackendError: a model cannot be compiled; or the device fails.
        NoDevice: the tracker has none.
    """
    require_tvm()
    from .tvm.devices import Lent

    tracker.devices()  # before the work
    feeds = [random_inputs(model, dynamic=1) for _, model in models]
    wanted = [OnnxRuntimeBackend(1).compile(m).run(feed) for (_, m), feed in zip(models, feeds, strict=True)]
    made = [backend.compiled(model) for _, model in models]
    runs: list[_Run] = []
    try:
        with Lent(tracker, backend.linker()).session(backend.threads, _SESSION) as session:
            runs += [_Run(session, *each) for each in zip(made, feeds, strict=True)]
            times = [[run.milliseconds() for run in runs] for _ in range(ROUNDS)]
            outputs = [run.outputs() for run in runs]
            del session
    except NoDevice:
        raise
    except Exception as error:  # whatever TVM makes of what a device does
        raise BackendError(f"the device '{tracker.key}' fails: {first_line(error)}") from error
    finally:  # a device is free again when nothing refers to it, and TVM's objects do in circles
        runs.clear()
        gc.collect()
    first, *_ = columns = list(zip(*times, strict=True))
    return [
        RemoteTiming(
            name,
            tracker.key,
            backend.threads,
            median(column),
            ratio(column, first),
            worst_error(want, got)[0],
        )
        for (name, _), column, want, got in zip(models, columns, wanted, outputs, strict=True)
    ]


class _Run:
    """A model on a device, ready to run on its inputs."""

    def __init__(self, session: Session, compiled: Compiled, feed: Mapping[str, NDArray[Any]]) -> None:
        from tvm import relax

        weights = compiled.program.weights.tensors
        arrays = [feed[spec.name] for spec in compiled.inputs]
        arrays += [weights[number] for number in compiled.program.uses["main"]]
        self._names = [spec.name for spec in compiled.outputs]
        self._device = session.device
        self._machine = relax.VirtualMachine(session.load(compiled.program.executable), self._device)
        self._machine.set_input("main", *map(session.tensor, arrays))
        self._machine.invoke_stateful("main")
        self._calls = max(1, int(SECONDS / max(self._timer(1)("main").mean, 1e-6)))

    def _timer(self, calls: int) -> Any:
        return self._machine.time_evaluator("invoke_stateful", self._device, number=calls, repeat=1)

    def milliseconds(self) -> float:
        """Of a call."""
        return float(self._timer(self._calls)("main").mean) * 1e3

    def outputs(self) -> Arrays:
        got = self._machine.get_outputs("main")
        found = [got] if hasattr(got, "numpy") else list(got)
        return {name: tensor.numpy() for name, tensor in zip(self._names, found, strict=True)}
