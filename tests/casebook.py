"""What the cases of operators are written with: tensors whose every axis is free, and their consumers.

A case puts an operator between weights that make its inputs and weights that read its outputs. Axes have
equal sizes wherever the operator allows it, so that a rule that confuses two axes is not caught by a mismatch
of shapes but only by what the network computes.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from graphs import Graph
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model

# Size of an axis unless the operator asks for another; of an axis of an input that weights read.
SIZE, INNER = 6, 3


class Net(Graph):
    """A graph with named weights, whose inputs are rounded to small integers."""

    def __init__(self, seed: int = 0, opset: int = 17, prefix: str = "") -> None:
        super().__init__(seed)
        self.opset = opset
        self.prefix = prefix

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        """A node of the standard domain, or of ``domain``::``op``; the names of its outputs."""
        domain, _, op = op.rpartition("::")
        names = [f"{self.prefix}{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        name = f"{self.prefix}{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attrs))
        return names[0] if outputs == 1 else names

    def weight(self, *shape: int, name: str | None = None) -> str:
        """Random whole numbers from -3 to 3, none of them 0: each position counts."""
        value = self.rng.integers(1, 4, shape) * self.rng.choice([-1, 1], shape)
        return self.const(value, name=name or f"w{len(self.weights)}")

    def inside(self, prefix: str) -> Net:
        """A net for the body of a node of this one; its weights are this one's."""
        net = Net(opset=self.opset, prefix=f"{self.prefix}{prefix}_")
        net.rng, net.weights = self.rng, self.weights
        return net

    def body(self, outputs: Sequence[tuple[str, Sequence[int] | None, int]]) -> onnx.GraphProto:
        """The nodes as the body of a node; outputs are (name, shape, element type)."""
        made = [helper.make_tensor_value_info(name, kind, shape) for name, shape, kind in outputs]
        return helper.make_graph(self.nodes, self.prefix, self.inputs, made)

    def takes(self, *shape: int, name: str, kind: int = TensorProto.FLOAT) -> str:
        """An input of a body."""
        self.inputs.append(helper.make_tensor_value_info(f"{self.prefix}{name}", kind, list(shape)))
        return f"{self.prefix}{name}"

    def whole(self, *shape: int | str) -> str:
        """An input of the model with small whole numbers."""
        x = self.input(*shape, name=f"x{len(self.inputs)}")
        return str(self("Round" if self.opset >= 11 else "Floor", self("Mul", x, self.scalar(3))))

    def const(self, value: Any, dtype: Any = np.float32, name: str | None = None) -> str:
        """A constant of the given value."""
        name = name or f"k{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def free(self, *sizes: int, name: str = "a", fixed: Sequence[int] = ()) -> str:
        """A tensor of ``sizes`` whose axis k is made by weight ``name``k, but for ``fixed`` ones and ones."""
        made = [k for k, size in enumerate(sizes) if size > 1 and k not in fixed]
        x = self.whole(*(INNER if k in made else size for k, size in enumerate(sizes)))
        weights = [self.weight(INNER, sizes[k], name=f"{name}{k}") for k in made]
        return self._project(x, len(sizes), made, weights)

    def use(self, x: str, *sizes: int, name: str = "z", keep: Sequence[int] = ()) -> str:
        """Contract the axes of ``x``: axis k with weight ``name``k, but for those to ``keep`` and ones."""
        read = [k for k, size in enumerate(sizes) if size > 1 and k not in keep]
        weights = [self.weight(sizes[k], 2, name=f"{name}{k}") for k in read]
        return self._project(x, len(sizes), read, weights)

    def _project(self, x: str, rank: int, axes: list[int], weights: list[str]) -> str:
        """One product after the other, so that a model of any opset can be made of them."""
        if self.opset >= 12:
            old, new = string.ascii_lowercase[:rank], list(string.ascii_lowercase[:rank])
            terms = [old]
            for k in axes:
                new[k] = old[k].upper()
                terms.append(old[k] + new[k])
            return str(self("Einsum", x, *weights, equation=f"{','.join(terms)}->{''.join(new)}"))
        for k, weight in zip(axes, weights, strict=True):
            perm = [i for i in range(rank) if i != k] + [k]
            back = [perm.index(i) for i in range(rank)]
            x = self("MatMul", self("Transpose", x, perm=perm), weight)
            x = self("Transpose", x, perm=back)
        return x

    def heads(self, shape: Sequence[int]) -> str:
        """A tensor of ``shape`` whose axes of four are factors of one axis of the weight "a" of 16."""
        h = self("MatMul", self.whole(1, INNER), self.weight(INNER, 16, name="a"))
        return str(self("Reshape", h, self.ints(*shape)))

    def joined(self, x: str) -> str:
        """Contract the two axes of `heads`, laid out as one, with the weight "z"."""
        return str(self("MatMul", self("Reshape", x, self.ints(1, 16)), self.weight(16, 2, name="z")))

    def build(self, *outputs: str) -> Model:
        """The model; outputs that inference cannot type are floats of unknown shape."""
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, made, self.weights)
        domains = sorted({node.domain for node in self.nodes if node.domain})
        opsets = [helper.make_opsetid("", self.opset), *(helper.make_opsetid(d, 1) for d in domains)]
        ir = 13 if self.opset >= 23 else 9
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=ir)
        typed = onnx.shape_inference.infer_shapes(proto)
        del proto.graph.output[:]
        for info in typed.graph.output:
            if not info.type.tensor_type.elem_type:
                info = helper.make_tensor_value_info(info.name, TensorProto.FLOAT, None)
            proto.graph.output.append(info)
        return Model(proto)


