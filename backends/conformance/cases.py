"""The cases of a rule: weights it is about and weights that only look like it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import lcm
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ...analysis.patterns.cluster import Cluster
from ...analysis.patterns.grid import INPUTS, Mask, Sizes
from ...analysis.patterns.profile import Profile, Rule
from ...analysis.patterns.requirement import AtLeast, Either, Groups, Multiple, Runs, Sparse, Zeros
from .layouts import IR_VERSION, OFF_ZERO, OPERATORS, OPSET, PLAIN, STORINGS, Operator, Single, Storing, reads

Array = NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A model, an input and what the rule says of its weights.

    Attributes:
        name: for a folder.
        rule: id of the rule.
        about: what is particular about it.
        holds: whether the weight satisfies the rule, as it was made; None where the rule is not about it.
    """

    name: str
    rule: str
    about: str
    model: onnx.ModelProto
    data: Array
    holds: bool | None


def cases_of(profile: Profile) -> Iterator[Case]:
    """Cases of all rules of a profile, the same each time."""
    for rule in profile.rule:
        for case in _cases(rule):
            yield replace(case, name=f"{rule.id}.{case.name}")


def _cases(rule: Rule) -> Iterator[Case]:
    if rule.cluster is not None and isinstance(rule.require, Zeros):
        yield from _clusters(rule, rule.cluster, rule.require)
    dtypes = rule.where.dtypes or rule.where.data or ("float32",)
    for name in rule.where.operators:
        for number, operator in enumerate(OPERATORS.get(name, ())):
            for dtype in dtypes:
                if operator.quantised and dtype not in ("int8", "uint8"):
                    continue
                if not operator.quantised and dtype == "bfloat16":
                    continue  # the reference has no kernels for it
                if rule.where.data and reads(operator, dtype) not in rule.where.data:
                    continue
                title = f"{name.lower()}{number or ''}.{dtype}"
                first = dtype == dtypes[0]
                yield from _of_operator(rule, operator, dtype, title, first)


