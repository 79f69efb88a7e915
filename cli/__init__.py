"""The command ``onnx-prune``: parses, calls the API, prints. Tables and progress go to stderr."""

from __future__ import annotations

import os
import warnings

from ..analysis.errors import OnnxPruneError, PluginWarning
from . import (  # each adds its commands  # noqa: F401
    analyze,
    compile,
    conformance,
    factorize,
    latency,
    prune,
    sensitivity,
    sparsify,
    validate,
)
from .app import app
from .show import fail, warn

__all__ = ["app", "main"]


def main() -> None:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage, 3 a check did not hold."""
    debug = bool(os.environ.get("ONNX_PRUNE_DEBUG"))
    if not debug:  # what libraries warn their developers of says nothing to a user
        warnings.simplefilter("ignore")
    warnings.filterwarnings("always", category=PluginWarning)
    warnings.showwarning = warn
    try:
        app()  # reports wrong usage and Ctrl-C itself
    except OnnxPruneError as error:
        fail(str(error), error.exit_status)
    except Exception as error:
        if debug:
            raise
        fail(
            f"{type(error).__name__}: {error} — this is a bug in onnx-prune;"
            " set ONNX_PRUNE_DEBUG=1 for the traceback",
            1,
        )
