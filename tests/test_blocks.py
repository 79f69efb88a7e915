"""Residual branches that go whole."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import PLAIN, Graph, shapes
from onnx_prune import Model, PlanError, analyze, load, plan, prune
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER


def residual(g: Graph, x: str) -> str:
    return g("Add", x, g.conv(g("Relu", g.conv(x, 8, 12)), 12, 8))


def two_blocks() -> tuple[Model, list[str]]:
    g = Graph()
    first = residual(g, g.conv(g("Round", g.input(1, 3, 4, 4)), 3, 8))
    second = g("Add", g.conv(first, 8, 8), first)
    return g.model(g.conv(second, 8, 2)), [first, second]


def test_both_blocks_are_found_with_what_they_cost() -> None:
    model, sums = two_blocks()
    blocks = analyze(model).blocks
    assert [block.id for block in blocks] == sums
    assert blocks[0].params == 8 * 12 + 12 + 12 * 8 + 8
    assert blocks[0].macs == 2 * 8 * 12 * 16
    assert [name.split()[0] for name in blocks[0].nodes] == ["Conv", "Relu", "Conv"]


def test_dropping_a_block_leaves_its_skip_path() -> None:
    model, sums = two_blocks()
    result = prune(model, drop=[sums[0]], **PLAIN)
    assert result.verdict is not None and result.verdict.ok and result.verdict.max_relative_error == 0
    assert [node.op_type for node in result.model.proto.graph.node] == [
        "Round",
        "Conv",
        "Conv",
        "Add",
        "Conv",
    ]
    assert result.before.params - result.after.params == analyze(model).blocks[0].params


def test_blocks_and_channels_go_together() -> None:
    model, sums = two_blocks()
    result = prune(model, ratio=0.5, drop=[sums[1]], **PLAIN)
    assert result.verdict is not None and result.verdict.ok and result.verdict.max_relative_error == 0
    assert shapes(result.model)["w0"] == (4, 3, 1, 1)
    assert plan(model, ratio=0.5, drop=[sums[1]], **PLAIN) == type(result.plan).from_json(
        result.plan.to_json()
    )


def test_a_branch_that_something_else_reads_is_no_block() -> None:
    g = Graph()
    x = g.conv(g.input(1, 3, 4, 4), 3, 8)
    branch = g.conv(x, 8, 8)
    model = g.model(g("Add", g.conv(g("Add", x, branch), 8, 2), g.conv(branch, 8, 2)))
    assert not analyze(model).blocks


def test_a_branch_that_does_not_read_its_skip_path_is_no_block() -> None:
    g = Graph()
    x = g.input(1, 3, 4, 4)
    model = g.model(g.conv(g("Add", g.conv(x, 3, 8), g.conv(x, 3, 8)), 8, 2))
    assert not analyze(model).blocks


def test_an_unknown_block_is_refused() -> None:
    model, _ = two_blocks()
    with pytest.raises(PlanError, match="no residual block 'nothing'"):
        plan(model, drop=["nothing"], **PLAIN)


def test_a_transformer_has_two_blocks_a_layer() -> None:
    model = load(FOLDER / "digits_vit.onnx")
    blocks = analyze(model).blocks
    assert len(blocks) % 2 == 0 and len(blocks) >= 4
    result = prune(model, drop=[block.id for block in blocks[-2:]], **PLAIN)
    assert result.verdict is not None and result.verdict.ok
    assert np.isclose(result.before.params - result.after.params, sum(b.params for b in blocks[-2:]))


@pytest.mark.parametrize("name", ["hf_bert", "hf_llama_gqa", "tv_resnet18"])
def test_blocks_of_real_graphs(name: str) -> None:
    model = Model(zoo.load(name))
    blocks = analyze(model).blocks
    assert blocks
    result = prune(model, drop=[blocks[0].id], **PLAIN)
    assert result.verdict is not None and result.verdict.ok
