"""What a model wants to be fed: names, types and shapes of its inputs, and how data is cut into runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ...analysis.dynamic import symbol_of
from ...analysis.errors import UsageError
from ..execute import Arrays

Array = NDArray[Any]

LABELS = ("labels", "label", "y", "targets", "target")


@dataclass(frozen=True)
class Input:
    """An input of a model.

    Attributes:
        shape: a number for each size the model fixes, the symbol of each that is known only at run time.
        unit: positions of axis 0 that one sample takes; 0 when the input has no axis of samples and every
            run gets the whole array.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    unit: int

    def __str__(self) -> str:
        return f"{self.dtype} ({', '.join(map(str, self.shape))}{',' * (len(self.shape) == 1)})"


@dataclass(frozen=True)
class Signature:
    """All inputs of a model.

    Attributes:
        batch: samples in every run, where the model fixes it; otherwise None.
    """

    inputs: tuple[Input, ...]
    batch: int | None

    @property
    def first(self) -> Input:
        """The input by which samples are counted."""
        return next(i for i in self.inputs if i.unit)


def signature(proto: onnx.ModelProto) -> Signature:
    """The inputs of a model that are no weights.

    Axis 0 counts samples. Where it is known only at run time for some inputs, those of a fixed axis 0
    are the same in every run. Where all are fixed, a run takes exactly that many positions of each.

    Raises:
        UsageError: an input is no tensor of numbers, or has no shape, or none has an axis of samples.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    found: list[tuple[str, np.dtype[Any], tuple[int | str, ...]]] = []
    for info in proto.graph.input:
        if info.name in weights:
            continue
        tensor = info.type.tensor_type
        if not info.type.HasField("tensor_type") or not tensor.HasField("shape"):
            raise UsageError(f"the model's input {info.name!r} has no known shape to fit data to")
        dims = tensor.shape.dim
        shape = tuple(symbol_of(info, k) or dims[k].dim_value for k in range(len(dims)))
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.hasobject:
            raise UsageError(f"the model's input {info.name!r} takes strings, which calibration cannot")
        found.append((info.name, dtype, shape))
    leading = [shape[0] for _, _, shape in found if shape]
    if not leading:
        raise UsageError("no input of the model has an axis of samples: it cannot be calibrated")
    fixed = [size for size in leading if isinstance(size, int)]
    run_time = len(fixed) < len(leading)
    inputs = []
    for name, dtype, shape in found:
        size = shape[0] if shape else 0
        unit = int(isinstance(size, str)) if run_time else int(size)
        inputs.append(Input(name, dtype, shape, unit))
    return Signature(tuple(inputs), None if run_time else fixed[0])


def fitted(wanted: Input, value: object, where: str) -> Array:
    """``value`` as the model wants it.

    Floats are cast to floats and integers to integers; nothing else is.

    Args:
        where: what messages call the data.

    Raises:
        UsageError: wrong type, rank or size, numbers that are not any, or too large for the type.
    """
    name = f"{where}: input {wanted.name!r}"
    array = np.asarray(value)
    _check_type(wanted, array.dtype, name)
    _check_shape(wanted, array.shape, name)
    if array.dtype.kind not in "biu" and np.isnan(array).any():
        raise UsageError(f"{name} holds NaNs: leave those samples out")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted.dtype, copy=False)
    if array.dtype != wanted.dtype and array.size:
        lost = cast != array if array.dtype.kind in "iu" else np.isinf(cast) & ~np.isinf(array)
        if np.any(lost):
            raise UsageError(f"{name} holds {array[lost][0]}, which is too large for {wanted.dtype}")
    return cast


def _check_type(wanted: Input, given: np.dtype[Any], name: str) -> None:
    if _kind(given) != _kind(wanted.dtype) or given.hasobject:
        hint = f"convert it with .astype({str(wanted.dtype)!r}), scaled as the model was trained"
        raise UsageError(f"{name} is {given}, but the model wants {wanted}: {hint}")


def _check_shape(wanted: Input, shape: tuple[int, ...], name: str) -> None:
    start = 1 if wanted.unit else 0
    known = zip(shape[start:], wanted.shape[start:], strict=False)
    if len(shape) != len(wanted.shape) or any(isinstance(b, int) and a != b for a, b in known):
        raise UsageError(f"{name} has the shape {shape}, but the model wants {wanted}")


def _kind(dtype: np.dtype[Any]) -> str:
    # The 16-bit and 8-bit floats of ml_dtypes have kind 'V'.
    return {"u": "i", "V": "f"}.get(dtype.kind, dtype.kind)


def cut(
    chunks: Iterator[Arrays], wanted: Signature, batch: int, samples: int, where: str
) -> Iterator[Arrays]:
    """Runs of the model, cut from pieces of data of any length.

    Args:
        chunks: fitted arrays of all inputs, with the same number of samples in each; ``LABELS`` may be among
            them.
        batch: samples in a run, where the model leaves that open.
        samples: at most that many are used.

    Raises:
        UsageError: the inputs of a piece have different numbers of samples, or only some pieces have labels.
    """
    pending: Arrays = {}
    first = wanted.first
    runs, each = (samples, batch) if wanted.batch is None else (max(samples // first.unit, 1), 1)
    for chunk in chunks:
        if pending and pending.keys() != chunk.keys():
            raise UsageError(f"{where}: some of the data has labels and some has not")
        counted = {i.name: i.unit for i in wanted.inputs if i.unit}
        counted |= {name: first.unit for name in chunk if name in LABELS and name not in counted}
        same_count({name: len(chunk[name]) for name in counted}, counted, where)
        # Samples of another size (longer sequences) cannot share a run.
        if any(pending[name].shape[1:] != chunk[name].shape[1:] for name in counted if name in pending):
            yield from _rest(pending, wanted, runs)
            runs, pending = runs - _units(pending, counted) * (wanted.batch is None), {}
        fresh = {k: v for k, v in chunk.items() if k not in counted or k not in pending}
        pending = {k: np.concatenate([v, chunk[k]]) for k, v in pending.items() if k in counted} | fresh
        while _units(pending, counted) >= min(each, runs) > 0:
            take = min(each, runs)
            yield {k: v[: take * counted[k]] if k in counted else v for k, v in pending.items()}
            pending = {k: v[take * counted[k] :] if k in counted else v for k, v in pending.items()}
            runs -= take
        if runs <= 0:
            return
    yield from _rest(pending, wanted, runs)


def _rest(pending: Arrays, wanted: Signature, runs: int) -> Iterator[Arrays]:
    """What does not fill a run; a model with a fixed number of samples cannot take it."""
    if wanted.batch is None and pending and runs > 0 and len(pending[wanted.first.name]):
        yield pending


def _units(arrays: Arrays, counted: Mapping[str, int]) -> int:
    return min((len(arrays[name]) // unit for name, unit in counted.items() if name in arrays), default=0)


def same_count(lengths: Mapping[str, int], units: Mapping[str, int], where: str) -> None:
    """Raises:
    UsageError: arrays of these lengths, of which a sample takes that many, hold different numbers of samples.
    """
    if not lengths:
        return
    (first, length), *others = lengths.items()
    for name, other in others:
        if length * units[name] != other * units[first]:
            raise UsageError(
                f"{where}: {first!r} has {length} samples, but {name!r} has {other}:"
                " give every input the same number"
            )


class Digest:
    """SHA-256 over names, types, shapes and bytes of samples, whatever batches they come in."""

    def __init__(self, wanted: Signature) -> None:
        self._inputs = wanted.inputs
        self._sums = {i.name: hashlib.sha256(f"{i.name} {i.dtype}".encode()) for i in wanted.inputs}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def add(self, arrays: Arrays) -> None:
        for i in self._inputs:
            value = arrays[i.name]
            shape = value.shape[1:] if i.unit else value.shape
            same = self._shapes.get(i.name) == shape
            if same and not i.unit:
                continue
            if not same:
                self._sums[i.name].update(repr(shape).encode())
                self._shapes[i.name] = shape
            self._sums[i.name].update(np.ascontiguousarray(value).tobytes())

    def hex(self) -> str:
        whole = hashlib.sha256()
        for total in self._sums.values():
            whole.update(total.digest())
        return whole.hexdigest()
