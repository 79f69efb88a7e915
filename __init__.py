"""onnx-prune: prune ONNX models at graph level, prove the result, compile it.

    import onnx_prune

    model = onnx_prune.load("model.onnx")
    result = onnx_prune.prune(model, ratio=0.5)
    print(result.before.params, result.after.params, result.verdict.max_relative_error)
    onnx_prune.save(result.model, "smaller.onnx")

`prune` is `plan`, `apply` and `verify` in a row; each can be called by itself. `compile` needs the extra
``tvm``; everything else works without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .analysis.blocks import Block
from .analysis.cost import Cost, measure, predict
from .analysis.errors import (
    BackendError,
    CheckError,
    ModelError,
    OnnxPruneError,
    OutputError,
    PlanError,
    PluginError,
    PluginWarning,
    UsageError,
)
from .analysis.explain import Explanation, explain
from .analysis.export import index_lists, to_json
from .analysis.groups import Analysis, Group, Member, Pin, analyze
from .analysis.model import Model, load
from .analysis.plan import Entry, Goal, Plan, make_plan
from .analysis.scores import rank
from .analysis.selection import Selection
from .passes.blocks import DropBlocks
from .passes.calibrate import SAMPLES, Calibration, open_calibration
from .passes.calibrate import Spec as CalibrationSource
from .passes.choose import FALLBACK, OBS, rank_by_obs
from .passes.pipeline import calibrate, difference, methods, recovery_of, refitted, shrunk
from .passes.recover import Refit
from .passes.save import save
from .passes.soundness import check_rule
from .passes.verify import Verdict, certify
from .passes.weights import take_weights

if TYPE_CHECKING:
    from .backends.base import Backend
    from .backends.cpu import CpuArtifact
    from .backends.measure import Timing

__all__ = [
    "Analysis",
    "BackendError",
    "Block",
    "Calibration",
    "CalibrationSource",
    "CheckError",
    "Cost",
    "Entry",
    "Explanation",
    "Group",
    "Member",
    "Model",
    "ModelError",
    "OnnxPruneError",
    "OutputError",
    "Pin",
    "Plan",
    "PlanError",
    "PluginError",
    "PluginWarning",
    "PruneResult",
    "Refit",
    "UsageError",
    "Verdict",
    "analyze",
    "apply",
    "bench",
    "check_rule",
    "compile",
    "explain",
    "export_lists",
    "load",
    "load_plan",
    "measure",
    "open_calibration",
    "plan",
    "predict",
    "prune",
    "save",
    "take_weights",
    "verify",
    "without_blocks",
]

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
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    multiple: int = 1,
    ignore: Sequence[str] = (),
    criterion: str | None = None,
    recover: str | None = None,
    calibration: Calibration | CalibrationSource = None,
    samples: int = SAMPLES,
    drop: Sequence[str] = (),
    progress: Callable[[str], None] = _silent,
) -> Plan:
    """Choose the channels to remove; see `analysis.plan.make_plan` for the arguments not told here.

    Args:
        criterion: how channels are ranked: "obs" by what their removal costs on calibration inputs once the
            rest is fitted again (`analysis.obs`), or a name in `analysis.scores.CRITERIA` by their weights.
            None is "obs" where calibration inputs are given, and "l2" where not.
        recover: what `apply` does with the weights that stay: "least-squares" fits them again, "none" leaves
            them. None is "least-squares" where calibration inputs are given, and "none" where not.
        calibration: inputs to measure on, as `open_calibration` takes them; synthetic ones when None.
        samples: how many of them are used at most.
        drop: ids of residual blocks that go whole (`Analysis.blocks`); with them alone no channel goes.

    Example:
        ``plan(model, ratio=0.5)`` removes half the units of every group, ``plan(model, macs=0.4)`` leaves
        at most 40 % of the multiply-accumulates.

    Raises:
        UsageError: an argument is out of range or names something unknown.
        PlanError: nothing can be removed, or the budget cannot be met.
    """
    criterion, recover = methods(criterion, recover, calibration)
    analysis = model if isinstance(model, Analysis) else analyze(model)
    whole = analysis
    if drop:
        analysis = analyze(DropBlocks(tuple(drop))(whole.model))
        if ratio is macs is params is None:
            ratio = 0.0
        # A budget is a share of the model that was given.
        macs = macs and min(1.0, macs * whole.macs(Selection({})) / analysis.macs(Selection({})))
        params = params and min(1.0, params * whole.params(Selection({})) / analysis.params(Selection({})))
    goal = Goal(ratio, macs, params, multiple, tuple(ignore))
    goal.check(analysis)
    inputs = calibrate(whole.model, criterion, recover, calibration, samples)
    how: dict[str, object] = {"criterion": criterion, "recover": recover}
    if inputs is not None:
        how["calibration"] = {"source": inputs.source, "digest": inputs.digest}
    if criterion == OBS and ratio != 0 and inputs is not None:
        ranking = rank_by_obs(analysis, inputs, progress=progress)
    else:  # blocks alone go where the ratio is 0, and nothing is ranked
        ranking = rank(analysis, FALLBACK if criterion == OBS else criterion)
    return replace(make_plan(analysis, goal, ranking, how), blocks=tuple(drop))


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
    inputs = calibrate(model, "", recovery_of(plan), calibration, samples)
    if inputs is None:
        return smaller
    return refitted(model, smaller, plan, inputs, analysis, progress)[0]


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
    if recovery_of(plan) == "none":
        return certify(model, pruned, plan, seed, analysis)
    smaller = shrunk(model, plan, analysis)
    verdict = certify(model, smaller, plan, seed, analysis)
    other = difference(smaller.proto, pruned.proto)
    if verdict.ok and other:
        return replace(verdict, ok=False, message=f"apart from its weights the model is another one: {other}")
    return replace(verdict, message=f"{verdict.message}, before its weights were fitted again")


def export_lists(model: Model, plan: Plan) -> str:
    """The positions that stay of every weight by its original name, as JSON, to fine-tune the source model.

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


