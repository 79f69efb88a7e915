"""Large constants of a lowered function as parameters, so that whoever runs it decides where they live."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_LEAST = 1024  # bytes; smaller ones stay in the code


class Distinct:
    """Weights of several functions, equal ones once.

    Attributes:
        arrays: them, as views of TVM's constants.
    """

    def __init__(self) -> None:
        self.arrays: list[NDArray[Any]] = []
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def index(self, array: NDArray[Any]) -> int:
        """Where the weights equal to ``array`` are, which are added where there are none."""
        digest = hashlib.sha256(array.data).digest()
        index = self._known.setdefault((array.dtype.name, array.shape, digest), len(self.arrays))
        if index == len(self.arrays):
            self.arrays.append(array)
        return index


def lift(module: Any, distinct: Distinct) -> tuple[Any, tuple[int, ...]]:
    """The module with ``main`` taking weights after its inputs, and which of ``distinct`` they are."""
    name = module.get_global_var("main")
    main = module[name]
    lifter = _Lifter(distinct)
    body = lifter.visit_expr(main.body)
    lifted = tvm.IRModule({var: module[var] for var in module.get_global_vars() if var != name})
    parameters = [*main.params, *lifter.found.values()]
    function = relax.Function(parameters, body, main.ret_ty, main.is_pure, main.attrs)
    # TVM's own name for how many of its parameters a function checks when it is called.
    lifted[name] = function.with_attr("num_input", len(main.params))
    return lifted, tuple(lifter.found)


@mutator
class _Lifter(PyExprMutator):  # type: ignore[misc]
    def __init__(self, distinct: Distinct) -> None:
        super().__init__()
        self.distinct = distinct
        self.found: dict[int, Any] = {}

    def visit_generic_const_(self, constant: Any) -> Any:
        dtype = str(constant.value.dtype)
        if not dtype.startswith(("float", "int", "uint")) or not hasattr(np, dtype):
            return constant  # 4-bit integers, brain floats: they are few
        array = np.from_dlpack(constant.value)
        if array.nbytes < _LEAST:
            return constant
        index = self.distinct.index(array)
        if index not in self.found:
            self.found[index] = relax.Var(f"weight{index}", constant.ty)
        return self.found[index]
