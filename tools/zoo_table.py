"""Prune every graph of the zoo and the trained models at ratio 0.5, write docs/coverage.md."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx_prune import Analysis, Model, PruneResult, load, prune
from onnx_prune.analysis.axes import find, reason
from onnx_prune.analysis.plan import select
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, MODELS

TABLE = Path(__file__).parent.parent / "docs" / "coverage.md"
HEAD = """# What can be pruned

Made by `make zoo`: `prune --ratio 0.5` with no settings on every graph of `models/zoo` (weights drawn from a
seed) and on the trained models. *Removed* is the fraction of parameters that went. *Error* is that of the
certificate: the largest difference between the pruned model and the masked original over max|y|. *Held by* is
what pins most of the parameters that stay beyond the quarter that ratio 0.5 leaves of a matrix: its share of
them, and the reason. `timm_convit_tiny` stores tables of positions for every block; they are computed once
and shared, and count as removed.

The families: *attention or recurrent* has a product of two computed tensors, or a recurrent cell;
*convolutional* is any other with convolutions or matrix products.

"""
TAIL = """
## What else is measured

| what | command | figures |
| --- | --- | --- |
| exports with dynamic axes, quantised, 16-bit and fused nets, weights in other places | `make variants` | \
[variants.md](variants.md) |
| rules broken on purpose, and what notices | `make mutations` | [mutations.md](mutations.md) |
| 10,000 random graphs, equal to the last bit (300 of them in `make test`) | `make fuzz` | passes or fails |
| the patterns that pruners get wrong, a test each | `pytest tests/test_patterns.py` | passes or fails |
| the analysis timed, also on 100,000 nodes | `make speed` | [analysis_speed.md](analysis_speed.md) |
"""
COLUMNS = ("model", "family", "groups", "removed", "MACs removed", "certificate", "error", "held by")


@dataclass(frozen=True)
class Row:
    name: str
    family: str
    removed: float
    holds: bool
    text: str


def family(analysis: Analysis) -> str:
    """Whether tensors that are both computed are multiplied into each other anywhere."""
    walk = analysis.walk
    for node in walk.nodes:
        product = node.op in ("MatMul", "Einsum") and len(node.inputs) > 1
        if node.op in ("LSTM", "GRU", "RNN", "Attention") or (
            product and not any(_from_weights(analysis, name) for name in node.inputs)
        ):
            return "attention or recurrent"
    return "convolutional"


def _from_weights(analysis: Analysis, name: str) -> bool:
    """Whether a tensor is computed from constants alone, as a transposed weight is."""
    makers = {output: node for node in analysis.walk.nodes for output in node.outputs}
    stack = [name]
    while stack:
        name = stack.pop()
        if name in analysis.walk.constants:
            continue
        if name not in makers:
            return False
        stack += filter(None, makers[name].inputs)
    return True


def held_by(result: PruneResult) -> str:
    """The reason that keeps most of what stays beyond a quarter, and its share."""
    analysis = result.analysis
    selection = select(analysis, result.plan)
    excess: Counter[str] = Counter()
    for constant, _, axes in analysis.weight_uses():
        left = 1
        for axis in axes:
            left *= selection.count(axis)
        pinned = [axis for axis in axes[:2] if reason(axis) is not None and find(axis).size > 1]
        over = left - constant.elements / 4
        if over > 0:
            why = reason(pinned[0]) if pinned else "rounding to whole units, or a single axis"
            excess[_short(why or "")] += int(over)
    if not excess:
        return ""
    why, most = excess.most_common(1)[0]
    return f"{most / sum(excess.values()):.0%} {why}"


def _short(why: str) -> str:
    """A reason without the names in it, which differ from layer to layer."""
    words = [word for word in why.split(";")[0].split() if not word.startswith("'")]
    return " ".join(words).removeprefix("is ").replace("|", "/")


def row(name: str, model: Model) -> Row:
    result = prune(model, ratio=0.5, criterion="l2", recover="none")
    verdict = result.verdict
    assert verdict is not None
    removed = 1 - result.after.params / result.before.params
    macs = 1 - result.after.macs / result.before.macs if result.before.macs else 0.0
    kind = family(result.analysis)
    cells = (
        name,
        kind,
        str(len(result.analysis.groups)),
        f"{removed:.1%}",
        f"{macs:.0%}",
        f"{'holds' if verdict.ok else 'FAILS'}, {verdict.kind}",
        f"{verdict.max_relative_error:.1e}",
        held_by(result),
    )
    return Row(name, kind, removed, verdict.ok, f"| {' | '.join(cells)} |")


def models() -> Iterator[tuple[str, Model]]:
    for name in MODELS:
        yield name, load(FOLDER / f"{name}.onnx")
    for name in zoo.names():
        yield name, Model(zoo.load(name))


def main() -> None:
    rows = []
    for name, model in models():
        rows.append(row(name, model))
        print(rows[-1].text, flush=True)
    held = sum(r.holds for r in rows)
    text = [f"The certificate holds for {held} of {len(rows)}.", ""]
    text += ["| family | models | median removed | least |", "| --- | --- | --- | --- |"]
    for kind in ("", "convolutional", "attention or recurrent"):
        some = sorted((r.removed, r.name) for r in rows if kind in ("", r.family))
        median = statistics.median(value for value, _ in some)
        least = f"{some[0][0]:.1%} ({some[0][1]})"
        text.append(f"| {kind or 'all'} | {len(some)} | {median:.1%} | {least} |")
    text += ["", f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|", *(r.text for r in rows)]
    TABLE.write_text(HEAD + "\n".join(text) + "\n" + TAIL)


if __name__ == "__main__":
    main()
