"""Budgets as shares and amounts, limits of single groups, and what kept counts are rounded to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import PLAIN, Graph, pruned
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, Plan, PlanError, UsageError, analyze, apply, load, measure, plan
from onnx_prune.analysis.alignment import alignment, convolved
from onnx_prune.analysis.resources import RESOURCES
from onnx_prune.cli.amounts import budget, limits
from onnx_prune.models.digits import FOLDER

RESNET = FOLDER / "digits_resnet.onnx"


def chain(*sizes: int) -> Model:
    """1×1 convolutions; the weights of the groups are w0, w2, …"""
    g = Graph()
    x, before = g.input(1, 3, 4, 4), 3
    for size in sizes:
        x, before = g("Relu", g.conv(x, before, size)), size
    return g.model(g.conv(x, before, 4))


def kept(chosen: Plan) -> dict[str, int]:
    return {entry.group: len(entry.keep) for entry in chosen.entries}


def counts(model: Model, **options: Any) -> list[int]:
    """How many units stay of each group."""
    chosen = kept(plan(model, **(PLAIN | options)))
    return [chosen.get(group.id, group.size) for group in analyze(model).groups]


# ---------------------------------------------------------------------- budgets


@pytest.mark.parametrize("resource", ["macs", "params", "bytes", "memory"])
def test_a_share_and_the_same_amount_choose_the_same(resource: str) -> None:
    model = load(RESNET)
    whole = getattr(measure(model), resource)
    share = plan(model, **{resource: 0.5}, **PLAIN)
    amount = plan(model, **{resource: whole // 2}, **PLAIN)
    assert share.entries == amount.entries
    assert share.options[resource] == 0.5 and amount.options[resource] == whole // 2


@pytest.mark.parametrize("resource", ["macs", "params", "bytes", "memory"])
def test_the_model_that_comes_out_meets_the_budget(resource: str) -> None:
    """Cleanup folds normalisations away, which a plan by itself would leave unused."""
    model = load(RESNET)
    smaller = apply(model, plan(model, **{resource: 0.5}, multiple=1, **PLAIN))
    used = getattr(measure(smaller), resource) / getattr(measure(model), resource)
    assert 0.495 <= used <= 0.5


def test_several_budgets_hold_together() -> None:
    model = load(RESNET)
    smaller = apply(model, plan(model, macs=0.6, bytes=0.5, memory=0.7, **PLAIN))
    before, after = measure(model), measure(smaller)
    assert after.macs <= 0.6 * before.macs
    assert after.bytes <= 0.5 * before.bytes
    assert after.memory <= 0.7 * before.memory


def test_bytes_count_what_a_type_takes() -> None:
    """Two layers of as many weights, one stored in 16 bits: that one gives up fewer bytes a unit."""
    model = chain(64, 64)
    for tensor in model.proto.graph.initializer:
        if tensor.name == "w2":
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, "half"))
    node = next(n for n in model.proto.graph.node if "w2" in n.input)
    cast = helper.make_node("Cast", ["half"], ["w2"], to=TensorProto.FLOAT)
    position = list(model.proto.graph.node).index(node)
    model.proto.graph.node.insert(position, cast)
    cost = measure(model)
    assert cost.bytes == 4 * cost.params - 2 * 64 * 64
    assert [t.scale for t in RESOURCES["bytes"].terms(analyze(model))].count(2.0) == 1
    smaller = measure(apply(model, plan(model, bytes=0.5, multiple=1, **PLAIN)))
    assert 0.49 <= smaller.bytes / cost.bytes <= 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"macs": 1.5}, "out of range"),
        ({"macs": "50%"}, "'50%' is not a number"),
        ({"bytes": -3}, "out of range"),
        ({"memory": 0}, "out of range"),
        ({"ratio": 0.5, "bytes": 0.5}, "exactly one"),
        ({"ratio": 0.5, "limits": {"w0": (1.5, None)}}, "share or a count"),
        ({"ratio": 0.5, "limits": {"w0": (-1, None)}}, "share or a count"),
        ({"ratio": 0.5, "limits": {"w0": (0.8, 0.2)}}, "contradict"),
        ({"ratio": 0.5, "limits": {"nobody": (0.8, 0.9)}}, "cannot limit 'nobody'"),
    ],
)
def test_goals_that_make_no_sense(options: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        plan(chain(16), **options, **PLAIN)


def test_an_amount_out_of_reach_says_what_is_reachable() -> None:
    with pytest.raises(PlanError, match=r"40 bytes of weights cannot be reached: .* which is \d+"):
        plan(chain(16, 16), bytes=40, **PLAIN)


# ---------------------------------------------------------------------- limits


def test_limits_hold_for_a_ratio() -> None:
    model = chain(40, 40, 40)
    free = {"multiple": 1, "ratio": 0.5}
    assert counts(model, **free) == [20, 20, 20]
    assert counts(model, **free, limits={"w0:0": (0.75, None)}) == [30, 20, 20]
    assert counts(model, **free, limits={"w0:0": (30, None), "w4:0": (None, 10)}) == [30, 20, 10]
    assert counts(model, multiple=1, ratio=0.0, limits={"w2:0": (None, 0.25)}) == [40, 10, 40]


def test_limits_hold_for_a_budget() -> None:
    model = chain(40, 40, 40)
    chosen = counts(model, macs=0.3, multiple=1, limits={"w2:0": (36, 38), "w4:0": (None, 12)})
    assert 36 <= chosen[1] <= 38 and chosen[2] <= 12
    assert measure(apply(model, plan(model, macs=0.3, **PLAIN))).macs <= 0.3 * measure(model).macs


def test_a_node_limits_the_groups_it_touches() -> None:
    model = chain(40, 40, 40)
    assert counts(model, ratio=0.5, multiple=1, limits={"Conv_2": (0.9, None)}) == [36, 36, 20]


def test_limits_pass_on_to_blocks_that_keep_equal_counts() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 32)
    model = g.model(g.conv(g.conv(x, 32, 32, group=4), 32, 4))
    first = analyze(model).groups[0].id
    _, chosen, verdict = pruned(model, 0.75, multiple=1, limits={first: (None, 1)})
    assert verdict.ok
    sizes = {entry.group: len(entry.keep) for entry in chosen.entries}
    assert sizes[first] == 1
    siblings = [
        g.id for axes, _ in analyze(model).same_counts() for g in analyze(model).groups if g.axis in axes
    ]
    assert len({sizes[name] for name in siblings if name in sizes}) <= 2


def test_a_budget_that_limits_forbid_is_refused() -> None:
    with pytest.raises(PlanError, match="cannot be reached"):
        plan(chain(40, 40), macs=0.5, limits={"w0:0": (0.9, None), "w2:0": (0.9, None)}, **PLAIN)


# ---------------------------------------------------------------------- alignment


@pytest.mark.parametrize(
    ("size", "multiple"),
    [(6, 1), (8, 1), (15, 1), (16, 4), (18, 1), (24, 4), (32, 4), (60, 4), (64, 8), (100, 4)],
)
def test_what_suits_an_axis(size: int, multiple: int) -> None:
    assert alignment(size) == multiple


def test_kept_counts_suit_each_axis() -> None:
    assert counts(chain(6, 24, 64), ratio=0.3) == [5, 20, 48]
    assert counts(chain(6, 24, 64), ratio=0.3, multiple=1) == [5, 17, 45]
    assert counts(chain(6, 24, 64), ratio=0.3, multiple=16) == [6, 24, 48]


def test_less_than_one_multiple_is_a_power_of_two() -> None:
    assert counts(chain(64, 64, 64), ratio=0.97) == [2, 2, 2]
    assert counts(chain(64, 64, 64), ratio=0.92) == [8, 8, 8]
    assert counts(chain(64, 64, 64), ratio=0.94) == [4, 4, 4]


def test_channels_of_convolutions_are_rounded_and_widths_of_products_are_not() -> None:
    """A stream that starts in a convolution belongs to the products that read it; one that a convolution
    reads is its channels, however many products there are."""
    for reads in (False, True):
        g = Graph()
        x = g.conv(g.input(1, 3, 8, 8), 3, 64)
        if reads:
            x = g("Conv", x, g.weight(64, 1, 3, 3), group=64, pads=[1] * 4)
        x = g("Transpose", g("Reshape", x, g.ints(1, 64, 64)), perm=[0, 2, 1])
        x = g("Relu", g("MatMul", x, g.weight(64, 80)))
        model = g.model(g("MatMul", x, g.weight(80, 3)))
        analysis = analyze(model)
        stream, hidden = sorted(analysis.groups, key=lambda group: group.size)
        assert (stream.size, hidden.size) == (64, 80)
        assert convolved(analysis) == ({stream.axis} if reads else set())
        sizes = dict(zip([group.size for group in analysis.groups], counts(model, ratio=0.3), strict=True))
        assert sizes == {64: 48 if reads else 45, 80: 56}


def test_heads_are_not_rounded() -> None:
    g = Graph()
    x = g.input(1, 4, 8)
    h = g("MatMul", x, g.weight(8, 20 * 4))
    h = g("Reshape", h, g.ints(1, 4, 20, 4))
    h = g("Transpose", h, perm=[0, 2, 1, 3])
    h = g("Softmax", h, axis=-1)
    h = g("Reshape", g("Transpose", h, perm=[0, 2, 1, 3]), g.ints(1, 4, 80))
    model = g.model(g("MatMul", h, g.weight(80, 3)))
    assert 15 in counts(model, ratio=0.25)


# ---------------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("text", "resource", "amount"),
    [
        ("50%", "macs", 0.5),
        ("50", "macs", 0.5),
        ("0.5%", "params", 0.005),
        ("200M", "macs", 200_000_000),
        ("1.5m", "params", 1_500_000),
        ("5k", "params", 5000),
        ("10MB", "bytes", 10_000_000),
        ("10 MiB", "bytes", 10 << 20),
        ("640KiB", "memory", 640 << 10),
        ("512B", "memory", 512),
        ("100%", "memory", 1.0),
    ],
)
def test_amounts(text: str, resource: str, amount: float) -> None:
    found = budget(text, resource)
    assert found == amount and type(found) is type(amount)


@pytest.mark.parametrize(
    ("text", "resource"), [("half", "macs"), ("10MB", "macs"), ("5M", "bytes"), ("", "macs")]
)
def test_what_is_no_amount(text: str, resource: str) -> None:
    with pytest.raises(UsageError, match=f"--{resource}"):
        budget(text, resource)


def test_limits_are_read() -> None:
    told = ["conv1.weight:0=8:32", "a=b=25%:75%", "head=:50%", "tail=4:"]
    assert limits(told) == {
        "conv1.weight:0": (8, 32),
        "a=b": (0.25, 0.75),
        "head": (None, 0.5),
        "tail": (4, None),
    }


@pytest.mark.parametrize("text", ["a", "a=", "a=:", "a=1", "=1:2", "a=1:2:3", "a=x:2", "a=0.5:1"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(UsageError, match="--limit"):
        limits([text])
