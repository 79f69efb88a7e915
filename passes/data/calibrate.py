"""Calibration inputs: what a model is run on to see what its layers read, from data or without any.

Data is read piece by piece each time it is run through: only one batch is ever in memory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...analysis.errors import UsageError
from ...analysis.model import Model
from ..execute import Arrays
from .inputs import LABELS, Digest, Signature, cut, signature
from .readers import Chunks, load_function, read_file, read_folder, read_function, read_mapping
from .synthetic import synthesise

Spec: TypeAlias = str | Path | Mapping[str, NDArray[Any]] | Callable[[], Any] | None
_Read: TypeAlias = Callable[[Signature, int], Chunks]

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


SAMPLES = 256  # unless said otherwise


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs to calibrate on. Made by `open_calibration`.

    Attributes:
        source: a line for people and reports, such as "200 samples of images.npz".
        digest: SHA-256 over the inputs used (names, types, shapes, bytes) in order, whatever the batches.
        samples: how many there are.
        labels: int64 (samples,), where the data has labels.
        synthetic: whether the inputs were made up, since no data was given.
    """

    source: str
    digest: str
    samples: int
    labels: NDArray[np.int64] | None
    synthetic: bool
    _open: Callable[[], Iterator[Arrays]] = field(repr=False)

    def batches(self) -> Iterator[Arrays]:
        """The inputs of one run after another, by name; any number of times.

        Raises:
            UsageError: the data is no longer what it was.
        """
        return self._open()


def open_calibration(
    spec: Spec | Calibration, model: Model, *, samples: int = SAMPLES, batch: int = 32, seed: int = 0
) -> Calibration:
    """Inputs of a model from data, or without any; read through once to check them and count them.

    Example:
        ``open_calibration("images.npz", model).source``

    Args:
        spec: a FILE.npz or .npy; a FOLDER of .npy and .npz files, a sample or a batch each, in sorted order;
            "module:function" or a function, which returns or yields batches (by input name, or as arrays
            for a single input) and gives the same ones each time; arrays by input name. None for synthetic
            inputs. Arrays have the names of the model's inputs, or any for a single input. A `Calibration`
            is returned as it is.
        samples: at most that many are used.
        batch: samples in a run. A model that fixes that number gets its own, and what does not fill a run
            is left out.
        seed: of synthetic inputs.

    Raises:
        UsageError: the data is missing, or does not fit the model; the message says what to do.
    """
    if isinstance(spec, Calibration):
        return spec
    if samples < 1 or batch < 1:
        raise UsageError("calibration needs at least one sample, and batches of at least one")
    wanted = signature(model.proto)
    if spec is None:
        made = synthesise(model, wanted, samples, batch, seed)
        return _opened(made.chunks, wanted, made.samples, batch, made.source, synthetic=True)
    read, where = _source(spec)
    unit = wanted.first.unit
    rows = max(batch // unit, 1) * unit
    # A function may give something else each time it is called.
    checked = not isinstance(spec, Mapping) and (callable(spec) or not Path(spec).exists())
    return _opened(lambda: read(wanted, rows), wanted, samples, batch, where, checked=checked)


def _source(spec: str | Path | Mapping[str, NDArray[Any]] | Callable[[], Any]) -> tuple[_Read, str]:
    """How to read a source, and what messages call it."""
    if isinstance(spec, Mapping):
        return (lambda wanted, rows: read_mapping(spec, wanted, rows, "the arrays given")), "the arrays given"
    if callable(spec):
        where = f"the function {getattr(spec, '__name__', type(spec).__name__)!r}"
        return (lambda wanted, rows: read_function(spec, wanted, rows, where)), where
    path = Path(spec)
    if path.is_dir():
        return functools.partial(read_folder, path), f"the folder '{path}'"
    if path.is_file():
        if path.suffix not in (".npz", ".npy"):
            raise UsageError(f"cannot calibrate on '{path}': give an .npz or .npy file, or a folder of them")
        return functools.partial(read_file, path), f"'{path}'"
    if isinstance(spec, str) and _FUNCTION.fullmatch(spec):
        function, where = load_function(spec), f"the function '{spec}'"
        return (lambda wanted, rows: read_function(function, wanted, rows, where)), where
    raise UsageError(
        f"there is no calibration data at '{spec}': give FILE.npz, a FOLDER of .npy files, or module:function"
    )


def _opened(
    chunks: Callable[[], Chunks],
    wanted: Signature,
    samples: int,
    batch: int,
    where: str,
    *,
    synthetic: bool = False,
    checked: bool = False,
) -> Calibration:
    """Read through once for digest, count and labels."""

    def runs(seen: Callable[[int], None] = lambda count: None) -> Iterator[Arrays]:
        return cut(_counted(chunks(), wanted, seen), wanted, batch, samples, where)

    inputs = {i.name for i in wanted.inputs}
    digest, count, labels = Digest(wanted), 0, []
    given: list[int] = []
    for arrays in runs(given.append):
        digest.add(arrays)
        count += len(arrays[wanted.first.name])
        labels += [arrays[name] for name in LABELS if name in arrays and name not in inputs]
    if not count:
        few = f"less than the {wanted.batch} that the model takes at once" if wanted.batch else "none"
        raise UsageError(f"{where} has too few samples to calibrate on: {few}")
    total = digest.hex()

    def batches() -> Iterator[Arrays]:
        again = Digest(wanted) if checked else None
        for arrays in runs():
            if again is not None:
                again.add(arrays)
            yield {i.name: arrays[i.name] for i in wanted.inputs}
        if again is not None and again.hex() != total:
            raise UsageError(
                f"{where} gave other data when called again: let it start afresh each time, with a fixed seed"
            )

    if synthetic:
        source = where
    else:
        source = f"{count} samples of {where}"
        left = min(sum(given), samples) - count
        if left > 0:
            source += f"; {left} more are left out, since the model takes {wanted.batch} at once"
    return Calibration(source, total, count, _labels(labels), synthetic, batches)


def _counted(chunks: Chunks, wanted: Signature, seen: Callable[[int], None]) -> Chunks:
    for chunk in chunks:
        seen(len(chunk[wanted.first.name]))
        yield chunk


def _labels(parts: list[NDArray[Any]]) -> NDArray[np.int64] | None:
    """One class a sample; labels of another form are of no use to anything here."""
    if not parts or any(part.ndim != 1 or part.dtype.kind not in "iu" for part in parts):
        return None
    return np.concatenate(parts).astype(np.int64)
