"""How long a model takes on a target: what backends measure, or anything else that can tell.

Backends stand above passes, so they put their clocks here (`CLOCKS`) when they are loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

from ..analysis.errors import UsageError
from ..analysis.model import Model


@dataclass(frozen=True)
class Time:
    """How long one run of a model takes.

    Attributes:
        ms: milliseconds.
        share: of the time of the dense model, seen side by side.
    """

    ms: float
    share: float


# Tells the time of a pruned model, as often as it is asked.
Clock: TypeAlias = Callable[[Model], Time]
# For each target, what makes the clock for the versions of a dense model.
CLOCKS: dict[str, Callable[[Model], Clock]] = {}
# For each target that has latency tables, what makes the clock that reads one.
PREDICTORS: dict[str, Callable[[Model, Path], Clock]] = {}


class LayerClock(Protocol):
    """How long single layers take."""

    def ms(self, weight: str, rows: int, density: float) -> float | None:
        """Milliseconds of the layer that reads a weight, by the fastest kernel there is for it.

        Args:
            rows: outputs that share their zeros.
            density: the share of blocks of so many outputs by one input that are not zero; 1 is dense.

        Returns:
            None where no kernel for zeros is known.
        """
        ...


# For each target that has kernels for zeros, what makes the clock of a model's layers; its steps are told.
LAYER_CLOCKS: dict[str, Callable[[Model, Callable[[str], None]], AbstractContextManager[LayerClock]]] = {}


def clock_for(target: str, dense: Model, table: Path | None = None) -> Clock:
    """The clock of a target for versions of a model.

    Args:
        table: a latency table to read times from in place of measuring them.

    Raises:
        UsageError: there is no such target, or it has no tables.
        BackendError: its runtime is missing, or cannot take the model; or the table cannot be read, is not
            complete, or is of another model.
    """
    check_target(target)
    if table is None:
        return CLOCKS[target](dense)
    if target not in PREDICTORS:
        have = ", ".join(sorted(PREDICTORS))
        raise UsageError(f"there are no latency tables of '{target}', only of {have}")
    return PREDICTORS[target](dense, table)


def layer_clock_for(
    target: str, model: Model, report: Callable[[str], None]
) -> AbstractContextManager[LayerClock]:
    """The clock of a model's layers on a target, for as long as the context is open.

    Args:
        report: told which layer is timed.

    Raises:
        UsageError: there is no such target, or it has no kernels for zeros.
        BackendError: its runtime is missing, or cannot take the model.
    """
    check_skips_zeros(target)
    return LAYER_CLOCKS[target](model, report)


def check_skips_zeros(target: str) -> None:
    """Raises:
    UsageError: no target of that name can be timed by layer, or it has no kernels for zeros.
    """
    check_target(target)
    if target not in LAYER_CLOCKS:
        have = ", ".join(sorted(LAYER_CLOCKS))
        raise UsageError(f"'{target}' has no kernels that skip zeros; choose one of {have}")


def check_target(target: str) -> None:
    """Raises:
    UsageError: no target of that name can be timed.
    """
    if target not in CLOCKS:
        raise UsageError(f"there is no target '{target}' to time; choose one of {', '.join(sorted(CLOCKS))}")
