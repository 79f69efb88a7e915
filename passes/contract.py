"""The certificate of factors: they compute what one layer with their product as its weight does."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray

from ..analysis.errors import CheckError
from ..analysis.facts import Linear
from ..analysis.graph import Constant, tensor_of, walk_graphs
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from .edit import drop_dead, node_key
from .factorize import channels, factorable
from .measure.layers import Layer
from .upcast import in_float32
from .verify import Verdict, compare

_LONGEST = 3


def contracted(factorised: Model, whole: Model, weights: Collection[str]) -> Model:
    """``factorised`` with each chain multiplied out into the node that it stands for.

    Args:
        whole: the model before `passes.factorize`, of which nodes are taken and no values.
        weights: of ``whole``, those that were taken apart.

    Raises:
        CheckError: a layer of ``whole`` is no chain of layers in ``factorised``.
        PlanError: ``whole`` has no such weight.
    """
    before, after = analyze(whole), analyze(factorised)
    proto = onnx.ModelProto()
    proto.CopyFrom(after.model.proto)
    graphs = list(walk_graphs(proto.graph))
    nodes = {node_key(node): node for graph in graphs for node in graph.node}
    gone: set[str] = set()
    for weight in weights:
        fact, constant = factorable(before, weight)
        chain = _chain(after, fact)
        product = _product(after, chain)
        value = Layer(fact, fact.node, constant.shape).weight(product)
        last = nodes[fact.node.key]
        bias = list(last.input[2:])
        last.CopyFrom(fact.node.proto)
        del last.input[2:]
        last.input.extend(bias)
        gone.update(link.node.key for link in chain if link.node.key != fact.node.key)
        dtype = after.walk.constants[chain[-1].node.inputs[chain[-1].weight]].dtype
        proto.graph.initializer.append(tensor_of(np.ascontiguousarray(value.astype(dtype)), weight))
    for graph in graphs:
        for k in reversed(range(len(graph.node))):
            if node_key(graph.node[k]) in gone:
                del graph.node[k]
    drop_dead(proto.graph, lambda node: False)
    return Model(proto, factorised.path)


def _chain(after: Analysis, fact: Linear) -> list[Linear]:
    """The layers between what ``fact`` reads and what it gives, in their order."""
    layers: dict[str, Linear] = {link.node.outputs[0]: link for link in after.walk.linears}
    name = fact.node.outputs[0]
    chain: list[Linear] = []
    while name in layers and len(chain) < _LONGEST:
        chain.append(layers[name])
        name = layers[name].node.inputs[layers[name].data]
        if name == fact.node.inputs[fact.data]:
            return chain[::-1]
    raise CheckError(f"{fact.node.name} is no chain of layers in the factorised model")


def _product(after: Analysis, chain: list[Linear]) -> NDArray[np.float64]:
    """The matrices of a chain multiplied, shape (1, K, O)."""
    product: NDArray[np.float64] | None = None
    for link in chain:
        constant: Constant = after.walk.constants[link.node.inputs[link.weight]]
        matrix = Layer(link, link.node, constant.shape).matrix(constant.value)
        if matrix.shape[0] != 1:
            raise CheckError(f"{link.node.name} works in groups")
        read = channels(link, constant.shape)
        each = matrix[0].reshape(read, -1, matrix.shape[2])
        if product is None:
            product = each
        else:  # windows of one position but for one of them
            product = np.einsum("apr,rqo->apqo", product, each)
            product = product.reshape(len(product), -1, product.shape[-1])
    assert product is not None
    return product.reshape(1, -1, product.shape[-1])


def certify_factors(factorised: Model, whole: Model, weights: Collection[str], seed: int = 0) -> Verdict:
    """Run ``factorised``, and the same with its chains multiplied out, on random inputs and compare them.

    Args:
        whole: the model before, of which nodes are taken and no values.
        weights: of ``whole``, those that were taken apart.

    Raises:
        CheckError, PlanError: as `contracted`.
        ModelError: one of the two does not run.
    """
    wide = Model(in_float32(factorised.proto), factorised.path)
    merged = contracted(wide, Model(in_float32(whole.proto), whole.path), weights)
    verdict = compare(wide, merged.proto, wide, analyze(merged), "exact", seed)
    return replace(verdict, message=f"factors against their product: {verdict.message}")


def certify_same(got: Model, wanted: Model, seed: int = 0) -> Verdict:
    """Run two models on random inputs and compare them.

    Raises:
        ModelError: one of the two does not run.
    """
    return compare(wanted, wanted.proto, got, analyze(wanted), "exact", seed)


def both(first: Verdict, second: Verdict) -> Verdict:
    """Two certificates as one: each of the kind of the first."""
    worse = max(first, second, key=lambda verdict: (not verdict.ok, verdict.max_relative_error))
    return Verdict(
        first.ok and second.ok,
        first.kind,
        worse.max_relative_error,
        first.message
        if not first.ok
        else f"{first.message}; {second.message}"
        if second.ok
        else second.message,
    )
