"""Matrix products: a constant right-hand side packed beforehand, or a computed one packed inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx

from .common import (
    Core,
    Rule,
    annotated,
    ceil_div,
    extent,
    flat,
    i64,
    inline_around,
    joined,
    last_block,
    unroll_init,
    vectorize,
    with_axes_joined,
)

_NEAR_BYTES = 1 << 18  # of a core's second cache
_STEPS = 4  # along the sums, whose factors are one vector
_LOOP = 1.0  # instructions of a step for the loop over them

# Reads an element of an operand at a position.
Read = Callable[[Sequence[Any]], Any]

# Rows × vectors of results kept in registers, with what they cost over the ideal.
_TILES = [
    (6, 2, 1.0),
    (4, 3, 1.06),
    (5, 2, 1.04),
    (3, 4, 1.09),
    (2, 6, 1.1),
    (4, 2, 1.12),
    (2, 4, 1.2),
    (8, 1, 1.3),
    (1, 12, 1.6),
    (1, 8, 1.7),
    # Of twice as many registers.
    (14, 2, 0.93),
    (12, 2, 0.94),
    (9, 3, 0.89),
    (6, 4, 0.88),
    (4, 6, 0.94),
    (1, 24, 1.6),
    # Of half as many.
    (2, 2, 2.0),
    (1, 3, 2.4),
]


def tiles(rows: int, columns: int, core: Core) -> list[tuple[int, int]]:
    """Register tiles for a (rows, K) × (K, columns) product, those of the least padded work first."""

    def taken(r: int, v: int) -> int:
        # Elements of vectors multiply where these are read for several steps: half registers.
        return r * v + (ceil_div(r, 2) + 2 if core.elements else min(r, v) + 1)

    fitting = [(r, v * core.lanes) for r, v, _ in _TILES if taken(r, v) <= core.registers]
    return sorted(fitting, key=lambda tile: (overhead(rows, columns, tile, core), tile))


def overhead(rows: int, columns: int, tile: Sequence[int], core: Core) -> float:
    """Estimated time of a product over that of its multiply-adds alone."""
    r, c = tile[:2]
    return penalty(tile, core) * ceil_div(rows, r) * r / rows * ceil_div(columns, c) * c / columns


def penalty(tile: Sequence[int], core: Core) -> float:
    """Estimated time of a register tile over that of its multiply-adds alone."""
    r, c = tile[:2]
    if core.elements:  # none was timed: instructions of a step over its multiply-adds of half vectors
        halves = 2 * c // core.lanes
        return 1 + (halves / 2 + r / _STEPS + _LOOP) / (r * halves)
    (known,) = (p for rows, vectors, p in _TILES if (rows, vectors * core.lanes) == (r, c))
    return known


def pack_weights(weights: NDArray[Any], columns: int) -> NDArray[Any]:
    """(K, N) as (N/columns, K, columns), zero padded."""
    k, n = weights.shape
    panels = ceil_div(n, columns)
    padded = np.zeros((k, panels * columns), weights.dtype)
    padded[:, :n] = weights
    return np.ascontiguousarray(padded.reshape(k, panels, columns).transpose(1, 0, 2))


def matmul_packed(x: Read, lead: Sequence[int], k: int, weights: Any, n: int, tile: Sequence[int]) -> Any:
    """A matrix x (rows, k) times packed weights, rows arranged as ``lead``: (*lead, n).

    Args:
        tile: rows and columns in registers, and 0 where the outermost loop is over columns, 1 where over
            rows.
    """
    mr, nr, outer = tile
    m = math.prod(lead)
    padded = ceil_div(m, mr) * mr
    depth = te.reduce_axis((i64(0), i64(k)), "k")

    def product(i: Any, panel: Any, j: Any) -> Any:
        row = i if padded == m else tirx.min(i, i64(m - 1))
        return te.sum(x([row, depth]) * weights[panel, depth, j], axis=[depth])

    sums = te.compute(
        (i64(padded), weights.shape[0], i64(nr)),
        product,
        name="gemm_sum",
        attrs={"gemm.tile": f"{mr},{nr},{outer}"},
    )

    return arranged(sums, lead, n)


def arranged(sums: Any, lead: Sequence[int], n: int) -> Any:
    """Sums (rows, panels, columns of a panel) as (*lead, n)."""
    width = sums.shape[2]

    def result(*at: Any) -> Any:
        return sums[joined(lead, at[:-1]), tirx.floordiv(at[-1], width), tirx.floormod(at[-1], width)]

    return te.compute([i64(d) for d in (*lead, n)], result, name="gemm_out")


def matmul_batched(
    x: Read,
    y: Read,
    batch: Sequence[int],
    sizes: tuple[int, int, int],
    order: Sequence[int],
    tile: Sequence[int],
) -> Any:
    """x (*batch, m, k) times y (*batch, k, n), panels of y packed inside the kernel.

    Args:
        sizes: m, k, n.
        order: axes of (*batch, m, n) in the order in which the result has them; n is the last.
    """
    (mr, nr, _), (m, k, n), depth = tile, sizes, len(batch)
    panels, padded = ceil_div(n, nr), ceil_div(m, mr) * mr
    inner = te.reduce_axis((i64(0), i64(k)), "k")
    full = [i64(d) for d in (*batch, m, n)]

    def pack(*at: Any) -> Any:
        lead, (panel, row, lane) = at[:depth], at[depth:]
        column = panel * i64(nr) + lane
        if n % nr == 0:
            return y([*lead, row, column])
        return tirx.if_then_else(column < i64(n), y([*lead, row, column]), tirx.const(0.0, "float32"))

    packed = te.compute([*full[:depth], i64(panels), i64(k), i64(nr)], pack, name="gemm_pack")

    def product(*at: Any) -> Any:
        lead, (i, panel, lane) = at[:depth], at[depth:]
        i = i if padded == m else tirx.min(i, i64(m - 1))
        return te.sum(x([*lead, i, inner]) * packed(*lead, panel, inner, lane), axis=[inner])

    sums = te.compute(
        [*full[:depth], i64(padded), i64(panels), i64(nr)],
        product,
        name="gemm_sum",
        attrs={"gemm.batched": f"{mr},{nr},{list(order).index(depth)}"},
    )

    def result(*at: Any) -> Any:
        place: list[Any] = [None] * len(order)
        for axis, position in zip(order, at, strict=True):
            place[axis] = position
        return sums(*place[:-1], tirx.floordiv(place[-1], i64(nr)), tirx.floormod(place[-1], i64(nr)))

    return te.compute([full[axis] for axis in order], result, name="gemm_out")


def _rows_near(tiles: int, mr: int, depth: int) -> int:
    """How many tiles of rows to multiply by each panel in turn, so that they stay in the second cache."""
    most = max(1, _NEAR_BYTES // (mr * depth * 4))
    return ceil_div(tiles, ceil_div(tiles, most))


class Gemm(Rule):
    """Schedule of both products with whatever elementwise operators were fused after them."""

    label, batched_label = "gemm.tile", "gemm.batched"

    def schedule(self, schedule: Any) -> Any:
        constant, batched = annotated(schedule, self.label), annotated(schedule, self.batched_label)
        found = constant or batched
        if found is None:
            return None
        sums, tile = found[0], [int(v) for v in str(found[1]).split(",")]
        depth = extent(schedule, schedule.get_loops(sums)[3 if constant else -1])
        mr, nr, last = tile
        out = inline_around(schedule, lambda name: name in ("gemm_pack", "gemm_sum"))
        shape = [extent(schedule, loop) for loop in schedule.get_loops(out)]
        if constant and len(shape) > 2:
            schedule = with_axes_joined(schedule, out, flat(shape))
            sums, out = schedule.get_sblock("gemm_sum"), last_block(schedule)
        *rows, column = schedule.get_loops(out)
        if not rows:
            return None
        panel, lane = schedule.split(column, [None, nr])
        if batched:
            rest = [loop for axis, loop in enumerate(rows) if axis != last]
            inner, inner_row = schedule.split(rows[last], [None, mr])
            schedule.reorder(*rest, panel, inner, inner_row, lane)
            outer = schedule.fuse(*rest)
        else:
            outer_row, inner_row = schedule.split(rows[0], [None, mr])
            if last:
                outer, inner = outer_row, panel
                schedule.reorder(outer, inner, inner_row, lane)
            else:
                near = _rows_near(extent(schedule, outer_row), mr, depth)
                band, inner = schedule.split(outer_row, [None, near])
                schedule.reorder(band, panel, inner, inner_row, lane)
                outer = schedule.fuse(band, panel)
        schedule.set_scope(sums, 0, "local")
        schedule.compute_at(sums, inner, preserve_unit_loops=True)
        if batched:
            schedule.compute_at(schedule.get_sblock("gemm_pack"), outer, preserve_unit_loops=True)
        # After decompose_reduction the block is no longer one that a loop around it may run in parallel.
        if self.threaded(schedule, sums) and extent(schedule, outer) > 1:
            schedule.parallel(outer)
        self.sum(schedule, sums)
        schedule.unroll(inner_row)
        vectorize(schedule, lane, self.core.lanes)
        schedule.annotate(panel if batched or last else outer, "pragma_loop_partition_hint", 1)
        return schedule

    def sum(self, schedule: Any, sums: Any) -> None:
        """The loops of a tile of sums."""
        i, p, j, k = schedule.get_loops(sums)[-4:]
        # What elements of a vector multiply is read for several steps at once.
        several = _STEPS if self.core.elements and extent(schedule, k) % _STEPS == 0 else 1
        k, steps = schedule.split(k, [None, several])
        schedule.reorder(k, steps, i, p, j)
        schedule.unroll(steps)
        schedule.unroll(i)
        vectorize(schedule, j, self.core.lanes)
        unroll_init(schedule, schedule.decompose_reduction(sums, k), 3)
