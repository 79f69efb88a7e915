"""Break every rule in every way `tests/mutants.py` knows, and write what noticed it to docs/mutations.md."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / ".dev"), str(ROOT / "tests")]

from cases import CASES, WITHOUT_CASE  # noqa: E402
from mutants import KINDS, PROBES, Mutant, Outcome, fault, judge, mutants_of  # noqa: E402
from onnx_prune.analysis.rules import RULES  # noqa: E402

DOCUMENT = ROOT / "docs" / "mutations.md"
LEAST = 0.95
STATES = ("killed", "survived", "no effect")

Judged = list[tuple[Mutant, Outcome]]


def judge_operator(operator: str) -> tuple[str, Judged, list[str]]:
    """All mutants of an operator, and the cases that fail with the right rule."""
    judged = [(mutant, judge(mutant)) for mutant in mutants_of(operator)]
    faults = {str(case): fault(case, probe) for case in CASES[operator] for probe in PROBES}
    return operator, judged, [f"{name}: {why}" for name, why in faults.items() if why]


def row(name: str, cells: Iterable[object]) -> str:
    return f"| {name} | {' | '.join(map(str, cells))} |"


def table(head: str, counts: dict[str, Counter[str]]) -> list[str]:
    lines = [row(head, ["mutants", "killed", "survived", "no effect"]), "| --- | ---: | ---: | ---: | ---: |"]
    lines += [row(name, [sum(count.values()), *(count[s] for s in STATES)]) for name, count in counts.items()]
    return lines


def document(results: list[tuple[str, Judged, list[str]]]) -> tuple[str, float]:
    by_operator = {op: Counter(o.state for _, o in judged) for op, judged, _ in results}
    by_kind: dict[str, Counter[str]] = {f"{kind}: {what}": Counter() for kind, what in KINDS.items()}
    told: dict[str, list[str]] = {state: [] for state in STATES}
    for _, judged, _ in results:
        for mutant, outcome in judged:
            by_kind[f"{mutant.kind}: {KINDS[mutant.kind]}"][outcome.state] += 1
            told[outcome.state].append(f"- {mutant}")
    total = sum(by_operator.values(), Counter())
    share = total["killed"] / max(1, total["killed"] + total["survived"])
    faults = [line for _, _, lines in results for line in lines]
    missing = sorted(set(RULES) - set(CASES))
    lines = [
        "# Mutants of the rules",
        "",
        "Each rule of `analysis/rules/` is broken on purpose, one small error at a time",
        "(`tests/mutants.py`), and the models of `tests/cases.py` are pruned with it. A mutant is killed",
        "when analysis or rewriting raises, a model does not run, the certificate fails, equality to the",
        "last bit is lost, or a weight that should shrink does not. A mutant has no effect when every model",
        "of the operator comes out the same, byte for byte, and so does its masked original; it is not",
        "counted.",
        "",
        "Written by `tools/mutation_table.py`.",
        "",
        f"**{total['killed']} of {total['killed'] + total['survived']} mutants are killed: {share:.1%}.**"
        f" {total['no effect']} have no effect. {sum(map(len, CASES.values()))} cases of"
        f" {len(by_operator)} operators.",
        "",
        *table("kind of error", by_kind),
        "",
        "## Survivors",
        "",
        *(told["survived"] or ["None."]),
        "",
        "## Without effect",
        "",
        *(told["no effect"] or ["None."]),
        "",
        "## Operators without a case",
        "",
        *([f"- {op}: {WITHOUT_CASE.get(op, 'not written yet')}" for op in missing] or ["None."]),
        "",
        "## Cases that fail with the right rule",
        "",
        *([f"- {line}" for line in faults] or ["None."]),
        "",
        "## By operator",
        "",
        *table("operator", by_operator),
        "",
    ]
    return "\n".join(lines), share


def main() -> int:
    operators = sorted(set(CASES) & set(RULES))
    with ProcessPoolExecutor(2) as pool:
        results = list(pool.map(judge_operator, operators))
    text, share = document(results)
    DOCUMENT.write_text(text)
    print(f"{share:.1%} of the mutants are killed; see {DOCUMENT.relative_to(ROOT)}")
    return 0 if share >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
