"""The helper for authors of rules: it is silent about right rules and names what is wrong with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from onnx import NodeProto, helper
from onnx.reference.op_run import OpRun
from onnx_prune import Model, UsageError
from onnx_prune.analysis.axes import Axis, atom, cut, factor, unify, view
from onnx_prune.analysis.facts import Contraction, Normalisation, SizesBaked
from onnx_prune.analysis.graph import Node
from onnx_prune.analysis.rules import Rule
from onnx_prune.analysis.walk import Outputs, Walk
from onnx_prune.passes.soundness import Finding, check_rule, model_of, reference

SHAPE = (2, 6, 4)


def check(op: str, inputs: Mapping[str, Any], rule: Rule | None = None, **options: Any) -> list[Finding]:
    attributes = options.pop("attributes", {})
    node = helper.make_node(op, list(inputs), ["y"], **attributes)
    return check_rule(model_of(node, inputs), {op: rule} if rule else None, **options)


def kinds(findings: list[Finding]) -> set[str]:
    return {finding.kind for finding in findings}


def weight(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


# ---------------------------------------------------------------------------------- right rules


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Relu", {"x": SHAPE}, {}),
        ("Add", {"x": SHAPE, "z": (6, 1)}, {}),
        ("MatMul", {"x": SHAPE, "z": (4, 5)}, {}),
        ("MatMul", {"x": SHAPE, "z": weight(4, 5)}, {}),
        ("Conv", {"x": (2, 8, 5, 5), "w": weight(12, 4, 3, 3)}, {"group": 2}),
        ("Concat", {"x": SHAPE, "z": (2, 3, 4)}, {"axis": 1}),
        ("Transpose", {"x": (3, 3, 3)}, {"perm": [2, 0, 1]}),
        ("Reshape", {"x": (2, 12, 3), "shape": np.array([2, 4, 3, 3])}, {}),
        ("Softmax", {"x": SHAPE}, {"axis": -1}),
        ("DepthToSpace", {"x": (2, 12, 3, 4)}, {"blocksize": 2}),
    ],
)
def test_nothing_is_found_in_right_rules(op: str, inputs: dict[str, Any], attributes: dict[str, Any]) -> None:
    assert check(op, inputs, attributes=attributes) == []


@pytest.mark.parametrize("operator", sorted(CASES)[::6])
def test_nothing_is_found_in_models_around_one_operator(operator: str) -> None:
    """The cases of the rules, with every axis of their inputs and outputs free."""
    case: Case = CASES[operator][0]
    assert check_rule(case.build(0), units=1) == []


# ---------------------------------------------------------------------------------- wrong rules


def same(walk: Walk, node: Node) -> Outputs:
    return [walk.axes(node, 0)]


def test_wrong_axis_of_another_size() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        a, b, c = walk.axes(node, 0)
        return [[a, c, b]]

    (finding,) = check("Relu", {"x": SHAPE}, rule)
    assert finding.kind == "shape"
    assert finding.message == "the rules say that 'y' has the shape (2, 4, 6), the operator makes (2, 6, 4)"


def test_wrong_axis_of_the_same_size() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        a, b, c = walk.axes(node, 0)
        return [[a, c, b]]

    findings = check("Relu", {"x": (2, 5, 5)}, rule)
    assert kinds(findings) == {"leak"}
    assert findings[0].message.startswith(
        "without x:1 [0], y:2 [0]: other values there change what stays of 'y', at axis 1 [0]"
    )


def test_positions_off_by_one() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        a, b, c = walk.axes(node, 0)
        return [[a, view(b, np.roll(np.arange(b.size), 1)), c]]

    (finding,) = check("Relu", {"x": SHAPE}, rule)
    assert finding.kind == "leak" and finding.message.startswith("without x:1 [0], y:1 [1]: other values")
    assert "axis 1 [0]" in finding.message


def test_a_missing_tie() -> None:
    findings = check("Add", {"x": SHAPE, "z": SHAPE}, same)
    assert any(
        finding.kind == "fails" and finding.message.startswith("without x:1 [0], y:1 [0]: the operator no")
        for finding in findings
    )
    assert any(finding.kind == "leak" and "without z:1 [0]" in finding.message for finding in findings)


def test_an_output_that_is_tied_to_nothing() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        return [[atom(axis.size) for axis in walk.axes(node, 0)]]

    findings = check("Relu", {"x": SHAPE}, rule)
    assert (
        Finding("shape", "without y:1 [0]: 'y' should have the shape (2, 5, 4), the operator makes (2, 6, 4)")
        in findings
    )


def test_a_normalisation_that_is_not_declared() -> None:
    (finding,) = check("Softmax", {"x": SHAPE}, same, attributes={"axis": -1})
    assert finding.kind == "leak" and "without x:2 [0], y:2 [0]" in finding.message
    assert "a contraction or normalisation is not declared" in finding.message


def test_a_normalisation_over_the_wrong_axis() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        walk.normalisations.append(Normalisation(node, ((0, 1),), ((0, 1),)))
        return same(walk, node)

    assert kinds(check("Softmax", {"x": SHAPE}, rule, attributes={"axis": -1})) == {"leak"}


def matmul(walk: Walk, node: Node) -> Outputs:
    x, z = walk.axes(node, 0), walk.axes(node, 1)
    unify(x[-1], z[0])
    return [[*x[:-1], z[1]]]


def test_a_contraction_that_is_not_declared() -> None:
    (finding,) = check("MatMul", {"x": SHAPE, "z": (4, 5)}, matmul)
    assert finding.kind == "leak" and "without x:2 [0], z:0 [0]" in finding.message


def test_a_contraction_at_the_wrong_place() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        walk.contractions.append(Contraction(node, ((0, 1), (1, 0))))
        return matmul(walk, node)

    assert check("MatMul", {"x": SHAPE, "z": (4, 5)}, rule)


def test_a_size_that_is_written_in_a_constant() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        a, b, c = walk.axes(node, 0)
        return [[a, *factor(b, 2), c]]

    def right(walk: Walk, node: Node) -> Outputs:
        (axes,) = rule(walk, node)
        assert axes is not None
        walk.baked.append(SizesBaked(node, 1, tuple(axes)))
        return [axes]

    inputs = {"x": SHAPE, "shape": np.array([2, 3, 2, 4])}
    assert kinds(check("Reshape", inputs, rule)) == {"fails"}
    assert check("Reshape", inputs, right) == []


def test_what_is_computed_must_be_the_same_too() -> None:
    """A sum over an axis of which the rule says that a mean is taken: both see the kept positions only."""

    def rule(walk: Walk, node: Node) -> Outputs:
        walk.contractions.append(Contraction(node, ((0, 2),), in_place=True))
        return [walk.axes(node, 0)[:2]]

    assert check("ReduceSum", {"x": SHAPE, "axes": np.array([2])}, rule, attributes={"keepdims": 0}) == []
    (finding,) = check("ReduceMean", {"x": SHAPE}, rule, attributes={"axes": [2], "keepdims": 0})
    assert finding.kind == "differs" and "without x:2 [0]" in finding.message


def test_an_operator_without_a_rule() -> None:
    (finding,) = check_rule(model_of(gate_node(), {"x": (2, 8)}), executor=reference(Gate))
    assert finding == Finding("no rule", "acme::Gate 'y' has no rule")


def test_what_must_be_free_and_is_not() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        x = walk.axes(node, 0)
        for axis in x:
            unify(axis, Axis("fix", axis.size, why="caution"))
        return [x]

    assert check("Relu", {"x": SHAPE}, rule) == []
    (finding,) = check("Relu", {"x": SHAPE}, rule, free=["y:1"])
    assert finding == Finding("pinned", "'y' axis 1 cannot shrink: caution")
    with pytest.raises(UsageError, match="'y:7' is no axis"):
        check("Relu", {"x": SHAPE}, rule, free=["y:7"])


# ---------------------------------------------------------------------------------- custom operators


class Gate(OpRun):
    """y = sigmoid(a) · b, where a and b are the halves of the last axis."""

    op_domain = "acme"

    def _run(self, x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any]]:
        a, b = np.split(x, 2, axis=-1)
        return ((b / (1 + np.exp(-a))).astype(x.dtype),)


def gate_node() -> NodeProto:
    return helper.make_node("Gate", ["x"], ["y"], domain="acme")


def gate(walk: Walk, node: Node) -> Outputs:
    *outer, last = walk.axes(node, 0)
    a, b = cut(last, last.size // 2)
    unify(a, b)
    return [[*outer, a]]


def test_a_custom_operator_with_an_executor() -> None:
    model = model_of(gate_node(), {"x": (3, 8)})
    assert check_rule(model, {"acme::Gate": gate}, executor=reference(Gate), free=["x:0", "x:1", "y:1"]) == []


def test_a_wrong_rule_of_a_custom_operator() -> None:
    def rule(walk: Walk, node: Node) -> Outputs:
        *outer, last = walk.axes(node, 0)
        return [[*outer, cut(last, last.size // 2)[0]]]  # the halves are not tied

    findings = check_rule(
        model_of(gate_node(), {"x": (3, 8)}), {"acme::Gate": rule}, executor=reference(Gate)
    )
    assert any("without x:1 [0], y:1 [0]" in finding.message for finding in findings)
    assert any("without x:1 [4]" in finding.message for finding in findings)


def test_special_inputs_can_be_fed() -> None:
    """Indices must stay below the size of what they pick from."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "ids"], ["y"])],
        "g",
        [
            helper.make_tensor_value_info("table", 1, [5, 4]),
            helper.make_tensor_value_info("ids", 7, [2, 3]),
        ],
        [helper.make_tensor_value_info("y", 1, [2, 3, 4])],
    )
    model = Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert check_rule(model, feeds={"ids": np.array([[0, 4, 2], [1, 1, 3]])}, free=["table:1", "y:2"]) == []


def test_sizes_must_be_static() -> None:
    info = helper.make_tensor_value_info("x", 1, ["batch", 4])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info], [info])
    with pytest.raises(UsageError, match="'x' has sizes known only at run time"):
        check_rule(Model(helper.make_model(graph)))
