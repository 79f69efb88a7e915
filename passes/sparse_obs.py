"""Sparse weights by least squares: the mask and the weights that keep a layer's outputs nearest to the dense.

A layer is Y = X Wᵀ with a weight (outputs, K), one for each group of a grouped operator. Everything needed
of the data is in the Gram matrix H = XᵀX, and in XᵀY where the outputs to reach are not those of the weight
on the same inputs (as when layers before it have been pruned). The error of a sparse weight V is tr((W − V)
H (W − V)ᵀ).

*The mask* is found by the alternating direction method of multipliers, as in ALPS (Meng et al., "ALPS:
Improved Optimization for Highly Sparse One-Shot Pruning for Large Language Models", NeurIPS 2024): one half
of a step moves the weight to where the error is small, the other to the nearest weight of the pattern, with
columns scaled so that H has a unit diagonal, and the penalty on their difference grows. SparseGPT (Frantar
and Alistarh, ICML 2023) decides column by column and never takes a decision back; with the same finish its
error is larger, several times so at high ratios.

*The finish*: with the mask fixed, the weights of each row are the solution of a linear system, solved
exactly, or by conjugate gradients where systems are large and many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy  # a part of it loads where it is used first
from numpy.typing import ArrayLike, NDArray

from ..analysis.patterns.pattern import Blocks, Mask

Floats = NDArray[np.float64]

# The penalty of ALPS grows from the first to the last, in units of the diagonal of the scaled Gram matrix.
_PENALTIES = 0.01, 1.0
_SWEEPS = 5
# Error curves are read off about this many rows of a weight.
_SAMPLE = 128
_SAMPLE_STAGES = 6
_HUGE = 1e30  # a damping beyond which numbers are no numbers any more
# Conjugate gradients stop at this residual, relative to the target, or after so many steps.
_RESIDUAL = 1e-8
_STEPS = 100
# One operation of a Cholesky factorisation costs as much as so many of a product of large matrices.
_FACTORING = 3


@dataclass(frozen=True)
class Sparse:
    """A sparse weight, float64 and of the shape that was given; its mask (true: kept); its error.

    ``error`` is relative to the energy of the outputs of the dense weight, on the inputs of the Gram matrix.
    """

    weight: Floats
    mask: Mask
    error: float


class Chooses(Protocol):
    """A sparsity pattern."""

    def choose(self, energy: Floats, run: int | None = None) -> Mask:
        """The mask (true: kept) that keeps most of an energy (groups, outputs, K)."""


def sparsify_matrix(
    weight: ArrayLike,
    gram: ArrayLike,
    pattern: Chooses,
    *,
    run: int | None = None,
    cross: ArrayLike | None = None,
    damping: float = 1e-2,
    stages: int = 20,
) -> Sparse:
    """The weight of a pattern with the smallest error that can be found, re-fitted to its mask.

    Args:
        weight: (outputs, K), or (groups, outputs, K). The ratio of a pattern holds for all groups together.
        gram: XᵀX, (K, K) or (groups, K, K). Centred (the inputs' mean taken off) where the caller
            corrects a bias that follows.
        run: how many consecutive columns belong together (the channels of a kernel position); None: all.
        cross: XᵀY, (K, outputs) or (groups, K, outputs), for outputs Y to reach; None: those of ``weight``.
        damping: pull towards ``weight``, in units of the mean of the diagonal of ``gram``. It bounds
            what is lost on inputs outside a small calibration set, and makes singular Gram matrices safe.
        stages: how often the penalty grows, five iterations each. Time is in proportion.

    Returns:
        A weight that satisfies ``pattern``. Inputs that are always zero keep their weight or lose it.
    """
    shape = np.shape(weight)
    dense = _stack(weight)
    raw = _stack(gram)
    damped = _damped(raw, damping)
    goal = dense if cross is None else _fit(raw, damped, dense, _stack(cross))
    [(near, mask)] = _search(goal, damped, [pattern], run, stages)
    sparse = refit_masked(goal, damped, mask, start=near)
    energy = _energy(goal, raw)
    error = _energy(goal - sparse, raw) / energy if energy > 0 else 0.0
    return Sparse(sparse.reshape(shape), mask.reshape(shape), error)


def refit_masked(
    weight: ArrayLike,
    gram: ArrayLike,
    mask: Mask,
    cross: ArrayLike | None = None,
    start: ArrayLike | None = None,
) -> Floats:
    """The weight, zero outside a mask, whose outputs are nearest to those of ``weight``, or to Y of XᵀY.

    Shapes as in :func:`sparsify_matrix`; ``gram`` is to be positive definite (damped). Rows that keep the
    same columns, as the rows of a block do, are solved for together. Where there are so many large systems
    that factoring each would take longer, all rows go through up to 100 steps of conjugate gradients from
    ``start``, which leave an error between that of ``start`` and the least.

    Raises:
        numpy.linalg.LinAlgError: ``gram`` is not positive definite.
    """
    dense, grams, masks = _stack(weight), _stack(gram), _stack(mask).astype(bool)
    wanted = dense @ grams if cross is None else _stack(cross).transpose(0, 2, 1)
    first = dense if start is None else _stack(start)
    fitted = np.zeros_like(dense)
    for g, (h, target, keep) in enumerate(zip(grams, wanted, masks, strict=True)):
        supports, which = np.unique(keep, axis=0, return_inverse=True)
        factoring = _FACTORING * float((supports.sum(1, dtype=np.float64) ** 3).sum()) / 3
        if factoring > _STEPS * 2.0 * keep.shape[0] * keep.shape[1] ** 2:
            fitted[g] = _descend(h, target, keep, first[g])
            continue
        for i, support in enumerate(supports):
            columns, rows = np.flatnonzero(support), np.flatnonzero(which.ravel() == i)
            if len(columns):
                factor = scipy.linalg.cho_factor(
                    h[np.ix_(columns, columns)], lower=True, overwrite_a=True, check_finite=False
                )
                solved = scipy.linalg.cho_solve(factor, target[np.ix_(rows, columns)].T, check_finite=False)
                fitted[g][np.ix_(rows, columns)] = solved.T
    return fitted.reshape(np.shape(weight))


def _descend(gram: Floats, target: Floats, keep: Mask, start: Floats) -> Floats:
    """Conjugate gradients for all rows at once, each on its own columns, preconditioned by the diagonal."""
    diagonal = np.diagonal(gram)
    found = np.where(keep, start, 0)
    residual = np.where(keep, target - found @ gram, 0)
    direction = residual / diagonal
    size = (residual * direction).sum(1)
    enough = _RESIDUAL**2 * np.where(keep, target * target / diagonal, 0).sum(1)
    for _ in range(_STEPS):
        moving = size > enough
        if not moving.any():
            break
        change = np.where(keep, direction @ gram, 0)
        curve = (direction * change).sum(1)
        step = np.divide(size, curve, out=np.zeros_like(size), where=moving)[:, None]
        found += step * direction
        residual -= step * change
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(1)
        direction = (
            scaled + np.divide(size, before, out=np.zeros_like(size), where=moving)[:, None] * direction
        )
    return found


def error_curve(
    weight: ArrayLike,
    gram: ArrayLike,
    blocks: Blocks,
    ratios: Sequence[float],
    *,
    run: int | None = None,
    damping: float = 1e-2,
) -> list[float]:
    """The relative error at each of some ratios: what :func:`sparsify_matrix` leaves, or a little more.

    Fewer iterations, and about 128 rows, in whole blocks evenly spaced, stand for all. Shapes as there.
    """
    dense, raw = _stack(weight), _stack(gram)
    rows = _sample(dense.shape, blocks.rows)
    dense = dense[:, rows]
    energy = _energy(dense, raw)
    if energy <= 0:
        return [0.0] * len(ratios)
    found = _search(dense, _damped(raw, damping), [blocks.at(ratio) for ratio in ratios], run, _SAMPLE_STAGES)
    return [_energy(dense - sparse, raw) / energy for sparse, _ in found]


def _search(
    goal: Floats, gram: Floats, patterns: Sequence[Chooses], run: int | None, stages: int
) -> list[tuple[Floats, Mask]]:
    """The weight and the mask that ALPS ends with, for each pattern. The Gram matrix is positive definite."""
    scale = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))[:, None, :]
    unit = gram / scale / scale.transpose(0, 2, 1)
    start = goal * scale
    pull = start @ unit
    sparse = [start] * len(patterns)
    dual = [np.zeros_like(start)] * len(patterns)  # the multiplier, divided by the penalty
    masks = [np.ones(start.shape, bool)] * len(patterns)
    before = _PENALTIES[0]
    for penalty in np.geomspace(*_PENALTIES, stages):
        solve = _solver(unit, float(penalty))
        dual = [part * (before / penalty) for part in dual]
        before = penalty
        for i, pattern in enumerate(patterns):
            for _ in range(_SWEEPS):
                moved = solve(pull + penalty * (sparse[i] - dual[i])) + dual[i]
                masks[i] = pattern.choose(moved * moved, run)
                sparse[i] = np.where(masks[i], moved, 0)
                dual[i] = moved - sparse[i]
    return [(part / scale, mask) for part, mask in zip(sparse, masks, strict=True)]


def _solver(gram: Floats, ridge: float) -> Callable[[Floats], Floats]:
    """``rows -> rows (gram + ridge)⁻¹`` for each group. Many small matrices are inverted at once."""
    columns = gram.shape[-1]
    if len(gram) > 1:
        inverse = np.linalg.inv(gram + ridge * np.eye(columns))
        return lambda rows: np.asarray(rows @ inverse)
    shifted = gram[0].copy()
    shifted.flat[:: columns + 1] += ridge
    factor = scipy.linalg.cho_factor(shifted, lower=True, overwrite_a=True, check_finite=False)
    return lambda rows: np.asarray(scipy.linalg.cho_solve(factor, rows[0].T, check_finite=False).T[None])


def _fit(raw: Floats, damped: Floats, weight: Floats, cross: Floats) -> Floats:
    """The dense weight with the smallest error, pulled towards the given one as far as the damping goes."""
    pull = np.diagonal(damped, axis1=1, axis2=2) - np.diagonal(raw, axis1=1, axis2=2)
    wanted = cross.transpose(0, 2, 1) + weight * pull[:, None, :]
    return _solver(damped, 0.0)(wanted)


def _damped(gram: Floats, damping: float) -> Floats:
    """A positive definite Gram matrix. Where no input is ever anything but zero, it is the unit matrix.

    Of inputs that hardly vary the centred matrix is mostly rounding, which may be larger than the damping and
    of any sign; then there is more damping.
    """
    columns = gram.shape[-1]
    mean = np.trace(gram, axis1=1, axis2=2) / columns
    ridge = np.where(mean > 0, damping * mean, 1.0)
    for group in range(len(gram)):
        while not _is_positive(gram[group] + ridge[group] * np.eye(columns)) and ridge[group] < _HUGE:
            ridge[group] *= 10
    return gram + ridge[:, None, None] * np.eye(columns)


def _is_positive(gram: Floats) -> bool:
    try:
        np.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return False
    return True


def _energy(weight: Floats, gram: Floats) -> float:
    """tr(W H Wᵀ), of all groups together."""
    return max(0.0, float(np.vdot(weight @ gram, weight)))


def _sample(shape: tuple[int, ...], block: int) -> NDArray[np.int64]:
    """Rows that stand for all: whole blocks, evenly spaced."""
    blocks = -(-shape[1] // block)
    wanted = max(1, _SAMPLE // (block * shape[0]))
    chosen = np.unique(np.linspace(0, blocks - 1, min(wanted, blocks)).round().astype(np.int64))
    rows = (chosen[:, None] * block + np.arange(block)).ravel()
    return rows[rows < shape[1]]


def _stack(values: ArrayLike) -> Floats:
    """A matrix, or one for each group, as float64 (groups, rows, columns)."""
    array = np.asarray(values, np.float64)
    return array[None] if array.ndim == 2 else array
