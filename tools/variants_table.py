"""Prune what is beyond the zoo at ratio 0.5: exports and variants of the tests; write docs/variants.md."""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".dev"), str(ROOT / "tests")]

import onnx  # noqa: E402
from onnx_prune import load, prune  # noqa: E402
from variants import VARIANTS, exported, exports, net  # noqa: E402

DOCUMENT = ROOT / "docs" / "variants.md"
HEAD = """# Beyond the zoo

Made by `make variants`: `prune --ratio 0.5` with no settings. *Removed* is the fraction of parameters that
went. `make test` runs each pruned model in ONNX Runtime too, those with dynamic axes at three sizes each
(`tests/test_exports.py`, `tests/test_variants.py`).

"""
EXPORTS = """## Exports with static and dynamic axes

Nets of our own by both exporters of torch (`ts` and `dynamo`), with batch, sequence or image size dynamic,
and as ONNX Runtime's optimizer for transformers fuses them (operators of com.microsoft).

"""
OTHERS = """
## The same nets as other tools write them

"""


def pruned(proto: onnx.ModelProto) -> tuple[float, bool]:
    """The fraction of parameters removed, and whether the certificate holds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(proto, path)
        result = prune(load(path), ratio=0.5, criterion="l2", recover="none")
    assert result.verdict is not None
    return 1 - result.after.params / result.before.params, result.verdict.ok


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def export_rows() -> Iterator[tuple[str, str, str]]:
    for name in exports():
        removed, ok = pruned(exported(name))
        cells = name, f"{removed:.1%}", "holds" if ok else "FAILS"
        print(*cells, flush=True)
        yield cells


def variant_rows() -> Iterator[tuple[str, int, str, str, str]]:
    for variant, made in VARIANTS.items():
        found = {}
        for name in made.nets:
            found[name] = pruned(made.make(net(name)))
            print(variant, name, *found[name], flush=True)
        removed = {name: fraction for name, (fraction, _) in found.items()}
        least = min(removed, key=removed.__getitem__)
        median = statistics.median(removed.values())
        held = f"{sum(ok for _, ok in found.values())} of {len(found)}"
        yield variant, len(found), f"{median:.1%}", f"{removed[least]:.1%} ({least})", held


def main() -> None:
    exported_nets = table(("export", "removed", "certificate"), export_rows())
    others = table(("variant", "nets", "median removed", "least", "certificate holds"), variant_rows())
    DOCUMENT.write_text(HEAD + EXPORTS + exported_nets + OTHERS + others)


if __name__ == "__main__":
    main()
