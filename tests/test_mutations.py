"""Rules broken on purpose: the cases must notice, or they prove nothing.

A few mutants of each operator, the same in each run; all of them are in docs/mutations.md.
"""

from __future__ import annotations

from zlib import crc32

import pytest
from cases import CASES
from mutants import Mutant, judge, mutants_of
from onnx_prune.analysis.rules import RULES

SAMPLE = 3


def sample(operator: str) -> list[Mutant]:
    return sorted(mutants_of(operator), key=lambda mutant: crc32(str(mutant).encode()))[:SAMPLE]


@pytest.mark.parametrize("operator", sorted(set(CASES) & set(RULES)))
def test_broken_rules_are_noticed(operator: str) -> None:
    before = dict(RULES)
    survivors = [str(mutant) for mutant in sample(operator) if judge(mutant).state == "survived"]
    assert survivors == []
    assert before == RULES, "a mutant outlived its test"


def test_there_is_something_to_break() -> None:
    assert all(mutants_of(operator) for operator in set(CASES) & set(RULES))
