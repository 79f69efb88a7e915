"""From a request to plans: what is ranked once serves any number of budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..analysis.criteria import L2
from ..analysis.goal import Goal
from ..analysis.groups import Analysis, analyze
from ..analysis.plan import Plan, make_plan
from ..analysis.resources import RESOURCES
from ..analysis.selection import Selection
from .blocks import DropBlocks
from .data.calibrate import Calibration
from .gradual import measured_in_steps
from .losses import Losses, measure_losses
from .options import Request
from .pipeline import calibrate
from .rotate import principal
from .use_up import used_up
from .verify import same


@dataclass(frozen=True)
class Planner:
    """A model whose channels are ranked.

    Attributes:
        whole: analysis of the model.
        left: analysis of what is left of it without the blocks that go, some groups turned.
        losses: what goes with channels, and with ranks.
        inputs: what channels are ranked and layers fitted on; None where only weights are read.
        rotated: ids of the groups that are turned to their principal axes.
    """

    request: Request
    whole: Analysis
    left: Analysis
    losses: Losses
    inputs: Calibration | None
    rotated: tuple[str, ...] = ()

    @staticmethod
    def of(whole: Analysis, request: Request, progress: Callable[[str], None] = lambda step: None) -> Planner:
        """Rank the channels of a model.

        Raises:
            UsageError, PlanError: as `Request.check`.
            ModelError: the model cannot be run on the calibration inputs.
        """
        left = analyze(DropBlocks(request.drop)(whole.model)) if request.drop else whole
        request.check(left, request.goal.amounts(whole))
        inputs = calibrate(
            whole.model, request.criterion, request.recover, request.calibration, request.samples
        )
        # Blocks alone go where the ratio is 0 and nothing is limited, and no order matters.
        none = request.goal.ratio == 0 and not request.goal.limits
        criterion = L2 if none else request.criterion
        left, rotated = _rotated(left, request, inputs, progress)
        losses = measure_losses(left, request.goal, criterion, inputs, progress)
        if request.goal.ratio != 0:
            losses = measured_in_steps(left, request, losses, request.goal.amounts(whole), inputs, progress)
        if request.sensitivity is not None:
            losses = Losses(request.sensitivity.ranking(left, losses.ranking))
        return Planner(request, whole, left, losses, inputs, rotated)

    def plan(self) -> Plan:
        """A plan for the goal of the request.

        Raises:
            PlanError: the budgets cannot be met.
        """
        return self._plan(self.request.goal)

    def at_macs(self, share: float) -> Plan:
        """A plan that also leaves at most a share of the multiply-accumulates of the whole.

        Raises:
            PlanError: the budgets cannot be met.
        """
        goal = self.request.goal
        return self._plan(replace(goal, budgets={**goal.budgets, "macs": min(1.0, share)}))

    def shares_of_macs(self) -> tuple[float, float]:
        """The least and the most multiply-accumulates that a plan can leave, as shares of the whole."""
        cost = RESOURCES["macs"].cost(self.left)
        whole = RESOURCES["macs"].cost(self.whole)(Selection({}))
        least = self.request.goal.least(self.left, ["macs"])["macs"]
        most = min(self.request.goal.amounts(self.whole).get("macs", whole), cost(Selection({})))
        return least / whole, most / whole

    def noted(self, plan: Plan, how: Mapping[str, object]) -> Plan:
        """A plan with more said of how it was found."""
        return replace(plan, options=plan.options | dict(how))

    def _plan(self, goal: Goal) -> Plan:
        request = self.request
        how: dict[str, object] = {"criterion": request.criterion.name, "recover": request.recover}
        if request.steps > 1:
            how["steps"] = request.steps
        if self.inputs is not None:
            how["calibration"] = {"source": self.inputs.source, "digest": self.inputs.digest}
        if request.sensitivity is not None:
            how["sensitivity"] = request.sensitivity.digest

        def make(amounts: Mapping[str, float]) -> Plan:
            losses = self.losses
            made = make_plan(self.left, goal, losses.ranking, how, amounts, losses.curves)
            rotated = [entry.group for entry in made.entries if entry.group in self.rotated]
            told = made.options | ({"rotated": rotated} if rotated else {})
            return replace(made, options=told, blocks=request.drop)

        return used_up(self.whole.model, self.left, goal.amounts(self.whole), make)


def _rotated(
    left: Analysis, request: Request, inputs: Calibration | None, progress: Callable[[str], None]
) -> tuple[Analysis, tuple[str, ...]]:
    """Analysis of the model with groups turned to their principal axes, where that is of use; their ids."""
    fitted = inputs is not None and request.recover != "none"
    if inputs is None or not fitted or not request.rotate or request.goal.ratio == 0 or request.sensitivity:
        return left, ()
    model, rotated = principal(left, inputs, progress=progress)
    # Where rounding alone moves the outputs, no change of basis is the same model.
    if not rotated or not same(left, model).ok:
        return left, ()
    return analyze(model), rotated
