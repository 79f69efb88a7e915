"""A model compiled by TVM: runs in this process, is saved for others, and loaded again."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
from . import library
from .base import Arrays, SparseLayer, TensorSpec, check_inputs
from .memory import aligned, tensor
from .processor import linker
from .threads import use_threads
from .weights import Program

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


@dataclass(eq=False)
class Compiled:
    """A compiled model, perhaps for another machine. `save` writes it.

    Attributes:
        program: its machine code and weights.
        inputs: with the sizes the model was compiled for; the batch has its symbol.
        outputs: sizes that depend on inputs, other than by the batch, are None.
        target: description of the machine it was compiled for; ``num-cores`` threads run its kernels.
        batch: None when all sizes are fixed.
        sparse: the layers with zeros in their weights.
    """

    program: Program
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: Mapping[str, Any]
    batch: Batch | None = None
    sparse: tuple[SparseLayer, ...] = ()

    def save(self, path: str | Path, beside: bool = False) -> None:
        """Write a shared library, and its description as JSON beside it.

        Args:
            beside: the weights go to ``PATH.weights``, which is mapped when loaded, and not into the library.

        Raises:
            OutputError: a file cannot be written.
            BackendError: there is no linker for it, or the artifact itself came from a file.
        """
        from tvm import relax

        if not isinstance(self.program.executable, relax.VMExecutable):
            raise BackendError("this artifact was loaded from a file: copy that file instead")
        about = {
            "inputs": [asdict(spec) for spec in self.inputs],
            "outputs": [asdict(spec) for spec in self.outputs],
            "batch": None if self.batch is None else asdict(self.batch),
            "target": dict(self.target),
            "versions": {name: metadata.version(name) for name in ("onnx-prune", "apache-tvm")},
        }
        system = self.target.get("mtriple")
        link = None if system is None else linker(system)
        library.save(Path(path), self.program, about, beside, link, self.packing())

    def packing(self) -> library.Packing | None:
        """How what the library brings along is packed; None for TVM's own way."""
        return None


@dataclass(eq=False)
class Artifact(Compiled, ABC):
    """A model compiled for this machine, which runs in this process."""

    def __post_init__(self) -> None:
        from tvm import relax

        device = self.device()
        machine = relax.VirtualMachine(self.program.executable, device)
        weights = [_on(device, array) for array in self.program.weights.tensors]
        sizes = {1: "main"} if self.batch is None else {s: self.batch.function(s) for s in self.batch.sizes}
        self._functions = {
            size: _Function(
                machine, name, self.inputs, size, [weights[i] for i in self.program.uses[name]], device
            )
            for size, name in sizes.items()
        }

    @abstractmethod
    def device(self) -> Any:
        """TVM's device that it runs on."""

    def run(self, inputs: Inputs) -> Arrays:
        """Outputs by name.

        A batch of another size than compiled for is run in pieces, where its positions are independent.

        Raises:
            BackendError: an input is missing, unknown, or of another type or shape than compiled for.
        """
        check_inputs(self.inputs, inputs)
        threads = int(self.target.get("num-cores", 1))
        if threads > 1:
            use_threads(threads)
        try:
            results = self._whole(inputs) if self.batch is None else self._pieces(self.batch, inputs)
        except BackendError:
            raise
        except Exception as error:  # TVM passes on what its kernels raise
            raise BackendError(f"the compiled model fails on these inputs: {first_line(error)}") from error
        return {spec.name: value for spec, value in zip(self.outputs, results, strict=True)}

    def bound(self, inputs: Inputs) -> Callable[[], object]:
        """A run on these inputs that copies neither them nor its results: for timing kernels alone.

        Raises:
            BackendError: as `run`; or a batch is of none of the sizes compiled for.
        """
        self.run(inputs)
        size = 1 if self.batch is None else inputs[self.inputs[0].name].shape[0]
        if size not in self._functions:
            raise BackendError(f"the model was not compiled for a batch of {size}")
        return self._functions[size].call

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


