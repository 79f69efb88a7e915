"""Plug-ins for tests: other packages with one entry point, and the command with them on its path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def install(site: Path, name: str, code: str, kind: str, value: str | None = None) -> None:
    """What pip leaves behind of a distribution with one module and one entry point.

    Args:
        kind: of plug-in: the last part of the group of its entry point, which names that in capitals in the
            module unless ``value`` says otherwise.
    """
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
    point = f"{name}_{kind} = {value or f'{name}:{kind.upper()}'}"
    (info / "entry_points.txt").write_text(f"[onnx_prune.{kind}]\n{point}\n")


def command(*arguments: str | Path, site: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": f"{ROOT / '.dev'}:{site}"}
    line = [sys.executable, "-m", "onnx_prune", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, env=environment)
