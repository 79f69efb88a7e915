"""Read calibration data piece by piece: arrays in files and folders, and what functions return."""

from __future__ import annotations

import functools
import importlib
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ...analysis.errors import UsageError
from ..execute import Arrays, first_line
from .inputs import LABELS, Array, Signature, fitted, same_count

Chunks = Iterator[Arrays]

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
# zipfile raises a RuntimeError where an archive is encrypted, or compressed in a way it does not know.
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)


def read_file(path: Path, wanted: Signature, rows: int) -> Chunks:
    """Pieces of ``rows`` samples of an .npz or .npy file, of which no more is ever in memory."""
    where = f"'{path}'"
    with _reading(where):
        if path.suffix == ".npy":
            yield from _pieces({"": np.load(path, mmap_mode="r", allow_pickle=False)}, wanted, rows, where)
        else:
            with zipfile.ZipFile(path) as archive:
                yield from _stored(archive, wanted, rows, where)


def _stored(archive: zipfile.ZipFile, wanted: Signature, rows: int, where: str) -> Chunks:
    members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
    chosen = _named(members, wanted, where)
    streams: dict[str, Iterator[Array]] = {}
    whole: Arrays = {}
    counts: dict[str, int] = {}
    units = {i.name: i.unit for i in wanted.inputs}
    per_run = wanted.first.unit
    for name, member in chosen.items():
        unit = units.get(name, per_run)
        length, pieces = _member(archive, member, rows // per_run * unit, f"{where}: array {name!r}")
        if unit:
            streams[name], counts[name] = pieces, length
        else:
            whole[name] = np.concatenate(list(pieces)) if length >= 0 else next(pieces)
    same_count(counts, {name: units.get(name, per_run) for name in counts}, where)
    for parts in zip(*streams.values(), strict=False):
        yield _fit_all(dict(zip(streams, parts, strict=True)) | whole, wanted, where)


def _member(archive: zipfile.ZipFile, member: str, rows: int, what: str) -> tuple[int, Iterator[Array]]:
    """Length of axis 0 (-1 for a scalar) and the array in pieces of that many rows."""
    with archive.open(member) as file:
        shape, fortran, _ = _header(file, what)
    if not shape or fortran:  # rows of a column-major array are spread over all of it
        with archive.open(member) as file:
            value = npy.read_array(file, allow_pickle=False)
        if not shape:
            return -1, iter([value])
        return len(value), (value[i : i + rows] for i in range(0, len(value), rows))
    return shape[0], _rows(archive, member, rows, what)


def _rows(archive: zipfile.ZipFile, member: str, rows: int, what: str) -> Iterator[Array]:
    with archive.open(member) as file:
        shape, _, dtype = _header(file, what)
        for start in range(0, shape[0], rows):
            part = (min(rows, shape[0] - start), *shape[1:])
            size = math.prod(part) * dtype.itemsize
            data = file.read(size)
            if len(data) != size:
                raise UsageError(f"{what} ends before its {shape[0]} samples do: write the file again")
            yield np.frombuffer(data, dtype).reshape(part)


def _header(file: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    read = _HEADERS.get(npy.read_magic(file))
    if read is None:
        raise UsageError(f"{what} is no plain array: write it with numpy.savez")
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise UsageError(f"{what} holds Python objects, which are never loaded: save an array of numbers")
    return shape, fortran, dtype


def read_folder(folder: Path, wanted: Signature, rows: int) -> Chunks:
    """The .npy and .npz files of a folder in sorted order, each a sample or a batch."""
    files = sorted(p for p in folder.iterdir() if p.suffix in (".npy", ".npz"))
    if not files:
        raise UsageError(f"the folder '{folder}' holds no .npy or .npz files")
    for path in files:
        where = f"'{path}'"
        with _reading(where):
            if path.suffix == ".npy":
                stored: Mapping[str, Array] = {"": np.load(path, mmap_mode="r", allow_pickle=False)}
                yield from _pieces(stored, wanted, rows, where, single=True)
            else:
                with np.load(path, allow_pickle=False) as archive:
                    yield from _pieces(dict(archive), wanted, rows, where, single=True)


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise UsageError(f"cannot read {where} as arrays: {first_line(error)}") from None


def read_mapping(arrays: Mapping[str, Any], wanted: Signature, rows: int, where: str) -> Chunks:
    """Pieces of ``rows`` samples of arrays in memory."""
    yield from _pieces({k: np.asarray(v) for k, v in arrays.items()}, wanted, rows, where)


def _pieces(
    arrays: Mapping[str, Array], wanted: Signature, rows: int, where: str, single: bool = False
) -> Chunks:
    """``arrays`` fitted to the model's inputs, piece by piece."""
    chosen = {name: arrays[key] for name, key in _named(dict.fromkeys(arrays), wanted, where).items()}
    per_run = wanted.first.unit
    units = dict.fromkeys(chosen, per_run) | {i.name: i.unit for i in wanted.inputs}
    for i in wanted.inputs:
        if single and i.unit and chosen[i.name].ndim == len(i.shape) - 1:
            chosen[i.name] = chosen[i.name][None]
    for name in chosen.keys() - {i.name for i in wanted.inputs}:
        chosen[name] = np.atleast_1d(chosen[name])
    counted = {k: v for k, v in chosen.items() if units[k] and v.ndim}
    same_count({k: len(v) for k, v in counted.items()}, units, where)
    steps = {k: rows // per_run * units[k] for k in counted}
    for piece in range(max((-(-len(v) // steps[k]) for k, v in counted.items()), default=1)):
        part = {k: v[piece * steps[k] : (piece + 1) * steps[k]] for k, v in counted.items()}
        yield _fit_all({**chosen, **part}, wanted, where)


def _named(keys: Mapping[str, Any], wanted: Signature, where: str) -> dict[str, Any]:
    """Which stored array is which input; a model's only input takes the only array, whatever its name."""
    chosen: dict[str, Any] = {}
    names = [i.name for i in wanted.inputs]
    found = {key: member if member is not None else key for key, member in keys.items()}
    labels = [key for key in LABELS if key in found and key not in names]
    others = [key for key in found if key not in labels]
    if len(names) == 1 and names[0] not in found and len(others) == 1:
        chosen[names[0]] = found[others[0]]
    else:
        for name in names:
            if name not in found:
                has = ", ".join(repr(key) for key in found) or "nothing"
                raise UsageError(f"{where} has no array for the model's input {name!r}: it holds {has}")
            chosen[name] = found[name]
    return chosen | {key: found[key] for key in labels[:1]}


def _fit_all(arrays: Mapping[str, Any], wanted: Signature, where: str) -> Arrays:
    out = {i.name: fitted(i, arrays[i.name], where) for i in wanted.inputs}
    return out | {key: np.asarray(v) for key, v in arrays.items() if key in LABELS and key not in out}


def read_function(function: Callable[[], Any], wanted: Signature, rows: int, where: str) -> Chunks:
    """What a function returns or yields: batches, as dicts by input or arrays for a single input."""
    for batch in _called(function, where):
        arrays = batch if isinstance(batch, Mapping) else {"": batch}
        yield from _pieces({k: np.asarray(v) for k, v in arrays.items()}, wanted, rows, where)


def _called(function: Callable[[], Any], where: str) -> Iterator[Any]:
    try:
        made = function()
        if isinstance(made, Mapping) or hasattr(made, "__array__"):
            made = [made]
        yield from made
    except UsageError:
        raise
    except Exception as error:  # whatever somebody's function raises
        raise UsageError(f"{where} failed: {type(error).__name__}: {first_line(error)}") from error


@functools.cache
def _noted(folder: str) -> None:
    """Let functions be imported from the current directory, as ``python -m`` does."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


def load_function(spec: str) -> Callable[[], Any]:
    """The function that ``module:function`` names; modules of the current directory are found.

    Raises:
        UsageError: the module cannot be imported, or has no such function.
    """
    module, _, name = spec.partition(":")
    _noted(str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever somebody's module raises
        raise UsageError(
            f"cannot import {module!r} for the calibration {spec!r}:"
            f" {type(error).__name__}: {first_line(error)}"
        ) from error
    if not callable(function):
        raise UsageError(f"the module {module!r} has no function {name!r} for the calibration {spec!r}")
    made: Callable[[], Any] = function
    return made
