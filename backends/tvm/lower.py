"""Choose what is computed: packed convolutions, packed matrix products, rows, polynomials.

One walk over the bindings of a Relax function. The rules are in packed.py, transposed.py and plain.py; what
none of them takes is left to TVM's own lowering. How kernels run is decided later, by the rules in
schedules/, on functions that TVM has fused in between.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any, TypeAlias

from tvm import relax

from . import attention, integers, of_bytes, packed, plain, transposed
from .forms import Forms, dtype_of, operator
from .schedules.common import Core
from .workloads import Choices

Rule: TypeAlias = Callable[[Forms, Any, Any], bool]
# By the type of what an operator makes.
Rules: TypeAlias = Mapping[str, Mapping[str, Rule]]
_RULES: Rules = {
    "float32": packed.RULES | transposed.RULES | plain.RULES | of_bytes.FROM_BYTES,
    **dict.fromkeys(("int32", "int8", "uint8"), of_bytes.RULES),
}
_INTEGER_RULES: Rules = dict.fromkeys(("float32", "int8", "uint8"), integers.RULES)


def lower(module: Any, choices: Choices) -> Any:
    """The module with its main function rewritten to packed kernels where they fit."""
    return rewritten(module, choices, _RULES, _attended)


def with_integers(module: Any, core: Core) -> Any:
    """The module with sums of integers where the processor is made for them."""
    bindings = (b for block in getattr(module["main"].body, "blocks", []) for b in block.bindings)
    if core.dots is None or all(operator(b.value) != "relax.dequantize" for b in bindings):
        return module
    return rewritten(module, Choices(core=core), _INTEGER_RULES)


def rewritten(
    module: Any,
    choices: Choices,
    rules: Rules,
    inside: Callable[[Forms], Container[Any]] = lambda forms: (),
) -> Any:
    """The module with operators of its main function rewritten by rules, which tell whether they took one.

    Args:
        rules: by the type of what an operator makes, and its name.
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


def _bind(forms: Forms, rules: Rules, var: Any, value: Any) -> None:
    if isinstance(value, relax.Var) and value in forms.packed:
        forms.packed[var] = forms.packed[value]
        return
    rule = rules.get(dtype_of(var), {}).get(operator(value))
    if rule is None or not rule(forms, var, value):
        forms.plain[var] = forms.builder.emit(forms.rebuild(value))
