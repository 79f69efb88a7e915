"""Several lowered Relax modules in one, without clashes of names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tvm
from tvm import relax
from tvm.ir import GlobalVar
from tvm.relax.expr_functor import PyExprMutator, mutator


def merge(modules: Mapping[str, Any]) -> Any:
    """One module with the ``main`` of each, under the name it is listed by.

    What they call keeps its name where that is free.
    """
    functions: dict[Any, Any] = {}
    taken = set(modules)
    for name, module in modules.items():
        renamed: dict[Any, Any] = {}
        for old in module.get_global_vars():
            hint = name if old.name_hint == "main" else _free(old.name_hint, taken)
            taken.add(hint)
            renamed[old] = GlobalVar(hint)
            relax.expr._update_type(renamed[old], old.ty)  # the mutator wants it; nothing public sets it
        for old, new in renamed.items():
            function = module[old]
            if isinstance(function, relax.Function):
                function = _Renamer(renamed).visit_expr(function)
            if function.attrs and "global_symbol" in function.attrs:
                function = function.with_attr("global_symbol", new.name_hint)
            functions[new] = function
    return tvm.IRModule(functions)


def _free(name: str, taken: set[str]) -> str:
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    return found


@mutator
class _Renamer(PyExprMutator):  # type: ignore[misc]
    """Lets a Relax function call functions by their new names; kernels call none."""

    def __init__(self, renamed: Mapping[Any, Any]) -> None:
        super().__init__()
        self.renamed = renamed

    def visit_global_var_(self, var: Any) -> Any:
        return self.renamed.get(var, var)
