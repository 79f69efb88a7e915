"""Replace linear nodes by two or three of lower rank."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..analysis.errors import PlanError
from ..analysis.facts import Linear
from ..analysis.graph import Constant, walk_graphs
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.truncation import Factors, Ranks, Truncation
from .edit import Edit
from .measure.layers import Layer, can_be_read

Array = NDArray[Any]
# From W of shape (I times Q, O), the number I of channels, and ranks to factors.
Split: TypeAlias = Callable[[NDArray[np.float64], int, Ranks], Factors]

FORMS = ("rows", "columns", "gemm", "window")
# What tells how a window slides, and stays with it.
_SLIDING = ("kernel_shape", "strides", "pads", "dilations", "auto_pad")


def by_singular_values(weight: NDArray[np.float64], inputs: int, ranks: Ranks) -> Factors:
    """The factors of a weight by its values alone: its own where it has that rank, else the nearest."""
    return Truncation(weight, inputs).factors(ranks)


def of_shape(weight: NDArray[np.float64], inputs: int, ranks: Ranks) -> Factors:
    """Factors of zeros, where only sizes matter."""
    window, (first, last) = len(weight) // inputs, (ranks.inputs, ranks.outputs)
    return Factors(
        None if first is None else np.zeros((inputs, first)),
        np.zeros(((inputs if first is None else first) * window, last or weight.shape[1])),
        None if last is None else np.zeros((last, weight.shape[1])),
    )


@dataclass(frozen=True)
class Factorize:
    """The pass that writes linear nodes as chains of smaller ones.

    A matrix becomes two, a convolution up to three: 1x1, the window with its strides, dilations and pads,
    1x1. The last one has the bias and the old name of the output, so that nothing behind it changes.

    Attributes:
        ranks: of each layer, by the name of its weight.
        split: how a weight comes apart. Weights that were fitted with these ranks (`passes.recover`) have
            them already, and come apart without loss.

    Raises (when called):
        PlanError: a weight is shared, can be fed, is not one of a layer of the forms in `FORMS`, or has no
            such ranks.
    """

    ranks: Mapping[str, Ranks]
    split: Split = by_singular_values

    def __call__(self, model: Model) -> Model:
        if not any(self.ranks.values()):
            return model
        analysis = analyze(model)
        chains = _Chains(Edit(analysis.model.proto))
        for weight, ranks in self.ranks.items():
            if ranks:
                fact, constant = factorable(analysis, weight)
                check_ranks(weight, fact, constant.shape, ranks)
                inputs = channels(fact, constant.shape)
                layer = Layer(fact, fact.node, constant.shape)
                factors = self.split(layer.matrix(constant.value)[0], inputs, ranks)
                chains.replace(fact, constant, factors)
        return Model(chains.edit.finish(), model.path)


def factorable(analysis: Analysis, weight: str) -> tuple[Linear, Constant]:
    """The layer of a weight, and the weight.

    Raises:
        PlanError: it is not one that can be taken apart; the message says why.
    """
    graph = analysis.model.proto.graph
    if weight not in {tensor.name for inner in walk_graphs(graph) for tensor in inner.initializer}:
        raise PlanError(f"the model has no weight '{weight}' to take apart")
    if weight in {info.name for info in graph.input}:
        raise PlanError(f"'{weight}' cannot be taken apart: it is an input of the model, and can be fed")
    reads = _reads(graph)[weight]
    if reads != 1:
        raise PlanError(f"'{weight}' cannot be taken apart: it is read {reads} times")
    for fact in analysis.walk.linears:
        if fact.node.inputs[fact.weight] == weight:
            constant = analysis.walk.constants[weight]
            problem = _problem(fact, constant.shape)
            if problem:
                raise PlanError(f"'{weight}' cannot be taken apart: {fact.node.name} {problem}")
            return fact, constant
    raise PlanError(f"'{weight}' cannot be taken apart: no layer is known to multiply with it")


def can_be_factored(fact: Linear, shape: Sequence[int]) -> bool:
    """Whether a layer with a weight of that shape can be written as factors."""
    return not _problem(fact, shape)


def channels(fact: Linear, shape: Sequence[int]) -> int:
    """What the layer reads: channels of a window, or features."""
    return shape[1] if fact.form == "window" else Layer(fact, fact.node, tuple(shape)).inputs


def _problem(fact: Linear, shape: Sequence[int]) -> str:
    if fact.form not in FORMS or not can_be_read(fact):
        return "is no product with a matrix or a window"
    if fact.form == "window":
        return "works in groups" if fact.node.attrs.get("group", 1) != 1 else ""
    if fact.form == "gemm" and not fact.node.attrs.get("alpha", 1.0):
        return "multiplies with zero"
    return "" if len(shape) == 2 else "reads a vector or a stack of matrices"


def _reads(graph: onnx.GraphProto) -> Counter[str]:
    counts: Counter[str] = Counter()
    for inner in walk_graphs(graph):
        counts.update(output.name for output in inner.output)
        for node in inner.node:
            counts.update(node.input)
    return counts


def check_ranks(weight: str, fact: Linear, shape: Sequence[int], ranks: Ranks) -> None:
    """Before any long work.

    Raises:
        PlanError: a weight of that shape has no such ranks.
    """
    inputs, outputs = channels(fact, shape), Layer(fact, fact.node, tuple(shape)).outputs
    window = math.prod(shape) // (inputs * outputs)
    if ranks.inputs is not None and window == 1:
        raise PlanError(f"'{weight}' is a matrix: it has one rank, not a pair")
    read = inputs if ranks.inputs is None else ranks.inputs
    for rank, most in ((ranks.inputs, inputs), (ranks.outputs, min(outputs, read * window))):
        if rank is not None and not 1 <= rank <= most:
            raise PlanError(f"'{weight}' has ranks from 1 to {most} there, not {rank}")


class _Chains:
    def __init__(self, edit: Edit) -> None:
        self.edit = edit
        self._titles = {node.name for graph in edit.graphs for node in graph.node}

    def replace(self, fact: Linear, constant: Constant, factors: Factors) -> None:
        """Put a chain in the place of a node."""
        node, proto = fact.node, self.edit.nodes[fact.node.key]
        insert = self._convolution if fact.form == "window" else self._product
        last = insert(fact, proto, constant, factors)
        name = self._stored(last, constant, "last" if factors.last is not None else "core")
        self.edit.set_input(proto, node.inputs.index(constant.name), name)

    def _product(self, fact: Linear, proto: onnx.NodeProto, constant: Constant, factors: Factors) -> Array:
        """The first of two products; the weight of the last."""
        assert factors.last is not None
        node, core = fact.node, factors.core
        before = fact.form == "columns" or (fact.form == "gemm" and node.attrs.get("transA"))
        name = self._stored(core.T if before else core, constant, "core")
        read = [name, proto.input[fact.data]] if before else [proto.input[fact.data], name]
        self._insert(fact, proto, "MatMul", read, "core")
        rank, outputs = factors.last.shape
        turned = fact.form == "columns" or node.attrs.get("transB")
        shape = (outputs, rank) if turned else (rank, outputs)
        return Layer(fact, node, shape).weight(factors.last[None])

    def _convolution(
        self, fact: Linear, proto: onnx.NodeProto, constant: Constant, factors: Factors
    ) -> Array:
        """All but the last of a chain of convolutions; the weight of the last."""
        kernel = constant.shape[2:]
        if factors.first is not None:
            name = self._stored(_kernel(factors.first, [1] * len(kernel)), constant, "first")
            sizes = {"kernel_shape": [1] * len(kernel)}
            self._insert(fact, proto, "Conv", [proto.input[fact.data], name], "first", **sizes)
        core = _kernel(factors.core, kernel)
        if factors.last is None:
            return core
        name = self._stored(core, constant, "core")
        slides = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        self._insert(fact, proto, "Conv", [proto.input[fact.data], name], "core", **slides)
        for i in reversed(range(len(proto.attribute))):
            if proto.attribute[i].name in _SLIDING:
                del proto.attribute[i]
        proto.attribute.append(helper.make_attribute("kernel_shape", [1] * len(kernel)))
        return _kernel(factors.last, [1] * len(kernel))

    def _stored(self, value: Array, constant: Constant, role: str) -> str:
        return self.edit.constant(
            np.ascontiguousarray(value.astype(constant.dtype)), f"{constant.name}.{role}"
        )

    def _insert(
        self, fact: Linear, proto: onnx.NodeProto, op: str, inputs: list[str], role: str, **attrs: Any
    ) -> None:
        """A node before the layer, which reads its result in place of its data."""
        name = title = f"{proto.name or fact.node.key}.{role}"
        count = 0
        while name in self._titles:
            count += 1
            name = f"{title}.{count}"
        self._titles.add(name)
        key = fact.node.key
        output = self.edit.insert_before(key, op, inputs, f"{key}.{role}", name=name, **attrs)
        self.edit.set_input(proto, fact.data, output)


def _kernel(matrix: NDArray[np.float64], sizes: Sequence[int]) -> Array:
    """A matrix of shape (I times Q, O) as a weight of shape (O, I, *sizes)."""
    return matrix.T.reshape(matrix.shape[1], -1, *sizes)
