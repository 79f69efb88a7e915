"""Convolution of stride one by Winograd's short algorithms, on activations packed by channels of eight.

Patches of the image are turned to a basis in which a convolution with r by r taps is one product for each
number of a patch: ``(m + r - 1)²`` matrices over channels give ``m²`` results, instead of ``r²`` for each.
Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016; the matrices by the
construction of Cook and Toom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from .common import (
    LANES,
    Rule,
    annotated,
    ceil_div,
    i64,
    inline_around,
    unroll_init,
    vectorize_blocks,
)
from .conv import Window, pad_image, vector_pad
from .tile import Tile

# Points that polynomials are evaluated at, besides infinity; small ones keep rounding errors small.
_POINTS = [Fraction(p) for p in ("0", "1", "-1", "1/2", "-2")]
_Matrix = list[list[Fraction]]


@lru_cache
def matrices(m: int, r: int) -> tuple[_Matrix, _Matrix, _Matrix]:
    """For m results of r taps: of the results (m, n), of the taps (n, r), of the data (n, n); n = m + r - 1.

    ``results @ ((taps @ g) * (data @ d))`` is the correlation of d (n) with g (r).
    """
    n = m + r - 1
    points = _POINTS[: n - 1]
    scale = [Fraction(1)] * (n - 1)
    for i, p in enumerate(points):
        for j, q in enumerate(points):
            if i != j:
                scale[i] *= p - q
    results = [[p**i for p in points] + [Fraction(int(i == m - 1))] for i in range(m)]
    taps = [[p**k / s for k in range(r)] for p, s in zip(points, scale, strict=True)]
    taps.append([Fraction(int(k == r - 1)) for k in range(r)])
    data = [_coefficients([q for q in points if q != p], n) for p in points] + [_coefficients(points, n)]
    return results, taps, data


def _coefficients(roots: Sequence[Fraction], size: int) -> list[Fraction]:
    """Of the product of (x - root), the constant first, filled with zeros to ``size``."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found + [Fraction(0)] * (size - len(found))


def fits(window: Window) -> bool:
    """Whether a convolution can be computed so."""
    height, width = window.kernel
    return height == width and window.strides == window.dilations == (1, 1) and bool(patches(height))


def patches(r: int) -> list[int]:
    """How many results a patch can give by side, for r taps: what there are points for."""
    return [m for m in (2, 3, 4, 5) if r > 1 and m + r - 2 <= len(_POINTS)]


def pack_weights(weights: NDArray[Any], tile: Tile) -> NDArray[Any]:
    """(O, I, r, r) as (n, n, O/8t, I/8, 8, 8t) in the basis of patches, zero padded."""
    out, inner, r, _ = weights.shape
    taps = np.array(matrices(tile.patch, r)[1], np.float64)
    turned = np.einsum("ak,oikl,bl->abio", taps, weights.astype(np.float64), taps)
    width = tile.channels * LANES
    panels, blocks = ceil_div(out, width), ceil_div(inner, LANES)
    full = np.zeros((*turned.shape[:2], blocks * LANES, panels * width), weights.dtype)
    full[:, :, :inner, :out] = turned
    shaped = full.reshape(*turned.shape[:2], blocks, LANES, panels, width)
    return np.ascontiguousarray(shaped.transpose(0, 1, 4, 2, 3, 5))


def _times(matrix: _Matrix, row: Any, operand: Callable[[int], Any]) -> Any:
    """Row ``row``, known once loops are unrolled, of a matrix times a vector."""

    def sum_of(coefficients: Sequence[Fraction]) -> Any:
        terms = [(operand(k), c) for k, c in enumerate(coefficients) if c]
        total = None
        for value, c in terms:
            term = value if c == 1 else value * tirx.const(float(c), "float32")
            total = term if total is None else total + term
        return total

    *first, last = (sum_of(coefficients) for coefficients in matrix)
    chosen = last
    for number, value in reversed(list(enumerate(first))):
        chosen = tirx.Select(tirx.EQ(row, i64(number)), value, chosen)
    return chosen


