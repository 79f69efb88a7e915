"""Every operator with a rule, in small models around it: pruned and compared with the masked original."""

from __future__ import annotations

import pytest
from cases import CASES, WITHOUT_CASE, Case
from mutants import complaint, trace
from onnx_prune.analysis.rules import RULES


@pytest.mark.parametrize("ratio", [0.5, 0.25])
@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=str)
def test_case(case: Case, ratio: float) -> None:
    """Bit for bit where the removal is exact; and what should shrink does."""
    probe = (0, ratio)
    assert complaint(case, probe, trace(case, probe)) == ""


def test_every_operator_with_a_rule_has_a_case() -> None:
    assert set(RULES) - set(CASES) == set(WITHOUT_CASE)


def test_every_case_is_of_an_operator_with_a_rule() -> None:
    assert set(CASES) <= set(RULES)
