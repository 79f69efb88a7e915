"""Masks of weights as (groups, outputs, positions, inputs), pooled over neighbours along an axis."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Energy: TypeAlias = NDArray[Any]
Cell: TypeAlias = tuple[int, int, int, int]
Sizes: TypeAlias = tuple[int, int, int, int]

# Words of as many bytes as a group has flags, and words in which all bytes are 1.
_WORDS: dict[int, Any] = {
    2: np.uint16(0x0101),
    4: np.uint32(0x01010101),
    8: np.uint64(0x0101010101010101),
}

GROUPS, OUTPUTS, POSITIONS, INPUTS = range(4)


def pooled(values: NDArray[Any], axis: int, size: int, combine: np.ufunc) -> NDArray[Any]:
    """Each ``size`` neighbours along an axis combined; the last may be fewer.

    Slice by slice, in whatever order the elements lie in memory: several times faster than ``reduceat``.
    """
    if size == 1:
        return values
    found = values[_every(axis, 0, size)].copy(order="K")
    for start in range(1, min(size, values.shape[axis])):
        part = values[_every(axis, start, size)]
        target = found[_first(axis, part.shape[axis])]
        combine(target, part, out=target)
    return found


def any_of(mask: Mask, rows: int, columns: int) -> Mask:
    """For blocks of ``rows`` outputs by ``columns`` inputs whether any element is set."""
    return pooled(pooled(mask, OUTPUTS, rows, np.logical_or), INPUTS, columns, np.logical_or)


def counts(mask: Mask, axis: int, size: int) -> NDArray[Any]:
    """How many of each ``size`` neighbours along an axis are set."""
    if size in _WORDS and axis == mask.ndim - 1 and not mask.shape[axis] % size and mask.flags.c_contiguous:
        ones = _WORDS[size]
        sums = mask.view(ones.dtype) * ones  # the highest byte is the sum of all bytes
        return np.asarray(sums >> ones.dtype.type(8 * (size - 1)))
    whole = mask.view(np.uint8) if size < 256 else mask.astype(np.int64)
    return pooled(whole, axis, size, np.add)


def largest(energy: NDArray[Any], axis: int, size: int, kept: int, last: int) -> Mask:
    """The ``kept`` largest of each ``size`` neighbours along an axis, ``last`` of the last if it is of fewer.

    Of equals, the first.
    """
    values = np.moveaxis(energy, axis, -1)
    found = np.zeros(values.shape, bool)
    whole = values.shape[-1] // size * size
    for start, stop, length, count in ((0, whole, size, kept), (whole, values.shape[-1], None, last)):
        if start < stop:
            shape = (*values.shape[:-1], -1, length or stop - start)
            best = np.argsort(-values[..., start:stop].reshape(shape), axis=-1, kind="stable")[..., :count]
            chosen = np.zeros((*best.shape[:-1], shape[-1]), bool)
            np.put_along_axis(chosen, best, True, axis=-1)
            found[..., start:stop] = chosen.reshape(*values.shape[:-1], stop - start)
    return np.moveaxis(found, -1, axis)


def _every(axis: int, start: int, step: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(start, None, step))


def _first(axis: int, count: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(count))
