"""OpenVINO as a backend, for tools/bench.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
from numpy.typing import NDArray
from onnx_prune.backends.base import Arrays, TensorSpec, check_inputs, signature
from onnx_prune.passes.execute import random_inputs


class OpenVinoArtifact:
    """A compiled model with one request that is used again, in float32, tuned for latency."""

    def __init__(self, model: onnx.ModelProto, threads: int) -> None:
        import openvino

        self.inputs: tuple[TensorSpec, ...]
        self.outputs: tuple[TensorSpec, ...]
        self.inputs, self.outputs = signature(model)
        core = openvino.Core()
        read = core.read_model(model.SerializeToString())
        shapes = {name: list(value.shape) for name, value in random_inputs(model, dynamic=1).items()}
        read.reshape(shapes)
        config = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._request = core.compile_model(read, "CPU", config).create_infer_request()

    def bound(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """A run on these inputs that copies neither them nor its results."""
        given = dict(inputs)
        return lambda: self._request.infer(given, share_inputs=True, share_outputs=True)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        check_inputs(self.inputs, inputs)
        results = self._request.infer(dict(inputs), share_inputs=True)
        return {spec.name: results[k] for k, spec in enumerate(self.outputs)}


@dataclass(frozen=True)
class OpenVinoBackend:
    """OpenVINO on this machine's CPU; sizes known only at run time are 1."""

    threads: int = 1
    name: ClassVar[str] = "openvino"

    def compile(self, model: onnx.ModelProto) -> OpenVinoArtifact:
        return OpenVinoArtifact(model, self.threads)
