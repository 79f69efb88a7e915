"""Patterns of real networks, each pruned and compared bit for bit with the masked original."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import Graph, assert_bit_exact, pruned, shapes
from onnx_prune import Model, analyze


def test_chain_of_convolutions() -> None:
    g = Graph()
    h = g("Relu", g.conv(g.input(1, 3, 6, 6), 3, 8, 3))
    smaller = assert_bit_exact(g.model(g.conv(h, 8, 5)))
    assert shapes(smaller) == {"w0": (4, 3, 3, 3), "w1": (4,), "w2": (5, 4, 1, 1), "w3": (5,)}


def test_residual_ties_both_branches() -> None:
    g = Graph()
    stem = g.conv(g.input(1, 3, 4, 4), 3, 8)
    branch = g.conv(g("Relu", g.conv(stem, 8, 6)), 6, 8)
    smaller = assert_bit_exact(g.model(g.conv(g("Add", stem, branch), 8, 2)))
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)
    assert shapes(smaller)["w4"] == (4, 3, 1, 1)


def test_sigmoid_of_a_removed_channel_does_not_matter() -> None:
    """The bias of a removed producer stays in the masked original; its consumers do not see it."""
    g = Graph()
    h = g("Sigmoid", g.conv(g.input(1, 3, 4, 4), 3, 8))
    _, _, verdict = pruned(g.model(g.conv(h, 8, 2)))
    assert verdict.ok and verdict.kind == "exact"


def test_channel_shuffle() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    h = g("Reshape", h, g.ints(1, 2, 4, 4, 4))
    h = g("Transpose", h, perm=[0, 2, 1, 3, 4])
    h = g("Reshape", h, g.ints(1, 8, 4, 4))
    smaller = assert_bit_exact(g.model(g.conv(h, 8, 2)))
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_shuffle_of_as_many_groups_as_channels_in_one() -> None:
    """Equal sizes: nothing but the order of the axes tells them apart."""
    g = Graph()
    h = g.conv(g.input(1, 3, 2, 2), 3, 16)
    h = g("Reshape", h, g.ints(1, 4, 4, 2, 2))
    h = g("Transpose", h, perm=[0, 2, 1, 3, 4])
    h = g("Reshape", h, g.ints(1, 16, 2, 2))
    assert_bit_exact(g.model(g.conv(h, 16, 2)))


def test_concat_then_split_at_another_point() -> None:
    g = Graph()
    x = g.input(1, 3, 4, 4)
    joint = g("Concat", g.conv(x, 3, 4), g.conv(x, 3, 8), axis=1)
    a, b = g("Split", joint, g.ints(6, 6), outputs=2, axis=1)
    smaller = assert_bit_exact(g.model(g("Add", g.conv(a, 6, 2), g.conv(b, 6, 2))))
    assert shapes(smaller)["w0"][0] < 4 and shapes(smaller)["w2"][0] < 8


def test_concat_with_itself() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    smaller = assert_bit_exact(g.model(g.conv(g("Concat", h, h, axis=1), 16, 2)))
    assert shapes(smaller)["w2"] == (2, 8, 1, 1)


def test_flatten_to_fully_connected() -> None:
    g = Graph()
    h = g("Flatten", g.conv(g.input(1, 3, 2, 2), 3, 8))
    smaller = assert_bit_exact(g.model(g("Gemm", h, g.weight(5, 32), transB=1)))
    assert shapes(smaller)["w2"] == (5, 16)


def test_fully_connected_to_feature_map() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 6), g.weight(6, 32))
    h = g("Reshape", h, g.ints(-1, 8, 2, 2))
    smaller = assert_bit_exact(g.model(g.conv(h, 8, 2)))
    assert shapes(smaller)["w0"] == (6, 16)


def test_depthwise_follows_its_input() -> None:
    g = Graph()
    h = g.conv(g.conv(g.input(1, 3, 4, 4), 3, 8), 8, 8, 3, group=8)
    smaller = assert_bit_exact(g.model(g.conv(h, 8, 2)))
    assert shapes(smaller)["w2"] == (4, 1, 3, 3)


def test_groups_keep_equal_counts() -> None:
    g = Graph()
    h = g.conv(g.conv(g.input(1, 3, 4, 4), 3, 8), 8, 12, 3, group=2)
    smaller = assert_bit_exact(g.model(g.conv(h, 12, 2)))
    assert shapes(smaller)["w2"] == (6, 2, 3, 3)


def test_one_layer_used_twice() -> None:
    g = Graph()
    weight = g.weight(8, 8, 1, 1)
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    twice = g("Conv", g("Relu", g("Conv", h, weight)), weight)
    assert_bit_exact(g.model(g.conv(g("Add", twice, h), 8, 2)))


def test_a_shared_weight_is_cloned_only_where_uses_disagree() -> None:
    g = Graph()
    bias = g.weight(8)
    x = g.input(1, 3, 4, 4)
    a = g("Conv", x, g.weight(8, 3, 1, 1), bias)
    b = g("Conv", x, g.weight(8, 3, 1, 1), bias)
    smaller = assert_bit_exact(g.model(g("Add", g.conv(a, 8, 2), g.conv(b, 8, 2))))
    four = [name for name, shape in shapes(smaller).items() if shape == (4,)]
    assert len(four) == 2 and bias in four


@pytest.mark.parametrize(("start", "end", "step"), [(0, 8, 2), (7, -9, -1), (2, 7, 1)])
def test_slices(start: int, end: int, step: int) -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    part = g("Slice", h, g.ints(start), g.ints(end), g.ints(1), g.ints(step))
    size = len(range(8)[slice(start, None if end < -8 else end, step)])
    assert_bit_exact(g.model(g("Add", g.conv(part, size, 2), g.conv(h, 8, 2))))


def test_gather_by_a_permutation() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    h = g("Gather", h, g.ints(3, 1, 0, 2, 7, 6, 4, 5), axis=1)
    assert_bit_exact(g.model(g.conv(h, 8, 2)))


def test_pixel_shuffle() -> None:
    g = Graph()
    h = g("DepthToSpace", g.conv(g.input(1, 3, 2, 2), 3, 16), blocksize=2)
    smaller = assert_bit_exact(g.model(g.conv(h, 4, 2)))
    assert shapes(smaller)["w0"] == (8, 3, 1, 1)


def test_product_of_two_channel_halves() -> None:
    g = Graph()
    a, b = g("Split", g.conv(g.input(1, 3, 4, 4), 3, 8), g.ints(4, 4), outputs=2, axis=1)
    smaller = assert_bit_exact(g.model(g.conv(g("Mul", a, b), 4, 2)))
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_einsum_of_two_projections() -> None:
    g = Graph()
    x = g.input(1, 5, 6)
    q, k = g("MatMul", x, g.weight(6, 8)), g("MatMul", x, g.weight(6, 8))
    smaller = assert_bit_exact(g.model(g("Einsum", q, k, equation="bid,bjd->bij")))
    assert shapes(smaller) == {"w0": (6, 4), "w1": (6, 4)}


def test_einsum_that_sums_over_two_axes_of_a_weight() -> None:
    g = Graph()
    h = g("Reshape", g("MatMul", g.input(1, 5, 6), g.weight(6, 16)), g.ints(1, 5, 4, 4))
    smaller = assert_bit_exact(g.model(g("Einsum", h, g.weight(4, 4, 3), equation="bthd,hdo->bto")))
    assert shapes(smaller)["w2"] == (2, 2, 3)


def test_attention_heads_and_widths() -> None:
    g = Graph()
    x = g.input(1, 5, 6)

    def heads(w: str) -> str:
        h = g("Reshape", g("MatMul", x, w), g.ints(0, 0, 4, 4))
        return g("Transpose", h, perm=[0, 2, 1, 3])

    q, k, v = (heads(g.weight(6, 16)) for _ in range(3))
    scores = g("MatMul", q, g("Transpose", k, perm=[0, 1, 3, 2]))
    mixed = g("Transpose", g("MatMul", scores, v), perm=[0, 2, 1, 3])
    out = g("MatMul", g("Reshape", mixed, g.ints(0, 0, 16)), g.weight(16, 3))
    smaller = assert_bit_exact(g.model(out))
    assert {shape for shape in shapes(smaller).values() if len(shape) == 2} == {(6, 4), (4, 3)}


def test_spatial_attention_is_renormalising() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    gate = g("Sigmoid", g("ReduceMean", h, axes=[1]))
    _, _, verdict = pruned(g.model(g.conv(g("Mul", h, gate), 8, 2)))
    assert verdict.ok and verdict.kind == "renormalising"


def test_layer_norm_and_softmax_over_channels() -> None:
    g = Graph()
    h = g("MatMul", g.input(1, 5, 6), g.weight(6, 8))
    h = g("Softmax", g("LayerNormalization", h, g.weight(8), g.weight(8)), axis=-1)
    smaller, _, verdict = pruned(g.model(g("MatMul", h, g.weight(8, 3))))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w0"] == (6, 4)


def test_an_unknown_operator_pins_with_its_name() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    h = g("Det", h)
    model = g.model(h)
    assert not analyze(model).groups
    assert any("Det" in pin.reason and "no rule" in pin.reason for pin in analyze(model).pins)


def test_an_intermediate_that_is_an_output_is_pinned() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    model = g.model(g.conv(h, 8, 2), h)
    assert not analyze(model).groups


def test_dynamic_batch_stays_dynamic() -> None:
    g = Graph()
    h = g("Reshape", g.conv(g.input("N", 3, 2, 2), 3, 8), g.ints(0, -1))
    smaller = assert_bit_exact(g.model(g("MatMul", h, g.weight(32, 3))))
    assert smaller.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert shapes(smaller)["w3"] == (16, 3)


def test_a_shape_read_at_run_time_goes_on_with_the_old_sizes() -> None:
    g = Graph()
    h = g.conv(g.input("N", 3, 2, 2), 3, 8)
    flat = g("Reshape", g("Relu", h), g("Shape", h))
    smaller = assert_bit_exact(g.model(g.conv(flat, 8, 2)))
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_dynamic_heads_by_arithmetic_on_shapes() -> None:
    """As exporters write ``x.view(n, t, heads, c // heads)`` with everything dynamic."""
    g = Graph()
    h = g("MatMul", g.input("N", "T", 6), g.weight(6, 16))
    n, t, c = (g("Gather", g("Shape", h), g.ints(k), axis=0) for k in range(3))
    width = g("Div", c, g.ints(4))
    split = g("Reshape", h, g("Concat", n, t, g.ints(4), width, axis=0))
    heads = g("Transpose", split, perm=[0, 2, 1, 3])
    scores = g("MatMul", heads, g("Transpose", split, perm=[0, 2, 3, 1]))
    mixed = g("Transpose", g("MatMul", scores, heads), perm=[0, 2, 1, 3])
    tokens = g("Reshape", mixed, g("Concat", g("Mul", n, t), c, axis=0))
    smaller = assert_bit_exact(g.model(g("MatMul", tokens, g.weight(16, 3))))
    assert shapes(smaller)["w0"] == (6, 4)


def test_a_scale_computed_from_a_size_keeps_its_value() -> None:
    """1/sqrt(width) of attention is computed from a shape by some exporters: pruning must not change it."""
    g = Graph()
    h = g("MatMul", g.input(1, 5, 6), g.weight(6, 8))
    width = g("Cast", g("Gather", g("Shape", h), g.ints(2), axis=0), to=1)
    smaller = assert_bit_exact(g.model(g("MatMul", g("Mul", h, width), g.weight(8, 3))))
    assert shapes(smaller)["w0"] == (6, 4)


def test_pruning_never_changes_the_model_it_is_given() -> None:
    g = Graph()
    model = g.model(g.conv(g.conv(g.input(1, 3, 4, 4), 3, 8), 8, 2))
    before = model.proto.SerializeToString(deterministic=True)
    pruned(model)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_explanations_name_the_partners() -> None:
    g = Graph()
    model: Model = g.model(g.conv(g("Relu", g.conv(g.input(1, 3, 4, 4), 3, 8)), 8, 2))
    (group,) = analyze(model).groups
    told = group.explain()
    assert "w0:0" in told and "w2:1" in told and "Relu" in told and "exact" in told
    assert np.isclose(group.params_per_unit, 3 + 1 + 2)


def test_two_branches_through_one_layer() -> None:
    g = Graph()
    x = g.input(1, 3, 4, 4)
    weight = g.weight(6, 8, 1, 1)
    a, b = (g("Conv", g("Relu", g.conv(x, 3, 8)), weight) for _ in range(2))
    smaller = assert_bit_exact(g.model(g.conv(g("Concat", a, b, axis=1), 12, 2)))
    assert shapes(smaller)["w0"] == (3, 4, 1, 1)  # one weight still, cut on both axes


def test_attention_by_mean_and_max_over_channels() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    both = g("Concat", g("ReduceMean", h, axes=[1]), g("ReduceMax", h, axes=[1]), axis=1)
    gate = g("Sigmoid", g.conv(both, 2, 1, 3))
    smaller, _, verdict = pruned(g.model(g.conv(g("Mul", h, gate), 8, 2)))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_parameters_added_by_broadcast() -> None:
    g = Graph()
    h = g("Add", g.conv(g.input(1, 3, 4, 4), 3, 8), g.weight(8, 1, 1))
    smaller = assert_bit_exact(g.model(g.conv(g("Mul", g.weight(1, 8, 4, 4), h), 8, 2)))
    assert shapes(smaller)["w2"] == (4, 1, 1) and shapes(smaller)["w3"] == (1, 4, 4, 4)


def test_layer_norm_in_channels_last() -> None:
    g = Graph()
    h = g("Transpose", g.conv(g.input(1, 3, 4, 4), 3, 4), perm=[0, 2, 3, 1])
    h = g("LayerNormalization", h, g.weight(4), g.weight(4), axis=-1)
    h = g.conv(g("Transpose", h, perm=[0, 3, 1, 2]), 4, 2)
    smaller, _, verdict = pruned(g.model(h))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w2"] == (2,)


@pytest.mark.parametrize(("shift", "left"), [(1, 5), (3, 4), (4, 4)])
def test_roll_over_channels(shift: int, left: int) -> None:
    """A segment of a single channel stays."""
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    tail = g("Slice", h, g.ints(8 - shift), g.ints(8), g.ints(1))
    head = g("Slice", h, g.ints(0), g.ints(8 - shift), g.ints(1))
    smaller = assert_bit_exact(g.model(g.conv(g("Concat", tail, head, axis=1), 8, 2)))
    assert shapes(smaller)["w0"] == (left, 3, 1, 1)


def test_flip_over_channels_added_to_itself() -> None:
    """Channel i goes with channel 7 - i."""
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    flipped = g("Slice", h, g.ints(7), g.ints(-9), g.ints(1), g.ints(-1))
    smaller, chosen, verdict = pruned(g.model(g.conv(g("Add", h, flipped), 8, 2)))
    assert verdict.ok and verdict.max_relative_error == 0
    assert shapes(smaller)["w0"] == (4, 3, 1, 1) and chosen.entries[0].size == 4


def test_dense_block() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    for channels in (8, 12, 16):
        h = g("Concat", h, g.conv(g("Relu", h), channels, 4, 3), axis=1)
    smaller = assert_bit_exact(g.model(g.conv(h, 20, 2)))
    assert shapes(smaller)["w8"] == (2, 10, 1, 1)


def test_group_norm() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 12)
    h = g("GroupNormalization", h, g.weight(12), g.weight(12), num_groups=3)
    smaller, _, verdict = pruned(g.model(g.conv(h, 12, 2), opset=21, shape=[1, 2, 4, 4]))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w2"] == (6,)


