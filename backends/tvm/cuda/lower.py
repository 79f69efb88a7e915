"""Which operators become kernels on tensor cores; all others are left to TVM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from ..forms import FUSIBLE, Forms, shape_of, static_shape
from ..lower import rewritten
from ..packed import four, pair
from ..plain import constant_matrix
from ..schedules.common import ceil_div
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

    def lower(self, module: Any) -> Any:
        """The module with its main function calling kernels on tensor cores where they fit."""
        rules = {"relax.nn.conv2d": self._convolution, "relax.matmul": self._product}
        return rewritten(module, Choices(), {"float32": rules})

    def _convolution(self, made: Forms, var: Any, call: Any) -> bool:
        """A convolution with constant weights and one group."""
        attrs, (x, w) = call.attrs, call.args
        if attrs.data_layout != "NCHW" or int(attrs.groups) != 1 or not isinstance(w, Constant):
            return False
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
        taps, channels = (ceil_div(way.columns, self.precision.step) for way in ways)
        source = ways[taps > channels]
        return self._taken(made, var, x, source, source.matrix(weights), weights)

    def _product(self, made: Forms, var: Any, call: Any) -> bool:
        """A product with a constant matrix."""
        x, y = call.args
        shape = shape_of(x)
        weights = constant_matrix(made, y)
        if shape is None or len(shape) < 2 or weights is None or weights.ndim != 2:
            return False
        source, matrix = Rows(shape[:-1], shape[-1]), np.ascontiguousarray(weights.T)
        return self._taken(made, var, x, source, matrix, weights)

    def _taken(
        self, made: Forms, var: Any, x: Any, source: Reading, matrix: NDArray[Any], weights: NDArray[Any]
    ) -> bool:
        if source.positions < _FEW or math.prod(source.shape) > _INDICES:
            return False
        precision = self.precision if np.isfinite(self.precision.rounded(matrix)).all() else TF32
        ways = forms(source, weights, matrix, precision)
        cycles = {way: self._cycles(way) for way in ways}
        layer = min(ways, key=cycles.__getitem__)
        if not weights.all():
            dense, *others = ways
            best = min(others, key=cycles.__getitem__, default=dense)
            gain = cycles[dense] / cycles[best]
            self.layers.append(Zeros(weights, best.description, layer is not dense, gain))
        arrays = packed(matrix, layer.form)
        function = layer.kernel(arrays, layer.choices(self.gpu)[0])
        operands = made.rebuild(x), *(relax.const(array) for array in arrays.arrays)
        name, shape = f"tensor_core_{layer.form.name}", source.result(layer.outputs)
        made.plain[var] = made.call(function, name, FUSIBLE, *operands, shape=shape, workload=layer)
        return True

    def _cycles(self, layer: Layer) -> float:
        return layer.cycles(layer.choices(self.gpu)[0], self.gpu)
