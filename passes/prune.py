"""Plan, apply, verify and prune: the passes put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, Unpack

from ..analysis.cost import Cost, measure
from ..analysis.errors import PlanError
from ..analysis.export import index_lists, to_json
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.plan import Plan
from .base import run_passes
from .blocks import DropBlocks
from .contract import both, certify_factors, certify_same, contracted
from .data.calibrate import SAMPLES, Calibration
from .data.calibrate import Spec as CalibrationSource
from .factorize import Factorize
from .options import Options, Request, read_text
from .pipeline import calibrate, difference, finished, ranks_in, recovery_of, refitted, shrunk
from .planner import Planner
from .recover import Refit
from .search import prepared
from .verify import Verdict, certify

T = TypeVar("T")


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


def plan(
    model: Model | Analysis,
    *,
    progress: Callable[[str], None] = _silent,
    **options: Unpack[Options],
) -> Plan:
    """Choose the channels to remove.

    Args:
        progress: called with the name of each step as it begins.
        options: see `Options`.

    Example:
        ``plan(model, ratio=0.5)`` removes half the units of every group, ``plan(model, macs=0.4)`` leaves
        at most 40 % of the multiply-accumulates, ``plan(model, macs=0.5, bytes=2_000_000)`` at most half of
        them and two megabytes of weights, ``plan(model, latency="4ms", target="onnxruntime")`` what runs in
        4 ms there.

    Raises:
        UsageError: an argument is out of range or names something unknown.
        PlanError: nothing can be removed, or the budget cannot be met.
        BackendError: time is to be measured on a target whose runtime is missing.
    """
    analysis = model if isinstance(model, Analysis) else analyze(model)
    request, search = prepared(Request.of(options), analysis)
    return search(Planner.of(analysis, request, progress), progress)


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
    inputs = calibrate(model, None, recovery_of(plan), calibration, samples)
    return finished(model, smaller, plan, inputs, analysis, progress)


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
    request = Request.of(options)
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
        request.check(analysis)
    request, search = prepared(request, analysis)
    inputs = timed(
        "calibrate",
        lambda: calibrate(model, request.criterion, recover, request.calibration, request.samples),
    )
    request = replace(request, calibration=inputs)
    chosen = timed("plan", lambda: search(Planner.of(analysis, request, progress), progress))
    smaller = timed("apply", lambda: shrunk(model, chosen, analysis))
    verdict = timed("verify", lambda: certify(model, smaller, chosen, analysis=analysis)) if check else None
    ranks = ranks_in(model, smaller, chosen, analysis)
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
        PlanError: the plan was made for another model, or its positions are those of a turned one.
    """
    if plan.options.get("rotated"):
        raise PlanError(
            "the plan turns channels to principal axes, so that its positions are no channels of the"
            " source model: make one with --no-rotate"
        )
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
    return Plan.from_json(read_text(path, "plan"))
