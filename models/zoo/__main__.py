"""``python -m onnx_prune.models.zoo list | fill NAME OUT.onnx [SEED] | strip MODEL.onnx OUT.onnx.xz``"""

from __future__ import annotations

import lzma
import sys
from pathlib import Path

import onnx

from ...analysis.errors import OnnxPruneError
from . import load, names, strip


def main(arguments: list[str]) -> int:
    match arguments:
        case ["list"]:
            print("\n".join(names()))
        case ["fill", name, target, *seed]:
            onnx.save(load(name, int(seed[0]) if seed else 0), target)
        case ["strip", source, target]:
            with lzma.open(Path(target), "wb") as file:
                file.write(strip(onnx.load(source)).SerializeToString(deterministic=True))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OnnxPruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
