"""What planning and pruning are asked for, by keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from ..analysis.criteria import Criterion
from ..analysis.errors import PlanError, UsageError
from ..analysis.goal import Goal, Range
from ..analysis.groups import Analysis
from ..analysis.sensitivity import Sensitivity
from .data.calibrate import SAMPLES, Calibration
from .data.calibrate import Spec as CalibrationSource
from .data.labels import Labels
from .pipeline import methods

TARGET = "cpu"


class GoalOptions(TypedDict, total=False):
    """What to reach, and what is to be left alone; see `analysis.goal.Goal`.

    Attributes:
        ratio: fraction of the units of every group to remove.
        macs, params, bytes, memory: instead of it, what may remain of the multiply-accumulates, the
            parameters, the bytes of weights and the bytes of activations alive at once: a float up to 1 is a
            share of the model's, an integer above 1 an amount. Several hold all at once.
        multiple: kept counts are rounded up to a multiple of this; None for what suits each axis.
        ignore: names of nodes, tensors or groups that stay whole.
        limits: for such names the least and the most units that stay: a float is a share, an integer a count.
        exact: share budgets out by integer programming, which takes up to a minute.
        low_rank: "compete" to write layers as factors of lower rank where that costs less than removing
            channels, "only" with all channels kept; None for no.
    """

    ratio: float | None
    macs: float | None
    params: float | None
    bytes: float | None
    memory: float | None
    multiple: int | None
    ignore: Sequence[str]
    limits: Mapping[str, Range]
    exact: bool
    low_rank: str | None


class Options(GoalOptions, total=False):
    """What `plan` and `prune` take by keyword.

    Attributes:
        criterion: how channels are ranked: a name in `passes.criteria.all_criteria`, or a criterion itself.
            None is "obs": what their removal costs on the calibration inputs once the rest is fitted again.
        recover: what `apply` does with the weights that stay: "least-squares", which None is, fits them
            again, "none" leaves them.
        calibration: inputs to measure on, as `open_calibration` takes them; synthetic ones when None.
        samples: how many of them are used at most.
        rotate: turn units that are one basis of many to their principal axes first (`passes.rotate`), where
            layers are fitted again; the plan's positions are then those of the turned model.
        steps: go there in so many steps, and rank what is left again after each (`passes.gradual`).
        drop: ids of residual blocks that go whole (`Analysis.blocks`); with them alone no channel goes.
        sensitivity: measured curves, or the file they are in: budgets are then shared out by them in place of
            the errors that the criterion predicts.
        latency: what a run may take on ``target``, measured: a share of the dense model's time up to 1, or
            text such as "60%" and "4ms". The least cut that does is chosen; budgets hold beside it.
        target: where time is measured: "cpu" (compiled by TVM) or "onnxruntime".
        latency_table: a file that `latency_table` wrote: times are read from it in place of being measured.
        accuracy_drop: instead of ``latency``, the largest cut that loses at most that fraction of accuracy on
            labelled calibration inputs.
        labels: classes of the calibration inputs, where they do not hold them: int (samples,), FILE.npy, or
            "module:function".
    """

    criterion: str | Criterion | None
    recover: str | None
    calibration: Calibration | CalibrationSource
    samples: int
    rotate: bool
    steps: int
    drop: Sequence[str]
    sensitivity: Sensitivity | str | Path | None
    latency: float | str | None
    target: str
    latency_table: str | Path | None
    accuracy_drop: float | None
    labels: Labels


@dataclass(frozen=True)
class Request:
    """`Options`, taken apart."""

    goal: Goal
    criterion: Criterion
    recover: str
    calibration: Calibration | CalibrationSource
    samples: int
    steps: int
    drop: tuple[str, ...]
    sensitivity: Sensitivity | None
    latency: float | str | None = None
    target: str = TARGET
    accuracy_drop: float | None = None
    labels: Labels = None
    rotate: bool = True
    latency_table: Path | None = None

    @staticmethod
    def of(options: Options) -> Request:
        """Read options.

        Raises:
            UsageError: some of them contradict each other.
            PlanError: a file that one of them names cannot be read.
        """
        left: dict[str, Any] = dict(options)
        calibration = left.pop("calibration", None)
        criterion, recover = methods(left.pop("criterion", None), left.pop("recover", None))
        samples, drop = left.pop("samples", SAMPLES), tuple(left.pop("drop", ()))
        steps = left.pop("steps", 1)
        if steps < 1:
            raise UsageError(f"steps {steps} is out of range: it must be at least 1")
        rotate = left.pop("rotate", True)
        measured = left.pop("sensitivity", None)
        if isinstance(measured, str | Path):
            measured = load_sensitivity(measured)
        latency, target = left.pop("latency", None), left.pop("target", None) or TARGET
        allowed, labels = left.pop("accuracy_drop", None), left.pop("labels", None)
        table = left.pop("latency_table", None)
        if table is not None and latency is None:
            raise UsageError("a latency table is of use for a latency alone")
        if latency is not None and allowed is not None:
            raise UsageError("give either a latency or an accuracy drop")
        if allowed is not None and not 0 <= allowed < 1:
            raise UsageError(f"an accuracy drop of {allowed:.0%} is out of range: give 0 % to below 100 %")
        if labels is not None and allowed is None:
            raise UsageError("labels are of use for an accuracy drop alone")
        goal = Goal.of(left)
        if latency is not None or allowed is not None:
            if goal.ratio is not None:
                raise UsageError("a ratio says what goes: give no latency or accuracy drop with it")
            if steps > 1:
                raise UsageError("steps need to know how far to go: give no latency or accuracy drop")
            goal = replace(goal, budgets={"macs": 1.0, **goal.budgets})
        if drop and goal.ratio is None and not goal.budgets:
            goal = replace(goal, ratio=0.0)
        if measured is not None and steps > 1:
            raise UsageError("give a sensitivity or steps, not both: steps measure anew what it holds")
        if measured is not None and (drop or goal.ratio is not None):
            raise UsageError(
                "a sensitivity is of use for budgets of the whole model alone, not where blocks are dropped"
                " or every group loses the same ratio"
            )
        if goal.low_rank is not None and measured is not None:
            raise UsageError("a sensitivity holds errors of channels alone: give it or low_rank, not both")
        if goal.low_rank == "only" and steps > 1:
            raise UsageError("steps rank channels again, of which none go where ranks alone are lowered")
        return Request(
            goal,
            criterion,
            recover,
            calibration,
            samples,
            steps,
            drop,
            measured,
            latency,
            target,
            allowed,
            labels,
            rotate,
            None if table is None else Path(table),
        )

    def check(self, analysis: Analysis, amounts: Mapping[str, float] | None = None) -> None:
        """Before any long work; ``analysis`` is of the model without the blocks that are dropped.

        Args:
            amounts: of the budgets, where they are not those of ``analysis`` itself.

        Raises:
            UsageError: an argument is out of range, or a name is unknown.
            PlanError: a budget is out of reach, or the sensitivity of another model.
        """
        self.goal.check(analysis, amounts)
        if self.sensitivity is not None:
            self.sensitivity.check(analysis, self.criterion.name)


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read curves from a JSON file, as `Sensitivity.to_json` wrote it.

    Example:
        ``plan(model, macs=0.5, calibration=images, sensitivity=load_sensitivity("curves.json"))``

    Raises:
        PlanError: the file cannot be read, or holds no curves.
    """
    return Sensitivity.from_json(read_text(path, "sensitivity file"))


def read_text(path: str | Path, what: str) -> str:
    """The text of a file.

    Raises:
        PlanError: it cannot be read; ``what`` says what it is.
    """
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"cannot read the {what} '{path}': {getattr(error, 'strerror', None) or error}"
        ) from None
