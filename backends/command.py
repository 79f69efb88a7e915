"""Other programs that compiling takes: assemblers, compilers, package managers."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from ..analysis.errors import BackendError

_SHOWN = 500  # characters of what a program says that it fails of


def run_command(command: Sequence[str | Path]) -> str:
    """What a program writes to its standard error.

    Raises:
        BackendError: it is not there, or fails.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BackendError(f"cannot run '{name}': {error.strerror}") from None
    if done.returncode:
        raise BackendError(f"'{name}' fails: {done.stderr.strip()[-_SHOWN:]}")
    return done.stderr
