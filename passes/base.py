"""What a pass is: a frozen dataclass of options that turns a model into a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..analysis.model import Model, check


class Pass(Protocol):
    """A pass never changes the model it is given."""

    def __call__(self, model: Model) -> Model: ...


def run_passes(model: Model, passes: Sequence[Pass]) -> Model:
    """Apply passes in order; each result is checked, so that a broken pass is named by its first victim.

    Raises:
        ModelError: a pass made an inconsistent model.
    """
    for one in passes:
        model = one(model)
        check(model.proto)
    return model
