"""Linear functions of lower rank: what they lose, and their factors.

A layer y = U W reads rows U of I channels times Q positions of a window (Q is 1 for a matrix). Tucker-2 (Kim
et al., "Compression of deep convolutional neural networks", ICLR 2016) writes W as three factors: channels in
to ``inputs`` of them, these to ``outputs`` by the window, and these to the channels out; either end can be
left out, and a matrix has no first one. The loss is |U (W - W')|^2 and not |W - W'|^2 where the Gram matrix
U'U is known:

- For the last factor that is reduced-rank regression (Izenman, 1975): the singular vectors of (U'U)^(1/2) W.
- The first one has no closed form. Its channels are the leading singular vectors of W unfolded by channels,
  with U'U taken as a Kronecker product of channels and window; what comes after them is fitted to the Gram
  matrix as it is. By its Cholesky factor L, with the channels turned to these vectors, the loss of keeping
  the first k rows is what L'W has in the others, so that one factor serves all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # a part of it loads where it is used first
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

_DAMPING = 1e-3  # of the mean of the Gram matrix's diagonal


@dataclass(frozen=True, order=True)
class Ranks:
    """How many channels are left in the middle of a layer; None for a factor that is left out.

    Attributes:
        inputs: what a convolution of a window reads, made by a first 1x1 convolution.
        outputs: what the layer gives to a last matrix, or 1x1 convolution.
    """

    inputs: int | None = None
    outputs: int | None = None

    def __bool__(self) -> bool:
        return self != Ranks()

    def to_json(self) -> int | list[int | None] | None:
        """A number for the rank of a matrix, a pair for the two ends of a convolution."""
        return self.outputs if self.inputs is None else [self.inputs, self.outputs]

    @staticmethod
    def from_json(value: Any) -> Ranks:
        """What `to_json` made.

        Raises:
            TypeError, ValueError: it is nothing of the kind.
        """
        first, last = value if isinstance(value, list) else (None, value)
        return Ranks(None if first is None else int(first), None if last is None else int(last))


@dataclass(frozen=True)
class Factors:
    """W as a chain of smaller ones.

    Attributes:
        first: shape (I, inputs), or None.
        core: shape (inputs or I times Q, outputs or O).
        last: shape (outputs, O), or None.
    """

    first: Matrix | None
    core: Matrix
    last: Matrix | None

    def product(self) -> Matrix:
        """What they make, shape (I times Q, O)."""
        core = self.core if self.last is None else self.core @ self.last
        return core if self.first is None else _turned(self.first, core)


class Truncation:
    """Approximations of a weight by factors of lower rank.

    Args:
        weight: W, shape (I times Q, O), window positions of a channel one after another.
        inputs: I.
        gram: U'U, shape (I times Q, I times Q), around the mean where a bias follows. None for weights alone,
            where all inputs count the same: what has that rank already is taken apart exactly.
    """

    def __init__(self, weight: Matrix, inputs: int, gram: Matrix | None = None) -> None:
        self._channels, self._window = inputs, len(weight) // inputs
        self._upper: Matrix | None = None
        if gram is None:
            self.energy = float(np.square(weight).sum())
            back = self._basis = _left_vectors(weight.reshape(inputs, -1)) if self._window > 1 else None
        else:
            self.energy = float(np.einsum("ko,ko->", weight, gram @ weight))
            gram = gram + (_DAMPING * float(np.trace(gram)) / len(gram) or 1.0) * np.eye(len(gram))
            self._basis, back = _weighted_basis(weight, gram, inputs) if self._window > 1 else (None, None)
            if self._basis is not None:
                gram = _turned(self._basis.T, _turned(self._basis.T, gram).T)
            self._upper = scipy.linalg.cholesky(gram)
        turned = weight if back is None else _turned(back.T, weight)
        self._seen = turned if self._upper is None else self._upper @ turned

    def errors(
        self, inputs: Sequence[int | None], outputs: Sequence[int | None]
    ) -> Iterator[tuple[Ranks, float]]:
        """The loss of each pair of ranks, relative to the energy of U W."""
        whole = float(np.square(self._seen).sum())
        square, done = np.zeros((self._seen.shape[1], self._seen.shape[1])), 0
        for first in sorted(inputs, key=lambda rank: len(self._rows(rank))):
            seen = self._rows(first)
            square, done = square + seen[done:].T @ seen[done:], len(seen)
            lost = whole - float(np.trace(square))
            values = np.linalg.eigvalsh(square if seen.shape[1] <= len(seen) else seen @ seen.T)
            tails = np.concatenate([[0.0], np.cumsum(np.maximum(0, values))])[::-1]
            for last in outputs:
                cut = 0.0 if last is None or last >= len(tails) else float(tails[last])
                yield Ranks(first, last), max(0.0, lost + cut) / (self.energy or 1.0)

    def factors(self, ranks: Ranks) -> Factors:
        """The factors of these ranks; as large as each other where there is a choice."""
        seen, last = self._rows(ranks.inputs), None
        if ranks.outputs is not None:
            seen, last = _pair(seen, ranks.outputs)
        core = seen
        if self._upper is not None:
            core = scipy.linalg.solve_triangular(self._upper[: len(seen), : len(seen)], seen)
        if self._basis is None:
            return Factors(None, core, last)
        if ranks.inputs is None:
            return Factors(None, _turned(self._basis, core), last)
        return Factors(self._basis[:, : ranks.inputs], core, last)

    def _rows(self, channels: int | None) -> Matrix:
        return self._seen if channels is None else self._seen[: channels * self._window]


def _turned(matrix: Matrix, rows: Matrix) -> Matrix:
    """``matrix``, shape (I, r), on the channels of ``rows``, shape (r times Q, n)."""
    made = matrix @ rows.reshape(matrix.shape[1], -1)
    return np.asarray(made.reshape(-1, rows.shape[1]))


def _left_vectors(matrix: Matrix) -> Matrix:
    """All left singular vectors, the most important first."""
    return np.asarray(np.linalg.eigh(matrix @ matrix.T).eigenvectors[:, ::-1])


def _pair(matrix: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """The nearest product of two matrices with so many columns and rows between them, each as large as the
    other."""
    if len(matrix) < matrix.shape[1]:
        last, first = _pair(matrix.T, rank)
        return first.T, last.T
    right = _left_vectors(matrix.T)[:, :rank]
    left = matrix @ right
    root = np.sqrt(np.linalg.norm(left, axis=0))
    root[root == 0] = 1.0
    return left / root, (right * root).T


def _weighted_basis(weight: Matrix, gram: Matrix, channels: int) -> tuple[Matrix, Matrix]:
    """Vectors to turn channels to, the most important first, and the inverse of their matrix, transposed."""
    window = len(gram) // channels
    pairs = gram.reshape(channels, window, channels, window)
    roots = [_root(np.einsum("cwdw->cd", pairs)), _root(np.einsum("cwcv->wv", pairs))]
    unfolded = np.einsum("wv,cvo->cwo", roots[1], weight.reshape(channels, window, -1))
    vectors = _left_vectors(roots[0] @ unfolded.reshape(channels, -1))
    inverse = np.asarray(np.linalg.solve(roots[0], vectors), np.float64)
    return inverse, roots[0] @ vectors


def _root(matrix: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(matrix)
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T)
