"""What may stand between a stored tensor and the operator that reads it: steps that can be followed back.

Each moves elements or changes them one by one, so that what is found in an operand can be told in the layout
of the file, and what is to be in an operand can be written there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..dtypes import bits
from ..graph import Array

Index = tuple[int, ...]
Shape = tuple[int, ...]


def _is_whole(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iu" or dtype.name in ("int2", "uint2", "int4", "uint4")


class Step(Protocol):
    @property
    def makes_zeros(self) -> bool:
        """Whether an element that is not zero can be zero after the step."""

    def ahead(self, values: Array) -> Array:
        """The tensor after the step."""

    def back(self, values: Array) -> Array:
        """The tensor before the step for these values after it, or for the nearest there are."""

    def place(self, index: Index) -> Index:
        """Where the element at an index was before the step."""


@dataclass(frozen=True)
class Reshaped:
    """Reshape, and what else leaves elements in a row: Flatten, Squeeze, Unsqueeze."""

    before: Shape
    after: Shape
    makes_zeros: bool = False

    def ahead(self, values: Array) -> Array:
        return values.reshape(self.after)

    def back(self, values: Array) -> Array:
        return values.reshape(self.before)

    def place(self, index: Index) -> Index:
        flat = int(np.ravel_multi_index(index, self.after)) if index else 0
        return tuple(int(i) for i in np.unravel_index(flat, self.before)) if self.before else ()


@dataclass(frozen=True)
class Transposed:
    order: tuple[int, ...]
    makes_zeros: bool = False

    def ahead(self, values: Array) -> Array:
        return values.transpose(self.order)

    def back(self, values: Array) -> Array:
        return values.transpose(np.argsort(self.order))

    def place(self, index: Index) -> Index:
        found = dict(zip(self.order, index, strict=True))
        return tuple(found[axis] for axis in range(len(index)))


class _InPlace:
    """A step that changes elements and moves none."""

    def place(self, index: Index) -> Index:
        return index


@dataclass(frozen=True, eq=False)
class Cast(_InPlace):
    before: np.dtype[Any]
    after: np.dtype[Any]

    @property
    def makes_zeros(self) -> bool:
        if self.before == self.after or self.after == np.float64:
            return False
        if _is_whole(self.before):
            return _is_whole(self.after) and bits(self.after) < bits(self.before)
        return self.after != np.float32 or self.before == np.float64

    def ahead(self, values: Array) -> Array:
        return values.astype(self.after)

    def back(self, values: Array) -> Array:
        return values.astype(self.before)


@dataclass(frozen=True, eq=False)
class Scale:
    """What QuantizeLinear and DequantizeLinear divide by and add.

    Attributes:
        scale, zero: one number, one for each position of ``axis``, one for each ``block`` positions of it, or
            of a shape that broadcasts.
        real: type of the numbers that are not quantised; ``stored``: of those that are.
    """

    scale: Array
    zero: Array
    axis: int
    block: int
    real: np.dtype[Any]
    stored: np.dtype[Any]

    def quantised(self, values: Array) -> Array:
        scaled = values.astype(np.float32) / self._spread(self.scale.astype(np.float32), values)
        if not _is_whole(self.stored):
            return scaled.astype(self.stored)
        whole = np.rint(scaled) + self._spread(self.zero, values)
        signed = not self.stored.name.startswith("u")
        limit = 1 << (bits(self.stored) - signed)
        return np.asarray(np.clip(whole, -limit * signed, limit - 1).astype(self.stored))

    def dequantised(self, values: Array) -> Array:
        scale = self._spread(self.scale.astype(np.float32), values)
        real = (values.astype(np.float32) - self._spread(self.zero, values)) * scale
        return np.asarray(real.astype(self.real))

    def _spread(self, given: Array, values: Array) -> Array:
        """The number of each element, in a shape that broadcasts."""
        if given.size == 1:
            return given.reshape(())
        if given.ndim > 1 and not self.block:
            return given
        if self.block:
            return np.repeat(given, self.block, self.axis).take(range(values.shape[self.axis]), self.axis)
        return given.reshape([-1 if k == self.axis else 1 for k in range(values.ndim)])


@dataclass(frozen=True, eq=False)
class Dequantised(_InPlace):
    scale: Scale

    @property
    def makes_zeros(self) -> bool:
        return bool(self.scale.zero.astype(np.float32).any() or (self.scale.scale == 0).any())

    def ahead(self, values: Array) -> Array:
        return self.scale.dequantised(values)

    def back(self, values: Array) -> Array:
        return self.scale.quantised(values)


@dataclass(frozen=True, eq=False)
class Quantised(_InPlace):
    scale: Scale
    makes_zeros: bool = True

    def ahead(self, values: Array) -> Array:
        return self.scale.quantised(values)

    def back(self, values: Array) -> Array:
        return self.scale.dequantised(values)
