"""Control flow: bodies are walked where they stand, what goes in and comes out of them is tied."""

from __future__ import annotations

import onnx

from ..axes import fix, pin, unify
from ..graph import Node
from ..walk import Walk
from .registry import Axes, Outputs, Unsupported, rule


def _result(walk: Walk, name: str) -> Axes:
    """Types of what a body gives."""
    constant = walk.constants.get(name)
    if constant is not None:
        return [fix(size, f"'{name}' is a constant that a body gives") for size in constant.shape]
    types = walk.axes_of.get(name)
    if types is None:
        raise Unsupported(f"the shape of '{name}' is not known")
    return types


def _same(a: Axes, b: Axes, what: str) -> None:
    if len(a) != len(b) or any(x.size != y.size for x, y in zip(a, b, strict=True)):
        raise Unsupported(f"{what} differ in shape")
    for x, y in zip(a, b, strict=True):
        unify(x, y)


@rule("If")
def if_(walk: Walk, node: Node) -> Outputs:
    condition = walk.static_value(node, 0)
    if condition is not None:  # the other branch never runs
        branch = node.attrs["then_branch" if condition.reshape(-1)[0] else "else_branch"]
        walk.graph(branch)
        return [_result(walk, output.name) for output in branch.output]
    branches = [node.attrs["then_branch"], node.attrs["else_branch"]]
    for branch in branches:
        walk.graph(branch)
    outputs = []
    for one, other in zip(*([o.name for o in branch.output] for branch in branches), strict=True):
        _same(_result(walk, one), _result(walk, other), "its branches")
        outputs.append(_result(walk, one))
    return outputs


@rule("Loop")
def loop(walk: Walk, node: Node) -> Outputs:
    body: onnx.GraphProto = node.attrs["body"]
    states = [walk.axes(node, i) for i in range(2, len(node.inputs))]
    for info, types in zip(body.input, [[], [], *states], strict=True):
        walk.axes_of[info.name] = types
    walk.graph(body)
    results = [output.name for output in body.output[1:]]
    for name, types in zip(results, states, strict=False):
        _same(_result(walk, name), types, "a value and what its body makes of it")
    trips = walk.static_value(node, 0) if node.has(0) else None
    stacked: list[Axes | None] = []
    for name in results[len(states) :]:
        types = _result(walk, name)
        if trips is None:
            for axis in types:
                pin(axis, f"{node.name} stacks it an unknown number of times")
            stacked.append(None)
        else:
            stacked.append([fix(int(trips.reshape(-1)[0]), "the trips of a loop"), *types])
    return [*states, *stacked]


@rule("Scan")
def scan(walk: Walk, node: Node) -> Outputs:
    if walk.opset < 9:
        raise Unsupported("before opset 9 it has a batch axis of its own")
    body: onnx.GraphProto = node.attrs["body"]
    inputs = [walk.axes(node, i) for i in range(len(node.inputs))]
    count = node.attrs["num_scan_inputs"]
    states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
    given = node.attrs.get("scan_input_axes", [0] * count)
    length = None
    elements = []
    for types, along in zip(scanned, given, strict=True):
        length = types[along]
        pin(length, f"{node.name} runs along it")
        elements.append([axis for k, axis in enumerate(types) if k != along % len(types)])
    if length is None:
        raise Unsupported("it scans nothing")
    for info, types in zip(body.input, [*states, *elements], strict=True):
        walk.axes_of[info.name] = types
    walk.graph(body)
    results = [_result(walk, output.name) for output in body.output]
    for types, made in zip(states, results, strict=False):
        _same(made, types, "a state and what its body makes of it")
    stacked = results[len(states) :]
    places = node.attrs.get("scan_output_axes", [0] * len(stacked))
    outputs: list[Axes] = list(states)
    for types, along in zip(stacked, places, strict=True):
        at = along % (len(types) + 1)
        outputs.append([*types[:at], length, *types[at:]])
    return outputs