@dataclass(frozen=True, eq=False)
class Case:
    """A model around one operator, and what a right rule finds in it.

    Attributes:
        build: makes the model, with other weights for each draw.
        shrinks: axes of weights that must lose positions at a ratio of a half, as "name:axis", and of how
            many positions one may stay: one of 2 for (almost) a half.
        exact: whether pruned and masked must agree to the last bit; else within the certificate's tolerance.
    """

    operator: str
    name: str
    build: Callable[[int], Model]
    shrinks: dict[str, int]
    exact: bool

    def __str__(self) -> str:
        return f"{self.operator}-{self.name}"


CASES: dict[str, list[Case]] = {}
Body = Callable[[Net], str | Sequence[str]]


def add(operator: str, name: str, shrinks: str, body: Body, *, exact: bool = True, opset: int = 17) -> None:
    """Register a case; ``body`` adds nodes to a net and returns its outputs.

    ``shrinks`` lists the weight axes that must shrink; "a012" stands for the made axes of `Net.free` and
    "z012" for those of `Net.use`.
    """

    def build(draw: int = 0) -> Model:
        net = Net(seed=len(operator) + 7 * len(name) + 1000 * draw, opset=opset)
        outputs = body(net)
        return net.build(*([outputs] if isinstance(outputs, str) else outputs))

    CASES.setdefault(operator, []).append(Case(operator, name, build, expand(shrinks), exact))


def expand(shrinks: str) -> dict[str, int]:
    """``a02 z1 w:0/4`` in full: a0:1, a2:1, z1:0 and w:0; the last to a quarter, the others by anything."""
    out: dict[str, int] = {}
    for word in shrinks.split():
        name, _, parts = word.partition("/")
        if ":" in name:
            out[name] = int(parts or 1)
        else:
            along = 0 if name[0] in "zyv" else 1
            out |= {f"{name[0]}{k}:{along}": 1 for k in name[1:]}
    return out


def case(operator: str, shrinks: str, *, exact: bool = True, opset: int = 17) -> Callable[[Body], Body]:
    """`add` as a decorator; the function's name tells the case."""

    def register(body: Body) -> Body:
        name = getattr(body, "__name__", "case").strip("_").replace("_", " ")
        add(operator, name, shrinks, body, exact=exact, opset=opset)
        return body

    return register