@dataclass(eq=False)
class CpuArtifact(Artifact):
    """A model compiled for this machine's processor."""

    def device(self) -> Any:
        import tvm

        return tvm.cpu()


@dataclass(eq=False)
class GpuArtifact(Artifact):
    """A model compiled for a GPU of this machine; inputs and results are copied."""

    def device(self) -> Any:
        import tvm

        return tvm.cuda()


def load_artifact(path: str | Path) -> Artifact:
    """A compiled model that `Compiled.save` wrote. Loading runs its code: trust it first.

    Raises:
        BackendError: TVM is not installed, a file is missing, one is not what is described, or the model is
            compiled for another machine.
    """
    require_tvm()
    path = Path(path).resolve()  # a bare name would be searched for in the system's folders
    about = library.describe(path)
    try:
        inputs, outputs = (
            tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in about[side])
            for side in ("inputs", "outputs")
        )
        target, batch = about["target"], about["batch"]
        if batch is not None:
            batch = Batch(batch["symbol"], tuple(batch["sizes"]), batch["obstacle"])
    except (KeyError, TypeError):
        raise library.malformed(path) from None
    if isinstance(target, dict) and target.get("mtriple"):
        raise BackendError(f"'{path}' is compiled for {target.get('mcpu')}, not for this machine")
    runs: type[Artifact] = CpuArtifact
    if isinstance(target, dict) and target.get("kind") == "cuda":
        import tvm

        runs = GpuArtifact
        if not tvm.cuda().exist:
            raise BackendError(
                f"'{path}' is compiled for a GPU, {target.get('arch')}, and TVM finds none here"
            )
    program = library.load(path, about)
    try:
        return runs(program, inputs, outputs, target, batch)
    except Exception as error:
        raise BackendError(f"cannot load '{path}': {first_line(error)}") from error


class _Function:
    """One function of a library, with memory for its inputs.

    Making a tensor costs more than a small kernel, so that each input has one for all runs.

    Attributes:
        call: runs it on what is in that memory.
    """

    def __init__(
        self,
        machine: Any,
        name: str,
        specs: Sequence[TensorSpec],
        batch: int,
        weights: Sequence[Any],
        device: Any,
    ) -> None:
        self._arrays = {spec.name: _memory(spec, batch) for spec in specs}
        values = [_on(device, array) for array in self._arrays.values()]
        self._elsewhere = [] if _is_here(device) else list(zip(values, self._arrays.values(), strict=True))
        # Arguments that the machine keeps cost nothing at a call.
        machine.save_function(name, f"{name}.kept", *values, *weights)
        self.call: Callable[[], object] = machine[f"{name}.kept"]

    def __call__(self, inputs: Inputs) -> list[NDArray[Any]]:
        """Views of its results, until the next call. Inputs may have fewer rows than the function takes."""
        for name, array in self._arrays.items():
            given = inputs[name]
            np.copyto(array if given.shape == array.shape else array[: len(given)], given)
        for value, array in self._elsewhere:
            value.copyfrom(array)
        return list(_flat(self.call()))


def _is_here(device: Any) -> bool:
    """Whether a device has the memory of this process."""
    import tvm

    return bool(device == tvm.cpu())


def _on(device: Any, array: NDArray[Any]) -> Any:
    """A tensor of TVM's: the memory of ``array`` itself where the device has it, a copy elsewhere."""
    import tvm

    return tvm.runtime.from_dlpack(array) if _is_here(device) else tvm.runtime.tensor(array, device)


def _memory(spec: TensorSpec, batch: int) -> NDArray[Any]:
    """Zeros for an input: rows that are not given must hold something."""
    shape = [size if isinstance(size, int) else batch for size in spec.shape]
    return tensor(aligned(np.dtype(spec.dtype).itemsize * math.prod(shape)), spec.dtype, shape)


def _flat(result: Any) -> Iterator[NDArray[Any]]:
    """Views, which may be of an input, or of memory that the machine uses again."""
    if hasattr(result, "numpy"):
        yield np.from_dlpack(result) if _is_here(result.device) else result.numpy()
        return
    for part in result:
        yield from _flat(part)
