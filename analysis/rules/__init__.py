"""What each operator says about its axes: one file an operator family, one rule an operator."""

from . import control, conv, elementwise, linear, lookup, norm, recurrent, reshape, sample, select
from .registry import RULES, Rule, Unsupported, rule

__all__ = [
    "RULES",
    "Rule",
    "Unsupported",
    "control",
    "conv",
    "elementwise",
    "linear",
    "lookup",
    "norm",
    "recurrent",
    "reshape",
    "rule",
    "sample",
    "select",
]
