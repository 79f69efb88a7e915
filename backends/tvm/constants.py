"""Tidying what the importer leaves: small work on constants done in NumPy, Clip, Min, Max, Sum and GELU made
operators again, and quotients by constants products.

TVM's own folding compiles a kernel for every constant expression, which takes longer than the rest of the
lowering. The importer makes Clip two ready kernels that nothing fuses with and no layout passes through, and
stacks what Min and Max compare or Sum adds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Constant
from tvm.relax.expr_functor import PyExprMutator, mutator

from .forms import number_of, operator, shape_of, static_shape

_BOUND = re.compile(r"(maximum|minimum)\d*")
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.divide": np.divide,
    "relax.isnan": np.isnan,
    "relax.multiply": np.multiply,
    "relax.sqrt": np.sqrt,
    "relax.subtract": np.subtract,
    "relax.where": np.where,
}
_ROUND = ("relax.astype", "relax.ceil", "relax.floor", "relax.quantize", "relax.round", "relax.trunc")
_BY_TWO = {"relax.max": relax.op.maximum, "relax.min": relax.op.minimum, "relax.sum": relax.op.add}
_RESHAPES = ("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")


def tidy(module: Any) -> Any:
    """The module with ``main`` rewritten."""
    name = module.get_global_var("main")
    tidier = _Tidier(module)
    tidier.rounded = _rounded(module[name])
    tidier.builder_.update_func(name, tidier.visit_expr(module[name]))
    return tidier.builder_.get()


def constant_bytes(function: Any) -> int:
    """Bytes of the constants of a function."""
    sizes: list[int] = []

    def visit(expression: Any) -> None:
        if isinstance(expression, Constant) and isinstance(expression.ty, relax.TensorType):
            sizes.append(expression.value.numpy().nbytes)

    relax.analysis.post_order_visit(function, visit)
    return sum(sizes)


def _rounded(function: Any) -> list[Any]:
    """What becomes whole numbers, where the last bit of a quotient decides which."""
    made: dict[Any, Any] = {}
    found: list[Any] = []
    for block in function.body.blocks:
        for binding in block.bindings:
            if operator(binding.value) in _ROUND:
                found.append(made.get(binding.value.args[0]))
            made[binding.var] = binding.value
    return found


@mutator
class _Tidier(PyExprMutator):  # type: ignore[misc]
    rounded: list[Any]

    def visit_call_(self, call: Any) -> Any:
        name, made = operator(call), None
        if name == "relax.call_tir":
            made = self._clip(call)
        elif name == "relax.nn.batch_norm":
            made = self._normalise(call)
        elif name == "relax.dequantize":
            made = self._dequantise(call)
        elif name in _BY_TWO:
            made = self._by_two(call, _BY_TWO[name])
        elif name in _ELEMENTWISE or name in _RESHAPES or name == "relax.permute_dims":
            made = self._fold(call, name)
            if made is None and name == "relax.divide":
                made = self._multiply(call)
            if made is None and name == "relax.multiply":
                made = self.builder_.normalize(self._gelu(super().visit_call_(call)))
        return super().visit_call_(call) if made is None else made

    def _bound(self, expression: Any) -> Any:
        """What an expression has become; of a variable, what it is bound to."""
        visited = self.visit_expr(expression)
        return self.lookup_binding(visited) if isinstance(visited, relax.Var) else visited

    def _constant(self, expression: Any) -> Any:
        bound = self._bound(expression)
        return bound.value.numpy() if isinstance(bound, Constant) else None

    def _fold(self, call: Any, name: str) -> Any:
        values = [self._constant(a) for a in call.args if not isinstance(a, relax.ShapeExpr)]
        if shape_of(call) is None or any(value is None for value in values):
            return None
        if name in _ELEMENTWISE and any(value.dtype.kind not in "fb" for value in values):
            return None  # integer division and overflow have rules of their own
        if name in _RESHAPES:
            return relax.const(values[0].reshape(static_shape(call)))
        if name == "relax.permute_dims":
            axes = call.attrs.axes
            order = [int(a) for a in axes] if axes is not None else None
            return relax.const(np.ascontiguousarray(values[0].transpose(order)))
        with np.errstate(all="ignore"):
            value = _ELEMENTWISE[name](*values)
        return relax.const(np.asarray(value, str(call.ty.dtype)))

    def _multiply(self, call: Any) -> Any:
        """A quotient by constants as a product: dividing takes ten times as long."""
        divisor = self._constant(call.args[1])
        if divisor is None or divisor.dtype != np.float32 or any(call.same_as(kept) for kept in self.rounded):
            return None
        with np.errstate(all="ignore"):
            factor = np.float32(1) / divisor
        if not np.all(np.abs(factor) >= np.finfo(np.float32).tiny) or not np.isfinite(factor).all():
            return None
        return self.builder_.normalize(relax.op.multiply(self.visit_expr(call.args[0]), relax.const(factor)))

    def _gelu(self, product: Any) -> Any:
        """``c · x · (1 + erf(x / √2))``, in any order, as ``2c · gelu(x)``; any other product as it is.

        Args:
            product: of what the new function computes.
        """
        scale, made = self._scaled(product)
        inner = self._made(made)
        if operator(inner) == "relax.multiply":
            (a, left), (b, right) = (self._scaled(argument) for argument in inner.args)
            for x, other in ((left, right), (right, left)):
                if self._is_erf_and_one(other, x):
                    made, scale = self.builder_.emit(relax.op.nn.gelu(x)), 2 * scale * a * b
                    break
            else:
                return product
        elif operator(inner) != "relax.nn.gelu":
            return product
        if made.ty.ndim != product.ty.ndim or made.ty.dtype != "float32":  # a number may have more axes
            return product
        return made if scale == 1 else relax.op.multiply(made, relax.const(scale, "float32"))

    def _made(self, expression: Any) -> Any:
        """What an expression of the new function computes."""
        return self.lookup_binding(expression) if isinstance(expression, relax.Var) else expression

    def _scaled(self, expression: Any) -> tuple[float, Any]:
        """A number, and what it multiplies to give an expression."""
        scale = 1.0
        while operator(product := self._made(expression)) == "relax.multiply":
            left, right = (number_of(self._made(argument)) for argument in product.args)
            if left is not None:
                scale, expression = scale * left, product.args[1]
            elif right is not None:
                scale, expression = scale * right, product.args[0]
            else:
                break
        return scale, expression

    def _is_erf_and_one(self, expression: Any, x: Any) -> bool:
        """Whether an expression is ``1 + erf(x / √2)``."""
        total = self._made(expression)
        if operator(total) != "relax.add":
            return False
        terms = [self._made(argument) for argument in total.args]
        erfs = [term for term in terms if operator(term) == "relax.erf"]
        if not erfs or not any(number_of(term) == 1 for term in terms):
            return False
        scale, inner = self._scaled(erfs[0].args[0])
        return inner.same_as(x) and math.isclose(scale, math.sqrt(0.5), rel_tol=1e-6)

    def _dequantise(self, call: Any) -> Any:
        x, scale, zero = values = [self._constant(argument) for argument in call.args]
        if any(value is None for value in values) or x.dtype.kind not in "iu" or scale.dtype != np.float32:
            return None
        spread = [1] * x.ndim
        if x.ndim and scale.size > 1:
            spread[int(call.attrs.axis)] = -1
        scale, zero = (v.reshape(spread if v.size > 1 else ()) for v in (scale, zero))
        whole = (x.astype(np.int64) - zero.astype(np.int64)).astype(np.float32)
        return relax.const(np.asarray(whole * scale, np.float32))

    def _normalise(self, call: Any) -> Any:
        """A BatchNorm with constant parameters as one multiplication and one addition."""
        gamma, beta, mean, variance = values = [self._constant(argument) for argument in call.args[1:]]
        if any(value is None for value in values) or shape_of(call.args[0]) is None:
            return None
        scale = gamma / np.sqrt(variance + call.attrs.epsilon)
        shape = [1] * len(static_shape(call.args[0]))
        shape[int(call.attrs.axis)] = -1
        factor, shift = (
            relax.const(v.reshape(shape).astype(np.float32)) for v in (scale, beta - mean * scale)
        )
        product = self.builder_.emit(relax.op.multiply(self.visit_expr(call.args[0]), factor))
        result = self.builder_.emit(relax.op.add(product, shift))
        return self.builder_.normalize(relax.Tuple([result, relax.const(mean), relax.const(variance)]))

    def _by_two(self, call: Any, make: Callable[[Any, Any], Any]) -> Any:
        """The sum or an extreme of tensors that were stacked, two by two."""
        stack = self._bound(call.args[0])
        if operator(stack) != "relax.stack" or int(stack.attrs.axis or 0) or call.attrs.keepdims:
            return None
        if call.attrs.axis is None or [int(axis) for axis in call.attrs.axis] != [0]:
            return None
        parts = []
        for part in stack.args[0].fields:
            spread = self._bound(part)
            parts.append(spread.args[0] if operator(spread) == "relax.broadcast_to" else part)
        made = self.builder_.normalize(reduce(lambda a, b: self.builder_.emit(make(a, b)), parts))
        return made if shape_of(made) == shape_of(call) else None

    def _clip(self, call: Any) -> Any:
        found = _BOUND.fullmatch(call.args[0].name_hint)
        if found is None or len(call.args[1].fields) != 2:
            return None
        x, bound = call.args[1].fields
        value = self._constant(bound)
        if value is None or math.prod(value.shape) != 1 or shape_of(x) != shape_of(call):
            return None
        make = getattr(relax.op, found.group(1))
        limit = relax.const(value.reshape(()), str(x.ty.dtype))  # which takes integers for 32 bits by itself
        return self.builder_.normalize(make(self.visit_expr(x), limit))
