"""Gram matrices of a layer's inputs, and the coefficients that fit its outputs best."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy  # a part of it loads where it is used first
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Dampings tried, in units of the mean of the Gram matrix's diagonal: the one that fits held-out samples best
# wins, so that few samples move the coefficients little.
DAMPINGS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_MOST_DAMPING = 1e3
_MANY = 1024  # rows
_HELD_OUT = 4  # every so manieth batch


class Rows:
    """Gathers rows of small batches: products of a few rows are not worth adding to large matrices."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.float32]] = []
        self._count = 0

    def gather(self, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Add rows, shape (groups, rows, columns); all there are when they are many enough to be used."""
        self._parts.append(rows)
        self._count += rows.shape[1]
        return self.rest() if self._count >= _MANY else None

    def rest(self) -> NDArray[np.float32] | None:
        """The rows not given yet."""
        if not self._parts:
            return None
        rows = self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts, axis=1)
        self._parts, self._count = [], 0
        return rows


@dataclass
class Gram:
    """Sums over samples of products of features U and wanted outputs Y.

    Attributes:
        features: U'U, shape (groups, K, K), float64.
        cross: U'Y, shape (groups, K, O).
        energy: the sum of Y squared.
        rows: how many samples.
    """

    features: Matrix
    cross: Matrix
    energy: float = 0.0
    rows: int = 0
    _waiting: Rows = field(default_factory=Rows, repr=False)

    @staticmethod
    def empty(groups: int, inputs: int, outputs: int) -> Gram:
        return Gram(np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs, outputs)))

    def add(self, features: NDArray[np.float32], wanted: NDArray[np.float32]) -> None:
        """Shapes (groups, rows, K) and (groups, rows, O)."""
        self._sum(self._waiting.gather(np.concatenate([features, wanted], axis=2)))

    def finish(self) -> Gram:
        """Itself, with the last rows summed."""
        self._sum(self._waiting.rest())
        return self

    def _sum(self, rows: NDArray[np.float32] | None) -> None:
        if rows is None:
            return
        features, wanted = np.split(rows, [self.features.shape[1]], axis=2)
        transposed = features.transpose(0, 2, 1)
        # Single precision within some thousand rows, double between them.
        self.features += transposed @ features
        self.cross += transposed @ wanted
        self.energy += float(np.square(wanted, dtype=np.float64).sum())
        self.rows += features.shape[1]

    def __add__(self, other: Gram) -> Gram:
        return Gram(
            self.features + other.features,
            self.cross + other.cross,
            self.energy + other.energy,
            self.rows + other.rows,
        )

    def error(self, weight: Matrix) -> float:
        """The sum of (U W - Y) squared for ``weight`` of shape (groups, K, O)."""
        quadratic = np.einsum("gko,gko->", weight, self.features @ weight - 2 * self.cross)
        return max(0.0, float(quadratic) + self.energy)


@dataclass
class Fit:
    """Fits W of y = U W by ridge regression towards the W there is, damped as held-out samples ask."""

    groups: int
    inputs: int
    outputs: int
    _parts: list[Gram] = field(init=False)

    def __post_init__(self) -> None:
        self._parts = [Gram.empty(self.groups, self.inputs, self.outputs) for _ in range(2)]

    def add(
        self, features: NDArray[np.float32], wanted: NDArray[np.float32], batch: int, weight: float = 1.0
    ) -> None:
        """Features and outputs of the samples of a batch, by whose number it is held out; see `Gram.add`."""
        if weight != 1:
            root = np.sqrt(weight, dtype=np.float32)
            features, wanted = features * root, wanted * root
        self._parts[batch % _HELD_OUT == _HELD_OUT - 1].add(features, wanted)

    def error(self, weight: Matrix) -> float:
        """The squared error of the outputs over their energy."""
        parts = [part.finish() for part in self._parts]
        return sum(part.error(weight) for part in parts) / (sum(part.energy for part in parts) or 1.0)

    @property
    def all(self) -> Gram:
        return self._parts[0].finish() + self._parts[1].finish()

    def solve(self, start: Matrix) -> Matrix:
        """The best coefficients found, shape (groups, K, O); ``start`` where nothing is better.

        Where there is no second batch to hold out, the damping is a cautious one.
        """
        train, test = (part.finish() for part in self._parts)
        if not train.rows:
            return start
        middle = len(DAMPINGS) // 2
        if not test.rows:
            return ridge(train, start, DAMPINGS[middle])
        errors = {k: test.error(ridge(train, start, DAMPINGS[k])) for k in (middle - 1, middle)}
        # Errors fall and then rise along the dampings: follow them down on the lower side.
        step, k = (-1, middle - 1) if errors[middle - 1] < errors[middle] else (1, middle)
        while 0 <= k + step < len(DAMPINGS):
            errors[k + step] = test.error(ridge(train, start, DAMPINGS[k + step]))
            if errors[k + step] >= errors[k]:
                break
            k += step
        return ridge(self.all, start, DAMPINGS[k]) if errors[k] < test.error(start) else start


def ridge(gram: Gram, start: Matrix, damping: float) -> Matrix:
    """argmin |U W - Y|^2 + damping * mean(diag U'U) * |W - start|^2 (Hoerl and Kennard, 1970).

    Where rounding leaves no unique solution the damping grows, and where nothing helps ``start`` is returned.
    """
    size = gram.features.shape[1]
    mean = np.einsum("gkk->gk", gram.features).mean(axis=1)
    mean[mean == 0] = 1.0  # no input at all: any weight does
    right = gram.cross - gram.features @ start
    if not (np.isfinite(mean).all() and np.isfinite(right).all()):
        return start
    while damping <= _MOST_DAMPING:
        damped = gram.features + (damping * mean)[:, None, None] * np.eye(size)
        try:
            step: Matrix = (
                np.linalg.solve(damped, right)
                if len(damped) > 1
                else scipy.linalg.solve(damped[0], right[0], assume_a="pos", overwrite_a=True)
            )
        except np.linalg.LinAlgError:
            damping *= 10
        else:
            return start + step
    return start
