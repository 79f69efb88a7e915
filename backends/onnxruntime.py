"""ONNX Runtime on the CPU: the reference that compiled models are checked and timed against."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from ..analysis.errors import BackendError, UsageError
from ..passes.execute import first_line, open_session
from .base import Arrays, TensorSpec, check_inputs, signature

_ERROR = 3  # log severity; 4 is fatal


def session(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions, without: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """A CPU session for ``model``.

    Args:
        without: names of graph optimisations to leave out.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    try:
        return open_session(model, options, without)
    except Exception as error:  # the runtime raises its own classes, one for each failure
        raise BackendError(f"ONNX Runtime refuses the model: {first_line(error)}") from error


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for ``threads`` threads inside operators, one operator at a time, errors only in the log."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR
    return options


class OnnxRuntimeArtifact:
    """A session, ready to run."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        self.inputs: tuple[TensorSpec, ...]
        self.outputs: tuple[TensorSpec, ...]
        self.inputs, self.outputs = signature(model)
        self._session = session(model, session_options(threads))

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name. Raises BackendError: see `Artifact.run`."""
        check_inputs(self.inputs, inputs)
        names = [spec.name for spec in self.outputs]
        try:
            values = self._session.run(names, {name: np.asarray(x) for name, x in inputs.items()})
        except Exception as error:
            raise BackendError(f"ONNX Runtime fails on these inputs: {first_line(error)}") from error
        return dict(zip(names, values, strict=True))

    def bound(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """A run on these inputs that copies neither them nor its results: for timing kernels alone.

        Raises:
            BackendError: as `run`.
        """
        self.run(inputs)
        binding = self._session.io_binding()
        for name, value in inputs.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for spec in self.outputs:
            binding.bind_output(spec.name)
        self._session.run_with_iobinding(binding)
        for spec, value in zip(self.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(spec.name, value)
        return lambda: self._session.run_with_iobinding(binding)


class OnnxRuntimeBackend:
    """ONNX Runtime with its default optimisations.

    Args:
        threads: threads inside an operator.

    Raises:
        UsageError: ``threads`` is not positive.
    """

    name = "onnxruntime"

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise UsageError(f"{threads} threads make no sense; ask for at least 1")
        self.threads = threads

    def compile(self, model: onnx.ModelProto) -> OnnxRuntimeArtifact:
        """A session for ``model``. Raises BackendError: ONNX Runtime refuses it."""
        return OnnxRuntimeArtifact(model, self.threads)
