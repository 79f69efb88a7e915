"""Channels, ranks and both at the same MACs, for the table in docs/factorize.md.

Run: ``python tools/lowrank_table.py`` writes the table between its marks in the document.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / ".dev"))

from onnx_prune import Model, load, open_calibration, prune  # noqa: E402
from onnx_prune.models.digits import FOLDER, MODELS, load_digits  # noqa: E402
from onnx_prune.passes.execute import execute  # noqa: E402

DOCUMENT = ROOT / "docs" / "factorize.md"
SHARES = (0.5, 0.3, 0.25)
WAYS = {"channels": None, "ranks": "only", "both": "compete"}
IMAGES = 200


def logits(model: Model) -> NDArray[np.float64]:
    made: NDArray[np.float64] = execute(model.proto, {"x": load_digits("test").images})["logits"]
    return made.astype(np.float64)


def rows() -> list[str]:
    """A line for each model and share of its MACs: a cell for each way."""
    labels = load_digits("test").labels
    found = []
    for name in MODELS:
        model = load(FOLDER / f"{name}.onnx")
        data = open_calibration({"x": load_digits("train").images[:IMAGES]}, model)
        wanted = logits(model)
        spread = float(np.square(wanted - wanted.mean(axis=0)).sum())
        dense = float((wanted.argmax(axis=1) == labels).mean())
        for share in SHARES:
            cells = []
            for way in WAYS.values():
                result = prune(model, macs=share, low_rank=way, calibration=data, check=False)
                got = logits(result.model)
                right = float((got.argmax(axis=1) == labels).mean())
                moved = float(np.square(got - wanted).sum()) / spread
                count = len(result.plan.ranks)
                ranks = f", {count} layer{'s' * (count > 1)}" if count else ""
                cells.append(f"{right:.1%} ({moved:.2%}{ranks})")
            found.append(f"| {name}, {dense:.1%} | {share:.0%} | {' | '.join(cells)} |")
            print(found[-1], flush=True)
    return found


def main() -> None:
    head = [f"| model, dense | MACs left | {' | '.join(WAYS)} |", "| --- | ---: |" + " --- |" * len(WAYS)]
    table = "\n".join([*head, *rows()])
    marks = "<!-- measured -->", "<!-- /measured -->"
    text = DOCUMENT.read_text()
    between = re.compile(f"{re.escape(marks[0])}.*{re.escape(marks[1])}", re.DOTALL)
    DOCUMENT.write_text(between.sub(lambda _: f"{marks[0]}\n{table}\n{marks[1]}", text))


if __name__ == "__main__":
    main()
