"""What each operator says about its axes: one file an operator family, one rule an operator."""

from . import (
    attention,
    contrib,
    control,
    conv,
    elementwise,
    linear,
    lookup,
    norm,
    quantised,
    recurrent,
    reshape,
    sample,
    select,
)
from .registry import RULES, Rule, Unsupported, rule

__all__ = [
    "RULES",
    "Rule",
    "Unsupported",
    "attention",
    "contrib",
    "control",
    "conv",
    "elementwise",
    "linear",
    "lookup",
    "norm",
    "quantised",
    "recurrent",
    "reshape",
    "rule",
    "sample",
    "select",
]
