"""A budget of accuracy: the largest cut that loses no more, measured on labelled data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..analysis.errors import PlanError, UsageError
from ..analysis.model import Model
from ..analysis.plan import Plan
from .data.calibrate import Calibration, Spec, open_calibration
from .data.labels import Labels, accuracy, classes_of, run_batches
from .execute import Arrays
from .pipeline import carried_out
from .planner import Planner

# Samples that accuracy is measured on at most, and at least: below, they are those that layers are fitted on.
_MOST, _FEWEST = 10_000, 100
_PROBES = 7
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures the accuracy of models.

    Attributes:
        labels: classes of the samples, int64 (samples,).
        apart: whether no layer is fitted on these samples.
    """

    labels: NDArray[np.int64]
    apart: bool
    _open: Callable[[], Iterator[Arrays]]

    def accuracy(self, model: Model) -> float:
        """The fraction of samples whose class has the largest output.

        Raises:
            UsageError: the first output holds no number for each class.
            ModelError: ONNX Runtime cannot run the model on the samples.
        """
        return accuracy(list(run_batches(model, self._open())), self.labels)


def judge_for(model: Model, data: Calibration | Spec, labels: Labels, samples: int) -> tuple[Judge, int]:
    """What measures accuracy on labelled data, and how many of its first samples are left to fit layers on.

    Layers are fitted on the first ``samples``. Where less than a hundred follow, it is the first half of all,
    and where that is less than a hundred too, all samples serve for both.

    Raises:
        UsageError: there is no data, or it has no labels.
    """
    if data is None:
        raise UsageError("an accuracy drop is measured on data: give --calibration with labels, or --labels")
    whole = open_calibration(data, model, samples=samples + _MOST)
    classes = classes_of(labels, whole)
    if classes is None:
        raise UsageError(
            f"{whole.source} have no labels: name an array 'labels' among them, or give --labels"
        )
    fitted = samples if whole.samples >= samples + _FEWEST else whole.samples // 2
    if isinstance(data, Calibration) or whole.samples - fitted < _FEWEST:
        return Judge(classes, False, whole.batches), samples
    name = next(iter(next(whole.batches())))
    skipped = 0
    for arrays in whole.batches():
        if skipped >= fitted:
            break
        skipped += len(arrays[name])

    def rest() -> Iterator[Arrays]:
        seen = 0
        for arrays in whole.batches():
            if seen >= skipped:
                yield arrays
            seen += len(arrays[name])

    return Judge(classes[skipped:], True, rest), fitted


def largest_cut(planner: Planner, drop: float, judge: Judge, progress: Callable[[str], None]) -> Plan:
    """The plan of fewest multiply-accumulates whose model, fitted again, loses at most ``drop`` of accuracy.

    Found by bisection: a smaller model is taken to be no better than a larger one.

    Args:
        drop: difference of two accuracies, each in [0, 1].

    Raises:
        PlanError: every cut loses more.
    """
    model, inputs = planner.whole.model, planner.inputs
    before = judge.accuracy(model)
    low, high = planner.shares_of_macs()
    best: tuple[Plan, float] | None = None
    for _ in range(_PROBES):
        share = (low + high) / 2
        chosen = planner.at_macs(share)
        after = judge.accuracy(carried_out(model, chosen, inputs))
        progress(f"{share:.1%} of the MACs have an accuracy of {after:.2%}, of {before:.2%}")
        if before - after <= drop + _SLACK:
            best, high = (chosen, after), share
        else:
            low = share
    if best is None:
        raise PlanError(
            f"every cut that was tried loses more than {drop:.2%} of accuracy, even down to {low:.1%} of the"
            " multiply-accumulates"
        )
    told = {"asked": drop, "before": before, "after": best[1], "samples": len(judge.labels)}
    return planner.noted(best[0], {"accuracy": told | {"apart": judge.apart}})
