"""Choose what is computed: packed convolutions, packed matrix products, rows, polynomials.

One walk over the bindings of a Relax function. The rules are in packed.py, transposed.py and plain.py; what
none of them takes is left to TVM's own lowering. How kernels run is decided later, by the rules in
schedules/, on functions that TVM has fused in between.
"""

from __future__ import annotations

from typing import Any

from tvm import relax

from . import attention, packed, plain, transposed
from .forms import Forms, is_float, operator
from .workloads import Choices

_RULES = packed.RULES | transposed.RULES | plain.RULES


def lower(module: Any, choices: Choices) -> Any:
    """The module with its main function rewritten to packed kernels where they fit."""
    function = module["main"]
    blocks = getattr(function.body, "blocks", [])
    if len(blocks) != 1 or not isinstance(function.body.body, relax.Var):
        return module  # control flow: left to TVM's own lowering
    forms = Forms(module, choices)
    attended = [attention.heads(forms, value) for value in forms.definitions.values()]
    inside = {var for found in attended if found is not None for var in found.inside}
    with forms.builder.function("main", list(function.params)):
        with forms.builder.dataflow():
            for binding in blocks[0].bindings:
                if binding.var not in inside:
                    _bind(forms, binding.var, binding.value)
            result = forms.builder.emit_output(forms.rebuild(function.body.body))
        forms.builder.emit_func_output(result)
    return forms.builder.get()


def _bind(forms: Forms, var: Any, value: Any) -> None:
    if isinstance(value, relax.Var) and value in forms.packed:
        forms.packed[var] = forms.packed[value]
        return
    rule = _RULES.get(operator(value))
    if rule is None or not is_float(var) or not rule(forms, var, value):
        forms.plain[var] = forms.builder.emit(forms.rebuild(value))
