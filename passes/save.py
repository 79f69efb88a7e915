"""Write a model so that a reader never meets half of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..analysis.errors import OutputError
from ..analysis.model import Model

# Protobuf cannot serialise more in one piece.
_PROTO_LIMIT = 1 << 31


def save(model: Model, path: str | Path) -> None:
    """Write ``model`` to ``path`` in one step: all of it, or nothing.

    The same model gives the same bytes.

    Raises:
        OutputError: the file cannot be written, or the model is 2 GB or larger.
    """
    if model.proto.ByteSize() >= _PROTO_LIMIT:
        raise OutputError(f"'{path}' would be 2 GB or larger, which one ONNX file cannot hold")
    data = model.proto.SerializeToString(deterministic=True)
    write_atomic(Path(path), lambda temporary: _write(temporary, data))


def save_text(text: str, path: str | Path) -> None:
    """Write a text file in one step. Raises OutputError."""
    write_atomic(Path(path), lambda temporary: _write(temporary, text.encode()))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then put it in place.

    Raises:
        OutputError: naming ``path``; the temporary file is gone.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        # mkstemp makes files only their owner can read.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write '{path}': {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Find out before long work starts whether ``path`` can be written.

    Raises:
        OutputError: it is a folder, or its folder is missing or read-only.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"cannot write '{path}': it is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write '{path}': there is no folder '{path.parent}'")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise OutputError(f"cannot write '{path}': permission denied")
