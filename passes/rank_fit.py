"""Fit layers with the rank they are to have (`passes.recover`): those after them make up for what is lost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..analysis.truncation import Ranks, Truncation
from .factorize import channels
from .measure.gram import Fit, Gram, Matrix
from .measure.places import Place
from .recover import Solver, least_squares


def of_ranks(ranks: Mapping[str, Ranks]) -> Solver:
    """`least_squares`, and then the nearest coefficients of the rank that a weight is to have.

    Args:
        ranks: of weights, by their names in the model that is fitted.
    """

    def solve(place: Place, fit: Fit, start: Matrix) -> Matrix | None:
        wanted = ranks.get(place.weight)
        if not wanted:
            return least_squares(place, fit, start)
        return _lowered(place, fit.solve(start), fit.all, wanted)

    return solve


def _lowered(place: Place, solved: Matrix, gram: Gram, ranks: Ranks) -> Matrix:
    """The nearest coefficients of these ranks; a bias goes along with what is lost on average."""
    products, count = gram.features[0], place.layer.inputs
    weight, bias = solved[0, :count], solved[0, count:]  # the bias is a row, or none
    mean = products[count:, :count] / max(1, gram.rows)
    seen = products[:count, :count] - gram.rows * mean.T @ mean
    lower = Truncation(weight, channels(place.fact, place.layer.shape), seen).factors(ranks).product()
    return np.concatenate([lower, bias + mean @ (weight - lower)])[None]