def _of_operator(rule: Rule, operator: Operator, dtype: str, title: str, thorough: bool) -> Iterator[Case]:
    want = rule.require
    kernels = _kernels(rule, operator)
    if isinstance(want, Multiple | AtLeast):
        yield from _sized(rule, want, operator, dtype, title, kernels[0])
        return
    alone = rule.cluster is None  # a single layer is no cluster

    def case(
        about: str, weight: Array, holds: bool | None, kernel: tuple[int, ...], storing: Storing
    ) -> Case:
        single = Single(operator, weight, kernel, dtype, storing)
        name = f"{title}.{about.replace(' ', '-')}"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return Case(name, rule.id, about, single.model(), single.data(rng), holds if alone else None)

    rng = np.random.default_rng(zlib.crc32(title.encode()))
    base = _sizes(rule, want, kernels[0])
    several = (1, base[1], base[2], 2 * base[3] if rule.where.multiple_inputs > 1 else 4 * base[3])
    yield case("several groups", _satisfying(rng, want, several), True, kernels[0], PLAIN)
    yield case("one too many", _violating(rng, want, several), False, kernels[0], PLAIN)
    if not thorough:
        return
    yield case("one group", _satisfying(rng, want, base), True, kernels[0], PLAIN)
    yield case("all zero", np.zeros(base, np.int64), True, kernels[0], PLAIN)
    yield case("none zero", _integers(rng, np.ones(several, bool)), False, kernels[0], PLAIN)
    ragged = (1, several[1], several[2], several[3] + max(1, base[3] // 2 + 1 - base[3] % 2))
    about = None if _refuses(rule, want, ragged) else True
    yield case("ragged end", _satisfying(rng, want, ragged), about, kernels[0], PLAIN)
    if about:
        yield case("ragged end too many", _crowded_end(rng, want, ragged), None, kernels[0], PLAIN)
    offset = dtype in ("int8", "uint8") and not operator.quantised
    for storing in (*STORINGS, OFF_ZERO) if offset else STORINGS:
        for holds in (True, False):
            make = _satisfying if holds else _violating
            word = "" if holds else " too many"
            weight = make(rng, want, (1, several[1], int(np.prod(kernels[-1])), several[3]))
            yield case(f"{storing.name}{word}", weight, holds, kernels[-1], storing)
    for kernel in kernels[1:]:
        sizes = (1, several[1], int(np.prod(kernel)), several[3])
        yield case(f"kernel {len(kernel)}d", _satisfying(rng, want, sizes), True, kernel, PLAIN)
        yield case("kernel too many", _violating(rng, want, sizes), False, kernel, PLAIN)
    if operator.image:
        sizes = (2, several[1], several[2], several[3])
        grouped = None if "grouped" in rule.where.without else True
        yield case("grouped", _satisfying(rng, want, sizes), grouped, kernels[0], PLAIN)
        depthwise = _integers(rng, np.ones((8, 1, several[2], 1), bool))
        yield case("depthwise", depthwise, None, kernels[0], PLAIN)


def _kernels(rule: Rule, operator: Operator) -> list[tuple[int, ...]]:
    if not operator.image:
        return [()]
    return list(rule.where.kernels) or [(1, 1), (3, 3)]


# ---------------------------------------------------------------------- sizes


def _sizes(rule: Rule, want: Sparse, kernel: tuple[int, ...]) -> Sizes:
    """The smallest weight a rule is about, with a group or a block."""
    where = rule.where
    parts = want.of if isinstance(want, Either) else (want,)
    inputs, outputs = max(1, where.multiple_inputs), max(1, where.multiple_outputs)
    for part in parts:
        if isinstance(part, Groups):
            along = part.of
            inputs = lcm(inputs, along) if part.along == "inputs" else inputs
            outputs = lcm(outputs, part.shared if part.along == "inputs" else along)
        elif isinstance(part, Zeros):
            inputs, outputs = lcm(inputs, 2 * part.inputs), lcm(outputs, 2 * part.outputs)
        else:
            inputs = lcm(inputs, 2 * part.length)
    inputs *= -(-where.min_inputs // inputs)
    positions = int(np.prod(kernel))
    outputs *= -(-max(where.min_outputs, 2, -(-where.min_elements // (inputs * positions))) // outputs)
    return 1, outputs, positions, inputs


def _refuses(rule: Rule, want: Sparse, sizes: Sizes) -> bool:
    if sizes[INPUTS] % rule.where.multiple_inputs:
        return True
    return want.misfit(sizes) is not None


# ---------------------------------------------------------------------- weights


def _integers(rng: np.random.Generator, mask: Mask) -> Array:
    """-2, -1, 1 or 2 where a mask is set."""
    return np.where(mask, rng.choice([-2, -1, 1, 2], mask.shape), 0)


def _satisfying(rng: np.random.Generator, want: Sparse, sizes: Sizes) -> Array:
    """A weight that satisfies a requirement with no zero more than it takes."""
    if isinstance(want, Either):
        want = want.of[0]
    return _integers(rng, want.choose(rng.random(sizes) + 0.5))


def _violating(rng: np.random.Generator, want: Sparse, sizes: Sizes) -> Array:
    """A weight that misses a requirement by one element, or by as little as there is."""
    if isinstance(want, Either):
        return _integers(rng, np.ones(sizes, bool))
    if isinstance(want, Runs):
        mask = np.ones(sizes, bool)
        mask[..., ::2] = False
        return _integers(rng, mask)
    weight = _satisfying(rng, want, sizes)
    order = rng.permutation(np.flatnonzero(weight == 0))
    for place in order:
        changed = weight.copy()
        changed.reshape(-1)[place] = 1
        if want.check(changed != 0, 0) is not None:
            return changed
    raise AssertionError(f"nothing violates {want} in {sizes}")


def _crowded_end(rng: np.random.Generator, want: Sparse, sizes: Sizes) -> Array:
    """A weight that satisfies a requirement but for its last group, of which nothing is zero."""
    weight = _satisfying(rng, want, sizes)
    weight[..., -2:] = 1
    return weight


# ---------------------------------------------------------------------- sizes alone, clusters


def _sized(
    rule: Rule, want: Multiple | AtLeast, operator: Operator, dtype: str, title: str, kernel: tuple[int, ...]
) -> Iterator[Case]:
    where = rule.where
    inputs, outputs = max(want.inputs, where.min_inputs), max(want.outputs, where.min_outputs, 2)
    sizes = [("as wanted", inputs, outputs, True), ("twice", 2 * inputs, 2 * outputs, True)]
    if want.inputs > 1:
        sizes.append(("one input less", max(inputs - 1, where.min_inputs), outputs, False))
    if want.outputs > 1:
        sizes.append(("one output less", inputs, outputs - 1, False))
    for about, i, o, holds in sizes:
        name = f"{title}.{about.replace(' ', '-')}"
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        weight = _integers(rng, np.ones((1, o, int(np.prod(kernel)), i), bool))
        single = Single(operator, weight, kernel, dtype)
        yield Case(name, rule.id, about, single.model(), single.data(rng), holds)


def _clusters(rule: Rule, cluster: Cluster, want: Zeros) -> Iterator[Case]:
    """Two layers between the convolution a cluster begins with and an exit, with zeros in one or both."""
    half = want.least(128) - 64
    for about, zeros, open_end, holds in (
        ("zeros in both", (want.least(128) - 43, 43), False, True),
        ("zeros in one", (64, half), False, True),
        ("one zero too few", (64, half - 1), False, False),
        ("it has no exit", (64, half), True, None),
    ):
        rng = np.random.default_rng(zlib.crc32(about.encode()))
        weights = []
        for count in zeros:
            mask = np.ones(64, bool)
            mask[rng.permutation(64)[:count]] = False
            weights.append(_integers(rng, mask).reshape(8, 8, 1, 1).astype(np.float32))
        model = _net(cluster, weights, open_end, rng)
        data = rng.integers(-2, 3, (1, cluster.entry.inputs, 8, 8)).astype(np.float32)
        yield Case(f"cluster.{about.replace(' ', '-')}", rule.id, about, model, data, holds)


def _net(cluster: Cluster, weights: list[Array], open_end: bool, rng: np.random.Generator) -> onnx.ModelProto:
    entry = cluster.entry
    first = _integers(rng, np.ones((8, entry.inputs, *entry.kernel), bool)).astype(np.float32)
    depthwise = _integers(rng, np.ones((8, 1, *cluster.depthwise[0]), bool)).astype(np.float32)
    pads = [k // 2 for k in entry.kernel] * 2
    around = [k // 2 for k in cluster.depthwise[0]] * 2
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], strides=list(entry.strides), pads=pads),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "weight.0"], ["c"]),
        helper.make_node("Conv", ["c", "depthwise"], ["d"], group=8, pads=around),
        helper.make_node("Relu", ["d"], ["e"]),
        helper.make_node("Conv", ["e", "weight.1"], ["f"]),
        helper.make_node("Softmax" if open_end else "GlobalAveragePool", ["f"], ["y"]),
    ]
    values = {"first": first, "depthwise": depthwise, "weight.0": weights[0], "weight.1": weights[1]}
    shape = [1, 8, 4, 4] if open_end else [1, 8, 1, 1]
    graph = helper.make_graph(
        nodes,
        "conformance",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, entry.inputs, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
