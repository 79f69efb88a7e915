"""Times of a model's layers with zeros that they do not have yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from . import build, frontend, skip
from .sparse import Pattern, Sparse
from .trial import BETWEEN, Trials
from .workloads import Choices, Dense, Workload

_DENSITIES = 0.03, 0.25, 0.75  # that are measured; time is taken to be linear in between
_TRIED = 2  # choices of each
_ROUNDS = 3


@dataclass
class LayerTimes:
    """A `LayerClock`, which measures when it is asked, for as long as the context is open.

    Attributes:
        layers: by the name of a weight, its layer with some zeros, and dense.
        report: told which layer is measured.
    """

    layers: Mapping[str, tuple[Sparse, Dense]]
    choices: Choices
    trials: Trials
    report: Callable[[str], None]
    known: dict[Workload, float | None] = field(default_factory=dict)

    def __enter__(self) -> LayerTimes:
        return self

    def __exit__(self, *_: object) -> None:
        self.trials.close()

    def ms(self, weight: str, rows: int, density: float) -> float | None:
        """As `LayerClock.ms`."""
        if weight not in self.layers:
            return None
        sparse, dense = self.layers[weight]
        if density >= 1:
            return self._measured(weight, dense)
        patterns = [Pattern(rows, round(100 * each)) for each in _DENSITIES]
        times = [self._measured(weight, replace(sparse, pattern=pattern)) for pattern in patterns]
        known = [ms for ms in times if ms is not None]
        return float(np.interp(density, _DENSITIES, known)) if len(known) == len(_DENSITIES) else None

    def _measured(self, weight: str, workload: Workload) -> float | None:
        if workload not in self.known:
            self.report(f"time layer of {weight}")
            choices = self.choices.options(workload)[:_TRIED]
            times = [times for times in self.trials.seconds(workload, choices, _ROUNDS) if times]
            self.known[workload] = min((1e3 * float(np.median(each)) for each in times), default=None)
        return self.known[workload]


def layer_times(
    model: onnx.ModelProto, target: Mapping[str, Any], report: Callable[[str], None]
) -> LayerTimes:
    """The clock of a model's layers; they are found by giving every weight some zeros.

    Raises:
        BackendError: TVM cannot take the model.
    """
    zeroed = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in zeroed.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            value = numpy_helper.to_array(tensor).copy()
            value.reshape(-1)[::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    fixed = frontend.static(zeroed, {})
    found = build.workloads_of(frontend.import_model(fixed), target)
    named = zip(skip.told(found.layers, fixed), found.layers, strict=True)
    layers = {told.weight: (layer.sparse, layer.dense) for told, layer in named if told.weight is not None}
    return LayerTimes(layers, found, Trials(target, BETWEEN[found.far]), report)
