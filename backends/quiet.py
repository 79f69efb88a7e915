"""Keep TVM's own log off the screen: it warns about every constant it saves, loads or looks up."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_log_hidden() -> Iterator[None]:
    """Drop what native code writes to standard error; what Python writes there still arrives.

    Failures are not lost: TVM raises them as exceptions. Set ONNX_PRUNE_DEBUG to see everything.
    """
    if os.environ.get("ONNX_PRUNE_DEBUG"):
        yield
        return
    sys.stderr.flush()
    python_stderr, kept = sys.stderr, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        # A replaced stderr (as in tests) does not write to the descriptor and stays.
        if python_stderr is sys.__stderr__:
            sys.stderr = os.fdopen(
                os.dup(kept), "w", buffering=1, encoding="utf-8", errors="backslashreplace"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if sys.stderr is not python_stderr:
            sys.stderr.close()
            sys.stderr = python_stderr
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
