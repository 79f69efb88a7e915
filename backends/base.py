"""What a backend is: a model goes in, something that runs comes out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]


class Artifact(Protocol):
    """A model ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Outputs by name, for inputs by name."""
        ...


class Backend(Protocol):
    """Attributes:
    name: how tables call the runtime.
    threads: threads it runs with.
    """

    @property
    def name(self) -> str: ...

    @property
    def threads(self) -> int: ...

    def compile(self, model: onnx.ModelProto) -> Artifact:
        """Make ``model`` ready to run.

        Raises:
            BackendError: the runtime is missing or refuses the model.
        """
        ...
