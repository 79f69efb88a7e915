"""Layers whose weights are mostly zero become kernels that skip the zeros, where that is faster."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tvm import relax

from ..base import SparseLayer
from .forms import ALONE, FUSIBLE, Forms, static_shape
from .schedules import conv
from .schedules.sources import Image, Pixels, Tokens
from .sparse import Sparse, pattern_of
from .workloads import Convolution, Product

FULL = 0.8  # density from which no kernel is asked whether it would skip


def has_zeros(weights: NDArray[Any]) -> bool:
    """Whether there are enough for a kernel that skips them."""
    return bool(np.count_nonzero(weights) <= FULL * weights.size)


def convolution(
    forms: Forms, x: Any, weights: NDArray[Any], window: conv.Window, groups: int, dense: Convolution
) -> Any:
    """The plain convolution of x by weights (O, I/groups, KH, KW) without their zeros; None where a dense one
    is faster.
    """
    n, c, h, w = static_shape(x)
    pointwise = window.kernel == (1, 1) and not any(window.padding)
    data = (n, c, h, w)
    source = Pixels(data, window.strides) if pointwise else Image(data, window)
    return _taken(forms, x, weights, weights.reshape(len(weights), -1), source, dense, groups)


def product(forms: Forms, x: Any, weights: NDArray[Any], dense: Product) -> Any:
    """The product of x (..., K) and weights (K, N) without their zeros; None where a dense one is faster."""
    shape = static_shape(x)
    source = Tokens(shape[:-1], shape[-1])
    return _taken(forms, x, weights, np.ascontiguousarray(weights.T), source, dense)


def _taken(
    forms: Forms,
    x: Any,
    weights: NDArray[Any],
    matrix: NDArray[Any],
    source: Pixels | Image | Tokens,
    dense: Convolution | Product,
    groups: int = 1,
) -> Any:
    with np.errstate(over="ignore"):
        halves = forms.choices.core.halves and bool((matrix == matrix.astype(np.float16)).all())
    workload = Sparse(source, len(matrix), pattern_of(matrix), groups, halves)
    alike = workload.in_rows()
    if not forms.choices.skips(weights, alike, dense):
        return None
    choice, core = forms.choices.of(alike), forms.choices.core
    blocks, result = workload.blocks(matrix, choice, core), workload.result
    # One position may be spread over many by what follows; fused, it would be computed again for each.
    pattern = FUSIBLE if source.positions > 1 or result.turned else ALONE
    return forms.call(
        workload.kernel(blocks, choice, core),
        "sparse",
        pattern,
        forms.rebuild(x),
        *(relax.const(array) for array in blocks.arrays),
        shape=result.shape,
        workload=workload,
    )


class HasZeros(Protocol):
    """A layer with zeros in its weights; see `Skipped`."""

    @property
    def weights(self) -> NDArray[Any]: ...
    @property
    def description(self) -> str: ...
    @property
    def taken(self) -> bool: ...
    @property
    def gain(self) -> float: ...
    @property
    def measured(self) -> bool: ...


def told(layers: Iterable[HasZeros], model: onnx.ModelProto) -> tuple[SparseLayer, ...]:
    """Layers with the names that their weights have in the model."""
    layers, names = list(layers), {}
    for tensor in model.graph.initializer if layers else ():
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            array = numpy_helper.to_array(tensor)
            names[_digest(array)] = names[_digest(array.T)] = tensor.name
    return tuple(
        SparseLayer(
            weight=names.get(_digest(layer.weights)),
            kernel=layer.description,
            density=float(np.count_nonzero(layer.weights)) / layer.weights.size,
            sparse=layer.taken,
            gain=layer.gain,
            measured=layer.measured,
        )
        for layer in layers
    )


def _digest(array: NDArray[Any]) -> bytes:
    return sha256(np.ascontiguousarray(array).data).digest()