def conv2d(x: Any, weights: Any, window: Window, size: tuple[int, int], blocks: int, tile: Tile) -> Any:
    """Convolution of x (N, I/8, H, W, 8) to (N, O/8, OH, OW, 8).

    Args:
        weights: as `pack_weights` gives them.
        blocks: O/8, rounded up.
        tile: ``columns`` patches in registers; each gives ``patch`` by ``patch`` results.
    """
    m, r, t = tile.patch, window.kernel[0], tile.channels
    n = m + r - 1
    results, _, turn = matrices(m, r)
    oh, ow = window.out(size)
    high, wide = ceil_div(oh, m), ceil_div(ow, m)
    data = pad_image(x, window, high * m + r - 1, wide * m + r - 1, size, tirx.const(0.0, "float32"))
    batch, inner = int(x.shape[0]), x.shape[1]
    patches = batch * high * wide
    whole = ceil_div(patches, tile.columns) * tile.columns

    def read(p: Any, c: Any, i: Any, j: Any, v: Any) -> Any:
        image, place = tirx.floordiv(p, i64(high * wide)), tirx.floormod(p, i64(high * wide))
        y, x = tirx.floordiv(place, i64(wide)) * m, tirx.floormod(place, i64(wide)) * m
        return data[image, c, y + i, x + j, v]

    half = te.compute(
        (inner, i64(patches), i64(n), i64(n), i64(LANES)),
        lambda c, p, a, j, v: _times(turn, a, lambda i: read(p, c, i64(i), j, v)),
        name="wino_rows",
    )
    turned = te.compute(
        (i64(n), i64(n), inner, i64(patches), i64(LANES)),
        lambda a, b, c, p, v: _times(turn, b, lambda j: half[c, p, a, j, v]),
        name="wino_data",
    )
    rc, rv = te.reduce_axis((i64(0), inner), "rc"), te.reduce_axis((i64(0), i64(LANES)), "rv")

    def product(a: Any, b: Any, o: Any, p: Any, c: Any, v: Any) -> Any:
        at = p if whole == patches else tirx.min(p, i64(patches - 1))
        return te.sum(turned[a, b, rc, at, rv] * weights[a, b, o, rc, rv, c * LANES + v], axis=[rc, rv])

    sums = te.compute(
        (i64(n), i64(n), weights.shape[2], i64(whole), i64(t), i64(LANES)),
        product,
        name="wino_sum",
        attrs={"winograd.tile": f"{t},{tile.columns},{m},{tile.outer}"},
    )
    back = te.compute(
        (i64(patches), weights.shape[2] * t, i64(m), i64(n), i64(LANES)),
        lambda p, o, i, b, v: _times(
            results, i, lambda a: sums[a, b, tirx.floordiv(o, i64(t)), p, tirx.floormod(o, i64(t)), v]
        ),
        name="wino_back",
    )

    def result(b: Any, o: Any, y: Any, x: Any, v: Any) -> Any:
        p = (b * high + tirx.floordiv(y, i64(m))) * wide + tirx.floordiv(x, i64(m))
        return _times(results, tirx.floormod(x, i64(m)), lambda k: back[p, o, tirx.floormod(y, i64(m)), k, v])

    return te.compute((i64(batch), i64(blocks), i64(oh), i64(ow), i64(LANES)), result, name="conv_out")


class Winograd(Rule):
    """Schedule of `conv2d` with whatever elementwise operators were fused after it."""

    def schedule(self, schedule: Any) -> Any:
        found = annotated(schedule, "winograd.tile")
        if found is None:
            return None
        sums, (_, columns, m, outer) = found[0], (int(v) for v in str(found[1]).split(","))
        out = inline_around(schedule, lambda name: name.startswith("wino_") or name == "conv_pad")
        if len(schedule.get_loops(out)) != 5:
            return None
        parallel = self.threaded(schedule, sums)
        vector_pad(schedule)
        self._turn(schedule, parallel)
        self._multiply(schedule, sums, columns, outer, parallel)
        self._turn_back(schedule, out, m, parallel)
        return schedule

    def _turn(self, schedule: Any, parallel: bool) -> None:
        data, half = schedule.get_sblock("wino_data"), schedule.get_sblock("wino_rows")
        a, b, c, p, v = schedule.get_loops(data)
        schedule.reorder(c, p, a, b, v)
        if parallel:
            schedule.parallel(c)
        schedule.set_scope(half, 0, "local")
        schedule.compute_at(half, p, preserve_unit_loops=True)
        for block in (data, half):
            first, second, lane = schedule.get_loops(block)[-3:]
            schedule.unroll(first)
            schedule.unroll(second)
            schedule.vectorize(lane)

    def _multiply(self, schedule: Any, sums: Any, columns: int, outer: int, parallel: bool) -> None:
        tile = schedule.cache_write(sums, 0, "local")
        a, b, o, p, c, v = schedule.get_loops(tile)
        po, pi = schedule.split(p, [None, columns])
        around = (a, b, po, o) if outer else (a, b, o, po)
        schedule.reorder(*around, pi, c, v)
        schedule.unroll(pi)
        vectorize_blocks(schedule, c, v, self.core.lanes)
        if parallel:
            schedule.parallel(schedule.fuse(*around[:3]))
        schedule.compute_at(sums, around[-1], preserve_unit_loops=True)
        pi, c, v, rc, rv = schedule.get_loops(sums)[-5:]
        schedule.reorder(rc, rv, pi, c, v)
        for loop in (rv, pi):
            schedule.unroll(loop)
        vectorize_blocks(schedule, c, v, self.core.lanes)
        unroll_init(schedule, schedule.decompose_reduction(sums, rc), 2)

    def _turn_back(self, schedule: Any, out: Any, m: int, parallel: bool) -> None:
        b, o, y, x, v = schedule.get_loops(out)
        ty, i = schedule.split(y, [None, m])
        tx, j = schedule.split(x, [None, m])
        schedule.reorder(b, o, ty, tx, i, j, v)
        for loop in (i, j):
            schedule.unroll(loop)
        schedule.vectorize(v)
        if parallel:
            schedule.parallel(schedule.fuse(b, o))
        back = schedule.get_sblock("wino_back")
        schedule.set_scope(back, 0, "local")
        schedule.compute_at(back, tx, preserve_unit_loops=True)
        i, k, lane = schedule.get_loops(back)[-3:]
        schedule.unroll(i)
        schedule.unroll(k)
        schedule.vectorize(lane)
