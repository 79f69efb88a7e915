"""Shape arithmetic without touching weights: the values of small constants, and sizes of windows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Array, Node

# A folded value larger than this is left to the graph.
FOLD_LIMIT = 1 << 22

Evaluator = Callable[..., Array]


def _slice(a: dict[str, Any], x: Array, *bounds: Array | None) -> Array:
    out = [slice(None)] * x.ndim
    for k, bound in slices(a, x.shape, bounds):
        out[k] = bound
    return x[tuple(out)]


def slices(
    attrs: dict[str, Any], shape: Sequence[int], bounds: Sequence[Array | None]
) -> list[tuple[int, slice]]:
    """(axis, slice) for each entry of the bounds of a Slice: its inputs, or attributes before opset 10."""
    if bounds:
        starts, ends, axes, steps = [*bounds, None, None, None, None][:4]
    else:
        starts, ends, axes, steps = attrs["starts"], attrs["ends"], attrs.get("axes"), None
    assert starts is not None and ends is not None
    axes_ = range(len(starts)) if axes is None else axes
    steps_ = [1] * len(starts) if steps is None else steps
    out = []
    for start, end, axis, step in zip(starts, ends, axes_, steps_, strict=True):
        k = int(axis) % len(shape)
        # Counting down, an end before the first position means "through position 0".
        stop = None if step < 0 and end < -shape[k] else int(end)
        out.append((k, slice(int(start), stop, int(step))))
    return out


def reshape_target(shape: Sequence[int], target: Sequence[int], allowzero: bool = False) -> list[int]:
    """``target`` with 0 and -1 resolved."""
    out = [shape[k] if s == 0 and not allowzero else int(s) for k, s in enumerate(target)]
    if -1 in out:
        known = -int(np.prod(out, dtype=np.int64))
        out[out.index(-1)] = int(np.prod(shape, dtype=np.int64)) // known if known else 0
    return out


def _axes(attrs: dict[str, Any], axes: Array | None) -> tuple[int, ...] | None:
    given = attrs.get("axes") if axes is None else axes
    return None if given is None else tuple(int(i) for i in given)


def _cast(a: dict[str, Any], x: Array) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(a["to"]))


def _div(a: dict[str, Any], x: Array, y: Array) -> Array:
    if x.dtype.kind in "iu":  # ONNX integer division truncates towards zero
        return (np.trunc(x / y)).astype(x.dtype)
    return np.asarray(x / y)


def _constant_of_shape(a: dict[str, Any], shape: Array) -> Array:
    value = numpy_helper.to_array(a["value"]) if "value" in a else np.zeros(1, np.float32)
    return np.full(tuple(int(i) for i in shape), value.reshape(-1)[0], value.dtype)


def _expand(a: dict[str, Any], x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(i) for i in shape)))


def _clip(a: dict[str, Any], x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    low = a.get("min") if low is None else low
    high = a.get("max") if high is None else high
    return x if low is None and high is None else np.clip(x, low, high)


def _reduce_prod(a: dict[str, Any], x: Array, axes: Array | None = None) -> Array:
    return np.asarray(np.prod(x, axis=_axes(a, axes), keepdims=bool(a.get("keepdims", 1)), dtype=x.dtype))


def _trilu(a: dict[str, Any], x: Array, k: Array | None = None) -> Array:
    return (np.triu if a.get("upper", 1) else np.tril)(x, 0 if k is None else int(k))


def _pairwise(f: Callable[[Array, Array], Array]) -> Evaluator:
    return lambda a, *xs: functools.reduce(f, xs)


def _unary(f: Callable[[Array], Array]) -> Evaluator:
    return lambda a, x: np.asarray(f(x)).astype(x.dtype)


EVALUATE: dict[str, Evaluator] = {
    "Identity": lambda a, x: x,
    "Cast": _cast,
    "Gather": lambda a, x, i: np.take(x, i, axis=a.get("axis", 0)),
    "Concat": lambda a, *xs: np.concatenate(xs, axis=a["axis"]),
    "Slice": _slice,
    "Reshape": lambda a, x, s: x.reshape(reshape_target(x.shape, s, bool(a.get("allowzero", 0)))),
    "Transpose": lambda a, x: np.transpose(x, a.get("perm")),
    "Unsqueeze": lambda a, x, axes=None: np.expand_dims(x, _axes(a, axes) or ()),
    "Squeeze": lambda a, x, axes=None: np.squeeze(x, _axes(a, axes)),
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": lambda a, x, y, z: np.arange(x, y, z, dtype=x.dtype),
    "Where": lambda a, c, x, y: np.asarray(np.where(c, x, y)),
    "Trilu": _trilu,
    "Clip": _clip,
    "ReduceProd": _reduce_prod,
    "Add": _pairwise(lambda x, y: x + y),
    "Sub": _pairwise(lambda x, y: x - y),
    "Mul": _pairwise(lambda x, y: x * y),
    "Div": _div,
    "Pow": lambda a, x, y: np.power(x, y).astype(x.dtype),
    "Mod": lambda a, x, y: np.fmod(x, y) if a.get("fmod") else np.mod(x, y),
    "Max": _pairwise(np.maximum),
    "Min": _pairwise(np.minimum),
    "Equal": _pairwise(lambda x, y: x == y),
    "Less": _pairwise(lambda x, y: x < y),
    "LessOrEqual": _pairwise(lambda x, y: x <= y),
    "Greater": _pairwise(lambda x, y: x > y),
    "GreaterOrEqual": _pairwise(lambda x, y: x >= y),
    "And": _pairwise(np.logical_and),
    "Or": _pairwise(np.logical_or),
    "Not": lambda a, x: np.logical_not(x),
    "Neg": _unary(np.negative),
    "Abs": _unary(np.abs),
    "Sqrt": _unary(np.sqrt),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sin": _unary(np.sin),
    "Cos": _unary(np.cos),
    "Ceil": _unary(np.ceil),
    "Floor": _unary(np.floor),
    "Reciprocal": _unary(np.reciprocal),
}


def _range_length(start: Array | None, limit: Array | None, step: Array | None) -> float:
    assert start is not None and limit is not None and step is not None
    return (float(limit) - float(start)) / (float(step) or math.inf)


def evaluate(node: Node, inputs: Sequence[Array | None]) -> Array | None:
    """The value of a node whose inputs are known, or None when it is not shape arithmetic."""
    function = EVALUATE.get(node.op)
    if function is None or len(node.outputs) != 1:
        return None
    if node.op in ("Expand", "ConstantOfShape"):
        shape = inputs[-1]
        if shape is None or np.prod(np.abs(shape.astype(np.float64))) > FOLD_LIMIT:
            return None
    if node.op == "Range" and _range_length(*inputs) > FOLD_LIMIT:
        return None
    with np.errstate(all="ignore"):  # as the runtime: what does not fit becomes inf, nan or wraps
        return np.asarray(function(node.attrs, *inputs))


def constant_value(attrs: dict[str, Any]) -> Array | None:
    """The value of a Constant node, or None when it is sparse or a string."""
    for name, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if name in attrs:
            return np.array(attrs[name], dtype)
    return None


def window(attrs: dict[str, Any], sizes: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Output sizes of a convolution or pooling window over spatial ``sizes``."""
    rank = len(kernel)
    strides = attrs.get("strides", [1] * rank)
    dilations = attrs.get("dilations", [1] * rank)
    pads = attrs.get("pads", [0] * 2 * rank)
    auto = attrs.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        return [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
    if auto == b"VALID":
        pads = [0] * 2 * rank
    out = []
    for i, size in enumerate(sizes):
        span = size + pads[i] + pads[rank + i] - dilations[i] * (kernel[i] - 1) - 1
        if attrs.get("ceil_mode", 0):
            count = -(-span // strides[i]) + 1
            # The last window must start inside the image or its leading padding.
            count -= (count - 1) * strides[i] >= size + pads[i]
        else:
            count = span // strides[i] + 1
        out.append(count)
    return out


def infer_outputs(
    proto: onnx.NodeProto,
    inputs: dict[str, tuple[np.dtype[Any], Sequence[int], Array | None]],
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> dict[str, tuple[int, ...]]:
    """Output shapes of one node by ONNX's own inference, where it can tell.

    ``inputs`` gives for each name the dtype, the shape and, when known and small, the value.
    """
    known = [numpy_helper.from_array(v, name) for name, (_, _, v) in inputs.items() if v is not None]
    typed = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), list(shape))
        for name, (dtype, shape, value) in inputs.items()
        if value is None
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = helper.make_graph([proto], "node", typed, outputs, known)
    try:
        model = onnx.shape_inference.infer_shapes(
            helper.make_model(graph, opset_imports=list(opsets)), data_prop=True
        )
    except Exception:  # a custom operator, or one the installed onnx does not know: its shape is unknown
        return {}
    shapes = {}
    for info in model.graph.output:
        tensor = info.type.tensor_type
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shapes[info.name] = tuple(d.dim_value for d in tensor.shape.dim)
    return shapes
