"""The cases of all operators: small models around one operator each, by which rules are tested."""

from __future__ import annotations

import cases_compute
import cases_contrib
import cases_elementwise
import cases_fused
import cases_graph
import cases_norm
import cases_quantised
import cases_shape
from casebook import CASES, Case

__all__ = [
    "CASES",
    "WITHOUT_CASE",
    "Case",
    "cases_compute",
    "cases_contrib",
    "cases_elementwise",
    "cases_fused",
    "cases_graph",
    "cases_norm",
    "cases_quantised",
    "cases_shape",
]

# Operators with a rule but without a case, and why.
_NO_KERNEL = "ONNX Runtime has no kernel of it for this processor"
WITHOUT_CASE: dict[str, str] = {
    "com.microsoft::BiasAdd": _NO_KERNEL,
    "com.microsoft::BiasDropout": _NO_KERNEL,
    "com.microsoft::BiasSplitGelu": _NO_KERNEL,
    "com.microsoft::TransposeMatMul": "the former name of FusedMatMul, whose rule it is",
    "com.microsoft::GroupNorm": _NO_KERNEL,
    "com.microsoft::SkipGroupNorm": _NO_KERNEL,
}
