"""A model as the program sees it: the proto, where it came from, and its preflight checks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True)
class Model:
    """A loaded ONNX model. ``proto`` is never changed by any function of this package."""

    proto: onnx.ModelProto
    path: Path | None = None
