"""What every backend offers: a model goes in, something that runs comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..analysis.errors import BackendError

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a model.

    Attributes:
        name: as in the model.
        dtype: NumPy's name of the element type, such as ``float32``.
        shape: sizes; a string names a size known only at run time, None is an anonymous one.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Progress:
    """How far tuning came.

    Attributes:
        done, total: kernels; those that were known before are not counted.
        before, after: milliseconds of the kernels done in a run of the model, by default and as found.
        unit: what these are instead, where nothing was timed.
        stopped: why it ended with kernels and time left.
    """

    done: int
    total: int
    before: float
    after: float
    stopped: str | None = None
    unit: str = "ms"

    def with_kernel(self, before: float, after: float) -> Progress:
        """One kernel further, with milliseconds of it in a run of the model; none where its default fails."""
        return replace(self, done=self.done + 1, before=self.before + before, after=self.after + after)


@dataclass(frozen=True)
class Kernel:
    """What a kernel takes in a run of a compiled model.

    Attributes:
        what: it computes.
        calls: in a run.
        ms: milliseconds of all of them.
        share: its multiply-adds over what the processor could do in that time; None where it has none.
    """

    what: str
    calls: int
    ms: float
    share: float | None


@dataclass(frozen=True)
class SparseLayer:
    """How a layer with zeros in its weights is computed.

    Attributes:
        weight: name of the initializer; None where the compiler made the weights from several.
        kernel: what it computes, and where its zeros are.
        density: of its non-zero weights.
        sparse: whether zeros are skipped.
        gain: time of the dense kernel over that of the sparse one.
        measured: whether the gain was, or is what the static model of a core estimates.
    """

    weight: str | None
    kernel: str
    density: float
    sparse: bool
    gain: float
    measured: bool


class Artifact(Protocol):
    """A compiled or loaded model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name.

        Raises:
            BackendError: an input is missing, unknown, or of another type or shape; or the runtime fails.
        """
        ...


class Backend(Protocol):
    """Makes artifacts from models."""

    @property
    def name(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def compile(self, model: onnx.ModelProto) -> Artifact:
        """Make ``model`` ready to run.

        Raises:
            BackendError: the runtime is missing, or cannot take the model.
        """
        ...


def signature(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs (without those that have an initializer) and outputs of a model."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec(info) for info in model.graph.input if info.name not in weights)
    return inputs, tuple(_spec(info) for info in model.graph.output)


def _spec(info: onnx.ValueInfoProto) -> TensorSpec:
    kind = info.type.tensor_type
    if kind.elem_type == TensorProto.UNDEFINED:
        raise BackendError(
            f"'{info.name}' is not a tensor; only tensors can enter and leave a compiled model"
        )
    dtype = (
        "str"
        if kind.elem_type == TensorProto.STRING
        else helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    )
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in kind.shape.dim
    )
    return TensorSpec(info.name, dtype, shape)


def check_inputs(specs: tuple[TensorSpec, ...], inputs: Mapping[str, NDArray[Any]]) -> None:
    """Refuse inputs that do not fit ``specs``.

    Raises:
        BackendError: an input is missing, unknown, or of another type or shape, or one symbol would have
            two sizes.
    """
    known = {spec.name for spec in specs}
    unknown = sorted(set(inputs) - known)
    if unknown:
        raise BackendError(f"there is no input '{unknown[0]}'; the model takes {', '.join(sorted(known))}")
    sizes: dict[str, tuple[int, str]] = {}
    for spec in specs:
        if spec.name not in inputs:
            raise BackendError(f"the input '{spec.name}' is missing")
        got = inputs[spec.name]
        fits = len(got.shape) == len(spec.shape) and all(
            not isinstance(want, int) or want == size
            for want, size in zip(spec.shape, got.shape, strict=True)
        )
        if not fits or (spec.dtype != "str" and got.dtype.name != spec.dtype):
            raise BackendError(
                f"the input '{spec.name}' is {got.dtype.name}{list(got.shape)}, but the model takes"
                f" {spec.dtype}{list(spec.shape)}"
            )
        for symbol, size in zip(spec.shape, got.shape, strict=True):
            if isinstance(symbol, str):
                before, first = sizes.setdefault(symbol, (size, spec.name))
                if size != before:
                    raise BackendError(
                        f"the size '{symbol}' is {before} in the input '{first}' and {size} in '{spec.name}'"
                    )
