"""Choose what is computed: packed convolutions, packed matrix products, rows, polynomials.

One walk over the bindings of a Relax function. A four-dimensional activation can exist in two forms, plain
(N, C, H, W) and packed (N, C/8, H, W, 8); operators that can work on the packed form keep it, and the other
form is made where somebody asks for it. How kernels run is decided later, by the rules in schedules/, on
functions that TVM has fused in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import Constant

from .schedules import conv, gemm, rows
from .schedules.common import LANES, ceil_div, i64
from .vecmath import ELEMENTWISE

# Elementwise operators under which a zero in a padded lane stays finite.
_PACKED_UNARY = {
    *ELEMENTWISE,
    "relax.nn.relu",
    "relax.nn.leakyrelu",
    "relax.clip",
    "relax.negative",
    "relax.abs",
    "relax.hardsigmoid",
    "relax.hardswish",
}
_PACKED_BINARY = {"relax.add", "relax.subtract", "relax.multiply", "relax.maximum", "relax.minimum"}

# How TVM's fusion treats a kernel: as a root that takes elementwise operators in, or alone.
_FUSIBLE, _ALONE, _ELEMENTWISE = 4, 8, 0


def lower(module: Any) -> Any:
    """The module with its main function rewritten to packed kernels where they fit."""
    function = module["main"]
    blocks = getattr(function.body, "blocks", [])
    if len(blocks) != 1 or not isinstance(function.body.body, relax.Var):
        return module  # control flow: left to TVM's own lowering
    return _Lowering(module).run()


def shape_of(expression: Any) -> tuple[int, ...] | None:
    """The static shape of a tensor expression, or None."""
    type_ = expression.ty
    if not isinstance(type_, relax.TensorType) or type_.shape is None:
        return None
    try:
        return tuple(int(size) for size in type_.shape)
    except TypeError:
        return None


class _Lowering:
    def __init__(self, module: Any) -> None:
        self.function = module["main"]
        # The importer brings kernels of its own; the builder must keep clear of their names.
        kernels = {name: kernel for name, kernel in module.functions.items() if name.name_hint != "main"}
        self.builder = relax.BlockBuilder(tvm.IRModule(kernels))
        self.plain: dict[Any, Any] = {}
        self.packed: dict[Any, Any] = {}
        self.rules: dict[str, Callable[[Any, Any], bool]] = {
            "relax.nn.conv2d": self._conv2d,
            "relax.nn.max_pool2d": self._pool,
            "relax.nn.avg_pool2d": self._pool,
            "relax.nn.adaptive_avg_pool2d": self._global_pool,
            "relax.mean": self._global_pool,
            "relax.concat": self._concat,
            "relax.matmul": self._matmul,
            "relax.nn.softmax": self._softmax,
            "relax.nn.layer_norm": self._layer_norm,
            "relax.power": self._power,
        }
        for name in _PACKED_UNARY:
            self.rules[name] = self._unary
        for name in _PACKED_BINARY:
            self.rules[name] = self._binary

    def run(self) -> Any:
        parameters = list(self.function.params)
        for parameter in parameters:
            self.plain[parameter] = parameter
        with self.builder.function("main", parameters):
            with self.builder.dataflow():
                for binding in self.function.body.blocks[0].bindings:
                    self._bind(binding.var, binding.value)
                result = self.builder.emit_output(self._rebuild(self.function.body.body))
            self.builder.emit_func_output(result)
        return self.builder.get()

    def _bind(self, var: Any, value: Any) -> None:
        if isinstance(value, relax.Var) and value in self.packed:
            self.packed[var] = self.packed[value]
            return
        operator = getattr(getattr(value, "op", None), "name", "") if isinstance(value, relax.Call) else ""
        rule = self.rules.get(operator)
        if rule is None or not _is_float(var) or not rule(var, value):
            self.plain[var] = self.builder.emit(self._rebuild(value))

    # ------------------------------------------------------------------ the two forms

    def _rebuild(self, value: Any) -> Any:
        """The expression with every variable in its plain form."""
        if isinstance(value, relax.Var):
            return self._plain(value)
        if isinstance(value, relax.Tuple):
            return relax.Tuple([self._rebuild(field) for field in value.fields])
        if isinstance(value, relax.TupleGetItem):
            return relax.TupleGetItem(self._rebuild(value.tuple_value), value.index)
        if isinstance(value, relax.Call):
            arguments = [self._rebuild(argument) for argument in value.args]
            return relax.Call(value.op, arguments, value.attrs, value.ty_args)
        return value

    def _plain(self, var: Any) -> Any:
        if var not in self.plain:
            n, c, h, w = _shape(var)

            def unpack(x: Any) -> Any:
                return te.compute(
                    [i64(d) for d in (n, c, h, w)],
                    lambda b, k, i, j: x[b, tirx.floordiv(k, i64(LANES)), i, j, tirx.floormod(k, i64(LANES))],
                    name="unpack",
                )

            self.plain[var] = self._emit(unpack, "unpack", _ALONE, self.packed[var])
        return self.plain[var]

    def _pack(self, expression: Any) -> Any:
        """The packed form of a four-dimensional activation or constant; its padded lanes are zero."""
        if isinstance(expression, relax.Var) and expression in self.packed:
            return self.packed[expression]
        n, c, h, w = _shape(expression)
        if isinstance(expression, Constant):
            value = np.zeros((n, ceil_div(c, LANES) * LANES, h, w), np.float32)
            value[:, :c] = expression.value.numpy()
            packed = value.reshape(n, -1, LANES, h, w).transpose(0, 1, 3, 4, 2)
            return relax.const(np.ascontiguousarray(packed))

        def pack(x: Any) -> Any:
            def at(b: Any, k: Any, i: Any, j: Any, v: Any) -> Any:
                channel = k * i64(LANES) + v
                if c % LANES == 0:
                    return x[b, channel, i, j]
                return tirx.if_then_else(channel < i64(c), x[b, channel, i, j], tirx.const(0.0, "float32"))

            return te.compute([i64(d) for d in (n, ceil_div(c, LANES), h, w, LANES)], at, name="pack")

        result = self._emit(pack, "pack", _ALONE, self._rebuild(expression))
        if isinstance(expression, relax.Var):
            self.packed[expression] = result
        return result

    def _emit(self, compute: Callable[..., Any], name: str, pattern: int, *arguments: Any) -> Any:
        return self.builder.emit_te(
            compute, *arguments, primfunc_name_hint=name, primfunc_attrs={"op_pattern": pattern}
        )

    # ------------------------------------------------------------------ packed operators

    def _conv2d(self, var: Any, call: Any) -> bool:
        attrs, (x, w) = call.attrs, call.args
        if attrs.data_layout != "NCHW" or not isinstance(w, Constant):
            return False
        weights = w.value.numpy()
        _, c, h, width = _shape(x)
        window = conv.Window(
            kernel=(weights.shape[2], weights.shape[3]),
            strides=_pair(attrs.strides),
            dilations=_pair(attrs.dilation),
            padding=_four(attrs.padding),
        )
        out, size = weights.shape[0], (h, width)
        tile = conv.choose_tile(ceil_div(out, LANES), *window.out(size))
        groups = int(attrs.groups)
        if groups == 1:
            thin = c < LANES and x not in self.packed
            data = self._plain(x) if thin else self._pack(x)
            packed = conv.pack_weights(weights, tile, c if thin else LANES)
            blocks = ceil_div(out, LANES)
            self.packed[var] = self._emit(
                lambda d, k: conv.conv2d(d, k, window, size, blocks, tile),
                "conv2d",
                _FUSIBLE,
                data,
                relax.const(packed),
            )
            return True
        if groups == c and out == c:
            tile = conv.choose_tile(1, *window.out(size))
            self.packed[var] = self._emit(
                lambda d, k: conv.depthwise(d, k, window, size, tile),
                "depthwise",
                _FUSIBLE,
                self._pack(x),
                relax.const(conv.pack_depthwise(weights)),
            )
            return True
        return False

    def _pool(self, var: Any, call: Any) -> bool:
        """A pool without ceil_mode; an average that counts padding or has none."""
        attrs, x = call.attrs, call.args[0]
        largest = call.op.name == "relax.nn.max_pool2d"
        window = conv.Window(
            _pair(attrs.pool_size), _pair(attrs.strides), _pair(attrs.dilation), _four(attrs.padding)
        )
        h, w = _shape(x)[2:]
        if x not in self.packed or window.out((h, w)) != _shape(var)[2:]:
            return False
        if not largest and any(window.padding) and not attrs.count_include_pad:
            return False
        oh, ow = window.out((h, w))
        top, left = window.padding[:2]
        (sy, sx), (dy, dx) = window.strides, window.dilations
        fill = tirx.min_value("float32") if largest else tirx.const(0.0, "float32")
        share = tirx.const(1 / math.prod(window.kernel), "float32")

        def pool(data: Any) -> Any:
            ry = te.reduce_axis((i64(0), i64(window.kernel[0])), "ry")
            rx = te.reduce_axis((i64(0), i64(window.kernel[1])), "rx")

            def at(b: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
                y, x = i * sy + ry * dy - top, j * sx + rx * dx - left
                value = data[b, c, y, x, v]
                if any(window.padding):
                    inside = tirx.all(y >= 0, y < h, x >= 0, x < w)
                    value = tirx.if_then_else(inside, value, fill)
                return te.max(value, axis=[ry, rx]) if largest else te.sum(value * share, axis=[ry, rx])

            shape = (data.shape[0], data.shape[1], i64(oh), i64(ow), i64(LANES))
            return te.compute(shape, at, name="pool", attrs={"pool": 1})

        self.packed[var] = self._emit(pool, "pool", _ALONE, self.packed[x])
        return True

    def _global_pool(self, var: Any, call: Any) -> bool:
        x, out = call.args[0], _shape(var)
        if x not in self.packed or len(out) != 4 or out[2:] != (1, 1):
            return False
        if call.op.name == "relax.mean" and sorted(int(a) % 4 for a in call.attrs.axis) != [2, 3]:
            return False
        h, w = _shape(x)[2:]
        share = tirx.const(1 / (h * w), "float32")

        def mean(data: Any) -> Any:
            ry, rx = te.reduce_axis((i64(0), i64(h)), "ry"), te.reduce_axis((i64(0), i64(w)), "rx")
            shape = (data.shape[0], data.shape[1], i64(1), i64(1), i64(LANES))
            return te.compute(
                shape,
                lambda b, c, i, j, v: te.sum(data[b, c, ry, rx, v] * share, axis=[ry, rx]),
                name="pool",
                attrs={"pool": 1},
            )

        self.packed[var] = self._emit(mean, "global_pool", _ALONE, self.packed[x])
        return True

    def _concat(self, var: Any, call: Any) -> bool:
        parts = list(call.args[0].fields) if isinstance(call.args[0], relax.Tuple) else []
        if not parts or len(_shape(var)) != 4 or int(call.attrs.axis) % 4 != 1:
            return False
        if not all(p in self.packed for p in parts) or any(_shape(p)[1] % LANES for p in parts[:-1]):
            return False
        self.packed[var] = self.builder.emit(relax.op.concat([self.packed[p] for p in parts], axis=1))
        return True

    def _unary(self, var: Any, call: Any) -> bool:
        x = call.args[0]
        here = self.packed if x in self.packed else self.plain
        data = self.packed[x] if x in self.packed else self._rebuild(x)
        polynomial = ELEMENTWISE.get(call.op.name)
        if polynomial is None:
            here[var] = self.builder.emit(
                relax.Call(call.op, [data, *call.args[1:]], call.attrs, call.ty_args)
            )
        else:
            here[var] = self._emit(
                lambda t: te.compute(t.shape, lambda *i: polynomial(t(*i)), name="polynomial"),
                call.op.name.rpartition(".")[2],
                _ELEMENTWISE,
                data,
            )
        return True

    def _binary(self, var: Any, call: Any) -> bool:
        if not any(a in self.packed for a in call.args):
            return False
        out, arguments = _shape(var), []
        for argument in call.args:
            shape = shape_of(argument)
            if shape is None:
                return False
            scalar = math.prod(shape) == 1 and isinstance(argument, Constant)
            if scalar or (len(shape) == 4 and shape[1] == out[1] and out[1] > 1):
                arguments.append(argument)
            elif len(shape) == 3 and shape[0] == out[1] and isinstance(argument, Constant):
                arguments.append(relax.const(argument.value.numpy()[None]))
            else:
                return False
        packed = [
            relax.const(a.value.numpy().reshape(()))
            if isinstance(a, Constant) and math.prod(_shape(a)) == 1
            else self._pack(a)
            for a in arguments
        ]
        self.packed[var] = self.builder.emit(relax.Call(call.op, packed, call.attrs, call.ty_args))
        return True

    # ------------------------------------------------------------------ plain operators

    def _matmul(self, var: Any, call: Any) -> bool:
        x, y = call.args
        left, right, out = shape_of(x), shape_of(y), _shape(var)
        if left is None or right is None or len(left) < 2 or len(right) < 2:
            return False
        n = right[-1]
        if isinstance(y, Constant) and len(right) == 2:
            data, lead = self._rebuild(x), left[:-1]
            flat = sum(size != 1 for size in lead) > 1
            if flat:
                lead = (math.prod(lead),)
                data = self.builder.emit(relax.op.reshape(data, [*lead, left[-1]]))
            tile = gemm.choose_tile(math.prod(lead), n)
            weights = relax.const(gemm.pack_weights(y.value.numpy(), tile[1]))
            result = self._emit(
                lambda d, w: gemm.matmul_packed(d, w, n, tile), "gemm", _FUSIBLE, data, weights
            )
            self.plain[var] = self.builder.emit(relax.op.reshape(result, list(out))) if flat else result
            return True
        if len(left) == len(right) and len(left) > 2 and left[:-2] == right[:-2]:
            tile = gemm.choose_tile(left[-2], n)
            self.plain[var] = self._emit(
                lambda a, b: gemm.matmul_batched(a, b, tile),
                "batched_gemm",
                _FUSIBLE,
                self._rebuild(x),
                self._rebuild(y),
            )
            return True
        return False

    def _softmax(self, var: Any, call: Any) -> bool:
        rank = len(_shape(var))
        if int(call.attrs.axis) % rank != rank - 1 or rank < 2:
            return False
        self.plain[var] = self._emit(rows.softmax, "softmax", _FUSIBLE, self._rebuild(call.args[0]))
        return True

    def _layer_norm(self, var: Any, call: Any) -> bool:
        rank = len(_shape(var))
        if [int(a) % rank for a in call.attrs.axes] != [rank - 1] or rank < 2:
            return False
        epsilon = float(call.attrs.epsilon)
        self.plain[var] = self._emit(
            lambda x, g, b: rows.layer_norm(x, g, b, epsilon),
            "layer_norm",
            _FUSIBLE,
            *(self._rebuild(a) for a in call.args[:3]),
        )
        return True

    def _power(self, var: Any, call: Any) -> bool:
        """Small constant exponents as products: pow is a scalar libm call."""
        x, exponent = call.args
        if not isinstance(exponent, Constant) or math.prod(_shape(exponent)) != 1:
            return False
        powers: dict[float, Callable[[Any], Any]] = {
            2.0: lambda v: v * v,
            3.0: lambda v: v * v * v,
            0.5: tirx.sqrt,
        }
        power = powers.get(float(exponent.value.numpy().reshape(-1)[0]))
        if power is None or shape_of(x) != _shape(var):
            return False
        self.plain[var] = self._emit(
            lambda t: te.compute(t.shape, lambda *i: power(t(*i)), name="power"),
            "power",
            _ELEMENTWISE,
            self._rebuild(x),
        )
        return True


def _is_float(var: Any) -> bool:
    return (
        isinstance(var.ty, relax.TensorType) and str(var.ty.dtype) == "float32" and shape_of(var) is not None
    )


def _shape(expression: Any) -> tuple[int, ...]:
    shape = shape_of(expression)
    assert shape is not None
    return shape


def _pair(values: Any) -> tuple[int, int]:
    first, *rest = (int(v) for v in values)
    return first, rest[0] if rest else first


def _four(values: Any) -> tuple[int, int, int, int]:
    given = [int(v) for v in values]
    if len(given) == 1:
        given *= 4
    elif len(given) == 2:
        given *= 2
    return given[0], given[1], given[2], given[3]
