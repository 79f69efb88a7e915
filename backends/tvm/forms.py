"""The walk's memory: each activation in the forms made so far, and how to make the others.

A four-dimensional activation can exist plain (N, C, H, W) and packed (N, C/8, H, W, 8), its padded lanes
holding anything finite. The other form is made where somebody asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Constant

from .schedules import turning
from .schedules.common import LANES, ceil_div
from .workloads import Choices

# How TVM's fusion treats a kernel: as a root that takes elementwise operators in, or alone.
ELEMENTWISE, INJECTIVE, FUSIBLE, ALONE = 0, 2, 4, 8
# What a kernel computes, for profiles.
DESCRIPTION, FLOPS = "onnx_prune.description", "onnx_prune.flops"


def shape_of(expression: Any) -> tuple[int, ...] | None:
    """The static shape of a tensor expression, or None."""
    type_ = expression.ty
    if not isinstance(type_, relax.TensorType) or type_.shape is None:
        return None
    try:
        return tuple(int(size) for size in type_.shape)
    except TypeError:
        return None


def static_shape(expression: Any) -> tuple[int, ...]:
    """The shape of an expression that is known to have a static one."""
    shape = shape_of(expression)
    assert shape is not None
    return shape


def is_float(expression: Any) -> bool:
    """Whether an expression is a float32 tensor of static shape."""
    return dtype_of(expression) == "float32"


def dtype_of(expression: Any) -> str:
    """The type of the elements of a tensor of static shape; an empty string for anything else."""
    known = isinstance(expression.ty, relax.TensorType) and shape_of(expression) is not None
    return str(expression.ty.dtype) if known else ""


def number_of(expression: Any) -> float | None:
    """What a constant of one element holds; None for anything else."""
    if not isinstance(expression, Constant) or math.prod(static_shape(expression)) != 1:
        return None
    return float(expression.value.numpy().reshape(-1)[0])


def is_over_last(axes: Sequence[Any], expression: Any) -> bool:
    """Whether axes are the last one of an expression of two or more."""
    rank = len(static_shape(expression))
    return rank > 1 and [int(axis) % rank for axis in axes] == [rank - 1]


def operator(value: Any) -> str:
    """Name of the operator that a value calls, or an empty string."""
    return getattr(value.op, "name", "") if isinstance(value, relax.Call) else ""


class Described(Protocol):
    """What a kernel computes."""

    @property
    def description(self) -> str: ...
    @property
    def flops(self) -> float: ...


class Forms:
    """Attributes:
    choices: what is taken for each kernel that can be computed in several ways.
    builder: where new bindings go.
    definitions: what each variable of the original function is bound to.
    readers: the variables whose definitions read a variable, each as often as it does; None for the result.
    plain, packed: the forms that exist of each variable of the original function.
    joined: the packed concatenations that exist, by what they concatenate.
    skipped: the layers that skip zeros, each a kernel, by what they make.
    """

    def __init__(self, module: Any, choices: Choices) -> None:
        self.choices = choices
        function = module["main"]
        # The importer brings kernels of its own; the builder must keep clear of their names.
        kernels = {name: kernel for name, kernel in module.functions.items() if name.name_hint != "main"}
        self.builder = relax.BlockBuilder(tvm.IRModule(kernels))
        self.plain: dict[Any, Any] = {parameter: parameter for parameter in function.params}
        self.packed: dict[Any, Any] = {}
        self.joined: dict[tuple[Any, ...], Any] = {}
        self.skipped: dict[Any, Any] = {}
        self.definitions: dict[Any, Any] = {}
        self.readers: dict[Any, list[Any]] = {}
        for binding in function.body.blocks[0].bindings:
            self.definitions[binding.var] = binding.value
            self._count(binding.value, binding.var)
        self._count(function.body.body, None)

    def _count(self, value: Any, reader: Any) -> None:
        if isinstance(value, relax.Var):
            self.readers.setdefault(value, []).append(reader)
        elif isinstance(value, relax.Call):
            for argument in value.args:
                self._count(argument, reader)
        elif isinstance(value, relax.Tuple):
            for field in value.fields:
                self._count(field, reader)
        elif isinstance(value, relax.TupleGetItem):
            self._count(value.tuple_value, reader)

    def is_read_once(self, expression: Any) -> bool:
        return len(self.readers.get(expression, ())) == 1

    def definition(self, expression: Any) -> Any:
        """What an expression is bound to; None for a parameter or a constant."""
        return self.definitions.get(expression) if isinstance(expression, relax.Var) else None

    def emit(
        self,
        compute: Callable[..., Any],
        name: str,
        pattern: int,
        *arguments: Any,
        workload: Described | None = None,
    ) -> Any:
        """A new kernel, computed by a TE function of ``arguments``."""
        attributes = _attributes(pattern, workload)
        return self.builder.emit_te(compute, *arguments, primfunc_name_hint=name, primfunc_attrs=attributes)

    def call(
        self,
        function: Any,
        name: str,
        pattern: int,
        *arguments: Any,
        shape: Sequence[int],
        dtype: str = "float32",
        workload: Described | None = None,
    ) -> Any:
        """A new kernel that is a PrimFunc of ``arguments`` and of a result of ``shape``."""
        variable = self.builder.add_func(function.with_attrs(_attributes(pattern, workload)), name)
        return self.builder.emit(relax.call_tir(variable, list(arguments), relax.TensorType(shape, dtype)))

    def rebuild(self, value: Any) -> Any:
        """The expression with every variable in its plain form."""
        if isinstance(value, relax.Var):
            return self._unpack(value)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self.rebuild(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self.rebuild(value.tuple_value), value.index)
        if isinstance(value, relax.Call):
            arguments = [self.rebuild(argument) for argument in value.args]
            return relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return value

    def _unpack(self, var: Any) -> Any:
        if var not in self.plain:
            self.plain[var] = self._turned(turning.unpack, var, self.packed[var], static_shape(var))
        return self.plain[var]

    def pack(self, expression: Any) -> Any:
        """The packed form of a four-dimensional activation or constant."""
        if isinstance(expression, relax.Var) and expression in self.packed:
            return self.packed[expression]
        n, c, h, w = static_shape(expression)
        if isinstance(expression, Constant):
            given = expression.value.numpy()
            value = np.zeros((n, ceil_div(c, LANES) * LANES, h, w), given.dtype)
            value[:, :c] = given
            packed = value.reshape(n, -1, LANES, h, w).transpose(0, 1, 3, 4, 2)
            return relax.const(np.ascontiguousarray(packed))

        result = self._turned(
            turning.pack, expression, self.rebuild(expression), turning.packed_shape((n, c, h, w))
        )
        if isinstance(expression, relax.Var):
            self.packed[expression] = result
        return result

    def _turned(self, kernel: Any, image: Any, x: Any, made: Sequence[int]) -> Any:
        dtype = dtype_of(image)
        function = kernel(static_shape(image), dtype, self.choices.core)
        return self.call(function, kernel.__name__, ALONE, x, shape=made, dtype=dtype)


def _attributes(pattern: int, workload: Described | None) -> dict[str, Any]:
    attributes: dict[str, Any] = {"op_pattern": pattern}
    if workload is not None:
        attributes |= {DESCRIPTION: workload.description, FLOPS: workload.flops}
    return attributes
