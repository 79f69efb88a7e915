"""The cases of all operators: small models around one operator each, by which rules are tested."""

from __future__ import annotations

import cases_compute
import cases_elementwise
import cases_graph
import cases_norm
import cases_shape
from casebook import CASES, Case

__all__ = [
    "CASES",
    "WITHOUT_CASE",
    "Case",
    "cases_compute",
    "cases_elementwise",
    "cases_graph",
    "cases_norm",
    "cases_shape",
]

# Operators with a rule but without a case, and why.
WITHOUT_CASE: dict[str, str] = {}
