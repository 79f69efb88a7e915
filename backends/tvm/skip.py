"""Layers whose weights are mostly zero become kernels that skip the zeros, where that is faster."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from tvm import relax

from ..base import SparseLayer
from .between import elementwise
from .chain import Chain
from .forms import ALONE, FUSIBLE, Forms, is_over_last, operator, shape_of, static_shape
from .schedules import conv
from .schedules.image import Image
from .schedules.normal import Normalised
from .schedules.sources import FEW, Pixels, Tokens
from .sparse import Sparse, pattern_of
from .workloads import Convolution, Product

FULL = 0.8  # density from which no kernel is asked whether it would skip


@dataclass(frozen=True)
class Skipping:
    """A layer that skips zeros.

    Attributes:
        x: what it reads.
        matrix: its weights (outputs, columns).
        arguments: what its kernel reads, in the forms it does; may be what x is made of.
    """

    x: Any
    matrix: NDArray[Any]
    workload: Sparse
    arguments: Sequence[Any]


def has_zeros(weights: NDArray[Any]) -> bool:
    """Whether there are enough for a kernel that skips them."""
    return bool(np.count_nonzero(weights) <= FULL * weights.size)


def convolution(
    forms: Forms,
    var: Any,
    weights: NDArray[Any],
    window: conv.Window,
    groups: int,
    dense: Convolution,
    in_blocks: bool,
) -> bool:
    """Whether the convolution ``var`` by weights (O, I/groups, KH, KW) is done without their zeros; not where
    a dense one is faster.

    Args:
        in_blocks: whether it is read in blocks of channels.
    """
    x = forms.definition(var).args[0]
    n, c, h, w = static_shape(x)
    kept, window = conv.without_idle_taps(weights, window, (h, w))
    pointwise = window.kernel == (1, 1) and not any(window.padding)
    source: Pixels | Image = Image((n, c, h, w), window)
    if pointwise:
        source = Pixels((n, c, h, w), window.strides, blocked=x in forms.packed and x not in forms.plain)
    blocked = pointwise and in_blocks
    layer = _skipping(forms, x, weights, kept.reshape(len(kept), -1), source, dense, groups, blocked)
    if layer is None:
        return False
    (forms.packed if blocked else forms.plain)[var] = _alone(forms, layer)
    return True


def product(forms: Forms, var: Any, x: Any, weights: NDArray[Any], dense: Product) -> Any:
    """The product ``var`` of x (..., K) and weights (K, N) without their zeros, together with the one it is
    made of where that is faster; None where a dense one is.
    """
    shape = static_shape(x)
    source, matrix = Tokens(shape[:-1], shape[-1]), np.ascontiguousarray(weights.T)
    layer = _skipping(forms, x, weights, matrix, source, dense)
    if layer is None:
        return None
    layer = _normalising(forms, layer, source)
    joined = _joined(forms, var, layer)
    if joined is not None:
        return joined
    forms.skipped[var] = layer
    return _alone(forms, layer)


def _joined(forms: Forms, var: Any, layer: Skipping) -> Any:
    """A layer with the one before it in one kernel; None where that is no faster, or no such layer."""
    between = elementwise(forms, layer.x, var)
    before = None if between is None else forms.skipped.get(between.root)
    if between is None or before is None:
        return None
    workload = Chain(before.workload, layer.workload)
    alike = Chain(before.workload.in_rows(), layer.workload.in_rows())
    if not forms.choices.joins(alike):
        return None
    choice, core = forms.choices.of(alike), forms.choices.core
    first, second = workload.blocks((before.matrix, layer.matrix), choice, core)
    constants = [constant.value.numpy().reshape(-1) for constant in between.constants]
    shapes = [constant.shape for constant in constants]
    return forms.call(
        workload.kernel((first, second), choice, core, between, shapes),
        "sparse",
        FUSIBLE,
        *before.arguments,
        *(relax.const(array) for array in (*first.arrays, *constants, *second.arrays)),
        shape=workload.second.result.shape,
        workload=workload,
    )


def _skipping(
    forms: Forms,
    x: Any,
    weights: NDArray[Any],
    matrix: NDArray[Any],
    source: Pixels | Image | Tokens,
    dense: Convolution | Product,
    groups: int = 1,
    blocked: bool = False,
) -> Skipping | None:
    """A layer without its zeros; None where a dense one is faster."""
    with np.errstate(over="ignore"):
        halves = forms.choices.core.halves and bool((matrix == matrix.astype(np.float16)).all())
    workload = Sparse(source, len(matrix), pattern_of(matrix), groups, halves, blocked)
    taken = forms.choices.skips(weights, workload.in_rows(), dense)
    if not taken:
        return None
    read = forms.pack(x) if isinstance(source, Pixels) and source.blocked else forms.rebuild(x)
    return Skipping(x, matrix, workload, [read])


def _normalising(forms: Forms, layer: Skipping, tokens: Tokens) -> Skipping:
    """A layer with the LayerNorm before it, where nobody else reads what that makes."""
    call = forms.definition(layer.x)
    several = tokens.positions >= FEW  # which are in the lanes
    if operator(call) != "relax.nn.layer_norm" or not forms.is_read_once(layer.x) or not several:
        return layer
    x, *parameters = call.args[:3]
    shapes = {shape_of(parameter) for parameter in parameters}
    if not is_over_last(call.attrs.axes, layer.x) or shapes != {(tokens.channels,)}:
        return layer
    source = Normalised(tokens.lead, tokens.channels, float(call.attrs.epsilon))
    workload = replace(layer.workload, source=source)
    arguments = [forms.rebuild(argument) for argument in (x, *parameters)]
    return replace(layer, workload=workload, arguments=arguments)


def _alone(forms: Forms, layer: Skipping) -> Any:
    """The kernel of a layer."""
    workload, core = layer.workload, forms.choices.core
    choice = forms.choices.of(workload.in_rows())
    blocks, result = workload.blocks(layer.matrix, choice, core), workload.result
    # One position may be spread over many by what follows; fused, it would be computed again for each.
    pattern = FUSIBLE if workload.source.positions > 1 or isinstance(workload.source, Tokens) else ALONE
    return forms.call(
        workload.kernel(blocks, choice, core),
        "sparse",
        pattern,
        *layer.arguments,
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
