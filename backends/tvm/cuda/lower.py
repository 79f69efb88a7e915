"""Which operators become kernels on tensor cores; all others are left to TVM."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from ..forms import DESCRIPTION, FLOPS, Forms, is_float, operator, shape_of, static_shape
from ..packed import four, pair
from ..plain import constant_matrix
from ..schedules.conv import Window
from ..workloads import Choices
from .fragments import TF32, Precision
from .gpu import Gpu
from .product import Layer, Zeros, forms, packed
from .reading import Patches, Reading, Rows

_INDICES = 1 << 31  # that kernels count to
_FEW = 8  # positions below which reading weights takes the time, and a row of sums needs no tensor core


class Lowering:
    """One walk over the bindings of a Relax function.

    Args:
        layers: gets those with zeros in their weights.
    """

    def __init__(self, gpu: Gpu, precision: Precision, layers: list[Zeros]) -> None:
        self.gpu, self.precision, self.layers = gpu, precision, layers
        self._rules: dict[str, Callable[[Forms, Any, Any], Any]] = {
            "relax.nn.conv2d": self._convolution,
            "relax.matmul": self._product,
        }

    def lower(self, module: Any) -> Any:
        """The module with its main function calling kernels on tensor cores where they fit."""
        function = module["main"]
        blocks = getattr(function.body, "blocks", [])
        if len(blocks) != 1 or not isinstance(function.body.body, relax.Var):
            return module  # control flow: left to TVM
        made = Forms(module, Choices())
        with made.builder.function("main", list(function.params)):
            with made.builder.dataflow():
                for binding in blocks[0].bindings:
                    rule = self._rules.get(operator(binding.value))
                    found = rule(made, binding.var, binding.value) if rule and is_float(binding.var) else None
                    if found is None:
                        found = made.builder.emit(made.rebuild(binding.value))
                    made.plain[binding.var] = found
                result = made.builder.emit_output(made.rebuild(function.body.body))
            made.builder.emit_func_output(result)
        return made.builder.get()

    def _convolution(self, made: Forms, var: Any, call: Any) -> Any:
        """A convolution with constant weights and one group."""
        attrs, (x, w) = call.attrs, call.args
        if attrs.data_layout != "NCHW" or int(attrs.groups) != 1 or not isinstance(w, Constant):
            return None
        weights = w.value.numpy()
        window = Window(
            kernel=(weights.shape[2], weights.shape[3]),
            strides=pair(attrs.strides),
            dilations=pair(attrs.dilation),
            padding=four(attrs.padding),
        )
        n, c, height, width = static_shape(x)
        ways = [Patches((n, c, height, width), window, first) for first in (True, False)]
        # Two of four are counted among the channels of one tap.
        taps, channels = (math.ceil(way.columns / self.precision.step) for way in ways)
        source = ways[taps > channels]
        return self._taken(made, x, source, source.matrix(weights), weights)

    def _product(self, made: Forms, var: Any, call: Any) -> Any:
        """A product with a constant matrix."""
        x, y = call.args
        shape = shape_of(x)
        weights = constant_matrix(made, y)
        if shape is None or len(shape) < 2 or weights is None or weights.ndim != 2:
            return None
        return self._taken(made, x, Rows(shape[:-1], shape[-1]), np.ascontiguousarray(weights.T), weights)

    def _taken(
        self, made: Forms, x: Any, source: Reading, matrix: NDArray[Any], weights: NDArray[Any]
    ) -> Any:
        if source.positions < _FEW or math.prod(source.shape) > _INDICES:
            return None
        precision = self.precision if np.isfinite(self.precision.rounded(matrix)).all() else TF32
        layers = forms(source, weights, matrix, precision)
        layer = min(layers, key=self._cycles)
        if not weights.all():
            dense, *others = layers
            best = min(others, key=self._cycles, default=dense)
            gain = self._cycles(dense) / self._cycles(best)
            self.layers.append(Zeros(weights, best.description, layer is not dense, gain))
        arrays = packed(matrix, layer.form)
        function = layer.kernel(arrays, layer.choices(self.gpu)[0])
        function = function.with_attrs({DESCRIPTION: layer.description, FLOPS: layer.flops})
        variable = made.builder.add_func(function, f"tensor_core_{layer.form.name}")
        constants = [relax.const(array) for array in arrays.arrays]
        shape = relax.TensorType(source.result(layer.outputs), "float32")
        return made.builder.emit(relax.call_tir(variable, [made.rebuild(x), *constants], shape))

    def _cycles(self, layer: Layer) -> float:
        return layer.cycles(layer.choices(self.gpu)[0], self.gpu)
