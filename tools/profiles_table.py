"""Graphs of the zoo held against profiles: after ``sparsify``, and after ``validate --fix``.

Writes docs/profiles_zoo.md. ``python tools/profiles_table.py [GRAPH ...]``;
a quarter of an hour for all.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from joblib import Parallel, cpu_count, delayed
from onnx_prune import Model, Plan, Validation, all_profiles, analyze, satisfy, validate
from onnx_prune.analysis.patterns.pattern import NM
from onnx_prune.models import zoo
from onnx_prune.passes.measure.places import find_places
from onnx_prune.passes.measure.stream import Stream
from onnx_prune.passes.pipeline import shrunk
from onnx_prune.passes.sparsify import by_magnitude, dense_reasons, sparse_layers
from rich.progress import track

DOCS = Path(__file__).parent.parent / "docs"
# No change of weights makes a layer larger.
SIZES = {"large-enough", "features"}


def missed(result: Validation) -> Counter[str]:
    """Rules that weights miss, and how often; those on least sizes are left out."""
    found = (f for f in result.findings if f.shortfall is not None and f.rule.id not in SIZES)
    return Counter(f"{finding.profile.name}/{finding.rule.id}" for finding in found)


def sparsified(model: Model) -> dict[str, Any]:
    """Weights that TensorRT's rule is about and that miss it where ``sparsify --pattern 2:4`` puts zeros.

    The smallest weights are zero: fitting takes hours for all graphs, and chooses other zeros in the same
    weights.
    """
    model, pattern = shrunk(model, Plan((), {})), NM(2, 4)
    with tempfile.TemporaryDirectory() as folder:
        analysis = analyze(model)
        stream = Stream(model.proto, iter(()), Path(folder))
        places = find_places(analysis.walk, model, stream, stream)
        dense = dense_reasons(analysis, places, stream, pattern, ())
        layers = sparse_layers(analysis, places, stream, pattern, dense)
        sparse = by_magnitude(model, layers, dict.fromkeys(layers, pattern))
    rule = [f for f in validate(sparse, ["nvidia-2:4"]).findings if f.rule.id == "two-of-four"]
    eligible = [finding for finding in rule if finding.eligible]
    left = {finding.weight.name for finding in eligible if not finding.satisfied}
    return {"eligible": len(eligible), "missed": {name: dense.get(name, "") for name in sorted(left)}}


def measured(name: str) -> dict[str, Any]:
    """What becomes of one graph."""
    model = Model(zoo.load(name))
    start = time.perf_counter()
    found: dict[str, Any] = {"graph": name, "sparsify": sparsified(model), "profiles": {}}
    for profile in sorted(all_profiles()):
        result = satisfy(model, [profile])
        found["profiles"][profile] = {
            "eligible": sum(f.eligible for f in result.after.findings),
            "before": sum(missed(result.before).values()),
            "after": sum(missed(result.after).values()),
            "ok": result.after.ok,
        }
    return found | {"seconds": round(time.perf_counter() - start, 1)}


def written(rows: list[dict[str, Any]]) -> str:
    profiles = sorted(all_profiles())
    lines = [
        "# Profiles and the zoo",
        "",
        "Made by `make profiles`: each of the zoo's graphs where `sparsify --pattern 2:4` puts its zeros"
        " (weights that miss the rule of `nvidia-2:4`, of those it is about), and after `validate --fix` for"
        " each profile by itself (times that rules are missed, before → after; those on least sizes are left"
        " out). A dash: the rules are about no weight of the graph.",
        "",
        "No other numbers of channels satisfy more rules (`passes/align.py`). What is left are inputs and"
        " outputs of the model, such as the three colours of an image, layers with fewer channels than the"
        " multiple, groups of convolutions, which all keep as many, and gates of one channel beside others.",
        "",
        "| graph | sparsify 2:4 | " + " | ".join(profiles) + " |",
        "| --- | --- | " + " | ".join("---" for _ in profiles) + " |",
    ]
    for row in rows:
        sparse = row["sparsify"]
        cells = [f"{len(sparse['missed'])} of {sparse['eligible']}" if sparse["eligible"] else "–"]
        for profile in profiles:
            found = row["profiles"][profile]
            cells.append(f"{found['before']} → {found['after']}" if found["eligible"] else "–")
        lines.append(f"| {row['graph']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    data = DOCS / "profiles_zoo.json"
    names = sys.argv[1:] or list(zoo.names())
    rows = {row["graph"]: row for row in (json.loads(data.read_text()) if data.exists() else [])}
    found = Parallel(n_jobs=cpu_count(), return_as="generator_unordered")(delayed(measured)(n) for n in names)
    for row in track(found, "graphs", total=len(names)):
        rows[row["graph"]] = row
        kept = [rows[name] for name in sorted(rows)]
        data.write_text(json.dumps(kept, indent=1) + "\n")
        (DOCS / "profiles_zoo.md").write_text(written(kept))


if __name__ == "__main__":
    main()
