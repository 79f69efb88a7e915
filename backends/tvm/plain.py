"""What becomes of operators on plain tensors: products, rows, and functions as polynomials.

Each rule returns whether it took the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import relax, te, tirx
from tvm.ir import Constant

from . import attention, skip
from .forms import (
    ALONE,
    ELEMENTWISE,
    FUSIBLE,
    Forms,
    is_over_last,
    number_of,
    operator,
    shape_of,
    static_shape,
)
from .schedules import gemm, rows
from .vecmath import ELEMENTWISE as FUNCTIONS
from .views import View, axes_of, divides, reshape_index, view
from .workloads import Batched, Product


def matmul(forms: Forms, var: Any, call: Any) -> bool:
    """A product with a constant matrix, or of two batches of matrices of equal batch shape."""
    x, y = call.args
    left, right = shape_of(x), shape_of(y)
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return False
    if len(right) == 2:
        weights = constant_matrix(forms, y)
        if weights is not None:
            forms.plain[var] = _by_constant(forms, var, x, weights)
            return True
    if not _is_batched(call):
        return False
    if not _writes_permuted(forms, forms.definition(forms.readers.get(var, [None])[-1])):
        forms.plain[var] = _batched(forms, call, list(range(len(left))))
    return True


def permute(forms: Forms, var: Any, call: Any) -> bool:
    """A transpose of a batched product that nobody else reads: the product writes it so."""
    if not _writes_permuted(forms, call):
        return False
    forms.plain[var] = _batched(forms, forms.definition(call.args[0]), axes_of(call))
    return True


def _writes_permuted(forms: Forms, value: Any) -> bool:
    if operator(value) != "relax.permute_dims":
        return False
    source = forms.definition(value.args[0])
    if operator(source) != "relax.matmul" or not forms.is_read_once(value.args[0]):
        return False
    return _is_batched(source) and axes_of(value)[-1] == len(axes_of(value)) - 1


def _is_batched(call: Any) -> bool:
    left, right = shape_of(call.args[0]), shape_of(call.args[1])
    if left is None or right is None or not 2 < len(left) == len(right):
        return False
    return left[:-2] == right[:-2] and str(call.args[0].ty.dtype) == "float32"


def constant_matrix(forms: Forms, expression: Any) -> Any:
    """The value of a constant matrix, perhaps behind a transpose; None if it is not constant."""
    if isinstance(expression, Constant):
        return expression.value.numpy()
    value = forms.definition(expression)
    if operator(value) == "relax.permute_dims" and isinstance(value.args[0], Constant):
        return value.args[0].value.numpy().transpose(axes_of(value))
    return None


def _read(forms: Forms, expression: Any, inner: int | None) -> View:
    """A view of an operand; of itself where reading along axis ``inner`` would need divisions."""
    shown = view(forms, expression, lambda value: _writes_permuted(forms, value))
    if inner is not None and divides(shown, inner):
        return View(expression, shown.shape, list)
    return shown


def _by_constant(forms: Forms, var: Any, x: Any, weights: Any) -> Any:
    shape = static_shape(x)
    shown = _read(forms, x, len(shape) - 1)
    lead, (k, n) = shape[:-1], weights.shape
    position = reshape_index(shape, (math.prod(lead), k))
    workload = Product(math.prod(lead), k, n)
    sparse = skip.product(forms, var, x, weights, workload) if skip.has_zeros(weights) else None
    if sparse is not None:
        return sparse
    tile = forms.choices.of(workload)

    def compute(data: Any, w: Any) -> Any:
        def read(at: Sequence[Any]) -> Any:
            return data(*shown.index(position(at)))

        return gemm.matmul_packed(read, lead, k, w, n, tile)

    packed_weights = relax.const(gemm.pack_weights(weights, tile[1]))
    # A single row may be spread over many by what follows; fused, it would be computed again for each.
    pattern = FUSIBLE if math.prod(lead) > 1 else ALONE
    base = forms.rebuild(shown.base)
    return forms.emit(compute, "gemm", pattern, base, packed_weights, workload=workload)


def _batched(forms: Forms, call: Any, order: list[int]) -> Any:
    found = attention.heads(forms, call)
    if found is not None:
        return attention.attend(forms, found, order, lambda x, inner: _read(forms, x, inner))
    x, y = call.args
    left, right = static_shape(x), static_shape(y)
    a, b = _read(forms, x, len(left) - 1), _read(forms, y, None)
    workload = Batched(math.prod(left[:-2]), left[-2], left[-1], right[-1])
    tile = forms.choices.of(workload)
    bases = [forms.rebuild(a.base)]
    if not b.base.same_as(a.base):
        bases.append(forms.rebuild(b.base))

    def compute(*data: Any) -> Any:
        return gemm.matmul_batched(
            lambda at: data[0](*a.index(at)),
            lambda at: data[-1](*b.index(at)),
            left[:-2],
            (left[-2], left[-1], right[-1]),
            order,
            tile,
        )

    return forms.emit(compute, "batched_gemm", FUSIBLE, *bases, workload=workload)


def softmax(forms: Forms, var: Any, call: Any) -> bool:
    """Softmax over the last axis."""
    if not is_over_last([call.attrs.axis], var):
        return False
    forms.plain[var] = forms.emit(rows.softmax, "softmax", FUSIBLE, forms.rebuild(call.args[0]))
    return True


def layer_norm(forms: Forms, var: Any, call: Any) -> bool:
    """LayerNorm over the last axis."""
    if not is_over_last(call.attrs.axes, var):
        return False
    epsilon = float(call.attrs.epsilon)
    forms.plain[var] = forms.emit(
        lambda x, g, b: rows.layer_norm(x, g, b, epsilon),
        "layer_norm",
        FUSIBLE,
        *(forms.rebuild(argument) for argument in call.args[:3]),
    )
    return True


def power(forms: Forms, var: Any, call: Any) -> bool:
    """Small constant exponents as products: pow is a scalar libm call."""
    x, exponent = call.args
    powers: dict[float | None, Callable[[Any], Any]] = {
        2.0: lambda v: v * v,
        3.0: lambda v: v * v * v,
        0.5: tirx.sqrt,
    }
    function = powers.get(number_of(exponent))
    if function is None or shape_of(x) != static_shape(var):
        return False
    return pointwise(forms, var, x, function, "power")


def polynomial(forms: Forms, var: Any, call: Any) -> bool:
    """Functions that LLVM would call libm for, one element at a time."""
    return pointwise(forms, var, call.args[0], FUNCTIONS[call.op.name], call.op.name.rpartition(".")[2])


def pointwise(forms: Forms, var: Any, x: Any, function: Callable[[Any], Any], name: str) -> bool:
    """A function of each element of a tensor, in the form that has."""
    made = forms.packed if x in forms.packed else forms.plain
    made[var] = forms.emit(
        lambda t: te.compute(t.shape, lambda *at: function(t(*at)), name="pointwise"),
        name,
        ELEMENTWISE,
        forms.packed[x] if x in forms.packed else forms.rebuild(x),
    )
    return True


def take(forms: Forms, var: Any, call: Any) -> bool:
    """Gather with indices clipped to the table: TVM's own default reads outside of it."""
    data, indices = (forms.rebuild(argument) for argument in call.args)
    axis = None if call.attrs.axis is None else int(call.attrs.axis)
    forms.plain[var] = forms.builder.emit(relax.op.take(data, indices, axis, mode="clip"))
    return True


RULES: dict[str, Callable[[Forms, Any, Any], bool]] = {
    "relax.matmul": matmul,
    "relax.permute_dims": permute,
    "relax.nn.softmax": softmax,
    "relax.nn.layer_norm": layer_norm,
    "relax.power": power,
    "relax.take": take,
    **dict.fromkeys(FUNCTIONS, polynomial),
}
