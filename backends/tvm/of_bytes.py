"""What becomes of operators on bytes: they keep the packed form, and multiply four at a time.

Each rule returns whether it took the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from tvm import relax, tirx
from tvm.ir import Constant

from . import packed
from .bytewise import ByteConvolution, ByteProduct
from .forms import ALONE, FUSIBLE, Forms, dtype_of, operator, static_shape
from .packed import pair
from .plain import pointwise
from .schedules import conv, dots
from .schedules.tile import Tile
from .views import reshape_index

BYTES = ("uint8", "int8")


def conv2d(forms: Forms, var: Any, call: Any) -> bool:
    """A convolution of bytes in one group, its padding found again."""
    attrs, (x, w) = call.attrs, call.args
    if not _is_convolution(forms, call):
        return False
    padding, zero = (0, 0, 0, 0), 0
    if _is_margin(forms, x):
        pad = forms.definition(x)
        x, zero = pad.args[0], int(pad.attrs.pad_value)
        _, _, _, _, top, bottom, left, right = (int(v) for v in pad.attrs.pad_width)
        padding = (top, left, bottom, right)
    weights = w.value.numpy()
    kernel = (weights.shape[2], weights.shape[3])
    window = conv.Window(kernel, pair(attrs.strides), pair(attrs.dilation), padding)
    n, c, h, width = static_shape(x)
    workload = ByteConvolution((n, c, h, width), weights.shape[0], window, str(x.ty.dtype), zero)
    tile = Tile(*forms.choices.of(workload))
    forms.packed[var] = forms.emit(
        lambda d, k: workload.compute(d, k, tile),
        "conv2d",
        FUSIBLE if window.out((h, width)) != (1, 1) else ALONE,
        forms.pack(x),
        relax.const(dots.pack_conv(weights, tile)),
        workload=workload,
    )
    return True


def pad(forms: Forms, var: Any, call: Any) -> bool:
    """The margin of a convolution, which reads it for itself."""
    return _is_margin(forms, var)


def _is_margin(forms: Forms, var: Any) -> bool:
    value = forms.definition(var)
    if operator(value) != "relax.nn.pad" or str(value.attrs.pad_mode) != "constant":
        return False
    readers = [forms.definition(reader) for reader in forms.readers.get(var, [])]
    return len(static_shape(var)) == 4 and all(_is_convolution(forms, reader) for reader in readers)


def _is_convolution(forms: Forms, call: Any) -> bool:
    """One of what the processor multiplies, as `integers` writes it."""
    if operator(call) != "relax.nn.conv2d" or not _multiplies(forms, call):
        return False
    attrs = call.attrs
    return attrs.data_layout == "NCHW" and int(attrs.groups) == 1 and not any(map(int, attrs.padding))


def _multiplies(forms: Forms, call: Any) -> bool:
    """Whether an operator sums products of bytes, and the processor does that, with constant weights."""
    (x, w), made = call.args, forms.choices.core.dots
    if made is None or not isinstance(w, Constant):
        return False
    return (dtype_of(x), dtype_of(w), dtype_of(call)) == (made.data, "int8", "int32")


def matmul(forms: Forms, var: Any, call: Any) -> bool:
    """A product of bytes with a constant matrix."""
    x, w = call.args
    if not _multiplies(forms, call) or len(static_shape(w)) != 2 or static_shape(w)[0] % dots.FOUR:
        return False
    shape, weights = static_shape(x), w.value.numpy()
    lead, (k, n) = shape[:-1], weights.shape
    rows = math.prod(lead)
    workload = ByteProduct(rows, k, n, str(x.ty.dtype))
    tile = forms.choices.of(workload)
    position = reshape_index(shape, (rows, k))
    forms.plain[var] = forms.emit(
        lambda d, b: dots.matmul(lambda at: d(*position(at)), lead, k, b, n, tile),
        "gemm",
        FUSIBLE if rows > 1 else ALONE,
        forms.rebuild(x),
        relax.const(dots.pack_matrix(weights, tile[1])),
        workload=workload,
    )
    return True


def quantize(forms: Forms, var: Any, call: Any) -> bool:
    """Rounded to bytes, halves to even ones; quotients are products with the scale's reciprocal."""
    x, scale, zero = call.args
    if not _is_one(scale) or not _is_one(zero) or str(var.ty.dtype) not in BYTES:
        return False
    kind = str(var.ty.dtype)
    limits = np.iinfo(kind)
    factor, shift = np.float32(1) / _one(scale), int(_one(zero))

    def function(value: Any) -> Any:
        near = tirx.nearbyint(value * _float(factor)) + _float(shift)
        return tirx.max(tirx.min(near, _float(limits.max)), _float(limits.min)).astype(kind)

    return pointwise(forms, var, x, function, "quantize")


def dequantize(forms: Forms, var: Any, call: Any) -> bool:
    x, scale, zero = call.args
    if not _is_one(scale) or not _is_one(zero) or str(x.ty.dtype) not in BYTES:
        return False
    factor, shift = _float(_one(scale)), tirx.const(int(_one(zero)), "int32")
    return pointwise(
        forms, var, x, lambda v: (v.astype("int32") - shift).astype("float32") * factor, "dequantize"
    )


def cast(forms: Forms, var: Any, call: Any) -> bool:
    """Sums as floats."""
    x = call.args[0]
    if x not in forms.packed:
        return False
    return pointwise(forms, var, x, lambda v: v.astype(str(var.ty.dtype)), "cast")


def _float(value: Any) -> Any:
    return tirx.const(float(value), "float32")


def _is_one(value: Any) -> bool:
    return isinstance(value, Constant) and value.value.numpy().size == 1


def _one(value: Any) -> Any:
    return value.value.numpy().reshape(())


RULES: dict[str, Callable[[Forms, Any, Any], bool]] = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.pad": pad,
    "relax.matmul": matmul,
    "relax.quantize": quantize,
    "relax.subtract": packed.binary,
}
FROM_BYTES: dict[str, Callable[[Forms, Any, Any], bool]] = {
    "relax.dequantize": dequantize,
    "relax.astype": cast,
}
