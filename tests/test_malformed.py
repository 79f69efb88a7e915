"""Graphs that break an operator's specification are refused with a typed error that names the node."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from graphs import PLAIN, Graph
from onnx_prune import Model, ModelError, OnnxPruneError, analyze, prune
from onnx_prune.models import zoo


def test_a_missing_attribute_names_the_node() -> None:
    g = Graph()
    h = g.conv(g.input(1, 3, 4, 4), 3, 8)
    model = g.model(g("Concat", h, h, axis=1))
    del model.proto.graph.node[1].attribute[:]
    with pytest.raises(ModelError, match="Concat 'Concat_1'"):
        analyze(model)


@pytest.mark.parametrize("name", ["tv_shufflenet_v2_x0_5", "hf_bert", "timm_efficientvit_m0", "x_lstm_gru"])
def test_damaged_attributes_never_crash(name: str) -> None:
    """Whatever an attribute says, the graph is analysed or refused."""
    whole = zoo.load(name)
    rng = np.random.default_rng(0)
    for _ in range(12):
        proto = copy.deepcopy(whole)
        nodes = [node for node in proto.graph.node if node.attribute]
        for node in rng.choice(np.array(nodes, dtype=object), 3):
            attribute = node.attribute[rng.integers(len(node.attribute))]
            if attribute.ints:
                attribute.ints[rng.integers(len(attribute.ints))] = int(rng.integers(-3, 9))
            elif attribute.HasField("i"):
                attribute.i = int(rng.integers(-9, 99))
            else:
                node.attribute.remove(attribute)
        try:
            prune(Model(proto), ratio=0.5, **PLAIN)
        except OnnxPruneError as error:
            assert "\n" not in str(error)
