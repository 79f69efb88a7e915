"""Channels and ranks under one budget: what is found, against trying all, and what the plan then does."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import PLAIN, Graph, shapes
from onnx import numpy_helper
from onnx_prune import (
    Analysis,
    Goal,
    Model,
    Plan,
    PlanError,
    UsageError,
    analyze,
    apply,
    load,
    measure,
    open_calibration,
    plan,
    predict,
    prune,
    verify,
)
from onnx_prune.analysis.allocate import allot
from onnx_prune.analysis.budget import Chooser
from onnx_prune.analysis.exact import allot_exactly
from onnx_prune.analysis.lowrank import DENSE, LowRankLayer, RankCurve, find_layers, rank_curve
from onnx_prune.analysis.plan import entries_of
from onnx_prune.analysis.problem import Problem
from onnx_prune.analysis.ranks import RankedProblem
from onnx_prune.analysis.selection import Selection
from onnx_prune.analysis.truncation import Ranks, Truncation
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute
from onnx_prune.passes.factorize import Factorize
from onnx_prune.passes.pipeline import ranks_in, refitted, shrunk
from onnx_prune.passes.rank_curves import Places
from onnx_prune.passes.recover import recover
from recovering import OPTIONS, Real, inputs_of
from test_allocate import chain, curve, ranked
from test_cli import run

RESNET = FOLDER / "digits_resnet.onnx"
WHOLE = Selection({})


# ---------------------------------------------------------------------- layers


def only(model: Model) -> LowRankLayer:
    (layer,) = find_layers(analyze(model)).values()
    return layer


def test_layers_cost_what_their_nodes_do() -> None:
    g = Graph()
    x = g("Relu", g("Conv", g.input(2, 3, 9, 9), g.weight(8, 3, 3, 3), strides=[2, 2], pads=[1] * 4))
    x = g("Reshape", g.conv(x, 8, 6), g.ints(2, 6, 25))
    x = g("MatMul", x, g("Transpose", g.weight(7, 25), perm=[1, 0]))
    x = g("MatMul", g.weight(5, 6), x)
    model = g.model(g("Gemm", g("Reshape", x, g.ints(10, 7)), g.weight(4, 7), g.weight(4), transB=1))
    analysis = analyze(model)
    layers = find_layers(analysis)
    assert {name: layer.node.op for name, layer in layers.items()} == {
        "w0": "Conv",
        "w1": "Conv",
        "w4": "MatMul",
        "w5": "MatMul",
        "w7": "Gemm",
    }
    assert sum(layer.dense("macs", WHOLE) for layer in layers.values()) == measure(model).macs
    biases = 6 + 4
    params = sum(layer.dense("params", WHOLE) for layer in layers.values())
    assert params + biases == measure(model).params


def cost(layer: LowRankLayer, ranks: Ranks, name: str) -> float:
    return layer.dense(name, WHOLE) + layer.extra(ranks, name, WHOLE)


@pytest.mark.parametrize("kind", ["macs", "params", "bytes"])
@pytest.mark.parametrize("ranks", [Ranks(2, None), Ranks(None, 3), Ranks(2, 3)], ids=str)
def test_factors_cost_what_is_told(ranks: Ranks, kind: Any) -> None:
    g = Graph()
    model = g.model(g("Conv", g.input(2, 6, 9, 9), g.weight(8, 6, 3, 3), strides=[2, 2], pads=[1] * 4))
    told = cost(only(model), ranks, kind)
    assert getattr(measure(Factorize({"w0": ranks})(model)), kind) == told


def test_a_shared_or_fed_or_grouped_weight_is_no_choice() -> None:
    g = Graph()
    shared = g.weight(8, 8, 1, 1)
    x = g("Conv", g("Conv", g.input(1, 8, 5, 5), shared), shared)
    x = g.conv(x, 8, 8, 3, group=2)
    x = g.conv(x, 8, 8, 3, group=8)
    fed = g.weight(8, 8, 1, 1)
    model = g.model(g("ConvTranspose", g("Conv", x, fed), g.weight(8, 3, 2, 2)))
    model.proto.graph.input.append(onnx.helper.make_tensor_value_info(fed, 1, [8, 8, 1, 1]))
    assert not find_layers(analyze(model))


@pytest.mark.parametrize("name", ["w0", "conv0_0", "Conv_0"])
def test_ignored_layers_stay(name: str) -> None:
    model = chain(16)
    assert set(find_layers(analyze(model))) == {"w0", "w2"}
    assert set(find_layers(analyze(model), [name])) == {"w2"}


def test_options_are_those_that_nothing_beats() -> None:
    g = Real()
    layer = only(g.model(g("Conv", g.input(1, 12, 6, 6), g.weight(16, 12, 3, 3), pads=[1] * 4)))
    weight = np.random.default_rng(0).standard_normal((108, 16))
    found = rank_curve(layer, Truncation(weight, 12), 2.0, 1, ["macs"])
    assert found.options[0] == DENSE and found.errors[0] == 0
    costs = [cost(layer, ranks, "macs") for ranks in found.options]
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == len(costs)
    assert np.all(np.diff(found.errors) >= 0)
    told = dict(Truncation(weight, 12).errors(*layer.candidates(1)))
    for ranks, error in zip(found.options[1:], found.errors[1:], strict=True):
        assert error == pytest.approx(2 * told[ranks])
        own = cost(layer, ranks, "macs")
        others = (r for r in told if r and layer.fitting(r, WHOLE) == r)
        assert not any(cost(layer, r, "macs") < own and told[r] < told[ranks] for r in others)


def test_ranks_are_multiples_where_that_is_asked() -> None:
    g = Graph()
    layer = only(g.model(g("Conv", g.input(1, 30, 6, 6), g.weight(50, 30, 3, 3))))
    for ladder in layer.candidates(8):
        assert ladder[-1] is None and all(rank is not None and rank % 8 == 0 for rank in ladder[:-1])
        assert len(ladder) > 2


def test_a_rank_of_no_use_at_the_width_that_is_left_is_dropped() -> None:
    model = chain(16, 20)
    analysis = analyze(model)
    layer = find_layers(analysis)["w2"]  # from 16 to 20
    first, second = (group.axis for group in analysis.groups)
    assert layer.fitting(Ranks(None, 6), WHOLE) == Ranks(None, 6)
    assert layer.fitting(Ranks(None, 6), Selection({first: np.arange(6)})) == DENSE
    assert layer.fitting(Ranks(None, 6), Selection({second: np.arange(5)})) == DENSE


# ---------------------------------------------------------------------- the choice


def curves_for(analysis: Analysis, seed: int, scale: float) -> list[RankCurve]:
    """Options of a few ranks for each layer, with errors that rise as the rank falls."""
    rng = np.random.default_rng(seed)
    found = []
    for layer in find_layers(analysis).values():
        ranks = [Ranks(None, r) for r in (5, 3, 2)]
        errors = scale * curve(8, rng)[[0, 3, 5, 7]]
        found.append(RankCurve(layer, (DENSE, *ranks), errors))
    return found


def problem_of(analysis: Analysis, seed: int, scale: float, **budgets: float) -> RankedProblem:
    ranking, goal = ranked(analysis, seed), Goal(budgets=budgets)
    limits = goal.limits_on(analysis, goal.amounts(analysis))
    channels = Problem(Chooser(analysis, ranking.scores), ranking, limits)
    return RankedProblem.of(analysis, channels, curves_for(analysis, seed, scale))


def least_error(problem: RankedProblem) -> float:
    """Of all choices there are."""
    ladders = [problem.ladder(k, 99) for k in range(problem.count)]
    found = np.inf
    for rungs in product(*(range(len(ladder.ratios)) for ladder in ladders)):
        lost = sum(ladder.errors[i] for ladder, i in zip(ladders, rungs, strict=True))
        ratios = [float(ladder.ratios[i]) for ladder, i in zip(ladders, rungs, strict=True)]
        if lost < found and problem.fits(ratios):
            found = lost
    return float(found)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("budgets", [{"macs": 0.7}, {"macs": 0.4}, {"macs": 0.6, "bytes": 0.4}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_near_the_best_of_all(seed: int, budgets: dict[str, float], scale: float) -> None:
    analysis = analyze(chain(10, 12, first=12, last=14))
    problem = problem_of(analysis, seed, scale, **budgets)
    ratios, exact = allot(problem), allot_exactly(problem)
    best = least_error(problem)
    worst = max(float(problem.ranking.errors[g.axis][-2]) for g in analysis.groups)
    assert problem.fits(ratios) and best <= problem.errors(ratios) + 1e-12
    assert problem.errors(ratios) <= 1.3 * best + 0.05 * worst
    assert problem.fits(exact.ratios)
    assert problem.errors(exact.ratios) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("name", ["macs", "params", "bytes", "memory"])
def test_terms_tell_what_the_model_will_use(name: str) -> None:
    """The sums that are searched are those of the factors: of a memory, no less."""
    analysis = analyze(chain(16, 24, first=12, last=14))
    problem = problem_of(analysis, 0, 1.0, **{"macs": 0.5, name: 0.5})
    ratios = [0.5, 0.25, 0.5, 0.25, 0.75]
    selection, ranks = problem.choice(ratios)
    assert len(ranks) == 3
    entries = plan(analysis.model, macs=0.99, **PLAIN)
    made = Plan(entries_of(analysis, selection), entries.options, ranks=ranks)
    used = dict(zip((limit.name for limit in problem.limits), problem.usage(ratios), strict=True))[name]
    limit = next(limit for limit in problem.limits if limit.name == name)
    after = getattr(measure(apply(analysis.model, made)), name)
    assert after <= used * limit.amount + 1e-6
    if name != "memory":
        assert after == pytest.approx(used * limit.amount)
    assert getattr(predict(analysis, made), name) == pytest.approx(used * limit.amount)


@pytest.mark.parametrize(("scale", "wanted"), [(1e-9, "ranks"), (1e9, "channels")])
def test_what_costs_nothing_is_taken(scale: float, wanted: str) -> None:
    analysis = analyze(chain(16, 24, first=12, last=14))
    problem = problem_of(analysis, 0, scale, macs=0.6)
    selection, ranks = problem.choice(allot(problem))
    shrinks = any(selection.shrinks(group.axis) for group in analysis.groups)
    assert (bool(ranks), shrinks) == ((True, False) if wanted == "ranks" else (False, True))


# ---------------------------------------------------------------------- the plan


def test_a_plan_without_ranks_says_nothing_of_them() -> None:
    made = plan(chain(16), ratio=0.5, **PLAIN)
    assert not made.ranks and "rank" not in made.to_json()
    assert Plan.from_json(made.to_json()).digest == made.digest


def test_a_plan_with_ranks_replays_to_the_same_bytes() -> None:
    model = load(RESNET)
    chosen = plan(model, macs=0.4, low_rank="only", **PLAIN)
    written = json.loads(chosen.to_json())["ranks"]
    assert written and written == {name: ranks.to_json() for name, ranks in sorted(chosen.ranks.items())}
    again = Plan.from_json(chosen.to_json())
    assert again == chosen and again.digest == chosen.digest
    first, second = apply(model, chosen), apply(load(RESNET), again)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(
        deterministic=True
    )


def test_the_order_of_ranks_in_a_plan_is_of_no_account() -> None:
    model = load(RESNET)
    chosen = plan(model, macs=0.4, low_rank="only", **PLAIN)
    turned = replace(chosen, ranks=dict(reversed(chosen.ranks.items())))
    assert list(turned.ranks) != list(chosen.ranks) and turned.digest == chosen.digest
    first, second = (
        apply(model, each).proto.SerializeToString(deterministic=True) for each in (chosen, turned)
    )
    assert first == second


@pytest.mark.parametrize("text", ['"ranks": []', '"ranks": {"w": "x"}', '"ranks": {"w": [1, 2, 3]}'])
def test_malformed_ranks(text: str) -> None:
    made = plan(chain(16), ratio=0.5, **PLAIN).to_json()
    with pytest.raises(PlanError, match="malformed"):
        Plan.from_json(made.replace('"groups"', f'{text}, "groups"'))


@pytest.mark.parametrize("mode", ["only", "compete"])
@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.2])
def test_budgets_are_met_and_not_far_undershot(budget: str, fraction: float, mode: str) -> None:
    model = load(RESNET)
    chosen = plan(model, low_rank=mode, **{budget: fraction}, **PLAIN)
    before, after = measure(model), measure(apply(model, chosen))
    left = getattr(after, budget) / getattr(before, budget)
    assert fraction - 0.02 <= left <= fraction
    told = predict(analyze(model), chosen)
    assert told.macs == after.macs and told.memory >= after.memory
    assert after.params <= told.params <= after.params + 0.01 * before.params  # norms are folded


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"ratio": 0.5, "low_rank": "only"}, UsageError, "macs, params or bytes"),
        ({"memory": 0.5, "low_rank": "compete"}, UsageError, "macs, params or bytes"),
        ({"macs": 0.5, "low_rank": "only", "steps": 2}, UsageError, "steps"),
        ({"macs": 0.5, "low_rank": "magic"}, UsageError, "compete"),
        ({"macs": 0.01, "low_rank": "only"}, PlanError, "cannot be reached"),
        ({"macs": 0.5, "low_rank": "only", "ignore": ["nobody"]}, UsageError, "nobody"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        plan(chain(16, 16), **(PLAIN | arguments))


def test_a_plan_for_another_model_is_refused() -> None:
    chosen = Plan((), {}, ranks={"nobody": Ranks(None, 2)})
    for use in (lambda: apply(chain(16), chosen), lambda: predict(analyze(chain(16)), chosen)):
        with pytest.raises(PlanError, match="nobody"):
            use()


@pytest.mark.parametrize(
    ("ranks", "told"), [(Ranks(40, None), "1 to 32"), (Ranks(4, 64), "1 to 32"), (Ranks(0), "not 0")]
)
def test_ranks_that_were_edited_are_checked_before_anything_is_fitted(ranks: Ranks, told: str) -> None:
    chosen = Plan((), {"recover": "least-squares"}, ranks={"3.conv1.weight": ranks})
    with pytest.raises(PlanError, match=told):
        apply(load(RESNET), chosen)


def test_all_channels_stay_where_ranks_alone_are_asked() -> None:
    result = prune(load(RESNET), macs=0.5, low_rank="only", **PLAIN)
    assert not result.plan.entries and result.plan.ranks
    assert result.plan.options["low_rank"] == "only"


# ---------------------------------------------------------------------- folded weights


def test_norms_and_transposed_weights_are_seen_through() -> None:
    """The plan names the weights of the model; the pruned one has others in their place."""
    g = Real()
    x = g.norm(g("Conv", g.input(2, 8, 6, 6), g.weight(12, 8, 3, 3)), 12)
    x = g("Reshape", g("Relu", x), g.ints(2, 192))
    model = g.model(g("MatMul", x, g("Transpose", g.weight(20, 192), perm=[1, 0])))
    places = Places.of(analyze(model))
    names = set(places.facts)
    assert len(names) == 2 and names <= set(shapes(model))
    assert {places.name(name) for name in names}.isdisjoint(names)
    result = prune(model, macs=0.2, low_rank="only", **PLAIN)
    assert set(result.plan.ranks) == names
    assert result.verdict is not None and result.verdict.ok
    assert "BatchNormalization" not in {node.op_type for node in result.model.proto.graph.node}
    assert verify(model, result.model, result.plan).ok


# ---------------------------------------------------------------------- fitting


def net() -> Model:
    g = Real()
    x = g("Tanh", g("MatMul", g.input("N", 10), g.weight(10, 14)))
    x = g("Tanh", g("Gemm", x, g.weight(14, 12), g.weight(12)))
    return g.model(g("Gemm", x, g.weight(12, 6), g.weight(6)))


def fitted(model: Model, ranks: dict[str, Ranks]) -> Model:
    calibration = open_calibration(inputs_of(model, 0, 256), model)
    made = Plan((), OPTIONS | {"calibration": {"digest": calibration.digest}}, ranks=ranks)
    smaller = shrunk(model, made)
    assert ranks_in(model, smaller, made) == ranks
    return refitted(model, smaller, made, calibration)[0]


def error_of(model: Model, other: Model, seed: int = 7) -> float:
    inputs = inputs_of(model, seed, 64)
    (wanted,), (got,) = (list(execute(m.proto, inputs).values()) for m in (model, other))
    return float(np.square(wanted - got).sum() / np.square(wanted - wanted.mean(axis=0)).sum())


def test_weights_are_fitted_with_their_rank_and_come_apart_without_loss() -> None:
    model, ranks = net(), {"w0": Ranks(None, 6), "w1": Ranks(None, 5)}
    made = fitted(model, ranks)
    for tensor in made.proto.graph.initializer:
        if tensor.name in ranks:
            values = np.linalg.svd(numpy_helper.to_array(tensor), compute_uv=False)
            rank = ranks[tensor.name].outputs
            assert values[rank - 1] > 1e-3 * values[0] and values[rank] < 1e-6 * values[0]
    apart = Factorize(ranks)(made)
    assert error_of(made, apart) < 1e-10


def test_fitting_with_the_rank_is_better_than_cutting_it_off() -> None:
    model, ranks = net(), {"w0": Ranks(None, 6), "w1": Ranks(None, 5)}
    blind = error_of(model, Factorize(ranks)(model))
    assert error_of(model, Factorize(ranks)(fitted(model, ranks))) < 0.7 * blind


def test_of_a_factorised_model_the_last_factors_are_fitted(tmp_path: Path) -> None:
    """They give what a layer of the dense model does; the first ones give nothing it knows, and stay."""
    model, ranks = net(), {"w0": Ranks(None, 6), "w1": Ranks(None, 5)}
    apart = Factorize(ranks)(model)
    batches = [inputs_of(model, k, 64) for k in range(4)]
    again, _ = recover(analyze(model), apart, WHOLE, lambda: iter(batches), tmp_path)
    before, after = ({t.name: t.raw_data for t in m.proto.graph.initializer} for m in (apart, again))
    moved = {name for name in before if before[name] != after[name]}
    assert {"w0.core", "w1.core"}.isdisjoint(moved)
    assert "w1.last" in moved
    assert error_of(model, again) < error_of(model, apart)


def test_plan_apply_and_verify_with_data(tmp_path: Path) -> None:
    model = load(RESNET)
    images = load_digits("train").images[:48]
    result = prune(model, macs=0.3, low_rank="compete", calibration={"x": images})
    assert result.verdict is not None and result.verdict.ok
    assert result.plan.ranks and result.after.macs <= 0.3 * result.before.macs
    again = apply(model, Plan.from_json(result.plan.to_json()), calibration={"x": images})
    assert again.proto.SerializeToString(deterministic=True) == result.model.proto.SerializeToString(
        deterministic=True
    )
    assert verify(model, result.model, result.plan).ok
    first = next(iter(result.plan.ranks))
    without = Plan(result.plan.entries, result.plan.options)
    assert not verify(model, result.model, without).ok
    assert first in {*shapes(model)}


def test_weights_moved_after_a_plan_without_fitting_are_found() -> None:
    model = load(RESNET)
    result = prune(model, macs=0.5, low_rank="only", **PLAIN)
    assert verify(model, result.model, result.plan).ok
    proto = onnx.ModelProto()
    proto.CopyFrom(result.model.proto)
    factor = next(t for t in proto.graph.initializer if t.name.endswith((".first", ".core")))
    value = numpy_helper.to_array(factor) * np.float32(1.01)
    factor.CopyFrom(numpy_helper.from_array(value, factor.name))
    assert not verify(model, Model(proto), result.plan).ok


def test_goal_and_curves_without_channels() -> None:
    """A model of which no channel can go may still have layers of lower rank."""
    g = Real()
    model = g.model(g("Gemm", g.input("N", 20), g.weight(20, 16), g.weight(16)))
    assert not analyze(model).groups
    result = prune(model, macs=0.5, low_rank="compete", **PLAIN)
    assert result.after.macs <= 0.5 * result.before.macs and result.verdict is not None and result.verdict.ok
    with pytest.raises(PlanError):
        Goal(budgets={"macs": 0.5}).check(analyze(model))


# ---------------------------------------------------------------------- the zoo


@pytest.mark.parametrize(
    "name",
    ["hf_bert", "timm_vit_tiny_patch16_224", "x_unet", "timm_convnext_atto", "hf_mamba"],
)
def test_factors_of_zoo_graphs_hold_their_certificate(name: str) -> None:
    model = Model(zoo.load(name))
    result = prune(model, macs=0.6, low_rank="only", **PLAIN)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    assert "factors against their product" in result.verdict.message
    assert result.plan.ranks and result.after.macs <= 0.6 * result.before.macs
    assert result.model.proto.graph.output == model.proto.graph.output


# ---------------------------------------------------------------------- the command


def test_the_commands(tmp_path: Path) -> None:
    out, saved = tmp_path / "out.onnx", tmp_path / "plan.json"
    few = ("--calibration", "onnx_prune.models.digits:unlabelled", "--samples", "48")
    done = run("factorize", RESNET, "-o", out, "--macs", "50%", "--save-plan", saved, "--json", "-", *few)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["ranks"] and told["verify"]["ok"] and told["macs"]["after"] <= 0.5 * told["macs"]["before"]
    assert f"wrote {len(told['ranks'])} layers as factors" in done.stderr
    assert run("verify", RESNET, out, "--plan", saved).returncode == 0
    again = tmp_path / "again.onnx"
    assert run("apply", RESNET, saved, "-o", again, *few).returncode == 0
    assert again.read_bytes() == out.read_bytes()
    done = run("plan", RESNET, "-o", saved, "--macs", "50%", "--low-rank", *few)
    assert done.returncode == 0 and "factors of lower rank" in done.stderr
    assert run("prune", RESNET, "-o", out, "--ratio", "0.5", "--low-rank").returncode == 2
