"""A change of basis: the model computes the same, and few units carry most of what is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import Graph
from onnx import numpy_helper
from onnx_prune import Model, PlanError, analyze, apply, export_lists, load, load_plan, plan, prune, verify
from onnx_prune.analysis.basis import Bases
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.execute import execute, random_inputs
from onnx_prune.passes.rotate import Rotate
from onnx_prune.passes.verify import same
from recovering import Real
from test_cli import run

MOBILENET = FOLDER / "digits_mobilenet.onnx"
OPTIONS: dict[str, Any] = {"macs": 0.5, "calibration": "onnx_prune.models.digits:unlabelled"}


def stream(g: Graph) -> str:
    """A residual stream of 8 channels that linear operators make and read."""
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    for _ in range(2):
        x = g("Add", x, g.conv(g("Relu", g.conv(x, 8, 6, 3)), 6, 8))
    return g.conv(x, 8, 3)


def pooled(g: Graph) -> str:
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    x = g("AveragePool", g("Neg", x), kernel_shape=[2, 2], strides=[2, 2])
    x = g("Flatten", g("GlobalAveragePool", x))
    return g("Gemm", x, g.weight(3, 8), g.weight(3), transB=1)


def spread(g: Graph) -> str:
    x = g("ConvTranspose", g.input(1, 3, 4, 4), g.weight(3, 8, 2, 2), g.weight(8), strides=[2, 2])
    return g("Conv", g("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1)), g.weight(3, 8, 3, 3))


def tokens(g: Graph) -> str:
    """A token of its own before those of the input, and positions that are added."""
    x = g("MatMul", g.input(1, 5, 4), g.weight(4, 8))
    x = g("Add", g("Concat", g.weight(1, 1, 8), x, axis=1), g.weight(1, 6, 8))
    return g("MatMul", g("Transpose", g("Transpose", x, perm=[1, 0, 2]), perm=[1, 0, 2]), g.weight(8, 3))


def attention(g: Graph, between: Callable[[Graph, str], str] = lambda g, x: x) -> str:
    """Two heads of 4: queries and keys are one basis, values another."""
    x = g.input(1, 5, 6)
    q, k, v = (
        g("Transpose", g("Reshape", g("Add", g("MatMul", x, g.weight(6, 8)), g.weight(8)), shape), perm=perm)
        for shape, perm in ((g.ints(1, 5, 2, 4), p) for p in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    )
    scores = g("Mul", g("MatMul", q, k), g.scalar(2.0))
    mixed = g("MatMul", g("Relu", scores), between(g, v))
    flat = g("Reshape", g("Transpose", mixed, perm=[0, 2, 1, 3]), g.ints(1, 5, 8))
    return g("MatMul", flat, g.weight(8, 3))


def signs(size: int, seed: int) -> np.ndarray:
    """An orthogonal matrix of integers: units in another order, some of them negated."""
    rng = np.random.default_rng(seed)
    return np.eye(size)[rng.permutation(size)] * rng.choice([-1, 1], size)


@pytest.mark.parametrize(
    ("build", "sizes"),
    [(stream, [8]), (pooled, [8]), (spread, [8]), (tokens, [8]), (attention, [4, 4])],
)
def test_another_basis_is_the_same_to_the_last_bit(build: Callable[[Graph], str], sizes: list[int]) -> None:
    g = Graph(seed=3)
    model = g.model(build(g))
    analysis = analyze(model)
    free = Bases(analysis).free
    assert [group.size for group in free if group.size in (4, 8)] == sizes
    turned = Rotate({group.axis: signs(group.size, 7) for group in free})(analysis)
    before, after = (
        {t.name: numpy_helper.to_array(t) for t in m.proto.graph.initializer} for m in (model, turned)
    )
    assert any((before[name] != after[name]).any() for name in before)
    for seed in range(3):
        inputs = random_inputs(model.proto, seed)
        inputs = {name: np.round(4 * value) for name, value in inputs.items()}
        for name, value in execute(model.proto, inputs).items():
            assert np.array_equal(value, execute(turned.proto, inputs)[name])


def between(op: Callable[[Graph, str], str]) -> Callable[[Graph], str]:
    """A layer of 8 channels, something, and a layer that reads it."""
    return lambda g: g.conv(op(g, g.conv(g.input(1, 3, 4, 4), 3, 8)), 8, 3)


def shared(g: Graph) -> str:
    """The bias of the first layer is that of another, whose units are others."""
    x, bias = g.input(1, 3, 4, 4), g.weight(8)
    a = g("Conv", g("Conv", x, g.weight(8, 3, 1, 1), bias), g.weight(3, 8, 1, 1))
    return g("Add", a, g("Conv", g("Relu", g("Conv", x, g.weight(8, 3, 1, 1), bias)), g.weight(3, 8, 1, 1)))


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (between(lambda g, x: g("Relu", x)), "Relu 'Relu_1' treats each of its units by itself"),
        (between(lambda g, x: g("Mul", x, g.weight(8, 1, 1))), "Mul 'Mul_1' treats each"),
        (between(lambda g, x: g("Add", x, g.scalar(1.0))), "Add 'Add_1' treats each"),
        (between(lambda g, x: g("Div", g.scalar(1.0), x)), "Div 'Div_1' treats each"),
        (between(lambda g, x: g.conv(x, 8, 8, group=2)), "Conv 'Conv_1' treats each"),
        (between(lambda g, x: g("MaxPool", x, kernel_shape=[1, 1])), "MaxPool 'MaxPool_1' treats each"),
        (between(lambda g, x: g("Mul", x, x)), "Mul 'Mul_1' treats each"),
        (
            between(lambda g, x: g("Pad", x, g.ints(0, 0, 1, 1, 0, 0, 1, 1), g.scalar(1.0))),
            "Pad 'Pad_1' treats each",
        ),
        (
            between(lambda g, x: g("Gather", x, g.ints(3, 1, 2, 0, 5, 4, 7, 6), axis=1)),
            "in another order",
        ),
        (shared, "is also read where its positions are not these units"),
    ],
)
def test_what_treats_a_unit_by_itself_is_told(build: Callable[[Graph], str], told: str) -> None:
    g = Graph(seed=4)
    analysis = analyze(g.model(build(g)))
    bases = Bases(analysis)
    assert not [group for group in bases.free if group.size == 8]
    assert any(told in why for why in bases.obstacles.values()), bases.obstacles


def test_a_batch_normalization_leaves_its_factors_to_the_layer_before() -> None:
    g = Real(seed=5)
    x = g.norm(g.conv(g.input(1, 3, 4, 4), 3, 8), 8)
    x = g("Add", x, g.norm(g("Conv", g("Relu", g.conv(x, 8, 6)), g.weight(8, 6, 3, 3), pads=[1] * 4), 8))
    model = g.model(g.conv(x, 8, 3))
    analysis = analyze(model)
    (group,) = (group for group in Bases(analysis).free if group.size == 8)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((8, 8)))[0]
    turned = Rotate({group.axis: basis})(analysis)
    assert same(analysis, turned).ok
    assert [node.op_type for node in turned.proto.graph.node] == [n.op_type for n in model.proto.graph.node]


def test_a_batch_normalization_that_is_not_all_that_reads_stays() -> None:
    g = Real(seed=5)
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    analysis = analyze(g.model(g.conv(g("Add", x, g.norm(x, 8)), 8, 3)))
    assert not Bases(analysis).free


@pytest.mark.parametrize(
    "name",
    ["hf_llama_gqa", "hf_t5", "hf_mamba", "tv_mobilenet_v2.dynamo", "timm_gcvit_xxtiny", "timm_pit_ti_224"],
)
def test_real_graphs_in_another_basis(name: str) -> None:
    analysis = analyze(Model(zoo.load(name)))
    rng = np.random.default_rng(0)
    free = Bases(analysis).free
    assert free
    turned = Rotate({g.axis: np.linalg.qr(rng.standard_normal((g.size, g.size)))[0] for g in free})(analysis)
    verdict = same(analysis, turned)
    assert verdict.ok, verdict.message


# ------------------------------------------------------------------ in a plan


def error(model: Model, other: Model) -> float:
    images = load_digits("train").images[200:]
    (wanted,), (got,) = (execute(m.proto, {"x": images}).values() for m in (model, other))
    return float(np.square(wanted - got).sum() / np.square(wanted - wanted.mean(axis=1, keepdims=True)).sum())


@pytest.fixture(scope="module")
def made() -> Any:
    return prune(load(MOBILENET), **OPTIONS)


def test_few_principal_axes_say_more_than_few_channels(made: Any) -> None:
    model = load(MOBILENET)
    assert made.plan.options["rotated"]
    kept = prune(model, **OPTIONS, rotate=False, check=False)
    assert "rotated" not in kept.plan.options
    assert error(model, made.model) < 0.9 * error(model, kept.model)


def test_the_plan_replays_and_verifies(made: Any, tmp_path: Path) -> None:
    model = load(MOBILENET)
    (tmp_path / "plan.json").write_text(made.plan.to_json())
    read = load_plan(tmp_path / "plan.json")
    replayed = apply(model, read, calibration=OPTIONS["calibration"])
    assert replayed.proto.SerializeToString(deterministic=True) == made.model.proto.SerializeToString(
        deterministic=True
    )
    verdict = verify(model, replayed, read)
    assert verdict.ok, verdict.message


def test_positions_of_a_turned_model_are_not_exported(made: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="--no-rotate"):
        export_lists(load(MOBILENET), made.plan)
    saved, lists = tmp_path / "plan.json", tmp_path / "lists.json"
    done = run("plan", MOBILENET, "-o", saved, "--export", lists, "--macs", "50%", "--calibration",
               OPTIONS["calibration"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "rotated" not in json.loads(saved.read_text())["options"]


def test_a_plan_that_turns_what_cannot_turn_is_refused(made: Any) -> None:
    edited = replace(made.plan, options=made.plan.options | {"rotated": ["0.weight:0"]})
    with pytest.raises(PlanError, match=r"0\.weight:0"):
        apply(load(MOBILENET), edited, calibration=OPTIONS["calibration"])


def test_weights_alone_turn_nothing() -> None:
    assert "rotated" not in plan(load(MOBILENET), macs=0.5, criterion="l2", recover="none").options
