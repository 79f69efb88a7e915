"""The table of rules. A rule is a pure function of a walk and a node that returns its outputs' types."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from ..walk import Axes, Outputs, Rule, Unsupported
from . import plugins

__all__ = ["RULES", "Axes", "Outputs", "Rule", "Unsupported", "all_rules", "rule"]

RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators, named ``Op``, or ``domain::Op`` outside the standard domain."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"two rules claim the operator {operator}")
            RULES[operator] = function
        return function

    return register


@cache
def _plugged_in() -> dict[str, Rule]:
    return plugins.load(plugins.installed(), RULES)


def all_rules() -> dict[str, Rule]:
    """The rules of this package and of installed plug-ins, which are loaded at the first call.

    Warns:
        PluginWarning: a plug-in cannot be loaded.
    """
    return RULES | _plugged_in()