def test_group_norm_written_out() -> None:
    """As exporters write it: instance normalisation over a reshape, then scale and shift by channel."""
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 12)
    normed = g("Reshape", h, g.ints(0, 3, -1))
    normed = g("InstanceNormalization", normed, g.weight(3), g.weight(3))
    normed = g("Reshape", normed, g.ints(1, 12, 4, 4))
    h = g("Add", g("Mul", normed, g.weight(12, 1, 1)), g.weight(12, 1, 1))
    smaller, _, verdict = pruned(g.model(g.conv(h, 12, 2)))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)  # two of three groups, with two of four channels each


def test_fan_out() -> None:
    g = Graph()
    h = g("Relu", g.conv(g.input(1, 3, 4, 4), 3, 8))
    outs = [g.conv(h, 8, n) for n in (2, 2, 2)]
    smaller = assert_bit_exact(g.model(g("Sum", *outs)))
    assert [shapes(smaller)[f"w{k}"][1] for k in (2, 4, 6)] == [4, 4, 4]


def test_softmax_over_channels() -> None:
    g = Graph()
    h = g("Softmax", g.conv(g.input(1, 3, 4, 4), 3, 8), axis=1)
    smaller, _, verdict = pruned(g.model(g.conv(h, 8, 2)))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_a_convolution_along_the_channels_sees_the_kept_ones() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    pooled = g("Reshape", g("GlobalAveragePool", h), g.ints(1, 1, 8))
    gate = g("Sigmoid", g("Conv", pooled, g.weight(1, 1, 3), pads=[1, 1]))
    h = g("Mul", h, g("Reshape", gate, g.ints(1, 8, 1, 1)))
    smaller, _, verdict = pruned(g.model(g.conv(h, 8, 2)))
    assert verdict.ok and verdict.kind == "renormalising"
    assert shapes(smaller)["w0"] == (4, 3, 1, 1)


def test_layers_that_share_weights_keep_the_same_units() -> None:
    """As in ALBERT: cloning the weight for every layer would make the model larger."""
    g = Graph()
    h = g("MatMul", g.input(1, 5, 6), g.weight(6, 8))
    up, down = g.weight(8, 16), g.weight(16, 8)
    for _ in range(4):
        h = g("Add", h, g("MatMul", g("Relu", g("MatMul", h, up)), down))
    smaller = assert_bit_exact(g.model(g("MatMul", h, g.weight(8, 3))))
    assert shapes(smaller) == {"w0": (6, 4), "w1": (4, 8), "w2": (8, 4), "w3": (4, 3)}
