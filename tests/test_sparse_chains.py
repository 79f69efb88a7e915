"""Two layers whose weights are mostly zero, with elementwise operators between them, are one kernel."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from test_backends import Net
from test_sparse_kernels import MASKS, forced, results, with_zeros

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
Between = Callable[[Net, str], str]


def bias_and_relu(net: Net, x: str) -> str:
    return net.op("Relu", net.op("Add", x, net.weight(50)))


def squared(net: Net, x: str) -> str:
    """What is read twice; and a constant that all share."""
    y = net.op("Add", net.weight(1), x)
    return net.op("Mul", y, net.op("Neg", y))


def silu(net: Net, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def as_it_is(net: Net, x: str) -> str:
    return x


def scaled(net: Net, x: str) -> str:
    return net.op("Sub", net.weight(1, 50), net.op("Mul", x, net.weight(50)))


BETWEEN: dict[str, Between] = {
    function.__name__: function for function in (bias_and_relu, squared, silu, as_it_is, scaled)
}


def model(between: Between, *lead: int, outputs: int = 22) -> onnx.ModelProto:
    net = Net(*lead, 30)
    hidden = between(net, net.op("MatMul", "x", net.weight(30, 50)))
    y = net.op("MatMul", hidden, net.weight(50, outputs))
    return net.model(net.op("Add", y, net.weight(outputs)))


def chains(choices: Any) -> int:
    from onnx_prune.backends.tvm.chain import Chain

    return sum(count for workload, count in choices.seen.items() if isinstance(workload, Chain))


def check(made: onnx.ModelProto, number: int, threads: int, wanted: int) -> None:
    """What is compiled has so many chains, and computes what the dense model does."""
    artifact, choices = forced(made, number, threads)
    assert chains(choices) == wanted
    got, dense = results(artifact, made, seed=1)
    if "Sigmoid" in [node.op_type for node in made.graph.node]:
        assert np.abs(got - dense).max() <= 1e-5 * np.abs(dense).max()
    else:
        assert np.array_equal(got, dense)
    assert np.any(dense)


@pytest.mark.parametrize(
    ("between", "pattern"),
    [*zip(BETWEEN, ["4x1", "single", "2:4", "empty rows", "one"], strict=True), ("squared", "4x1")],
)
def test_two_layers_are_one_kernel(between: str, pattern: str) -> None:
    number = 2 * (list(MASKS).index(pattern) * 5 + len(between))  # half precision holds the weights
    check(with_zeros(model(BETWEEN[between], 2, 37), MASKS[pattern], number), number, 1, 1)


@pytest.mark.parametrize(
    ("number", "tokens", "threads"), [(0, 8, 1), (3, 16, 2), (7, 29, 1), (0, 29, 2), (5, 197, 1), (9, 197, 2)]
)
def test_every_choice_computes_the_same(number: int, tokens: int, threads: int) -> None:
    check(with_zeros(model(bias_and_relu, tokens, outputs=21), MASKS["4x1"], 0), number, threads, 1)


def test_both_ways_are_noted_to_be_measured() -> None:
    from onnx_prune.backends.tvm.chain import Chain
    from onnx_prune.backends.tvm.schedules.sources import Tokens
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse
    from onnx_prune.backends.tvm.workloads import Choices, Measured, key

    first, second = (
        Sparse(Tokens((40,), 30), 50, Pattern(4, 20)),
        Sparse(Tokens((40,), 50), 22, Pattern(4, 20)),
    )
    chain, choices = Chain(first, second), Choices()
    assert choices.joins(chain) and second in choices.seen and chain not in choices.seen
    best = {workload: choices.options(workload)[0] for workload in (chain, first, second)}
    times = {chain: 3.0, first: 1.0, second: 1.0}
    slow = Choices({key(w, False): Measured(best[w], seconds) for w, seconds in times.items()})
    assert not slow.joins(chain) and chain in slow.seen


def test_three_layers_are_a_chain_and_a_layer() -> None:
    net = Net(1, 40, 30)
    y = net.op("Relu", net.op("MatMul", "x", net.weight(30, 50)))
    y = net.op("Relu", net.op("MatMul", y, net.weight(50, 22)))
    made = net.model(net.op("MatMul", y, net.weight(22, 30)))
    check(with_zeros(made, MASKS["4x1"], 0), 0, 1, 1)


@pytest.mark.parametrize("why", ["read again", "a result", "not elementwise", "gated", "turned", "few"])
def test_layers_stay_apart(why: str) -> None:
    net = Net(1, 3 if why == "few" else 40, 30)
    first = net.op("MatMul", "x", net.weight(30, 30))
    hidden = net.op("Relu", first)
    if why == "not elementwise":
        hidden = net.op("Add", first, net.op("ReduceMax", first, axes=[1], keepdims=1))
    elif why == "gated":
        hidden = net.op("Mul", first, "x")
    elif why == "turned":
        hidden = net.op("Transpose", hidden, perm=[0, 2, 1])
    y = net.op("MatMul", hidden, net.weight(40 if why == "turned" else 30, 22))
    if why == "read again":
        y = net.op("Concat", y, first, axis=2)
    if why == "a result":
        y = net.op("Concat", y, hidden, axis=2)
    check(with_zeros(net.model(y), MASKS["4x1"], 0), 0, 1, 0)
