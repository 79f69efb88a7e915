"""What becomes of convolutional operators: they work on activations packed by channels of eight.

Each rule returns whether it took the operator. Padded lanes must stay finite, since a convolution
multiplies them by zero; so only operators that keep zero finite are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Constant

from . import skip
from .forms import ALONE, FUSIBLE, Forms, operator, shape_of, static_shape
from .schedules import conv, pool
from .schedules.common import LANES, ceil_div, i64
from .schedules.tile import Tile
from .vecmath import ELEMENTWISE as FUNCTIONS
from .workloads import Convolution, Depthwise

_UNARY = ("relax.nn.relu", "relax.nn.leakyrelu", "relax.clip", "relax.negative", "relax.abs")
_BINARY = ("relax.add", "relax.subtract", "relax.multiply", "relax.maximum", "relax.minimum")


def conv2d(forms: Forms, var: Any, call: Any) -> bool:
    """A convolution with constant weights: dense, depthwise, or in groups that fit the lanes."""
    attrs, (x, w) = call.attrs, call.args
    if attrs.data_layout != "NCHW" or not isinstance(w, Constant):
        return False
    weights = w.value.numpy()
    window = conv.Window(
        kernel=(weights.shape[2], weights.shape[3]),
        strides=pair(attrs.strides),
        dilations=pair(attrs.dilation),
        padding=four(attrs.padding),
    )
    # A gate of one position would be fused with the image it is spread over, and computed again for each
    # of its positions.
    pattern = FUSIBLE if static_shape(var)[2:] != (1, 1) else ALONE
    groups = int(attrs.groups)
    if (groups == 1 or weights.shape[1] > 1) and skip.has_zeros(weights):
        size = (static_shape(x)[2], static_shape(x)[3])
        dense, _ = _joined(forms, x, *conv.without_idle_taps(weights, window, size), groups)
        if skip.convolution(forms, var, weights, window, groups, dense, _read_in_blocks(forms, var)):
            return True
    forms.packed[var] = convolve(forms, x, weights, window, groups, pattern)
    return True


def _read_in_blocks(forms: Forms, var: Any) -> bool:
    """Whether a depthwise convolution reads a variable, or what elementwise operators make of it, and nobody
    else wants that plain.
    """
    waiting, seen, found = [var], {var}, False
    while waiting:
        for reader in forms.readers.get(waiting.pop(), ()):
            call = forms.definition(reader)
            name = operator(call)
            if name not in RULES and name not in FUNCTIONS:
                return False
            if name == "relax.nn.conv2d":
                weights = shape_of(call.args[1])
                found |= int(call.attrs.groups) > 1 and weights is not None and weights[1] == 1
            elif name == "relax.concat" and static_shape(var)[1] % LANES:
                return False
            elif name in (*_UNARY, *_BINARY, *FUNCTIONS) and reader not in seen:
                seen.add(reader)
                waiting.append(reader)
    return found


def convolve(
    forms: Forms, x: Any, weights: NDArray[Any], window: conv.Window, groups: int, pattern: int
) -> Any:
    """The packed convolution of a four-dimensional activation by weights (O, I/groups, KH, KW)."""
    n, c, h, width = static_shape(x)
    out, size = weights.shape[0], (h, width)
    weights, window = conv.without_idle_taps(weights, window, size)
    each_in, each_out = c // groups, out // groups
    if groups > 1 and each_in == 1:
        data = forms.pack(x)
        if each_out > 1:
            data = forms.emit(lambda d: conv.repeat_channels(d, out, each_out), "repeat", ALONE, data)
        each = Depthwise((n, out, h, width), window)
        tile = Tile(*forms.choices.of(each))
        return forms.emit(
            lambda d, k: conv.depthwise(d, k, window, size, tile),
            "depthwise",
            pattern,
            data,
            relax.const(conv.pack_depthwise(weights)),
            workload=each,
        )
    workload, weights = _joined(forms, x, weights, window, groups)
    tile = Tile(*forms.choices.of(workload))
    data = forms.rebuild(x) if workload.thin else forms.pack(x)
    packed = relax.const(workload.pack(weights, tile))
    return forms.emit(
        lambda d, k: workload.compute(d, k, tile), "conv2d", pattern, data, packed, workload=workload
    )


def _joined(
    forms: Forms, x: Any, weights: NDArray[Any], window: conv.Window, groups: int
) -> tuple[Convolution, NDArray[Any]]:
    """A convolution as it is computed, and its weights: groups are joined until their channels fill whole
    lanes, the weights between them are zero.
    """
    n, c, h, width = static_shape(x)
    out = weights.shape[0]
    each_in, each_out = c // groups, out // groups
    joined = conv.joined_groups(each_in, each_out, groups)
    if groups > 1:
        weights = conv.join_groups(weights, groups, joined)
    sections = ceil_div(groups, joined)
    thin = c < LANES and x not in forms.packed and groups == 1
    outer = joined * each_out if sections > 1 else out
    return Convolution((n, c, h, width), out, weights.shape[1], outer, window, sections, thin), weights


def window_pool(forms: Forms, var: Any, call: Any) -> bool:
    """Max and average pools."""
    attrs, x = call.attrs, call.args[0]
    shape = shape_of(x)
    if attrs.layout != "NCHW" or shape is None or (shape[1] < LANES and x not in forms.packed):
        return False
    window = conv.Window(
        pair(attrs.pool_size), pair(attrs.strides), pair(attrs.dilation), four(attrs.padding)
    )
    size, out = shape[2:], static_shape(var)[2:]
    largest = call.op.name == "relax.nn.max_pool2d"
    overhangs = window.out((size[0], size[1])) != out
    if not largest and (overhangs or (any(window.padding) and not attrs.count_include_pad)):
        return False
    forms.packed[var] = forms.emit(
        lambda data: pool.pool(data, window, (size[0], size[1]), (out[0], out[1]), largest, overhangs),
        "pool",
        ALONE,
        forms.pack(x),
    )
    return True


def global_pool(forms: Forms, var: Any, call: Any) -> bool:
    """The mean over the whole of a packed image, with or without the axes of size one."""
    x, out = call.args[0], static_shape(var)
    if x not in forms.packed:
        return False
    if call.op.name == "relax.mean":
        if call.attrs.axis is None or sorted(int(a) % 4 for a in call.attrs.axis) != [2, 3]:
            return False
    elif out[2:] != (1, 1):
        return False
    h, w = static_shape(x)[2:]
    mean = forms.emit(lambda data: pool.mean(data, (h, w)), "global_pool", ALONE, forms.packed[x])
    if len(out) == 4:
        forms.packed[var] = mean
    else:
        n, c = out

        def unpack(data: Any) -> Any:
            lane = i64(LANES)
            return te.compute(
                (i64(n), i64(c)),
                lambda b, k: data[b, tirx.floordiv(k, lane), 0, 0, tirx.floormod(k, lane)],
                name="unpack",
            )

        forms.plain[var] = forms.emit(unpack, "unpack", ALONE, mean)
    return True


def concat(forms: Forms, var: Any, call: Any) -> bool:
    """Concatenation of packed channels, when all but the last part fill their lanes."""
    parts = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
    if not parts or len(static_shape(var)) != 4 or int(call.attrs.axis) % 4 != 1:
        return False
    if not all(part in forms.packed for part in parts):
        return False
    if any(static_shape(part)[1] % LANES for part in parts[:-1]):
        return False
    # Dense blocks join again what is joined already, with one more part: that is copied as a whole.
    start = next((n for n in range(len(parts) - 1, 1, -1) if tuple(parts[:n]) in forms.joined), 0)
    pieces = [forms.joined[tuple(parts[:start])]] if start else []
    pieces += [forms.packed[part] for part in parts[start:]]
    forms.packed[var] = forms.builder.emit(relax.op.concat(pieces, axis=1))
    forms.joined[tuple(parts)] = forms.packed[var]
    return True


def unary(forms: Forms, var: Any, call: Any) -> bool:
    """Elementwise operators of one tensor, in the form it has."""
    x = call.args[0]
    if x not in forms.packed:
        return False
    data = [forms.packed[x], *call.args[1:]]
    forms.packed[var] = forms.builder.emit(relax.Call(call.op, data, call.attrs, call.ty_args))
    return True


def binary(forms: Forms, var: Any, call: Any) -> bool:
    """Elementwise operators of two tensors of which one is packed; the other may be a constant."""
    if not any(argument in forms.packed for argument in call.args):
        return False
    channels, packed = static_shape(var)[1], []
    for argument in call.args:
        shape = shape_of(argument)
        if shape is None:
            return False
        constant = isinstance(argument, Constant)
        if constant and math.prod(shape) == 1:
            packed.append(relax.const(argument.value.numpy().reshape(())))
        elif len(shape) == 4 and shape[1] == channels and channels > 1:
            packed.append(forms.pack(argument))
        elif constant and len(shape) == 3 and shape[0] == channels and channels > 1:
            packed.append(forms.pack(relax.const(argument.value.numpy()[None])))
        else:
            return False
    forms.packed[var] = forms.builder.emit(relax.Call(call.op, packed, call.attrs, call.ty_args))
    return True


def pair(values: Any) -> tuple[int, int]:
    """An attribute of two numbers, or of one for both."""
    first, *rest = (int(v) for v in values)
    return first, rest[0] if rest else first


def four(values: Any) -> tuple[int, int, int, int]:
    """Padding (top, left, bottom, right), or fewer numbers that stand for them."""
    given = [int(v) for v in values]
    if len(given) == 1:
        given *= 4
    elif len(given) == 2:
        given *= 2
    return given[0], given[1], given[2], given[3]


RULES: dict[str, Callable[[Forms, Any, Any], bool]] = {
    "relax.nn.conv2d": conv2d,
    "relax.nn.max_pool2d": window_pool,
    "relax.nn.avg_pool2d": window_pool,
    "relax.nn.adaptive_avg_pool2d": global_pool,
    "relax.mean": global_pool,
    "relax.concat": concat,
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(_BINARY, binary),
}