def prune(
    model: Model,
    *,
    ratio: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    multiple: int = 1,
    ignore: Sequence[str] = (),
    criterion: str | None = None,
    recover: str | None = None,
    calibration: Calibration | CalibrationSource = None,
    samples: int = SAMPLES,
    drop: Sequence[str] = (),
    check: bool = True,
    progress: Callable[[str], None] = _silent,
) -> PruneResult:
    """Plan, apply and verify.

    Args:
        check: run the certificate.
        progress: called with the name of each step as it begins.
        ratio, macs, params, multiple, ignore, criterion, recover, calibration, samples, drop: as in
            `plan`.

    Example:
        ``prune(load("model.onnx"), macs=0.5, calibration="images.npz").after.macs``

    Raises:
        UsageError, PlanError: as `plan`.
    """
    criterion, recover = methods(criterion, recover, calibration)
    seconds: dict[str, float] = {}

    def timed(step: str, work: Callable[[], T]) -> T:
        progress(step)
        start = time.perf_counter()
        result = work()
        seconds[step] = round(time.perf_counter() - start, 4)
        return result

    analysis = timed("analyze", lambda: analyze(model))
    if not drop:  # before any long work
        Goal(ratio, macs, params, multiple, tuple(ignore)).check(analysis)
    inputs = timed("calibrate", lambda: calibrate(model, criterion, recover, calibration, samples))
    chosen = timed(
        "plan",
        lambda: plan(
            analysis,
            ratio=ratio,
            macs=macs,
            params=params,
            multiple=multiple,
            ignore=ignore,
            criterion=criterion,
            recover=recover,
            calibration=inputs,
            drop=drop,
            progress=progress,
        ),
    )
    smaller = timed("apply", lambda: shrunk(model, chosen, analysis))
    verdict = timed("verify", lambda: certify(model, smaller, chosen, analysis=analysis)) if check else None
    refits: tuple[Refit, ...] = ()
    if recover != "none" and inputs is not None:
        smaller, refits = timed(
            "recover", lambda: refitted(model, smaller, chosen, inputs, analysis, progress)
        )
    before, after = measure(model, analysis), measure(smaller)
    source = inputs.source if inputs else None
    return PruneResult(smaller, chosen, verdict, analysis, before, after, seconds, refits, source)


def compile(model: Model, target: str = "cpu", threads: int = 1) -> CpuArtifact:
    """Compile a model with Apache TVM; the artifact runs, and saves itself as one .so.

    Args:
        target: what to compile for; "cpu" is this machine's processor.
        threads: threads its kernels run on.

    Example:
        ``compile(load("smaller.onnx")).save(Path("smaller.so"))``

    Raises:
        UsageError: there is no such target, or ``threads`` is not positive.
        BackendError: TVM is not installed, or cannot take the model.
    """
    from .backends.cpu import CpuBackend

    _check_target(target)
    return CpuBackend(threads).compile(model.proto)


def bench(
    models: Sequence[tuple[str, Model]],
    target: str = "cpu",
    against: str = "onnxruntime",
    threads: int = 1,
) -> list[Timing]:
    """Time models compiled by TVM and in the runtime ``against``, interleaved on the same random inputs.

    Axes whose size is known only at run time have one position.

    Example:
        ``bench([("dense", load("model.onnx")), ("pruned", load("smaller.onnx"))])``

    Raises:
        UsageError: there is no such target or runtime, or ``threads`` is not positive.
        BackendError: TVM is not installed, or one of the runtimes cannot take a model.
    """
    from .backends.cpu import CpuBackend
    from .backends.measure import compare
    from .backends.onnxruntime import OnnxRuntimeBackend

    _check_target(target)
    if against != OnnxRuntimeBackend.name:
        raise UsageError(f"there is no runtime '{against}' to compare with; choose {OnnxRuntimeBackend.name}")
    backends: list[Backend] = [OnnxRuntimeBackend(threads), CpuBackend(threads)]
    return compare([(name, model.proto) for name, model in models], backends, against)


def _check_target(target: str) -> None:
    if target != "cpu":
        raise UsageError(f"there is no target '{target}'; choose cpu")


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
