"""Linear nodes as matrices: what they read as rows of features, what they compute as rows of outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from ...analysis.facts import Linear
from ...analysis.graph import Node

Array = NDArray[Any]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Layer:
    """A linear node as y = U W + b: U of shape (groups, rows, K), W of shape (groups, K, O).

    Attributes:
        fact: which node, and how it reads its data.
        node: the node as it stands in the model at hand, whose number of groups may have shrunk.
        shape: of its weight.
    """

    fact: Linear
    node: Node
    shape: tuple[int, ...]

    # ------------------------------------------------------------------ sizes

    @property
    def groups(self) -> int:
        form = self.fact.form
        if form in ("window", "spread"):
            return int(self.node.attrs.get("group", 1))
        return prod(self.shape) if form in ("scale", "shift") else 1

    @property
    def inputs(self) -> int:
        """K."""
        return prod(self.shape) // (self.groups * self.outputs) if self.fact.form != "shift" else 0

    @property
    def outputs(self) -> int:
        """O."""
        form, shape = self.fact.form, self.shape
        if form == "window":
            return shape[0] // self.groups
        if form == "spread":
            return shape[1]
        if form == "rows":
            return shape[1]
        if form == "columns":
            return shape[0]
        if form == "gemm":
            return shape[0] if self.node.attrs.get("transB") else shape[1]
        return 1

    # ------------------------------------------------------------------ the weight

    def matrix(self, weight: Array) -> NDArray[np.float64]:
        """The weight as W of shape (groups, K, O)."""
        w = weight.astype(np.float64)
        form, g = self.fact.form, self.groups
        if form == "window":
            return np.asarray(w.reshape(g, self.outputs, -1).transpose(0, 2, 1))
        if form == "spread":
            w = w[_flipped(w.ndim)]
            w = w.reshape(g, -1, *w.shape[1:]).swapaxes(1, 2)
            return np.asarray(w.reshape(g, self.outputs, -1).transpose(0, 2, 1))
        if form == "columns" or (form == "gemm" and self.node.attrs.get("transB")):
            w = w.T
        if form == "gemm":
            w = w * self.node.attrs.get("alpha", 1.0)
        return w.reshape(g, -1, self.outputs)

    def weight(self, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
        """`matrix` undone."""
        form, g = self.fact.form, self.groups
        if form == "window":
            return np.asarray(matrix.transpose(0, 2, 1).reshape(self.shape))
        if form == "spread":
            w = matrix.transpose(0, 2, 1).reshape(g, self.outputs, -1, *self.shape[2:])
            w = w.swapaxes(1, 2).reshape(self.shape)
            return np.asarray(w[_flipped(w.ndim)])
        w = matrix.reshape(-1, self.outputs)
        if form == "gemm":
            w = w / self.node.attrs.get("alpha", 1.0)
        if form == "columns" or (form == "gemm" and self.node.attrs.get("transB")):
            w = w.T
        return w.reshape(self.shape)

    @property
    def run(self) -> int:
        """Input channels of a group: features that belong to one kernel position."""
        kernel = self.shape[2:] if self.fact.form in ("window", "spread") else ()
        return self.inputs // prod(kernel)

    @property
    def order(self) -> Rows:
        """Features in an order that has the channels of each kernel position together."""
        return np.arange(self.inputs).reshape(self.run, -1).T.ravel()

    def columns(self, weight: Array) -> NDArray[np.float64]:
        """The weight as sparsity patterns see it: (groups, O, K) in `order`; see `analysis.patterns`."""
        return self.matrix(weight).transpose(0, 2, 1)[..., self.order]

    @property
    def bias_scale(self) -> float:
        """By what the operator multiplies its bias."""
        return float(self.node.attrs.get("beta", 1.0)) if self.fact.form == "gemm" else 1.0

    # ------------------------------------------------------------------ rows

    def count(self, y: Array) -> int:
        """Rows there are in the output."""
        return y.size // (self.groups * self.outputs)

    def outputs_at(self, y: Array, rows: Rows) -> NDArray[np.float32]:
        """Outputs of these rows, shape (groups, rows, O)."""
        form = self.fact.form
        if form in ("window", "spread") or (form == "scale" and self._channel_axis(y) == 1):
            y = np.moveaxis(y, 1, -1)
        elif form == "columns" and y.ndim > 1:
            y = y.swapaxes(-1, -2)
        flat = y.reshape(-1, y.shape[-1])[rows].astype(np.float32, copy=False)
        return np.ascontiguousarray(flat.reshape(len(rows), self.groups, -1).transpose(1, 0, 2))

    def features_at(self, x: Array, rows: Rows, y: Array) -> NDArray[np.float32]:
        """Features of these rows, shape (groups, rows, K).

        Args:
            x: the data input; ``y``: the output, which a scale reads instead.
        """
        form = self.fact.form
        if form in ("window", "spread"):
            windows = self._windows(x, y.shape[2:])
            places = np.unravel_index(rows, (windows.shape[0], *y.shape[2:]))
            taken = np.moveaxis(windows, 1, windows.ndim // 2)[places]  # (rows, channels, *kernel)
            flat = taken.reshape(len(rows), self.groups, -1)
            return np.ascontiguousarray(flat.transpose(1, 0, 2), np.float32)
        if form == "shift":
            return np.zeros((self.groups, len(rows), 0), np.float32)
        if form == "scale":
            return self.outputs_at(y, rows)
        if (form == "columns" and x.ndim > 1) or (form == "gemm" and self.node.attrs.get("transA")):
            x = x.swapaxes(-1, -2)
        return x.reshape(1, -1, x.shape[-1])[:, rows].astype(np.float32, copy=False)

    def _channel_axis(self, y: Array) -> int:
        by_position = self.node.op in (
            "LayerNormalization",
            "RMSNormalization",
            "SimplifiedLayerNormalization",
        )
        return y.ndim - 1 if by_position else 1

    def _windows(self, x: Array, sizes: Sequence[int]) -> Array:
        """A view of shape (batch, channels, *sizes, *kernel)."""
        kernel, rank = self.shape[2:], len(self.shape) - 2
        attrs = self.node.attrs
        steps = attrs.get("strides", [1] * rank)
        gaps = attrs.get("dilations", [1] * rank)
        before, after = _pads(attrs, x.shape[2:], kernel, steps, gaps, sizes)
        if self.fact.form == "spread":
            stuffed = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], steps, strict=True)]
            wide = np.zeros((*x.shape[:2], *stuffed), x.dtype)
            everies: tuple[Any, ...] = (..., *(slice(None, None, step) for step in steps))
            wide[everies] = x
            x = wide
            reach = [(k - 1) * d for k, d in zip(kernel, gaps, strict=True)]
            before = [r - b for r, b in zip(reach, _pads_of_spread(attrs, rank), strict=True)]
            after = [n + r - b - s for n, r, b, s in zip(sizes, reach, before, stuffed, strict=True)]
            steps = [1] * rank
        around = list(zip(before, after, strict=True))
        x = np.pad(x, [(0, 0), (0, 0), *((max(0, b), max(0, a)) for b, a in around)])
        inside: tuple[Any, ...] = (
            ...,
            *(slice(max(0, -b), x.shape[k] - max(0, -a)) for k, (b, a) in enumerate(around, start=2)),
        )
        x = x[inside]
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
        view = sliding_window_view(x, spans, axis=tuple(range(2, 2 + rank)))
        taken = [slice(None, (n - 1) * step + 1, step) for n, step in zip(sizes, steps, strict=True)]
        return view[(slice(None), slice(None), *taken, *(slice(None, None, d) for d in gaps))]


def _flipped(rank: int) -> tuple[Any, ...]:
    """An index that turns the spatial axes of a kernel round."""
    return (..., *[slice(None, None, -1)] * (rank - 2))


def _pads(
    attrs: dict[str, Any],
    given: Sequence[int],
    kernel: Sequence[int],
    steps: Sequence[int],
    gaps: Sequence[int],
    sizes: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Positions added before and after each spatial axis."""
    rank = len(kernel)
    auto = attrs.get("auto_pad", b"NOTSET")
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        wanted = [
            max(0, (n - 1) * s + (k - 1) * d + 1 - size)
            for n, s, k, d, size in zip(sizes, steps, kernel, gaps, given, strict=True)
        ]
        small, large = [w // 2 for w in wanted], [w - w // 2 for w in wanted]
        return (small, large) if auto == b"SAME_UPPER" else (large, small)
    pads = attrs.get("pads", [0] * 2 * rank) if auto == b"NOTSET" else [0] * 2 * rank
    return list(pads[:rank]), list(pads[rank:])


def _pads_of_spread(attrs: dict[str, Any], rank: int) -> list[int]:
    return list(attrs.get("pads", [0] * 2 * rank)[:rank])


def can_be_read(fact: Linear) -> bool:
    """Whether `Layer` knows this form of the operator.

    A ConvTranspose that computes its own pads is left out, and so are stacks of matrices.
    """
    attrs = fact.node.attrs
    if fact.form == "spread":
        return attrs.get("auto_pad", b"NOTSET") == b"NOTSET" and "output_shape" not in attrs
    return True
