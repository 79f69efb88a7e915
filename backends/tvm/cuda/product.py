"""Layers with constant weights on tensor cores: the forms of their weights, and the ways to compute them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..computed import MOST
from ..schedules.common import ceil_div
from . import fragments, tensor_core
from .fragments import FP16, ROWS, Packed, Precision
from .gpu import Gpu
from .reading import Reading, Rows
from .tensor_core import Form, Warps

_BLOCKS = (32, 16)
_SUMS = 64  # registers of a thread
_SHARED = 48 << 10  # bytes of a block, which all GPUs have without being asked

# The static model of a multiprocessor, in cycles; no GPU has confirmed it yet.
_BYTES = 32.0  # that a multiprocessor reads in a cycle, from the last cache
_STEP = 100.0  # to meet twice, and to wait for what is read
_BEGIN = 1000.0  # a kernel, and to write sums
_WARPS = 16  # that hide each other's waiting


@dataclass(frozen=True)
class Layer:
    """Attributes:
    density: of what is multiplied: steps of blocks over those of all.
    """

    source: Reading
    outputs: int
    form: Form
    density: float = 1.0

    @property
    def description(self) -> str:
        form = {"dense": "dense", "two_of_four": "2:4", "blocks": f"blocks of {self.form.block}"}[
            self.form.name
        ]
        if isinstance(self.source, Rows):
            what = f"product {self.source.positions} x {self.source.channels} by {self.outputs}"
        else:
            kernel = " x ".join(map(str, self.source.window.kernel))
            what = f"convolution {kernel}, {self.source.data[1]} to {self.outputs} channels"
        return f"tensor cores, {form}, {self.form.precision.name}: {what}"

    @property
    def flops(self) -> float:
        """Of the weights that are multiplied."""
        kept = 0.5 if self.form.name == "two_of_four" else self.density
        return 2.0 * self.outputs * self.source.columns * self.source.positions * kept

    def choices(self, gpu: Gpu) -> Sequence[Warps]:
        """The best by the static model first."""
        return sorted(self._warps(), key=lambda warps: self.cycles(warps, gpu))[:MOST]

    def _warps(self) -> list[Warps]:
        found = []
        for high, wide, rows, columns in product((1, 2, 4), (1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 8)):
            warps = Warps(high, wide, rows, columns)
            if self.form.name == "blocks" and (high, rows) != (1, self.form.block // ROWS):
                continue
            chunks = warps.positions * tensor_core.CHUNKS
            if chunks % warps.threads or not 64 <= warps.threads <= 256:
                continue
            if 4 * rows * columns <= _SUMS and tensor_core.shared_bytes(warps) <= _SHARED:
                found.append(warps)
        return found

    def cycles(self, warps: Warps, gpu: Gpu) -> float:
        """What a choice takes, by the static model."""
        precision = self.form.precision
        steps = ceil_div(self.source.columns, precision.step) * self.density
        rate = gpu.halves * (1 if precision is FP16 else 0.5) * (2 if self.form.name == "two_of_four" else 1)
        multiply = warps.outputs * warps.positions * precision.step / rate
        weights = warps.outputs * 64 * self.form.fragments / 2
        read = (weights + warps.positions * 4 * precision.step) / _BYTES
        blocks = ceil_div(self.outputs, warps.outputs) * ceil_div(self.source.positions, warps.positions)
        together = max(1, _WARPS * fragments.WARP // warps.threads)
        on_each = ceil_div(blocks, gpu.multiprocessors)
        waves = ceil_div(on_each, together)
        busy = on_each * steps * max(multiply, read)
        return _BEGIN + max(busy, waves * steps * (_STEP + max(multiply, read)))

    def kernel(self, packed: Packed, warps: Warps) -> Any:
        """A PrimFunc of the operand and of the arrays of ``packed``."""
        return tensor_core.kernel(self.source, self.outputs, self.form, packed, warps)


@dataclass(frozen=True, eq=False)
class Zeros:
    """A layer with zeros in its weights, as `onnx_prune.backends.tvm.workloads.Skipped` tells of it.

    Attributes:
        description: of the kernel that makes most of them.
        taken: whether that is taken.
        gain: estimated time of the dense kernel over its time.
    """

    weights: NDArray[Any]
    description: str
    taken: bool
    gain: float
    measured: ClassVar[bool] = False


def packed(matrix: NDArray[Any], form: Form) -> Packed:
    """A matrix (outputs, columns) in a form."""
    if form.name == "two_of_four":
        return fragments.two_of_four(matrix)
    if form.name == "blocks":
        return fragments.blocks(matrix, form.precision, form.block)
    return fragments.dense(matrix, form.precision)


def forms(source: Reading, weights: NDArray[Any], matrix: NDArray[Any], precision: Precision) -> list[Layer]:
    """The ways that weights, as a matrix (outputs, columns), can be kept, the dense one first."""
    found = [Layer(source, len(matrix), Form("dense", precision))]
    if weights.all():
        return found
    if precision is FP16 and fragments.is_two_of_four(matrix):
        found.append(Layer(source, len(matrix), Form("two_of_four", precision)))
    for size in _BLOCKS:
        density = fragments.block_density(matrix, size)
        if density < 1:
            found.append(Layer(source, len(matrix), Form("blocks", precision, size), density))
    return found
