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
    rotary,
    sample,
    select,
)
from .registry import RULES, Rule, Unsupported, all_rules, rule

__all__ = [
    "RULES",
    "Rule",
    "Unsupported",
    "all_rules",
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
    "rotary",
    "rule",
    "sample",
    "select",
]
