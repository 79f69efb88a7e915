"""A model compiled by TVM: runs in this process, is saved for others, and loaded again."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..analysis.errors import BackendError
from ..passes.execute import first_line
from ..passes.save import save_text, write_atomic
from .base import Arrays, TensorSpec, check_inputs
from .quiet import native_log_hidden

_FORMAT = 2
_ALIGNMENT = 64
_BIG_CORES = 1  # the mode of TVM's thread pool that prefers them

Inputs = Mapping[str, NDArray[Any]]


def require_tvm() -> None:
    """Raises BackendError: Apache TVM is not installed."""
    try:
        found = find_spec("tvm.relax")  # PyPI's package "tvm" is something else
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise BackendError("Apache TVM is not installed: pip install 'onnx-prune[tvm]'")


@dataclass(frozen=True)
class Batch:
    """The first size of all inputs, known only at run time.

    Attributes:
        symbol: its name in the model.
        sizes: those there is a function for, in the order they were asked for.
        obstacle: why a batch of another size cannot be run in pieces; None when it is proven that it can.
    """

    symbol: str
    sizes: tuple[int, ...]
    obstacle: str | None

    def function(self, size: int) -> str:
        """The name of the function for a batch of ``size``."""
        return "main" if size == self.sizes[0] else f"main_{size}"

    def pieces(self, count: int) -> Iterator[tuple[int, int, int]]:
        """(size of the function, first position, positions) of runs that make a batch of ``count``.

        The largest that fit come first; a rest too small for all takes the smallest.

        Raises:
            BackendError: it cannot be run in pieces, or is empty.
        """
        if count < 1:
            raise BackendError(f"a batch '{self.symbol}' of no positions cannot be run")
        if count not in self.sizes and self.obstacle is not None:
            sizes = " or ".join(map(str, sorted(self.sizes)))
            raise BackendError(
                f"the model was compiled for a batch '{self.symbol}' of {sizes}, and {count} cannot be run in"
                f" pieces: {self.obstacle}"
            )
        start = 0
        while start < count:
            rest = count - start
            size = max((size for size in self.sizes if size <= rest), default=min(self.sizes))
            yield size, start, min(size, rest)
            start += size


class CpuArtifact:
    """A compiled model. Runs in this process; `save` writes it for others.

    Attributes:
        inputs: with the sizes the model was compiled for; the batch has its symbol.
        outputs: sizes that depend on inputs, other than by the batch, are None.
        target: description of the machine it was compiled for; ``num-cores`` threads run its kernels.
        batch: None when all sizes are fixed.
    """

    def __init__(
        self,
        executable: Any,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        target: Mapping[str, Any],
        batch: Batch | None = None,
    ):
        import tvm
        from tvm import relax

        self.executable = executable
        self.inputs = inputs
        self.outputs = outputs
        self.target = dict(target)
        self.batch = batch
        self._threads = tvm.get_global_func("runtime.config_threadpool")
        self._machine = relax.VirtualMachine(executable, tvm.cpu())
        sizes = {1: "main"} if batch is None else {size: batch.function(size) for size in batch.sizes}
        self._functions = {size: _Function(self._machine[name], inputs, size) for size, name in sizes.items()}

    def run(self, inputs: Inputs) -> Arrays:
        """Outputs by name.

        A batch of another size than compiled for is run in pieces, where its positions are independent.

        Raises:
            BackendError: an input is missing, unknown, or of another type or shape than compiled for.
        """
        check_inputs(self.inputs, inputs)
        threads = int(self.target["num-cores"])
        if threads > 1:
            # The pool belongs to the process, so another artifact may have set it to another size.
            self._threads(_BIG_CORES, threads)
        try:
            results = self._whole(inputs) if self.batch is None else self._pieces(self.batch, inputs)
        except BackendError:
            raise
        except Exception as error:  # TVM passes on what its kernels raise
            raise BackendError(f"the compiled model fails on these inputs: {first_line(error)}") from error
        return {spec.name: value for spec, value in zip(self.outputs, results, strict=True)}

    def _whole(self, inputs: Inputs) -> list[NDArray[Any]]:
        (function,) = self._functions.values()
        return [view.copy() for view in function(inputs)]

    def _pieces(self, batch: Batch, inputs: Inputs) -> list[NDArray[Any]]:
        count = inputs[self.inputs[0].name].shape[0]
        results: list[NDArray[Any]] = []
        for size, start, rows in batch.pieces(count):
            part = inputs
            if rows < count:
                part = {name: value[start : start + rows] for name, value in inputs.items()}
            views = self._functions[size](part)
            if size == count:
                return [view.copy() for view in views]
            results = results or [np.empty((count, *view.shape[1:]), view.dtype) for view in views]
            for result, view in zip(results, views, strict=True):
                result[start : start + rows] = view[:rows]
        return results

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
            "batch": None if self.batch is None else asdict(self.batch),
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
    require_tvm()
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
        batch = about["batch"]
        if batch is not None:
            batch = Batch(batch["symbol"], tuple(batch["sizes"]), batch["obstacle"])
    except (ValueError, KeyError, TypeError):
        raise BackendError(f"'{beside}' does not describe a compiled model") from None
    if digest != described:
        raise BackendError(f"'{path}' is not the library that '{beside.name}' describes")
    try:
        with native_log_hidden():
            return CpuArtifact(tvm.runtime.load_module(str(path)), inputs, outputs, target, batch)
    except Exception as error:
        raise BackendError(f"cannot load '{path}': {first_line(error)}") from error


class _Function:
    """One function of a library, with memory for its inputs.

    Making a tensor costs more than a small kernel, so that each input has one for all runs.
    """

    def __init__(self, call: Callable[..., Any], specs: Sequence[TensorSpec], batch: int) -> None:
        import tvm

        self._call = call
        self._arrays = {spec.name: _aligned(spec, batch) for spec in specs}
        self._values = [tvm.runtime.from_dlpack(array) for array in self._arrays.values()]

    def __call__(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Views of its results, until the next call. Inputs may have fewer rows than the function takes."""
        for name, array in self._arrays.items():
            given = inputs[name]
            np.copyto(array if given.shape == array.shape else array[: len(given)], given)
        return list(_flat(self._call(*self._values)))


def _aligned(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """Memory for an input, at a multiple of the 64 bytes that TVM asks for."""
    dtype = np.dtype(spec.dtype)
    shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
    size = dtype.itemsize * math.prod(shape)
    memory = np.zeros(size + _ALIGNMENT, np.uint8)  # rows that are not given must hold something
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _flat(result: Any) -> Iterator[NDArray[Any]]:
    """Views, which may be of an input, or of memory that the machine uses again."""
    if hasattr(result, "numpy"):
        yield np.from_dlpack(result)
        return
    for part in result:
        yield from _flat(part)


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
