"""A compiled model on disk: a shared library, a description beside it as JSON, weights inside or beside.

    OUT.so           machine code; with weights inside, their raw bytes after it, from a multiple of 4096
    OUT.so.weights   those raw bytes, with weights beside
    OUT.so.json      what goes in and comes out, where each weight is, digests

The names of the other two come from that of the library, never from what is written in a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from ..analysis.errors import BackendError
from ..passes.execute import first_line
from ..passes.save import save_text, write_atomic
from .processor import Linker
from .quiet import native_log_hidden
from .weights import Place, Program, Weights, mapped, read

# An object file, of a module of TVM, whether it is a system library, a prefix of names, and a folder.
Packing: TypeAlias = Callable[[Any, bool, str, str], str]

_FORMAT = 2
_PAGE = 4096


def save(
    path: Path,
    program: Program,
    about: Mapping[str, Any],
    beside: bool,
    linker: Linker | None = None,
    packing: Packing | None = None,
) -> None:
    """Write a program; each file in one step, the description last.

    Args:
        about: what else to describe.
        beside: whether the weights get a file of their own.
        linker: for another machine than this.
        packing: of what the library brings along; TVM's own way without.

    Raises:
        OutputError: a file cannot be written.
        BackendError: there is no C++ compiler to link the library.
    """
    weights = program.weights
    stored: dict[str, Any] = {"beside": beside, "start": 0, "bytes": len(weights.memory)}

    def write(temporary: Path) -> None:
        try:
            with native_log_hidden():
                options = {} if packing is None else {"fpack_imports": packing}
                program.executable.export_library(str(temporary), fcompile=linker, **options)
        except RuntimeError as error:
            raise BackendError(
                f"cannot link '{path}'; a C++ compiler such as g++ is needed: {first_line(error)}"
            ) from error
        if beside:  # before the library that needs them is in place, and not unless it could be made
            write_atomic(weights_path(path), lambda file: _append(weights, file))
            stored["sha256"] = _digest(weights_path(path))
        else:
            stored["start"] = _append(weights, temporary)

    write_atomic(path, write)
    stored["tensors"] = [asdict(place) for place in weights.places]
    described = {
        "format": _FORMAT,
        **about,
        "functions": {name: list(used) for name, used in program.uses.items()},
        "weights": stored,
        "sha256": _digest(path),
    }
    save_text(json.dumps(described, indent=2) + "\n", description_path(path))


def description_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def weights_path(path: Path) -> Path:
    return path.with_name(path.name + ".weights")


def describe(path: Path) -> dict[str, Any]:
    """What is written beside the library.

    Raises:
        BackendError: it cannot be read, or is of another format.
    """
    beside = description_path(path)
    try:
        about = json.loads(beside.read_text("utf-8"))
        found = about["format"]
    except OSError as error:
        raise BackendError(f"cannot read '{beside}': {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise malformed(path) from None
    if found != _FORMAT:
        raise BackendError(f"'{beside}' has format {found}; this program reads {_FORMAT}")
    return dict(about)


def malformed(path: Path) -> BackendError:
    return BackendError(f"'{description_path(path)}' does not describe a compiled model")


def load(path: Path, about: Mapping[str, Any]) -> Program:
    """The program in the library, which is run by that: weights inside are read, those beside are mapped.

    Args:
        about: what `describe` found.

    Raises:
        BackendError: a file cannot be read, or is not the one described.
    """
    import tvm

    try:
        stored, digest = about["weights"], about["sha256"]
        uses = {str(name): tuple(map(int, used)) for name, used in about["functions"].items()}
        places = tuple(Place.read(each) for each in stored["tensors"])
        beside, start, size = bool(stored["beside"]), int(stored["start"]), int(stored["bytes"])
        beside_digest = stored["sha256"] if beside else None
        if any(place.end > size for place in places) or start < 0 or size < 0:
            raise ValueError
        if not all(0 <= i < len(places) for used in uses.values() for i in used):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise malformed(path) from None
    _check(path, digest, path)
    holder = weights_path(path) if beside else path
    if beside:
        _check(holder, beside_digest, path)
    try:
        weights = mapped(holder, places, size) if beside else read(holder, start, places, size)
    except (OSError, EOFError):
        raise BackendError(f"'{holder}' ends before its weights do") from None
    try:
        with native_log_hidden():
            return Program(tvm.runtime.load_module(str(path)), weights, uses)
    except Exception as error:
        raise BackendError(f"cannot load '{path}': {first_line(error)}") from error


def _check(path: Path, digest: object, library: Path) -> None:
    try:
        found = _digest(path)
    except OSError as error:
        raise BackendError(f"cannot read '{path}': {error.strerror}") from None
    if found != digest:
        what = "the library" if path == library else "the weights"
        raise BackendError(f"'{path}' is not {what} that '{description_path(library).name}' describes")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _append(weights: Weights, path: Path) -> int:
    """Write weights at the end of a file; where they start, a multiple of a page."""
    with path.open("ab") as file:
        file.write(bytes(-file.tell() % _PAGE))
        start = file.tell()
        file.write(weights.memory.data)
        file.flush()
        os.fsync(file.fileno())
    return start
