"""From a request to plans: what is ranked once serves any number of budgets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..analysis.criteria import L2, Setting
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.plan import Plan, make_plan
from ..analysis.scores import Ranking
from .blocks import DropBlocks
from .calibrate import Calibration
from .gradual import ranked_in_steps
from .options import Request
from .pipeline import calibrate
from .use_up import used_up


@dataclass(frozen=True)
class Planner:
    """A model whose channels are ranked.

    Attributes:
        whole: analysis of the model.
        left: analysis of what is left of it without the blocks that go.
        inputs: what channels were ranked on; None where only weights were read.
    """

    request: Request
    whole: Analysis
    left: Analysis
    ranking: Ranking
    inputs: Calibration | None

    @staticmethod
    def of(
        model: Model | Analysis, request: Request, progress: Callable[[str], None] = lambda step: None
    ) -> Planner:
        """Rank the channels of a model.

        Raises:
            UsageError, PlanError: as `Request.check`.
            ModelError: the model cannot be run on the calibration inputs.
        """
        whole = left = model if isinstance(model, Analysis) else analyze(model)
        if request.drop:
            left = analyze(DropBlocks(request.drop)(whole.model))
        request.check(left, request.goal.amounts(whole))
        inputs = calibrate(
            whole.model, request.criterion, request.recover, request.calibration, request.samples
        )
        # Blocks alone go where the ratio is 0, and no order matters.
        criterion = L2 if request.goal.ratio == 0 else request.criterion
        ranking = criterion.rank(Setting(left, inputs, progress))
        if request.goal.ratio != 0:
            ranking = ranked_in_steps(left, request, ranking, request.goal.amounts(whole), inputs, progress)
        if request.sensitivity is not None:
            ranking = request.sensitivity.ranking(left, ranking)
        return Planner(request, whole, left, ranking, inputs)

    def plan(self) -> Plan:
        """A plan for the goal of the request.

        Raises:
            PlanError: the budgets cannot be met.
        """
        request = self.request
        how: dict[str, object] = {"criterion": request.criterion.name, "recover": request.recover}
        if request.steps > 1:
            how["steps"] = request.steps
        if self.inputs is not None:
            how["calibration"] = {"source": self.inputs.source, "digest": self.inputs.digest}
        if request.sensitivity is not None:
            how["sensitivity"] = request.sensitivity.digest

        def make(amounts: Mapping[str, float]) -> Plan:
            made = make_plan(self.left, request.goal, self.ranking, how, amounts)
            return replace(made, blocks=request.drop)

        return used_up(self.whole.model, self.left, request.goal.amounts(self.whole), make)
