"""Layers of quantised numbers as sums of integers, for processors that multiply bytes faster than floats.

A sum of products of what two DequantizeLinear gave is one of integers times both scales, less what the zero
point of the activations adds: that times the sum of each output's weights, a constant. An image is padded
with its zero point, which stands for zero.

    Before: conv2d(dequantize(x, s, z), dequantize(w, t, 0))
    After: multiply(astype(subtract(conv2d(x, w), z·Σw), "float32"), s·t)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from .forms import Forms, operator, shape_of, static_shape
from .packed import four
from .schedules.dots import FOUR
from .views import axes_of

_OTHER = {"uint8": "int8", "int8": "uint8"}
_FEWEST = 3  # channels: fewer would mostly multiply padding


@dataclass(frozen=True)
class _Data:
    """Quantised activations of one scale: ``(values - zero) * scale``."""

    values: Any
    scale: NDArray[np.float32]
    zero: Any


@dataclass(frozen=True)
class _Weights:
    """Quantised weights about zero, and the scale of each output, or of all."""

    values: NDArray[np.int8]
    scale: NDArray[np.float32]


def conv2d(forms: Forms, var: Any, call: Any) -> bool:
    """A convolution in one group."""
    attrs, (x, w) = call.attrs, call.args
    data, weights = _data(forms, x), _weights(forms, w, 0)
    if data is None or weights is None or attrs.data_layout != "NCHW" or int(attrs.groups) != 1:
        return False
    if weights.values.shape[1] < _FEWEST or not isinstance(data.zero, Constant):
        return False
    values, padding = forms.rebuild(data.values), four(attrs.padding)
    if any(padding):
        top, left, bottom, right = padding
        around = [0, 0, 0, 0, top, bottom, left, right]
        values = forms.builder.emit(relax.op.nn.pad(values, around, pad_value=_scalar(data.zero)))
    sums = forms.builder.emit(
        relax.op.nn.conv2d(
            values,
            relax.const(weights.values),
            strides=attrs.strides,
            dilation=attrs.dilation,
            out_dtype="int32",
        )
    )
    totals = weights.values.astype(np.int32).sum(axis=(1, 2, 3))
    forms.plain[var] = _scaled(forms, sums, data, totals, weights.scale, (1, -1, 1, 1))
    return True


def matmul(forms: Forms, var: Any, call: Any) -> bool:
    """A product with a constant matrix."""
    x, w = call.args
    data, weights = _data(forms, x), _weights(forms, w, 1)
    shape = shape_of(x)
    if data is None or weights is None or weights.values.ndim != 2 or shape is None or len(shape) < 2:
        return False
    if weights.values.shape[0] % FOUR:
        return False
    product = relax.op.matmul(forms.rebuild(data.values), relax.const(weights.values), out_dtype="int32")
    totals = weights.values.astype(np.int32).sum(axis=0)
    forms.plain[var] = _scaled(forms, forms.builder.emit(product), data, totals, weights.scale, (-1,))
    return True


def quantize(forms: Forms, var: Any, call: Any) -> bool:
    """Bytes of the other kind where all that reads them makes them floats again."""
    if not _turned(forms, var):
        return False
    forms.plain[var] = forms.builder.emit(
        relax.op.quantize(
            forms.rebuild(call.args[0]),
            call.args[1],
            _moved(call.args[2]),
            int(call.attrs.axis),
            _OTHER[str(var.ty.dtype)],
        )
    )
    return True


def dequantize(forms: Forms, var: Any, call: Any) -> bool:
    """Of bytes that `quantize` made others."""
    x, scale, zero = call.args
    if not isinstance(x, relax.Var) or not _turned(forms, x):
        return False
    axis, kind = int(call.attrs.axis), str(var.ty.dtype)
    made = relax.op.dequantize(forms.rebuild(x), scale, _moved(zero), axis, kind)
    forms.plain[var] = forms.builder.emit(made)
    return True


def _turned(forms: Forms, var: Any) -> bool:
    """Whether bytes become those that the processor multiplies."""
    value, dots = forms.definition(var), forms.choices.core.dots
    if dots is None or operator(value) != "relax.quantize" or _OTHER.get(str(var.ty.dtype)) != dots.data:
        return False
    readers = forms.readers.get(var, [])
    known = isinstance(value.args[2], Constant)
    return known and all(operator(forms.definition(reader)) == "relax.dequantize" for reader in readers)


def _moved(zero: Any) -> Any:
    value = zero.value.numpy()
    turn = -128 if value.dtype == np.uint8 else 128
    return relax.const((value.astype(np.int16) + turn).astype(_OTHER[str(value.dtype)]))


def _data(forms: Forms, expression: Any) -> _Data | None:
    """What an operand quantises, if that is of one scale and of the type that the processor multiplies."""
    value, dots = forms.definition(expression), forms.choices.core.dots
    if operator(value) != "relax.dequantize" or dots is None:
        return None
    x, scale, zero = value.args
    if not isinstance(x, relax.Var) or not isinstance(scale, Constant) or scale.value.numpy().size != 1:
        return None
    if shape_of(x) is None or np.prod(static_shape(zero)) != 1:
        return None
    kind = str(x.ty.dtype)
    if _turned(forms, x):
        kind, zero = _OTHER[kind], _moved(zero)
    if kind != dots.data:
        return None
    return _Data(x, scale.value.numpy().reshape(()), zero)


def _weights(forms: Forms, expression: Any, outputs: int) -> _Weights | None:
    """What a constant operand quantises, if its scales are those of outputs and it fits bytes about zero."""
    value = forms.definition(expression)
    if operator(value) == "relax.permute_dims":
        found = _weights(forms, value.args[0], axes_of(value)[outputs])
        return None if found is None else _Weights(found.values.transpose(axes_of(value)), found.scale)
    if operator(value) != "relax.dequantize" or not all(isinstance(a, Constant) for a in value.args):
        return None
    stored, scale, zero = (argument.value.numpy() for argument in value.args)
    axis = int(value.attrs.axis) % stored.ndim
    if stored.dtype not in (np.int8, np.uint8) or (scale.size > 1 and axis != outputs):
        return None
    if scale.size not in (1, stored.shape[outputs]) or zero.size not in (1, scale.size):
        return None
    spread = [1] * stored.ndim
    spread[outputs] = -1
    about = stored.astype(np.int16) - zero.reshape(spread if zero.size > 1 else ()).astype(np.int16)
    if about.min(initial=0) < -128 or about.max(initial=0) > 127:
        return None
    return _Weights(about.astype(np.int8), scale.reshape(-1))


def _scaled(
    forms: Forms,
    sums: Any,
    data: _Data,
    totals: NDArray[np.int32],
    scale: NDArray[np.float32],
    shape: tuple[int, ...],
) -> Any:
    """Sums less what the zero point adds to them, as floats times the scales."""
    emit = forms.builder.emit
    if not isinstance(data.zero, Constant):
        zero = emit(relax.op.astype(emit(relax.op.reshape(forms.rebuild(data.zero), [])), "int32"))
        sums = emit(relax.op.subtract(sums, emit(relax.op.multiply(zero, relax.const(totals)))))
    elif _scalar(data.zero):
        shift = np.int32(_scalar(data.zero)) * totals
        sums = emit(relax.op.subtract(sums, relax.const(shift.astype(np.int32).reshape(shape))))
    factor = np.asarray(data.scale * scale, np.float32)
    factor = factor.reshape(shape if factor.size > 1 else ())
    return emit(relax.op.multiply(emit(relax.op.astype(sums, "float32")), relax.const(factor)))


def _scalar(zero: Constant) -> int:
    return int(zero.value.numpy().reshape(()))


RULES: dict[str, Callable[[Forms, Any, Any], bool]] = {
    "relax.nn.conv2d": conv2d,
    "relax.matmul": matmul,
    "relax.quantize": quantize,
    "relax.dequantize": dequantize,
}
