"""Prune every graph of the zoo and the trained models at ratio 0.5, write docs/coverage.md."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from onnx_prune import Model, load, prune
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, MODELS

TABLE = Path(__file__).parent.parent / "docs" / "coverage.md"
HEAD = """# What can be pruned

Made by `make zoo`: `prune --ratio 0.5` with no settings on every graph of `models/zoo` (weights drawn from a
seed) and on the trained models. *Removed* is the fraction of parameters that went. *Error* is that of the
certificate: the largest difference between the pruned model and the masked original over max|y|.

"""


def main() -> None:
    models = [(name, load(FOLDER / f"{name}.onnx")) for name in MODELS]
    rows, removed, held = [], [], 0
    for name, model in models + [(name, None) for name in zoo.names()]:
        start = time.process_time()
        result = prune(model or Model(zoo.load(name)), ratio=0.5)
        seconds = time.process_time() - start
        verdict = result.verdict
        assert verdict is not None
        held += verdict.ok
        removed.append(1 - result.after.params / result.before.params)
        macs = 1 - result.after.macs / result.before.macs if result.before.macs else 0.0
        rows.append(
            f"| {name} | {len(result.analysis.groups)} | {removed[-1]:.0%} | {macs:.0%} |"
            f" {'holds' if verdict.ok else 'FAILS'}, {verdict.kind} | {verdict.max_relative_error:.1e} |"
            f" {seconds:.1f} |"
        )
        print(rows[-1], flush=True)
    summary = (
        f"The certificate holds for {held} of {len(rows)}; median of parameters removed"
        f" {statistics.median(removed):.0%}.\n\n"
        "| model | groups | removed | MACs removed | certificate | error | CPU s |\n"
        "| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    TABLE.write_text(HEAD + summary + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
