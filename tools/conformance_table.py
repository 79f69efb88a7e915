"""The conformance kits of all profiles, run through ONNX Runtime and our backend.

Writes docs/conformance_runs.md. ``python tools/conformance_table.py [PROFILE ...]``; takes ten minutes.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from joblib import Parallel, cpu_count, delayed
from onnx_prune import all_profiles, run_suite, write_suite
from rich.progress import track

DOCS = Path(__file__).parent.parent / "docs"
RUNTIMES = "onnxruntime", "tvm"


def row(profile: str) -> str:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        suite = write_suite(profile, Path(folder) / "suite")
        cells = [profile, str(len(suite.entries)), str(sum(entry.sparse for entry in suite.entries))]
        for runtime in RUNTIMES:
            outcomes = Counter(result.outcome for result in run_suite(suite.folder, runtime))
            cells.append(" / ".join(str(outcomes[name]) for name in ("passed", "failed", "unsupported")))
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    lines = [
        "# Conformance of ONNX Runtime and of our backend",
        "",
        "Made by `make profiles`: cases of each profile's kit ([conformance.md](conformance.md)), of which"
        " the sparse ones hold weights that satisfy a rule; how many passed / failed / are not supported.",
        "",
        "| profile | cases | sparse | ONNX Runtime | onnx-prune, TVM on CPU |",
        "| --- | --- | --- | --- | --- |",
    ]
    names = sys.argv[1:] or sorted(all_profiles())
    found = Parallel(n_jobs=cpu_count(), return_as="generator")(delayed(row)(name) for name in names)
    lines += track(found, "profiles", total=len(names))
    (DOCS / "conformance_runs.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
