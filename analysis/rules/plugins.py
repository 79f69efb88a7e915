"""Rules that other packages bring, found by their entry points in the group ``onnx_prune.rules``.

An entry point names a mapping from operators to rules, such as ``my_package.rules:RULES``. One that cannot be
loaded is told once, by a `PluginWarning`, and its operators stay without a rule. An operator that two claim
raises a `PluginError` in a model that has it, and in no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint

from .. import plugins
from ..axes import Axis, AxisMismatch
from ..errors import OnnxPruneError, PluginError
from ..graph import Node
from ..walk import Outputs, Rule, Unsupported, Walk

GROUP = "onnx_prune.rules"


def installed() -> list[EntryPoint]:
    """Entry points of all installed plug-ins with rules."""
    return plugins.installed(GROUP)


def load(points: Iterable[EntryPoint], built_in: Iterable[str]) -> dict[str, Rule]:
    """The rules of plug-ins by operator.

    An operator that two claim, be it of ``built_in``, gets a rule that raises `PluginError`.

    Warns:
        PluginWarning: an entry point cannot be loaded, or is no mapping of operators to rules.
    """
    brought = plugins.bring(points, built_in, _checked)
    rules = {operator: _guarded(rule, title) for operator, (rule, title) in brought.things.items()}
    return rules | {operator: _claimed_twice(*titles) for operator, titles in brought.clashes.items()}


def _checked(brought: object) -> dict[str, Rule]:
    if not isinstance(brought, Mapping):
        raise TypeError(f"it is a {type(brought).__name__}, not a mapping from operators to rules")
    rules: dict[str, Rule] = {}
    for operator, rule in brought.items():
        if not isinstance(operator, str) or not callable(rule):
            raise TypeError(f"it maps {operator!r} to {rule!r}, not the name of an operator to a rule")
        rules[operator.removeprefix("ai.onnx::")] = rule
    return rules


def _claimed_twice(first: str, second: str) -> Rule:
    def refuse(walk: Walk, node: Node) -> Outputs:
        raise PluginError(f"{node.name} has two rules: one of {first}, one of {second}; uninstall either")

    return refuse


def _guarded(rule: Rule, title: str) -> Rule:
    """``rule``, with its mistakes told as its own and not as those of the model."""

    def run(walk: Walk, node: Node) -> Outputs:
        try:
            outputs = rule(walk, node)
        except (AxisMismatch, Unsupported, OnnxPruneError):
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise PluginError(f"the rule for {node.name} of {title} failed: {told}") from error
        if not _are_outputs(outputs, len(node.outputs)):
            raise PluginError(
                f"the rule for {node.name} of {title} did not return a list of axes for each of its"
                f" {len(node.outputs)} outputs"
            )
        return outputs

    return run


def _are_outputs(outputs: object, count: int) -> bool:
    return (
        isinstance(outputs, list | tuple)
        and len(outputs) == count
        and all(
            types is None or (isinstance(types, list) and all(isinstance(axis, Axis) for axis in types))
            for types in outputs
        )
    )
