"""The table of rules. A rule is a pure function of a walk and a node that returns its outputs' types."""

from __future__ import annotations

from collections.abc import Callable

from ..walk import Axes, Outputs, Rule, Unsupported

__all__ = ["RULES", "Axes", "Outputs", "Rule", "Unsupported", "rule"]

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
