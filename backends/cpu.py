"""The TVM backend for this machine's CPU. TVM is imported when a model is compiled or loaded, not before."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from ..analysis.errors import BackendError, UsageError
from ..passes.execute import first_line
from ..passes.save import save_text, write_atomic
from .base import Arrays, Progress, TensorSpec, check_inputs, signature
from .quiet import native_log_hidden

_FORMAT = 1
_ALIGNMENT = 64
_BIG_CORES = 1  # the mode of TVM's thread pool that prefers them


def _require_tvm() -> None:
    try:
        found = find_spec("tvm.relax")  # PyPI's package "tvm" is something else
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise BackendError("Apache TVM is not installed: pip install 'onnx-prune[tvm]'")


class CpuArtifact:
    """A compiled model. Runs in this process; `save` writes it for others.

    Attributes:
        inputs: with the sizes the model was compiled for.
        outputs: sizes that depend on the values of inputs are None.
        target: description of the machine it was compiled for; ``num-cores`` threads run its kernels.
    """

    def __init__(
        self,
        executable: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        target: Mapping[str, Any],
    ):
        import tvm
        from tvm import relax

        self.executable = executable
        self.inputs = inputs
        self.outputs = outputs
        self.target = dict(target)
        # Making a tensor costs more than a small kernel, so that each input has one for all runs.
        self._arrays = [_aligned(spec) for spec in inputs]
        self._values = [tvm.runtime.from_dlpack(array) for array in self._arrays]
        self._threads = tvm.get_global_func("runtime.config_threadpool")
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        self._main = self._machine["main"]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name.

        Raises:
            BackendError: an input is missing, unknown, or of another type or shape than compiled for.
        """
        check_inputs(self.inputs, inputs)
        threads = int(self.target["num-cores"])
        if threads > 1:
            # The pool belongs to the process, so another artifact may have set it to another size.
            self._threads(_BIG_CORES, threads)
        for spec, array in zip(self.inputs, self._arrays, strict=True):
            np.copyto(array, inputs[spec.name])
        try:
            results = _flat(self._main(*self._values))
        except Exception as error:  # TVM passes on what its kernels raise
            raise BackendError(f"the compiled model fails on these inputs: {first_line(error)}") from error
        return {spec.name: value for spec, value in zip(self.outputs, results, strict=True)}

    def save(self, path: str | Path) -> None:
        """Write one shared library with the weights inside, and its description as JSON beside it.

        Raises:
            OutputError: the file cannot be written.
            BackendError: there is no C++ compiler to link it, or the artifact itself came from a file.
        """
        from tvm import relax

        path = Path(path)
        if not isinstance(self.executable, relax.VMExecutable):
            raise BackendError("this artifact was loaded from a file: copy that file instead")

        def write(temporary: Path) -> None:
            try:
                with native_log_hidden():
                    self.executable.export_library(str(temporary))
            except RuntimeError as error:
                raise BackendError(
                    f"cannot link '{path}'; a C++ compiler such as g++ is needed: {first_line(error)}"
                ) from error

        write_atomic(path, write)
        description = {
            "format": _FORMAT,
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "target": self.target,
            "versions": {name: metadata.version(name) for name in ("onnx-prune", "apache-tvm")},
            "sha256": _digest(path),
        }
        save_text(json.dumps(description, indent=2) + "\n", _description(path))


def load_artifact(path: str | Path) -> CpuArtifact:
    """A compiled model that `CpuArtifact.save` wrote. Loading runs its code: trust it first.

    Raises:
        BackendError: TVM is not installed, a file is missing, or the library is not the one described.
    """
    _require_tvm()
    import tvm

    path = Path(path).resolve()  # a bare name would be searched for in the system's folders
    beside = _description(path)
    try:
        text = beside.read_text("utf-8")
        digest = _digest(path)
    except OSError as error:
        raise BackendError(f"cannot read '{error.filename}': {error.strerror}") from None
    try:
        about = json.loads(text)
        if about["format"] != _FORMAT:
            raise BackendError(f"'{beside}' has format {about['format']}; this program reads {_FORMAT}")
        inputs, outputs = (
            tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in about[side])
            for side in ("inputs", "outputs")
        )
        target, described = about["target"], about["sha256"]
    except (ValueError, KeyError, TypeError):
        raise BackendError(f"'{beside}' does not describe a compiled model") from None
    if digest != described:
        raise BackendError(f"'{path}' is not the library that '{beside.name}' describes")
    try:
        with native_log_hidden():
            return CpuArtifact(tvm.runtime.load_module(str(path)), inputs, outputs, target)
    except Exception as error:
        raise BackendError(f"cannot load '{path}': {first_line(error)}") from error


@dataclass(frozen=True)
class CpuBackend:
    """Apache TVM on this machine's CPU.

    Attributes:
        threads: threads the compiled kernels run on.
        dims: sizes of the inputs' symbolic dimensions by name; all others are compiled as 1.
        database: a folder of measured kernels (`tune`): the fastest known are taken.

    Raises:
        UsageError: ``threads`` or a size is not positive.
    """

    threads: int = 1
    dims: Mapping[str, int] = field(default_factory=dict)
    database: Path | None = None
    name: ClassVar[str] = "tvm"

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise UsageError(f"{self.threads} threads make no sense; ask for at least 1")
        for name, size in self.dims.items():
            if size < 1:
                raise UsageError(f"a size '{name}' of {size} makes no sense; it must be at least 1")

    def compile(self, model: onnx.ModelProto) -> CpuArtifact:
        """Machine code and weights of ``model``, for one set of sizes.

        Raises:
            BackendError: TVM is not installed, or cannot take the model.
        """
        _require_tvm()
        from .tvm import build, frontend, machine
        from .tvm.database import Database
        from .tvm.workloads import Choices

        fixed = frontend.static(model, self.dims)
        inputs, outputs = signature(fixed)
        with native_log_hidden():
            module = frontend.import_model(fixed)
            shapes = build.output_shapes(module)
            outputs = tuple(
                TensorSpec(spec.name, spec.dtype, shape) for spec, shape in zip(outputs, shapes, strict=True)
            )
            target = machine.host_target(self.threads)
            known = {} if self.database is None else Database(self.database).best(target)
            return CpuArtifact(build.build(module, target, Choices(known)), inputs, outputs, target)

    def tune(
        self,
        model: onnx.ModelProto,
        seconds: float,
        progress: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Time kernels of ``model`` for so long, those with the most work first, into the database.

        What the database knows already is not timed again, so that an interrupted run goes on where it was.

        Returns:
            How far it came.

        Raises:
            UsageError: there is no database.
            BackendError: TVM is not installed, or cannot take the model.
        """
        if self.database is None:
            raise UsageError("tuning needs a database to keep what it finds")
        _require_tvm()
        from .tvm import frontend, machine, tune
        from .tvm.database import Database

        with native_log_hidden():
            module = frontend.import_model(frontend.fold(frontend.static(model, self.dims)))
            target = machine.host_target(self.threads)
            return tune.tune(module, target, Database(self.database), seconds, progress)


def _aligned(spec: TensorSpec) -> NDArray[Any]:
    """Memory for an input, at a multiple of the 64 bytes that TVM asks for."""
    dtype, shape = np.dtype(spec.dtype), tuple(int(size or 1) for size in spec.shape)
    size = dtype.itemsize * math.prod(shape)
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _flat(result: Any) -> list[NDArray[Any]]:
    """Copies: a result may be an input, or memory that the machine uses again."""
    if hasattr(result, "numpy"):
        return [np.from_dlpack(result).copy()]
    return [array for part in result for array in _flat(part)]


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
