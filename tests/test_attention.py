"""Attention in one kernel: what is found in models, what it computes, and what stays apart."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from test_backends import TOLERANCE, Net, worst

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def heads(net: Net, rows: int, wide: int, count: int) -> tuple[str, str, str]:
    """Queries, keys turned, and values of (1, rows, count · wide) tokens, each by a product."""
    shape = net.constant(np.array([1, rows, count, wide]))
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = net.op("MatMul", "x", net.weight(count * wide, count * wide))
        parts.append(net.op("Transpose", net.op("Reshape", made, shape), perm=perm))
    return parts[0], parts[1], parts[2]


def plain(net: Net) -> str:
    query, key, value = heads(net, 19, 8, 3)
    return net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), value)


def scaled(net: Net) -> str:
    """Queries and keys times a number, as PyTorch writes them; the result goes back to tokens."""
    query, key, value = heads(net, 19, 8, 3)
    query = net.op("Mul", query, net.constant(np.float32(0.7)))
    key = net.op("Mul", net.constant(np.float32([0.7])), key)
    result = net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), value)
    turned = net.op("Transpose", result, perm=[0, 2, 1, 3])
    tokens = net.op("Reshape", turned, net.constant(np.array([1, 19, 24])))
    return net.op("MatMul", tokens, net.weight(24, 24))


def masked(net: Net) -> str:
    """A bias for each head and a mask for all, one of them the first operand; a division."""
    query, key, value = heads(net, 19, 8, 3)
    scores = net.op("Div", net.op("MatMul", query, key), net.constant(np.float32(2.5)))
    scores = net.op("Add", net.weight(1, 3, 19, 19), scores)
    mask = np.where(np.tri(19, dtype=bool), 0, -1e4).astype(np.float32)[None, None]
    scores = net.op("Add", scores, net.constant(mask))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def bounded(net: Net) -> str:
    """The smaller and the larger of a score and a number, which comes first and last."""
    query, key, value = heads(net, 19, 8, 3)
    scores = net.op("Min", net.constant(np.float32(0.5)), net.op("MatMul", query, key))
    scores = net.op("Max", scores, net.constant(np.float32(-0.5)))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def masked_by_input(net: Net) -> str:
    """What is added is computed, and depends on the key only."""
    query, key, value = heads(net, 19, 8, 3)
    sums = net.op("ReduceSum", "x", net.constant(np.array([2])), keepdims=0)
    row = net.op("Reshape", sums, net.constant(np.array([1, 1, 1, 19])))
    scores = net.op("Add", net.op("MatMul", query, key), row)
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def in_windows(net: Net) -> str:
    """Scores of two windows get a mask each, for which they are arranged otherwise."""
    parts = [net.op("MatMul", "x", net.weight(24, 24)) for _ in range(3)]
    shape = net.constant(np.array([2, 9, 3, 8]))
    turns = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    parts = [net.op("Slice", p, *(net.constant(np.array([n])) for n in (0, 18, 1))) for p in parts]
    parts = [
        net.op("Transpose", net.op("Reshape", p, shape), perm=t) for p, t in zip(parts, turns, strict=True)
    ]
    scores = net.op("MatMul", parts[0], parts[1])
    apart = net.op("Reshape", scores, net.constant(np.array([1, 2, 3, 9, 9])))
    apart = net.op("Add", apart, net.weight(1, 2, 1, 9, 9))
    together = net.op("Reshape", apart, net.constant(np.array([2, 3, 9, 9])))
    return net.op("MatMul", net.op("Softmax", together, axis=-1), parts[2])


def one_query(net: Net) -> str:
    query, key, value = heads(net, 19, 8, 3)
    query = net.op("Slice", query, *(net.constant(np.array([n])) for n in (0, 1, 2)))
    return net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-1), value)


def seen_twice(net: Net) -> str:
    """Shares that are read elsewhere too."""
    query, key, value = heads(net, 19, 8, 3)
    shares = net.op("Softmax", net.op("MatMul", query, key), axis=-1)
    return net.op("Add", net.op("MatMul", shares, value), net.op("ReduceMax", shares, axes=[3]))


def over_queries(net: Net) -> str:
    """A softmax over another axis."""
    query, key, value = heads(net, 19, 8, 3)
    return net.op("MatMul", net.op("Softmax", net.op("MatMul", query, key), axis=-2), value)


def weighed_by_constant(net: Net) -> str:
    query, key, _ = heads(net, 19, 8, 3)
    scores = net.op("Softmax", net.op("MatMul", query, key), axis=-1)
    return net.op("MatMul", scores, net.weight(1, 3, 19, 5))


TAKEN = [plain, scaled, masked, bounded, masked_by_input, in_windows, one_query]
APART = [seen_twice, over_queries, weighed_by_constant]


def model(build: Callable[[Net], str]) -> onnx.ModelProto:
    net = Net(1, 19, 24)
    return net.model(build(net))


def workloads(proto: onnx.ModelProto) -> dict[Any, int]:
    from onnx_prune.backends.tvm import build, frontend
    from onnx_prune.backends.tvm.machine import host_target

    module = frontend.import_model(frontend.fold(proto))
    return dict(build.workloads_of(module, host_target(1)).seen)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("build", TAKEN + APART)
def test_it_is_what_the_model_computes(build: Callable[[Net], str], threads: int) -> None:
    assert worst(model(build), threads) < TOLERANCE


@pytest.mark.parametrize("build", TAKEN)
def test_one_kernel_takes_the_place_of_all(build: Callable[[Net], str]) -> None:
    from onnx_prune.backends.tvm.workloads import Attention, Batched

    found = workloads(model(build))
    (attention,) = (w for w in found if isinstance(w, Attention))
    assert found[attention] == 1 and not any(isinstance(w, Batched) for w in found)
    assert attention.rows == (1 if build is one_query else 9 if build is in_windows else 19)


@pytest.mark.parametrize("build", APART)
def test_what_is_no_attention_stays_apart(build: Callable[[Net], str]) -> None:
    from onnx_prune.backends.tvm.workloads import Attention

    assert not any(isinstance(w, Attention) for w in workloads(model(build)))


@pytest.mark.parametrize(
    "sizes", [(3, 33, 41, 12, 20), (1, 1, 30, 8, 24), (2, 7, 13, 5, 11), (5, 2, 3, 4, 9)]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_every_choice_computes_the_same(sizes: tuple[int, ...], threads: int) -> None:
    import tvm
    from onnx_prune.backends.tvm.build import kernel_of
    from onnx_prune.backends.tvm.machine import core_of, host_target
    from onnx_prune.backends.tvm.workloads import Attention

    workload, target, rng = Attention(*sizes), host_target(threads), np.random.default_rng(0)
    for choice in workload.choices(core_of(tvm.target.Target(target)), False):
        kernel, (*shapes, shape) = kernel_of(workload, choice, target)
        query, key, value = (rng.standard_normal(s).astype(np.float32) for s in shapes)
        got = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
        kernel.jit()["main"](*(tvm.runtime.tensor(a) for a in (query, key, value)), got)
        powers = np.exp(query.astype(float) @ key.transpose(0, 2, 1))
        wanted = powers / powers.sum(-1, keepdims=True) @ value
        assert np.abs(got.numpy() - wanted).max() < TOLERANCE * np.abs(wanted).max(), choice
