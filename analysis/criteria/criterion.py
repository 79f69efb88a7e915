"""What a criterion is: a name, and a function that ranks the units of an analysed model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from ..graph import Array
from ..groups import Analysis
from ..scores import Ranking


class Inputs(Protocol):
    """Inputs to measure on, as `passes.data.calibrate.Calibration` holds them."""

    @property
    def samples(self) -> int:
        """How many there are."""

    def batches(self) -> Iterator[dict[str, Array]]:
        """The inputs of one run after another, by name; any number of times."""


def _silent(step: str) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True)
class Setting:
    """What a criterion ranks, and by what.

    Attributes:
        analysis: of the model.
        inputs: calibration inputs; None where nothing measures.
        progress: told what is being done.
    """

    analysis: Analysis
    inputs: Inputs | None = None
    progress: Callable[[str], None] = _silent

    def measured(self) -> Inputs:
        """The inputs of a criterion that measures.

        Raises:
            ValueError: there are none.
        """
        if self.inputs is None:
            raise ValueError("a criterion that measures needs calibration inputs")
        return self.inputs


@dataclass(frozen=True)
class Criterion:
    """A way to rank units.

    Attributes:
        name: what users choose it by.
        summary: what it ranks by, in a few words.
        rank: finds the ranking: scores and errors of the units of every group of ``analysis.groups``.
        measures: whether it needs inputs; without, it reads weights alone.
    """

    name: str
    summary: str
    rank: Callable[[Setting], Ranking]
    measures: bool = False
