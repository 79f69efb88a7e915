"""Costs against counts made by hand, and the predicted against the measured."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import PLAIN, Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, analyze, load, measure, plan, predict
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER, MODELS
from onnx_prune.passes.shrink import shrink


def test_convolution_bias_and_batch() -> None:
    g = Graph()
    cost = measure(g.model(g.conv(g.input(2, 3, 8, 8), 3, 16, kernel=3)))
    assert cost.params == 16 * 3 * 9 + 16
    assert cost.macs == 2 * 16 * 3 * 9 * 64
    assert cost.bytes == 4 * cost.params
    assert cost.uncounted == ()


def test_depthwise_and_grouped_convolutions_count_their_own_group() -> None:
    g = Graph()
    x = g.conv(g.input(1, 8, 4, 4), 8, 8, kernel=3, group=8)
    cost = measure(g.model(g.conv(x, 8, 8, group=2)))
    assert cost.macs == 8 * 9 * 16 + 8 * 4 * 16
    assert cost.params == (8 * 9 + 8) + (8 * 4 + 8)


def test_transposed_convolution_with_stride() -> None:
    g = Graph()
    y = g("ConvTranspose", g.input(1, 4, 5, 5), g.weight(4, 6, 2, 2), strides=[2, 2])
    assert measure(g.model(y)).macs == 25 * 4 * 6 * 4


def test_products_of_matrices() -> None:
    g = Graph()
    x = g("Gemm", g.input(3, 4), g.weight(5, 4), g.weight(5), transB=1)
    x = g("MatMul", x, g.weight(5, 7))
    x = g("Einsum", x, g.weight(7, 2), equation="ij,jk->ik")
    cost = measure(g.model(x))
    assert cost.macs == 3 * 4 * 5 + 3 * 5 * 7 + 3 * 7 * 2
    assert cost.params == 20 + 5 + 35 + 14


def test_an_einsum_of_one_operand_only_moves() -> None:
    g = Graph()
    cost = measure(g.model(g("Einsum", g.input(3, 4), equation="ij->ji")))
    assert (cost.macs, cost.uncounted) == (0, ())


def test_axes_known_only_at_run_time_count_one() -> None:
    g = Graph()
    assert measure(g.model(g("MatMul", g.input("batch", 4), g.weight(4, 8)))).macs == 32


def test_a_shared_weight_counts_once_and_its_work_twice() -> None:
    g = Graph()
    x, weight = g.input(1, 4), g.weight(4, 4)
    cost = measure(g.model(g("MatMul", g("MatMul", x, weight), weight)))
    assert (cost.params, cost.macs) == (16, 32)


def test_what_nothing_reads_costs_nothing() -> None:
    g = Graph()
    g.weight(100, 100, name="dead")
    assert measure(g.model(g("MatMul", g.input(1, 4), g.weight(4, 4)))).params == 16


def test_integers_are_bytes_but_no_parameters() -> None:
    g = Graph()
    cost = measure(g.model(g("Reshape", g.input(2, 6), g.ints(3, 4))))
    assert (cost.params, cost.bytes) == (0, 16)


def test_constant_nodes_count_like_initializers() -> None:
    g = Graph()
    value = numpy_helper.from_array(np.ones((4, 5), np.float32))
    x = g.input(2, 4)
    cost = measure(g.model(g("MatMul", x, g("Constant", value=value))))
    assert (cost.params, cost.macs) == (20, 40)


def test_an_operator_nobody_knows_is_named_and_not_taken_for_free() -> None:
    node = helper.make_node("Mystery", ["x"], ["y"], name="m", domain="somebody")
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebody", 1)]
    proto = helper.make_model(helper.make_graph([node], "g", info[:1], info[1:]), opset_imports=opsets)
    assert measure(Model(proto)).uncounted == ("somebody::Mystery 'm'",)


def test_costs_are_read_without_the_weights() -> None:
    """Only shapes are needed: the data may be missing altogether."""
    proto = load(FOLDER / "digits_resnet.onnx").proto
    wanted = measure(Model(proto))
    bare = onnx.ModelProto()
    bare.CopyFrom(proto)
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) > 256:
            tensor.ClearField("raw_data")
    assert measure(Model(bare)) == wanted


@pytest.mark.parametrize("name", [*MODELS, "tv_resnet50", "hf_bert", "tv_densenet121"])
def test_the_plan_predicts_what_is_measured(name: str) -> None:
    model = load(FOLDER / f"{name}.onnx") if name in MODELS else Model(zoo.load(name))
    analysis = analyze(model)
    chosen = plan(analysis, ratio=0.5, **PLAIN)
    assert predict(analysis, chosen) == measure(shrink(model, chosen))
    assert predict(analysis, plan(analysis, ratio=0.0, **PLAIN)) == measure(model, analysis)
