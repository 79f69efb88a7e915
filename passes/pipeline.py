"""From a plan to the model it makes, step by step."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from ..analysis.criteria import Criterion
from ..analysis.errors import PlanError, UsageError
from ..analysis.graph import constant_of
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.plan import Plan, select
from ..analysis.selection import Selection
from ..analysis.truncation import Ranks
from .base import run_passes
from .blocks import DropBlocks
from .cleanup import Cleanup
from .criteria import criterion_of
from .data.calibrate import Calibration, Spec, open_calibration
from .data.stretch import stretched, variants_for
from .factorize import Factorize, check_ranks
from .fold import FoldConstants
from .measure.choose import OBS
from .rank_curves import Places
from .rank_fit import of_ranks
from .recover import Refit, recover
from .rotate import principal
from .shrink import Shrink

RECOVERIES = ("least-squares", "none")


def shrunk(model: Model, plan: Plan, analysis: Analysis | None = None) -> Model:
    """The model without the channels and blocks of a plan, cleaned up, its kept weights as they were.

    Raises:
        PlanError: the plan was made for another model.
    """
    shrink = Shrink(plan, None if plan.blocks else analysis)
    return run_passes(model, [DropBlocks(plan.blocks), shrink, FoldConstants(), Cleanup()])


def methods(criterion: str | Criterion | None, recover: str | None) -> tuple[Criterion, str]:
    """The criterion and recovery to use.

    Raises:
        UsageError: there is no criterion of that name.
    """
    return criterion_of(criterion) if criterion else OBS, recover or RECOVERIES[0]


def check_recovery(recover: str) -> None:
    """Before any long work.

    Raises:
        UsageError: there is no recovery of that name.
    """
    if recover not in RECOVERIES:
        raise UsageError(f"there is no recovery '{recover}'; choose one of {', '.join(RECOVERIES)}")


def calibrate(
    model: Model, criterion: Criterion | None, recover: str, given: Calibration | Spec, samples: int
) -> Calibration | None:
    """The inputs to measure on: ``given`` itself, or what it names; None where nothing is measured.

    Args:
        criterion: None where nothing is ranked.

    Raises:
        UsageError: there is no recovery of that name, or the data does not fit the model.
    """
    check_recovery(recover)
    measures = criterion is not None and criterion.measures
    if not measures and recover == "none":
        if given is not None:
            raise UsageError(
                "calibration inputs have no use: neither criterion nor recovery measures anything"
            )
        return None
    return open_calibration(given, model, samples=samples)


def recovery_of(plan: Plan) -> str:
    """How a plan recovers accuracy: a name in `RECOVERIES`; plans of old say nothing and mean "none"."""
    return str(plan.options.get("recover", "none"))


def refitted(
    model: Model,
    smaller: Model,
    plan: Plan,
    calibration: Calibration,
    analysis: Analysis | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> tuple[Model, tuple[Refit, ...]]:
    """``smaller``, what `shrunk` made, with its layers fitted again to the outputs of ``model``.

    Raises:
        UsageError: the inputs are not those the plan was made with.
        ModelError: ONNX Runtime cannot run one of the models on these inputs.
    """
    wanted = plan.options.get("calibration", {}).get("digest")
    if wanted is not None and wanted != calibration.digest:
        raise UsageError(
            f"the plan was made with other calibration inputs ({plan.options['calibration']['source']}) than"
            f" these ({calibration.source}): give the same with --calibration and --samples"
        )
    if plan.blocks or analysis is None:
        analysis = analyze(DropBlocks(plan.blocks)(model))
    rotated = plan.options.get("rotated")
    if rotated:
        turned, _ = principal(analysis, calibration, rotated, progress=progress)
        analysis = analyze(turned)
        smaller = shrunk(turned, replace(plan, blocks=()), analysis)
    ranks = ranks_in(model, smaller, plan, analysis)
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        variants = variants_for(analysis.macs(Selection({})), calibration.samples)
        return recover(
            analysis,
            smaller,
            select(analysis, plan),
            lambda: stretched(calibration.batches, variants),
            Path(folder),
            progress=lambda name: progress(f"fit {name}"),
            variants=variants,
            solver=of_ranks(ranks),
        )


def ranks_in(model: Model, smaller: Model, plan: Plan, analysis: Analysis | None = None) -> dict[str, Ranks]:
    """The ranks of a plan by the names that weights have in ``smaller``, what `shrunk` made of ``model``.

    They come in the order of the layers, so that a plan that was written and read makes the same bytes.

    Raises:
        PlanError: a weight of the plan is none that can be taken apart, or not with these ranks.
    """
    if not plan.ranks:
        return {}
    if plan.blocks or analysis is None:
        analysis = analyze(DropBlocks(plan.blocks)(model))
    places = Places.of(analysis, smaller)
    for weight, ranks in plan.ranks.items():
        if weight not in places.facts:
            raise PlanError(f"the plan takes '{weight}' apart, which is no weight of a layer that can be")
        check_ranks(weight, places.facts[weight], places.shape(weight), ranks)
    return {places.name(weight): plan.ranks[weight] for weight in places.facts if weight in plan.ranks}


def carried_out(model: Model, plan: Plan, calibration: Calibration | None = None) -> Model:
    """What a plan makes of a model.

    Args:
        calibration: what layers are fitted again on, where the plan says so; they are not without.

    Raises:
        PlanError, UsageError, ModelError: as `shrunk` and `finished`.
    """
    return finished(model, shrunk(model, plan), plan, calibration)


def finished(
    model: Model,
    smaller: Model,
    plan: Plan,
    calibration: Calibration | None,
    analysis: Analysis | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> Model:
    """``smaller``, what `shrunk` made, fitted again where the plan says so and with the ranks it has.

    Raises:
        PlanError, UsageError, ModelError: as `ranks_in` and `refitted`.
    """
    ranks = ranks_in(model, smaller, plan, analysis)
    if calibration is not None and recovery_of(plan) != "none":
        smaller = refitted(model, smaller, plan, calibration, analysis, progress)[0]
    return run_passes(smaller, [Factorize(ranks)]) if ranks else smaller


def difference(wanted: onnx.ModelProto, got: onnx.ModelProto) -> str:
    """What tells two models apart, values of weights and added biases aside; empty if nothing."""
    added = {t.name for t in got.graph.initializer} - {t.name for t in wanted.graph.initializer}
    a, b = (_outline(proto, added) for proto in (wanted, got))
    for what in a:
        if a[what] != b[what]:
            return f"its {what} differ"
    return ""


def _outline(proto: onnx.ModelProto, added: set[str]) -> dict[str, object]:
    """All of a model but the values of its float initializers, and inputs that are among ``added``."""
    nodes = []
    for node in proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        inputs = ["" if name in added else name for name in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        del copy.input[:]
        copy.input.extend(inputs)
        nodes.append(copy.SerializeToString(deterministic=True))
    weights = {}
    for tensor in proto.graph.initializer:
        if tensor.name not in added:
            constant = constant_of(tensor)
            learned = constant.is_float
            value = None if learned else tensor.SerializeToString(deterministic=True)
            weights[tensor.name] = (constant.shape, constant.dtype.str, value)
    return {
        "inputs": [info.SerializeToString(deterministic=True) for info in proto.graph.input],
        "outputs": [info.SerializeToString(deterministic=True) for info in proto.graph.output],
        "nodes": nodes,
        "weights": weights,
    }
