"""Plan, apply, verify and prune: the passes put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, Unpack

from ..analysis.cost import Cost, measure
from ..analysis.errors import PlanError
from ..analysis.export import index_lists, to_json
from ..analysis.groups import Analysis, analyze
from ..analysis.lowrank import RankCurve
from ..analysis.model import Model
from ..analysis.plan import Goal, Plan, make_plan
from ..analysis.scores import Ranking, rank
from .base import run_passes
from .blocks import DropBlocks
from .calibrate import SAMPLES, Calibration
from .calibrate import Spec as CalibrationSource
from .choose import FALLBACK, OBS, rank_measured, weighed_statistics
from .contract import both, certify_factors, certify_same, contracted
from .factorize import Factorize
from .pipeline import calibrate, difference, methods, ranks_in, recovery_of, refitted, shrunk
from .rank_curves import Places
from .recover import Refit
from .verify import Verdict, certify

T = TypeVar("T")


class GoalOptions(TypedDict, total=False):
    """What to reach: exactly one budget, and what is to be left alone; see `analysis.plan.Goal`."""

    ratio: float | None
    macs: float | None
    params: float | None
    multiple: int
    ignore: Sequence[str]
    low_rank: str | None


class Options(GoalOptions, total=False):
    """What `plan` and `prune` take by keyword.

    Attributes:
        criterion: how channels are ranked: "obs" by what their removal costs on calibration inputs once the
            rest is fitted again (`analysis.obs`), or a name in `analysis.scores.CRITERIA` by their weights.
            None is "obs" where calibration inputs are given, and "l2" where not.
        recover: what `apply` does with the weights that stay: "least-squares" fits them again, "none" leaves
            them. None is "least-squares" where calibration inputs are given, and "none" where not.
        calibration: inputs to measure on, as `open_calibration` takes them; synthetic ones when None.
        samples: how many of them are used at most.
        low_rank: "compete" to write layers as factors of lower rank where that costs less than removing
            channels, "only" with all channels kept; None for no. Budgets are ``macs`` or ``params`` then.
        drop: ids of residual blocks that go whole (`Analysis.blocks`); with them alone no channel goes.
    """

    criterion: str | None
    recover: str | None
    calibration: Calibration | CalibrationSource
    samples: int
    drop: Sequence[str]


@dataclass(frozen=True)
class PruneResult:
    """What `prune` made.

    Attributes:
        model: the smaller model.
        plan: which channels went; replays with `apply`.
        verdict: of the certificate, None when it was not asked for.
        analysis: of the original model: its groups and pins.
        before, after: costs.
        seconds: time of each step.
        refits: what fitting did to each layer.
        calibration: where the inputs came from that channels were chosen and layers were fitted on.
    """

    model: Model
    plan: Plan
    verdict: Verdict | None
    analysis: Analysis
    before: Cost
    after: Cost
    seconds: dict[str, float] = field(default_factory=dict)
    refits: tuple[Refit, ...] = ()
    calibration: str | None = None


def _silent(step: str) -> None:
    """Tell nobody of progress."""


@dataclass(frozen=True)
class _Request:
    """`Options`, taken apart."""

    goal: Goal
    criterion: str
    recover: str
    calibration: Calibration | CalibrationSource
    samples: int
    drop: tuple[str, ...]

    @staticmethod
    def of(options: Options) -> _Request:
        left: dict[str, Any] = dict(options)
        calibration = left.pop("calibration", None)
        criterion, recover = methods(left.pop("criterion", None), left.pop("recover", None), calibration)
        samples, drop = left.pop("samples", SAMPLES), tuple(left.pop("drop", ()))
        left["ignore"] = tuple(left.get("ignore", ()))
        if drop and all(left.get(budget) is None for budget in Goal.BUDGETS):
            left["ratio"] = 0.0
        return _Request(Goal(**left), criterion, recover, calibration, samples, drop)


def plan(
    model: Model | Analysis,
    *,
    progress: Callable[[str], None] = _silent,
    **options: Unpack[Options],
) -> Plan:
    """Choose the channels to remove.

    Args:
        progress: called with the name of each step as it begins.
        options: see `Options`, and `analysis.plan.Goal` for the budgets.

    Example:
        ``plan(model, ratio=0.5)`` removes half the units of every group, ``plan(model, macs=0.4)`` leaves
        at most 40 % of the multiply-accumulates.

    Raises:
        UsageError: an argument is out of range or names something unknown.
        PlanError: nothing can be removed, or the budget cannot be met.
    """
    request = _Request.of(options)
    analysis = model if isinstance(model, Analysis) else analyze(model)
    whole, goal = analysis, request.goal
    curves: tuple[RankCurve, ...] = ()
    if request.drop:
        analysis = analyze(DropBlocks(request.drop)(whole.model))
        goal = goal.as_share_of(whole, analysis)
    goal.check(analysis)
    inputs = calibrate(whole.model, request.criterion, request.recover, request.calibration, request.samples)
    how: dict[str, object] = {"criterion": request.criterion, "recover": request.recover}
    if inputs is not None:
        how["calibration"] = {"source": inputs.source, "digest": inputs.digest}
    places = Places.of(analysis, ignored=goal.ignore) if goal.low_rank is not None else None
    statistics = None
    if request.criterion == OBS and goal.ratio != 0 and inputs is not None:
        keys = [layer.node.key for layer in places.layers.values()] if places else []
        statistics = weighed_statistics(analysis, inputs, progress=progress, layers=keys)
    if goal.low_rank == "only":
        ranking = Ranking({}, {})
    elif statistics is not None:
        ranking = rank_measured(analysis, statistics, progress)
    else:  # blocks alone go where the ratio is 0, and nothing is ranked
        ranking = rank(analysis, FALLBACK if request.criterion == OBS else request.criterion)
    if places is not None:
        curves = tuple(places.curves(statistics, goal.budget()[0], goal.multiple, progress))
    return replace(make_plan(analysis, goal, ranking, how, curves), blocks=request.drop)


def apply(
    model: Model,
    plan: Plan,
    analysis: Analysis | None = None,
    calibration: Calibration | CalibrationSource = None,
    samples: int = SAMPLES,
    progress: Callable[[str], None] = _silent,
) -> Model:
    """The model without the channels that ``plan`` removes, its layers fitted again where the plan says so.

    Args:
        analysis: of ``model``, where there is one already.
        calibration, samples: the inputs the plan was made with.

    Example:
        ``apply(model, plan(model, ratio=0.5))``

    Raises:
        PlanError: the plan was made for another model.
        UsageError: the calibration inputs are not those of the plan.
    """
    smaller = shrunk(model, plan, analysis)
    ranks = ranks_in(model, smaller, plan, analysis)
    inputs = calibrate(model, "", recovery_of(plan), calibration, samples)
    if inputs is not None:
        smaller = refitted(model, smaller, plan, inputs, analysis, progress)[0]
    return run_passes(smaller, [Factorize(ranks)])


def verify(
    model: Model, pruned: Model, plan: Plan, seed: int = 0, analysis: Analysis | None = None
) -> Verdict:
    """The certificate: what ``plan`` makes of ``model`` equals the masked original on random inputs.

    Where weights were fitted again, it is run on the model before that, and ``pruned`` must be the same but
    for the values of its weights.

    Args:
        analysis: of ``model``, where there is one already.

    Raises:
        PlanError: the plan does not fit the model.
        ModelError: one of the two does not run.
    """
    fitted = recovery_of(plan) != "none"
    if not fitted and not plan.ranks:
        return certify(model, pruned, plan, seed, analysis)
    smaller = shrunk(model, plan, analysis)
    verdict = certify(model, smaller, plan, seed, analysis)
    ranks = ranks_in(model, smaller, plan, analysis)
    if verdict.ok and ranks:
        verdict = both(verdict, certify_factors(pruned, smaller, ranks, seed))
    if verdict.ok and not fitted:
        return both(verdict, certify_same(pruned, Factorize(ranks)(smaller), seed))
    other = difference(smaller.proto, contracted(pruned, smaller, ranks).proto) if verdict.ok else ""
    if other:
        return replace(verdict, ok=False, message=f"apart from its weights the model is another one: {other}")
    return replace(verdict, message=f"{verdict.message}, before its weights were fitted again")


def prune(
    model: Model,
    *,
    check: bool = True,
    progress: Callable[[str], None] = _silent,
    **options: Unpack[Options],
) -> PruneResult:
    """Plan, apply and verify.

    Args:
        check: run the certificate.
        progress: called with the name of each step as it begins.
        options: as in `plan`.

    Example:
        ``prune(load("model.onnx"), macs=0.5, calibration="images.npz").after.macs``

    Raises:
        UsageError, PlanError: as `plan`.
    """
    request = _Request.of(options)
    recover = request.recover
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], T]) -> T:
        progress(step)
        start = time.perf_counter()
        result = work()
        seconds[step] = round(time.perf_counter() - start, 4)
        return result

    analysis = timed("analyze", lambda: analyze(model))
    if not request.drop:  # before any long work
        request.goal.check(analysis)
    inputs = timed(
        "calibrate",
        lambda: calibrate(model, request.criterion, recover, request.calibration, request.samples),
    )
    measured: Options = {**options, "criterion": request.criterion, "recover": recover, "calibration": inputs}
    chosen = timed("plan", lambda: plan(analysis, progress=progress, **measured))
    smaller = timed("apply", lambda: shrunk(model, chosen, analysis))
    ranks = ranks_in(model, smaller, chosen, analysis)
    verdict = timed("verify", lambda: certify(model, smaller, chosen, analysis=analysis)) if check else None
    refits: tuple[Refit, ...] = ()
    if recover != "none" and inputs is not None:
        smaller, refits = timed(
            "recover", lambda: refitted(model, smaller, chosen, inputs, analysis, progress)
        )
    if ranks:
        whole = smaller
        smaller = timed("factorize", lambda: run_passes(whole, [Factorize(ranks)]))
        if verdict is not None and verdict.ok:
            verdict = both(verdict, certify_factors(smaller, whole, ranks))
    before, after = measure(model, analysis), measure(smaller)
    source = inputs.source if inputs else None
    return PruneResult(smaller, chosen, verdict, analysis, before, after, seconds, refits, source)


def export_lists(model: Model, plan: Plan) -> str:
    """The positions that stay of every weight by its original name, as JSON, to fine-tune the source model.

    Layers that become factors are whole there: the source model knows no factors.

    Example:
        ``Path("indices.json").write_text(export_lists(model, plan))``

    Raises:
        PlanError: the plan was made for another model.
    """
    return to_json(index_lists(analyze(without_blocks(model, plan.blocks)), plan, analyze(model)))


def without_blocks(model: Model, blocks: Sequence[str]) -> Model:
    """The model without whole residual blocks, each replaced by its skip path.

    Args:
        blocks: ids of `Analysis.blocks`.

    Example:
        ``without_blocks(model, [analyze(model).blocks[-1].id])``

    Raises:
        PlanError: the model has no such block.
    """
    return DropBlocks(tuple(blocks))(model)


def load_plan(path: str | Path) -> Plan:
    """Read a plan from a JSON file, as `Plan.to_json` wrote it.

    Example:
        ``apply(load("model.onnx"), load_plan("plan.json"))``

    Raises:
        PlanError: the file cannot be read, or is no plan.
    """
    try:
        return Plan.from_json(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(
            f"cannot read the plan '{path}': {getattr(error, 'strerror', None) or error}"
        ) from None
