"""Time compiled models on a device of a tracker: libraries are linked here, sent there and run in turn."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..analysis.errors import BackendError
from ..passes.execute import first_line, random_inputs
from .artifact import Compiled
from .base import Arrays
from .compiler import Compiler
from .measure import ROUNDS, ratio
from .onnxruntime import OnnxRuntimeBackend
from .tracker import NoDevice, Tracker

_SESSION = 3600.0  # seconds after which a device that hangs is free again
_PATIENCE = 30.0
_SECONDS = 0.1  # that a model runs within a round, about


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
    models: Sequence[tuple[str, onnx.ModelProto]], backend: Compiler, tracker: Tracker
) -> list[RemoteTiming]:
    """Time models on one device, in turn within each round, on random inputs; sizes known at run time are 1.

    Raises:
        BackendError: a model cannot be compiled; or the device fails.
        NoDevice: the tracker has none.
    """
    tracker.devices()  # before the work
    feeds = [random_inputs(model, dynamic=1) for _, model in models]
    wanted = [OnnxRuntimeBackend(1).compile(m).run(feed) for (_, m), feed in zip(models, feeds, strict=True)]
    made = [backend.compiled(model) for _, model in models]
    runs: list[_Run] = []
    session = None
    try:
        session = tracker.session(_SESSION, _PATIENCE)
        session.get_function("runtime.config_threadpool")(1, backend.threads)
        with tempfile.TemporaryDirectory() as folder:
            runs += [
                _Run(session, Path(folder) / f"model{number}.so", compiled, feed, backend)
                for number, (compiled, feed) in enumerate(zip(made, feeds, strict=True))
            ]
            times = [[run.milliseconds() for run in runs] for _ in range(ROUNDS)]
            outputs = [run.outputs() for run in runs]
    except NoDevice:
        raise
    except Exception as error:  # whatever TVM makes of what a device does
        raise BackendError(f"the device '{tracker.key}' fails: {first_line(error)}") from error
    finally:  # a device is free again when nothing refers to it, and TVM's objects do in circles
        runs.clear()
        del session
        gc.collect()
    first, *_ = columns = list(zip(*times, strict=True))
    return [
        RemoteTiming(
            name, tracker.key, backend.threads, median(column), ratio(column, first), _error(want, got)
        )
        for (name, _), column, want, got in zip(models, columns, wanted, outputs, strict=True)
    ]


class _Run:
    """A model on a device, ready to run on its inputs."""

    def __init__(
        self,
        session: Any,
        library: Path,
        compiled: Compiled,
        feed: Mapping[str, NDArray[Any]],
        backend: Compiler,
    ) -> None:
        import tvm
        from tvm import relax

        compiled.program.executable.export_library(str(library), fcompile=backend.linker())
        session.upload(str(library))
        device = session.cpu()
        weights = compiled.program.weights.tensors
        arrays = [feed[spec.name] for spec in compiled.inputs]
        arrays += [weights[number] for number in compiled.program.uses["main"]]
        self._names = [spec.name for spec in compiled.outputs]
        self._machine = relax.VirtualMachine(session.load_module(library.name), device)
        self._machine.set_input("main", *(tvm.runtime.tensor(array, device) for array in arrays))
        self._machine.invoke_stateful("main")
        self._device = device
        self._calls = max(1, int(_SECONDS / max(self._timer(1)("main").mean, 1e-6)))

    def _timer(self, calls: int) -> Any:
        return self._machine.time_evaluator("invoke_stateful", self._device, number=calls, repeat=1)

    def milliseconds(self) -> float:
        """Of a call."""
        return float(self._timer(self._calls)("main").mean) * 1e3

    def outputs(self) -> Arrays:
        got = self._machine.get_outputs("main")
        found = [got] if hasattr(got, "numpy") else list(got)
        return {name: tensor.numpy() for name, tensor in zip(self._names, found, strict=True)}


def _error(wanted: Arrays, got: Arrays) -> float:
    return max(float(np.abs(wanted[n] - got[n]).max() / max(np.abs(wanted[n]).max(), 1e-9)) for n in wanted)
