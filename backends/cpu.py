"""The TVM backend for this machine's CPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..analysis.errors import BackendError
from ..passes.save import save_text, write_atomic
from .base import Arrays


@dataclass(frozen=True)
class TensorSpec:
    """An input or output: its name, numpy dtype and static shape (None where it is not known)."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


def _require_tvm() -> None:
    if find_spec("tvm") is None:
        raise BackendError("Apache TVM is not installed: pip install 'onnx-prune[tvm]'")


class CpuArtifact:
    """A compiled model. Runs in this process; `save` writes it for others."""

    def __init__(self, executable: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]):
        import tvm
        from tvm import relax

        self.executable = executable
        self.inputs = inputs
        self.outputs = outputs
        self._tensor = tvm.runtime.tensor
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._main = self._machine["main"]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name.

        Raises:
            BackendError: an input is missing or has another shape than the model was compiled for.
        """
        arguments = []
        for spec in self.inputs:
            if spec.name not in inputs:
                raise BackendError(f"input '{spec.name}' is missing")
            value = np.ascontiguousarray(inputs[spec.name], spec.dtype)
            if spec.shape is not None and value.shape != spec.shape:
                raise BackendError(
                    f"input '{spec.name}' has shape {value.shape}; the model was compiled for {spec.shape}"
                )
            arguments.append(self._tensor(value))
        results = _flat(self._main(*arguments))
        return {spec.name: value for spec, value in zip(self.outputs, results, strict=True)}

    def save(self, path: str | Path) -> None:
        """Write one shared library with the weights inside, and its description as JSON beside it.

        Raises:
            OutputError: the file cannot be written.
            BackendError: there is no C compiler to link it.
        """
        path = Path(path)

        def write(temporary: Path) -> None:
            try:
                self.executable.export_library(str(temporary))
            except RuntimeError as error:
                raise BackendError(f"cannot link '{path}': {str(error).splitlines()[-1]}") from None

        write_atomic(path, write)
        description = {
            "inputs": [vars(spec) for spec in self.inputs],
            "outputs": [vars(spec) for spec in self.outputs],
            "versions": {name: metadata.version(name) for name in ("onnx-prune", "apache-tvm")},
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        save_text(json.dumps(description, indent=2) + "\n", path.with_name(path.name + ".json"))


def _flat(result: Any) -> list[NDArray[Any]]:
    if hasattr(result, "numpy"):
        return [result.numpy()]
    return [array for part in result for array in _flat(part)]


def load_artifact(path: str | Path) -> CpuArtifact:
    """A compiled model that `CpuArtifact.save` wrote.

    Raises:
        BackendError: a file is missing, or the library is not the one described.
    """
    _require_tvm()
    import tvm

    path = Path(path)
    try:
        description = json.loads(path.with_name(path.name + ".json").read_text())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError) as error:
        raise BackendError(f"cannot load '{path}': {error}") from None
    if digest != description.get("sha256"):
        raise BackendError(f"'{path}' is not the library that '{path.name}.json' describes")
    specs = {
        kind: tuple(
            TensorSpec(s["name"], s["dtype"], None if s["shape"] is None else tuple(s["shape"]))
            for s in description[kind]
        )
        for kind in ("inputs", "outputs")
    }
    # Loading by an absolute path: a bare name would be searched for in the system's folders.
    return CpuArtifact(tvm.runtime.load_module(str(path.resolve())), specs["inputs"], specs["outputs"])


def _specs(proto: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    weights = {tensor.name for tensor in proto.graph.initializer}

    def spec(info: onnx.ValueInfoProto, known: bool) -> TensorSpec:
        tensor = info.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in tensor.shape.dim)
        return TensorSpec(info.name, dtype, shape if known else None)

    inputs = tuple(spec(info, True) for info in proto.graph.input if info.name not in weights)
    return inputs, tuple(spec(info, False) for info in proto.graph.output)


@dataclass(frozen=True)
class CpuBackend:
    """Apache TVM on this machine's CPU with ``threads`` threads. Dynamic axes are compiled for size 1."""

    threads: int = 1
    name: ClassVar[str] = "tvm"

    def compile(self, model: onnx.ModelProto) -> CpuArtifact:
        """Raises:
        BackendError: TVM is not installed, or cannot take the model.
        """
        _require_tvm()
        from .tvm.build import build

        return CpuArtifact(build(model, self.threads), *_specs(model))
