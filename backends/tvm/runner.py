"""Run a compiled model on inputs from a file.

python -m onnx_prune.backends.tvm.runner MODEL.so IN.npz OUT.npz
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ...analysis.errors import OnnxPruneError


def main(arguments: list[str]) -> int:
    """Load, run, write the outputs; the exit status."""
    if len(arguments) != 3:
        print(__doc__.strip().splitlines()[-1], file=sys.stderr)
        return 2
    library, source, destination = map(Path, arguments)
    try:
        from ..artifact import load_artifact

        artifact = load_artifact(library)
        with np.load(source) as inputs:
            outputs = artifact.run(dict(inputs))
        with destination.open("wb") as file:
            np.savez(file, **outputs)  # type: ignore[arg-type]
    except OnnxPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
