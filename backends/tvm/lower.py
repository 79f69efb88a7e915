"""Choose what is computed: packed convolutions, packed matrix products, rows, polynomials.

One walk over the bindings of a Relax function. The rules are in packed.py, transposed.py and plain.py; what
none of them takes is left to TVM's own lowering. How kernels run is decided later, by the rules in
schedules/, on functions that TVM has fused in between.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

from tvm import relax

from . import attention, packed, plain, transposed
from .forms import Forms, is_float, operator
from .workloads import Choices

Rule: TypeAlias = Callable[[Forms, Any, Any], bool]
_RULES = packed.RULES | transposed.RULES | plain.RULES


def lower(module: Any, choices: Choices) -> Any:
    """The module with its main function rewritten to packed kernels where they fit."""
    return rewritten(module, choices, _RULES, _attended)


def rewritten(
    module: Any,
    choices: Choices,
    rules: Mapping[str, Rule],
    inside: Callable[[Forms], Container[Any]] = lambda forms: (),
) -> Any:
    """The module with operators of its main function rewritten by rules, which tell whether they took one.

    Args:
        rules: by the operator's name.
        inside: variables that others make unnecessary.
    """
    function = module["main"]
    blocks = getattr(function.body, "blocks", [])
    if len(blocks) != 1 or not isinstance(function.body.body, relax.Var):
        return module  # control flow: left to TVM's own lowering
    forms = Forms(module, choices)
    needless = inside(forms)
    with forms.builder.function("main", list(function.params)):
        with forms.builder.dataflow():
            for binding in blocks[0].bindings:
                if binding.var not in needless:
                    _bind(forms, rules, binding.var, binding.value)
            result = forms.builder.emit_output(forms.rebuild(function.body.body))
        forms.builder.emit_func_output(result)
    return forms.builder.get()


def _attended(forms: Forms) -> set[Any]:
    """What attention computes by itself."""
    found = [attention.heads(forms, value) for value in forms.definitions.values()]
    return {var for heads in found if heads is not None for var in heads.inside}


def _bind(forms: Forms, rules: Mapping[str, Rule], var: Any, value: Any) -> None:
    if isinstance(value, relax.Var) and value in forms.packed:
        forms.packed[var] = forms.packed[value]
        return
    rule = rules.get(operator(value))
    if rule is None or not is_float(var) or not rule(forms, var, value):
        forms.plain[var] = forms.builder.emit(forms.rebuild(value))
