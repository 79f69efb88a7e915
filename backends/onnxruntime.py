"""The reference runner: ONNX Runtime on the CPU, with all its optimisations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import onnxruntime
from numpy.typing import NDArray

from ..analysis.errors import BackendError
from .base import Arrays


@dataclass(frozen=True)
class OnnxRuntimeArtifact:
    session: Any

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(names, dict(inputs)), strict=True))


@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """ONNX Runtime with ``threads`` threads inside operators, operators one after another."""

    threads: int = 1
    name: ClassVar[str] = "onnxruntime"

    def compile(self, model: onnx.ModelProto) -> OnnxRuntimeArtifact:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        try:
            session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises its own classes, one for each failure
            first = str(error).strip().splitlines()[0][:300]
            raise BackendError(f"ONNX Runtime refuses the model: {first}") from None
        return OnnxRuntimeArtifact(session)
