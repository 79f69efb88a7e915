"""Each criterion against an answer computed by hand, and scores of units against what their removal takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from graphs import Graph
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Analysis, Model, UsageError, analyze, load, open_calibration, plan, prune
from onnx_prune.analysis.axes import Axis, find
from onnx_prune.analysis.criteria import BN_SCALE, FPGM, L1, L2, LAMP, RANDOM, Criterion, Setting, random
from onnx_prune.analysis.scores import Ranking
from onnx_prune.analysis.selection import Selection
from onnx_prune.models.digits import FOLDER, load_digits
from onnx_prune.passes.criteria import CRITERIA
from onnx_prune.passes.measure.activation import ACTIVATION
from onnx_prune.passes.measure.choose import OBS

A = [[1, -2, 0], [3, 0, 1]]
B = [[1, 0], [2, 2], [0, -1]]


class Given(Graph):
    """A graph whose weights can be written out."""

    def array(self, value: object, name: str | None = None) -> str:
        name = name or f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def norm(self, x: str, scale: list[float]) -> str:
        one, zero = np.ones(len(scale)), np.zeros(len(scale))
        return self("BatchNormalization", x, *(self.array(v) for v in (scale, zero, zero, one)))


def two_layers() -> Model:
    """x·A → Relu → ·B, with three units between."""
    g = Given()
    h = g("Relu", g("MatMul", g.input(2, 2), g.array(A, "a")))
    return g.model(g("MatMul", h, g.array(B, "b")))


def ranked(criterion: Criterion, model: Model, **inputs: NDArray[np.float32]) -> tuple[Analysis, Ranking]:
    analysis = analyze(model)
    given = open_calibration(inputs, model) if inputs else None
    ranking = criterion.rank(Setting(analysis, given))
    assert ranking.scores.keys() == ranking.errors.keys() == {group.axis for group in analysis.groups}
    for axis, errors in ranking.errors.items():
        assert errors.shape == (axis.size + 1,) and errors[0] == 0 and (np.diff(errors) >= 0).all()
    return analysis, ranking


def only(ranking: Ranking) -> tuple[list[float], list[float]]:
    """Scores and errors of a model of one group."""
    ((axis, scores),) = ranking.scores.items()
    return scores.tolist(), ranking.errors[axis].tolist()


def scores_of(analysis: Analysis, ranking: Ranking, name: str) -> list[float]:
    (group,) = [group for group in analysis.groups if group.id == name]
    return [float(score) for score in ranking.scores[group.axis]]


def assert_only(criterion: Criterion, model: Model, scores: list[float], errors: list[float]) -> None:
    got = only(ranked(criterion, model)[1])
    np.testing.assert_allclose(got[0], scores, rtol=1e-6)
    np.testing.assert_allclose(got[1], errors, rtol=1e-6)


# ---------------------------------------------------------------------------------- by weights


def test_l1_adds_up_what_makes_a_unit_and_what_reads_it() -> None:
    assert_only(L1, two_layers(), [4 + 1, 2 + 4, 1 + 1], [0, 2 / 13, 7 / 13, 1])


def test_l2_adds_up_squares() -> None:
    assert_only(L2, two_layers(), [10 + 1, 4 + 8, 1 + 1], [0, 2 / 25, 13 / 25, 1])


def test_lamp_takes_each_energy_relative_to_those_that_are_larger() -> None:
    scores = [11 / (11 + 12), 1, 2 / (2 + 11 + 12)]
    assert_only(LAMP, two_layers(), scores, np.cumsum([0, *sorted(scores)]).tolist())


def test_lamp_takes_pieces_of_one_axis_for_one_layer() -> None:
    g = Given()
    h = g("MatMul", g.input(2, 1), g.array([[3, 1, 2, 4]], "a"))
    p, q = g("Split", h, g.ints(2, 2), axis=1, outputs=2)
    y = g("MatMul", p, g.array(np.zeros((2, 1)), "p")), g("MatMul", q, g.array(np.zeros((2, 1)), "q"))
    analysis, ranking = ranked(LAMP, g.model(*y))
    assert scores_of(analysis, ranking, "a:1") == pytest.approx([9 / 25, 1 / 30])
    assert scores_of(analysis, ranking, "a:1#2") == pytest.approx([4 / 29, 1])


def test_lamp_of_units_without_weights_is_nothing() -> None:
    g = Given()
    h = g("MatMul", g.input(2, 1), g.array(np.zeros((1, 3)), "a"))
    assert_only(LAMP, g.model(g("MatMul", h, g.array(np.zeros((3, 1)), "b"))), [0] * 3, [0] * 4)


def test_fpgm_sums_distances_between_filters_and_not_between_what_reads_them() -> None:
    far, near = 18**0.5, 5**0.5  # filters (1, 3), (-2, 0) and (0, 1): the last is in the middle
    scores = [far + near, far + near, 2 * near]
    total = sum(scores)
    assert_only(FPGM, two_layers(), scores, [0, scores[2] / total, (scores[2] + scores[0]) / total, 1])


def test_fpgm_finds_the_filters_of_transposed_weights() -> None:
    g = Given()
    h = g("MatMul", g.input(2, 2), g("Transpose", g.array(np.transpose(A), "a"), perm=[1, 0]))
    y = g("MatMul", h, g("Transpose", g.array(np.transpose(B), "b"), perm=[1, 0]))
    assert only(ranked(FPGM, g.model(y))[1]) == only(ranked(FPGM, two_layers())[1])


def test_fpgm_tells_the_axes_of_a_square_weight_apart() -> None:
    g = Given()
    h = g("MatMul", g.input(2, 2), g.array(A, "a"))
    square = [[0, 0, 0], [5, 0, 0], [0, 0, 7]]  # columns (0, 5, 0), (0, 0, 0), (0, 0, 7)
    h = g("Add", h, g("MatMul", h, g.array(square, "s")))
    model = g.model(g("MatMul", h, g.array(B, "b")))
    far, near, across = 18**0.5, 5**0.5, 74**0.5
    wanted = [far + near + 5 + across, far + near + 5 + 7, 2 * near + 7 + across]
    assert only(ranked(FPGM, model)[1])[0] == pytest.approx(wanted)


def test_fpgm_of_many_filters_is_that_of_all_pairs() -> None:
    g = Given()
    weight = g.rng.standard_normal((2, 1500)).astype(np.float32)
    h = g("MatMul", g.input(2, 2), g.array(weight, "a"))
    got, _ = only(ranked(FPGM, g.model(g("MatMul", h, g.weight(1500, 1))))[1])
    pairs = np.sqrt(np.square(weight[:, :, None] - weight[:, None, :]).sum(axis=0, dtype=np.float64))
    np.testing.assert_allclose(got, pairs.sum(axis=1), rtol=1e-5)


def test_fpgm_compares_filters_within_the_blocks_of_a_grouped_transposed_convolution() -> None:
    g = Given()
    first = g.conv(g.input(1, 2, 2, 2), 2, 4)
    value = g.rng.integers(-2, 3, (4, 3, 1, 1))  # two blocks of two inputs and three filters
    h = g("ConvTranspose", first, g.array(value, "t"), group=2)
    analysis, ranking = ranked(FPGM, g.model(g.conv(h, 6, 2)))
    blocks = [group for group in analysis.groups if any(str(m) == "t:1" for m in group.members)]
    for group, block in zip(blocks, (value[:2], value[2:]), strict=True):
        columns = block[:, :, 0, 0].T
        pairs = np.linalg.norm(columns[:, None] - columns[None], axis=2)
        np.testing.assert_allclose(ranking.scores[group.axis], pairs.sum(axis=1), rtol=1e-6)


def test_bn_scale_is_the_magnitude_of_gamma() -> None:
    g = Given()
    h = g.norm(g.conv(g.input(1, 2, 4, 4), 2, 3), [-3, 1, 2])
    model = g.model(g.conv(g("Relu", h), 3, 2))
    assert_only(BN_SCALE, model, [3, 1, 2], [0, 1 / 6, 3 / 6, 1])


def test_bn_scale_adds_up_along_a_residual_stream() -> None:
    g = Given()
    h = g.norm(g.conv(g.input(1, 2, 4, 4), 2, 3), [1, 2, 3])
    h = g("Add", h, g.norm(g.conv(h, 3, 3), [-4, 0, 1]))
    assert only(ranked(BN_SCALE, g.model(g.conv(h, 3, 2)))[1])[0] == [5, 2, 4]


def test_bn_scale_reaches_both_sides_of_a_concatenation() -> None:
    g = Given()
    x = g.input(1, 2, 4, 4)
    h = g("Concat", g.conv(x, 2, 2), g.conv(x, 2, 3), axis=1)
    analysis, ranking = ranked(BN_SCALE, g.model(g.conv(g.norm(h, [1, -2, 3, 4, 5]), 5, 2)))
    assert scores_of(analysis, ranking, "w0:0") == [1, 2]
    assert scores_of(analysis, ranking, "w2:0") == [3, 4, 5]


def test_bn_scale_falls_back_to_l2_where_nothing_is_scaled() -> None:
    g = Given()
    h = g.norm(g.conv(g.input(1, 2, 4, 4), 2, 3), [-3, 1, 2])
    model = g.model(g.conv(g.conv(h, 3, 4), 4, 2))
    analysis, ranking = ranked(BN_SCALE, model)
    plain = L2.rank(Setting(analysis))
    scaled, other = (group.axis for group in analysis.groups)
    assert ranking.scores[scaled].tolist() == [3, 1, 2]
    np.testing.assert_array_equal(ranking.scores[other], plain.scores[other])
    np.testing.assert_array_equal(ranking.errors[other], plain.errors[other])


def test_bn_scale_leaves_other_normalisations_aside() -> None:
    g = Given()
    h = g("MatMul", g.input(2, 2), g.array(A, "a"))
    h = g("LayerNormalization", h, g.array([9, 8, 7]), g.array([0, 0, 0]), axis=-1)
    model = g.model(g("MatMul", h, g.array(B, "b")))
    assert only(ranked(BN_SCALE, model)[1]) == only(ranked(L2, model)[1])


def test_random_depends_on_the_seed_alone() -> None:
    def drawn(seed: int) -> Ranking:
        return ranked(random(seed), load(FOLDER / "digits_resnet.onnx"))[1]

    first, again, other = (list(drawn(seed).scores.values()) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(len(set(scores)) == len(scores) for scores in first)


# ---------------------------------------------------------------------------------- groups of many members


def heads(g: Graph) -> Model:
    """Products of three heads of two, with a weight for each head."""
    h = g("Reshape", g("MatMul", g.input(5, 4), g.weight(4, 6)), g.ints(5, 3, 2))
    h = g("MatMul", g("Transpose", h, perm=[1, 0, 2]), g.weight(3, 2, 4))
    h = g("Reshape", g("Transpose", h, perm=[1, 0, 2]), g.ints(5, 12))
    return g.model(g("MatMul", h, g.weight(12, 2)))


def pieces(g: Graph) -> Model:
    """Two layers one after the other, cut elsewhere, and a layer for each piece."""
    x = g.input(1, 2, 4, 4)
    h = g("Concat", g.conv(x, 2, 3), g.conv(x, 2, 5), axis=1)
    p, q = g("Split", h, g.ints(4, 4), axis=1, outputs=2)
    return g.model(g("Add", g.conv(p, 4, 2), g.conv(q, 4, 2)))


def residual(g: Graph) -> Model:
    h = g.conv(g.input(1, 2, 4, 4), 2, 6)
    h = g("Add", h, g.conv(g.conv(h, 6, 8), 8, 6, 3))
    return g.model(g.conv(h, 6, 2))


def grouped(g: Graph) -> Model:
    h = g.conv(g.conv(g.input(1, 3, 4, 4), 3, 16), 16, 8, 3, group=2)
    return g.model(g.conv(g("Relu", h), 8, 2))


def shuffled(g: Graph) -> Model:
    h = g.conv(g.input(1, 2, 4, 4), 2, 6)
    h = g("Gather", h, g.ints(5, 3, 1, 4, 2, 0), axis=1)
    return g.model(g.conv(h, 6, 2))


def removed(analysis: Analysis, atom: Axis, unit: int) -> float:
    """The magnitudes that go with one unit, by what a selection keeps of each axis of each weight."""
    selection = Selection({atom: np.delete(np.arange(atom.size), unit)})
    total = 0.0
    for constant, _, axes in analysis.weight_uses():
        for k, axis in enumerate(map(find, axes)):
            parts = axis.parts if axis.kind == "ragged" else [axis]
            for part, block in zip(parts, np.split(np.abs(constant.value), len(parts)), strict=True):
                kept = selection.positions(part)
                if kept is not None:
                    total += float(np.delete(block, kept, axis=k).sum())
    return total


@pytest.mark.parametrize("build", [heads, pieces, residual, grouped, shuffled])
def test_a_unit_scores_what_goes_with_it(build: Callable[[Graph], Model]) -> None:
    analysis, ranking = ranked(L1, build(Graph(seed=5)))
    for group in analysis.groups:
        wanted = [removed(analysis, group.axis, unit) for unit in range(group.size)]
        assert ranking.scores[group.axis].tolist() == wanted, group.id
    assert analysis.groups


@pytest.mark.parametrize("build", [heads, pieces, residual, grouped, shuffled])
@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_every_criterion_ranks_every_kind_of_axis(name: str, build: Callable[[Graph], Model]) -> None:
    model = build(Graph(seed=5))
    given = {"samples": 4} if CRITERIA[name].measures else {}
    result = prune(model, ratio=0.3, multiple=1, criterion=name, recover="none", **given)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    assert result.plan.entries and result.plan.options["criterion"] == name


# ---------------------------------------------------------------------------------- by calibration inputs


def shares(
    weight: NDArray[np.float32], features: NDArray[np.float32], kernel: int = 1
) -> NDArray[np.float64]:
    """|W|·‖x‖ of each unit, summed over the outputs and its ``kernel`` features, as a share of them all."""
    each = np.abs(weight.astype(np.float64)).sum(axis=1) * np.linalg.norm(features.astype(np.float64), axis=0)
    return np.asarray(each.reshape(-1, kernel).sum(axis=1) / each.sum())


def test_activation_is_weights_times_norms_over_all_that_read_a_unit() -> None:
    g = Given()
    a, b, c = (g.rng.standard_normal(shape).astype(np.float32) for shape in ((4, 5), (5, 3), (5, 2)))
    h = g("Relu", g("MatMul", g.input("n", 4), g.array(a, "a")))
    y = g("MatMul", h, g.array(b, "b")), g("Gemm", h, g.array(c, "c"), g.array([1, 2]))
    x = g.rng.standard_normal((90, 4)).astype(np.float32) + 1
    _, ranking = ranked(ACTIVATION, g.model(*y), x=x)
    read = np.maximum(x @ a, 0)
    wanted = shares(b, read) + shares(c, read)
    scores, errors = only(ranking)
    np.testing.assert_allclose(scores, wanted, rtol=1e-4)
    np.testing.assert_allclose(errors, np.cumsum([0, *np.sort(wanted)]) / wanted.sum(), rtol=1e-4)


def test_activation_sums_over_the_kernel_of_a_convolution() -> None:
    g = Given()
    a = g.rng.standard_normal((3, 2, 1, 1)).astype(np.float32)
    b = g.rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    h = g("Conv", g.input("n", 2, 5, 5), g.array(a, "a"))
    y = g("Conv", h, g.array(b, "b"), pads=[1, 1, 1, 1])
    x = g.rng.standard_normal((32, 2, 5, 5)).astype(np.float32)
    _, ranking = ranked(ACTIVATION, g.model(y), x=x)
    read = np.pad(np.einsum("oc,nchw->nohw", a[:, :, 0, 0], x), [(0, 0), (0, 0), (1, 1), (1, 1)])
    windows = [read[:, :, i : i + 5, j : j + 5] for i in range(3) for j in range(3)]
    features = np.stack(windows, axis=2).transpose(0, 3, 4, 1, 2).reshape(-1, 27)
    wanted = shares(b.reshape(4, 27).T, features, kernel=9)
    np.testing.assert_allclose(only(ranking)[0], wanted, rtol=1e-4)


def test_activation_of_queries_is_their_norm_times_that_of_their_keys() -> None:
    g = Given()
    q, k = (
        np.array(v, np.float32)
        for v in ([[1, 0, 0], [0, 2, 0], [0, 0, 3]], [[4, 0, 0], [0, 1, 0], [0, 0, 5]])
    )
    x = g.input("n", 3)
    keys = g("Transpose", g("MatMul", x, g.array(k, "k")), perm=[1, 0])
    model = g.model(g("MatMul", g("MatMul", x, g.array(q, "q")), keys))
    inputs = np.tile(np.eye(3, dtype=np.float32), (10, 1))  # features that do not correlate
    scores, _ = only(ranked(ACTIVATION, model, x=inputs)[1])
    np.testing.assert_allclose(scores, np.array([4, 2, 15]) / 21, rtol=1e-4)


@pytest.mark.parametrize("criterion", [OBS, ACTIVATION])
def test_what_no_measured_layer_reads_is_ranked_by_l2(criterion: Criterion) -> None:
    g = Given()
    h = g("MatMul", g.input("n", 2), g.array(A, "a"))
    model = g.model(g("ReduceMax", h, axes=[1], keepdims=0))
    x = np.ones((8, 2), np.float32)
    assert only(ranked(criterion, model, x=x)[1]) == only(ranked(L2, model)[1])


# ---------------------------------------------------------------------------------- the registry


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_all_prune_a_trained_model_with_the_certificate_holding(name: str) -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    images = load_digits("train").images[:32] if CRITERIA[name].measures else None
    given = {} if images is None else {"calibration": {model.proto.graph.input[0].name: images}}
    result = prune(model, ratio=0.3, multiple=1, criterion=name, recover="none", **given)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    assert all(len(e.keep) == e.size - int(e.size * 0.3) for e in result.plan.entries)


def test_only_those_that_measure_take_inputs() -> None:
    assert {name for name, one in CRITERIA.items() if one.measures} == {"obs", "activation"}
    images = {"x": np.ones((4, 2), np.float32)}
    for name, one in CRITERIA.items():
        if not one.measures:
            with pytest.raises(UsageError, match="have no use"):
                plan(two_layers(), ratio=0.5, criterion=name, recover="none", calibration=images)
    with pytest.raises(ValueError, match="needs calibration inputs"):
        OBS.rank(Setting(analyze(two_layers())))


@pytest.mark.parametrize(("name", "near"), [("fgpm", "fpgm"), ("bn_scale", "bn-scale"), ("L2", "l2")])
def test_an_unknown_name_lists_all_and_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan(two_layers(), ratio=0.5, criterion=name)
    told = str(caught.value)
    assert f"there is no criterion '{name}'" in told and f"did you mean '{near}'" in told
    assert ", ".join(sorted(CRITERIA)) in told


def test_a_criterion_of_ones_own_can_be_given_as_it_is() -> None:
    def last(setting: Setting) -> Ranking:
        axes = [group.axis for group in setting.analysis.groups]
        rising = {axis: np.arange(1.0, axis.size + 1) for axis in axes}
        return Ranking(rising, {axis: np.arange(axis.size + 1.0) for axis in axes})

    chosen = plan(two_layers(), ratio=0.5, criterion=Criterion("last", "the last ones stay", last))
    assert [entry.keep for entry in chosen.entries] == [(1, 2)]
    assert chosen.options["criterion"] == "last"
    first, second = (plan(two_layers(), ratio=0.5, criterion=one) for one in (RANDOM, random(0)))
    assert first == second
