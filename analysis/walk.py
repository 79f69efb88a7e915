"""The one forward walk that gives every axis of every tensor a type, by the rule of each operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from .axes import ONE, Axis, AxisMismatch, atom, fix, pin
from .dynamic import RUN_TIME, once, static_axes, symbol_of
from .errors import ModelError
from .facts import Alone, Baked, Contraction, Linear, Normalisation, Operand, SameCount, SizesRead, Work
from .graph import Array, Constant, Node, constant_of, folded, read_node, subgraphs, walk_graphs
from .shapes import constant_value, evaluate, infer_outputs

Axes: TypeAlias = list[Axis]
# One entry an output of the node; None where not even the rank is known.
Outputs: TypeAlias = Sequence[Axes | None]
Rule: TypeAlias = Callable[["Walk", Node], Outputs]


class Unsupported(Exception):
    """Raised by a rule for a form of the operator that it does not cover; its axes are pinned."""


_FLOAT = np.dtype(np.float32)

# What reading a node that breaks its operator's specification ends in.
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError)


def malformed(node: Node, error: Exception) -> ModelError:
    """What to say of a node that cannot be read."""
    return ModelError(
        f"{node.name} is malformed: its attributes or inputs do not fit the operator"
        f" ({type(error).__name__}: {error})"
    )


# Views of a constant share one typing, so that a weight read in slices stays one tensor.
_VIEWS = {"Slice", "Split", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"}


class Walk:
    """Types of all axes of a graph, and the facts its rules stated.

    Attributes:
        axes_of: types of each computed tensor; None when not even its rank is known.
        constants: what is known before the model runs.
        uses: types of a constant at each use, by (node index, input number). Uses that end up with
            different kept positions get tensors of their own; sharing alone ties nothing.
        unknown: for each operator that pins its axes because no rule fits it, why.

    Args:
        sizes: stand-ins for the sizes known only at run time, by symbol.
        twin: a walk with other stand-ins. What differs between the two depends on these sizes.
        free: axes of inputs that may shrink, by symbol; then those of outputs may as well.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        rules: Mapping[str, Rule],
        sizes: Mapping[str, int] | None = None,
        twin: Walk | None = None,
        free: Mapping[str, Axis] | None = None,
    ) -> None:
        self._rules = rules
        self._free = dict(free or {})
        self.sizes = dict(sizes or {})
        self._twin = twin
        self.opsets = list(model.opset_import)
        self.opset = max((o.version for o in self.opsets if o.domain in ("", "ai.onnx")), default=1)
        self.axes_of: dict[str, Axes | None] = {}
        self.constants: dict[str, Constant] = {}
        self.uses: dict[tuple[int, int], Axes] = {}
        self.nodes: list[Node] = []
        self.unknown: dict[str, str] = {}
        self.misfits = 0  # nodes their operator's rule could not type
        self.contractions: list[Contraction] = []
        self.normalisations: list[Normalisation] = []
        self.linears: list[Linear] = []
        self.operands: list[Operand] = []
        self.same_counts: list[SameCount] = []
        self.work: list[Work] = []
        self.alone: list[Alone] = []
        self.baked: list[Baked] = []
        self._views: dict[str, Axes] = {}
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._count = 0
        for graph in walk_graphs(model.graph):
            self._declare(graph, outermost=graph is model.graph)
        self._known_shapes = {
            info.name: info for graph in walk_graphs(model.graph) for info in graph.value_info
        }
        self.graph(model.graph)
        self.outputs = [output.name for output in model.graph.output]
        for name in self.outputs if not self._free else ():
            for axis in self.axes_of.get(name) or []:
                pin(axis, f"'{name}' is an output of the model")
        if twin is not None and len(twin.work) == len(self.work):
            self.work = [once(mine, other) for mine, other in zip(self.work, twin.work, strict=True)]

    # ------------------------------------------------------------------ what rules use

    def axes(self, node: Node, i: int) -> Axes:
        """Types of the axes of input ``i``; a constant has types of its own at each use."""
        name = node.inputs[i]
        constant = self.constants.get(name)
        if constant is None:
            types = self.axes_of.get(name)
            if types is None:
                raise Unsupported(f"the shape of '{name}' is not known")
            return types
        key = (node.index, i)
        if key not in self.uses:
            if node.op in _VIEWS and i == 0:
                if constant.name not in self._views:
                    self._views[constant.name] = self._fresh(constant)
                self.uses[key] = self._views[constant.name]
            else:
                self.uses[key] = self._fresh(constant)
        return self.uses[key]

    def _fresh(self, constant: Constant) -> Axes:
        """Types for the axes of a constant: free, but for sizes known only at run time."""
        if constant.static is None or self._twin is None:
            return [atom(size) for size in constant.shape]
        other = self._twin.constants.get(constant.name)
        if other is None or len(other.shape) != len(constant.shape):
            return [fix(size, RUN_TIME) for size in constant.shape]
        return [
            atom(a) if a == b else fix(a, RUN_TIME) for a, b in zip(constant.shape, other.shape, strict=True)
        ]

    def retype(self, node: Node, i: int, axis: int, new: Axis) -> None:
        """Give one axis of a constant input a type that depends on another axis (ragged)."""
        types = list(self.axes(node, i))
        types[axis] = new
        self.uses[node.index, i] = types

    def value(self, node: Node, i: int) -> Array | None:
        """The value of input ``i`` when it is known and no weight, else None.

        Elements that `static` denies are those of the stand-ins for sizes known only at run time.
        """
        if not node.has(i):
            return None
        constant = self.constants.get(node.inputs[i])
        return None if constant is None or constant.is_weight else constant.value

    def static(self, node: Node, i: int) -> NDArray[np.bool_] | None:
        """Elements of the known input ``i`` that are the same for all run-time sizes; None when all are."""
        return self.constants[node.inputs[i]].static if node.has(i) else None

    def static_value(self, node: Node, i: int) -> Array | None:
        """The value of input ``i`` when it is known, no weight, and the same for all run-time sizes."""
        return self.value(node, i) if self.is_constant(node, i) else None

    def dtype(self, node: Node, i: int) -> np.dtype[Any]:
        """The dtype of input ``i``; float32 where nothing is written down."""
        name = node.inputs[i]
        constant = self.constants.get(name)
        return self._dtype(name) if constant is None else constant.dtype

    def static_axes(self, name: str) -> Axes | None:
        """Types of a computed tensor, without factors whose size is known only at run time."""
        types = self.axes_of.get(name)
        if types is None or self._twin is None:
            return types
        others = self._twin.axes_of.get(name)
        if others is None or len(others) != len(types):
            return None
        return list(static_axes(types, others))

    def declared_dtype(self, name: str) -> np.dtype[Any] | None:
        """The dtype the model writes down for a tensor, if it does."""
        if name in self._dtypes:
            return self._dtypes[name]
        info = self._known_shapes.get(name)
        elem = info.type.tensor_type.elem_type if info is not None else 0
        return onnx.helper.tensor_dtype_to_np_dtype(elem) if elem else None

    def _dtype(self, name: str) -> np.dtype[Any]:
        return self.declared_dtype(name) or _FLOAT

    def is_constant(self, node: Node, i: int) -> bool:
        """Whether input ``i`` has one value, whatever the sizes known only at run time."""
        constant = self.constants.get(node.inputs[i]) if node.has(i) else None
        return constant is not None and constant.static is None

    def linear(self, fact: Linear) -> None:
        """Note a linear function, when its coefficients are learned numbers that can be written anew."""
        constant = self.constants.get(fact.node.inputs[fact.weight])
        if constant is not None and constant.is_float and constant.static is None:
            self.linears.append(fact)

    def output_sizes(self, node: Node) -> list[tuple[int, ...] | None]:
        """Shapes of the outputs by ONNX's own inference; None where it cannot tell."""
        inputs: dict[str, tuple[np.dtype[Any], Sequence[int], Array | None]] = {}
        for name in node.inputs:
            if not name:
                continue
            constant = self.constants.get(name)
            if constant is not None:
                small = int(np.prod(constant.shape)) <= 256
                inputs[name] = (constant.dtype, constant.shape, constant.value if small else None)
            else:
                types = self.axes_of.get(name)
                if types is None:
                    return [None] * len(node.outputs)
                dtype = self._dtype(name)
                inputs[name] = (dtype, [t.size for t in types], None)
        shapes = infer_outputs(node.proto, inputs, self.opsets)
        return [shapes.get(name) or self._declared(name) for name in node.outputs]

    # ------------------------------------------------------------------ the walk

    def _declare(self, graph: onnx.GraphProto, outermost: bool) -> None:
        for tensor in graph.initializer:
            self.constants[tensor.name] = constant_of(tensor)
        for sparse in graph.sparse_initializer:
            self.constants[sparse.values.name] = constant_of(sparse)
        if not outermost:
            return
        for info in graph.input:
            if info.name not in self.constants:
                self.axes_of[info.name] = self._input_axes(info)
                elem = info.type.tensor_type.elem_type
                if elem:
                    self._dtypes[info.name] = onnx.helper.tensor_dtype_to_np_dtype(elem)

    def _input_axes(self, info: onnx.ValueInfoProto) -> Axes | None:
        tensor = info.type.tensor_type
        if not tensor.HasField("shape"):
            return None
        out = []
        for k, dim in enumerate(tensor.shape.dim):
            symbol = symbol_of(info, k)
            if symbol in self._free:
                out.append(self._free[symbol])
                continue
            size = dim.dim_value if symbol is None else self.sizes[symbol]
            out.append(fix(size, f"'{info.name}' is an input of the model"))
        return out

    def _declared(self, name: str) -> tuple[int, ...] | None:
        info = self._known_shapes.get(name)
        if info is None or not info.type.tensor_type.HasField("shape"):
            return None
        dims = info.type.tensor_type.shape.dim
        if not all(d.HasField("dim_value") for d in dims):
            return None
        return tuple(d.dim_value for d in dims)

    def graph(self, graph: onnx.GraphProto) -> None:
        """Type the nodes of a graph; a rule of If, Loop or Scan calls this on its bodies."""
        for proto in graph.node:
            node = read_node(self._count, proto)
            self._count += 1
            try:
                if not self._fold(node):
                    self.nodes.append(node)
                    self._type(node)
            except MALFORMED as error:
                raise malformed(node, error) from None

    def _fold(self, node: Node) -> bool:
        """Constants and shape arithmetic. Sizes of types are the shapes, so nothing else infers them."""
        if node.op == "Constant":
            name = node.outputs[0]
            for attribute in ("value", "sparse_value"):
                if attribute in node.attrs:
                    self.constants[name] = constant_of(node.attrs[attribute], name)
                    return True
            value = constant_value(node.attrs)
            if value is not None:
                self.constants[name] = folded(name, value)
            return value is not None
        if node.op in ("Shape", "Size"):
            return self._fold_sizes(node)
        if not node.inputs:
            return False
        for name in node.inputs:
            if name and name not in self.constants:
                return False
        known = [self.constants.get(name) for name in node.inputs]
        if node.op == "Identity" and known[0] is not None:
            self.constants[node.outputs[0]] = known[0]
            return True
        if any(c is not None and c.is_weight for c in known):
            return False
        result = evaluate(node, [None if c is None else c.value for c in known])
        if result is None:
            return False
        self._set(node.outputs[0], result)
        return True

    def _set(self, name: str, value: Array) -> None:
        """A folded value, with the elements that the twin found different marked."""
        static: NDArray[np.bool_] | None = None
        if self._twin is not None:
            other = self._twin.constants.get(name)
            if other is None or other.shape != value.shape:
                static = np.zeros(value.shape, bool)
            else:
                same = value == other.value
                if value.dtype.kind == "f":
                    same |= np.isnan(value) & np.isnan(other.value)
                static = None if same.all() else np.asarray(same)
        self.constants[name] = folded(name, value, static)

    def _fold_sizes(self, node: Node) -> bool:
        constant = self.constants.get(node.inputs[0])
        types = self._fresh(constant) if constant is not None else self.axes_of.get(node.inputs[0])
        if types is None:
            return False
        if node.op == "Shape":
            types = types[slice(node.attrs.get("start", 0), node.attrs.get("end"))]
            value = np.array([axis.size for axis in types], np.int64)
        else:
            value = np.array(math.prod(axis.size for axis in types), np.int64)
        if constant is None:
            self.baked.append(SizesRead(node, tuple(types)))
        self._set(node.outputs[0], value)
        return True

    def _type(self, node: Node) -> None:
        rule = self._rules.get(node.op)
        outputs: Outputs
        if rule is None:
            outputs = self._pin_all(node, f"{node.name} has no rule")
        else:
            try:
                outputs = rule(self, node)
            except (AxisMismatch, Unsupported) as error:
                self.misfits += 1
                outputs = self._pin_all(node, f"{node.name}: {error}")
        for name, types in zip(node.outputs, outputs, strict=False):
            if name:
                self.axes_of[name] = types
                for axis in types or ():
                    if axis.size == 1 and axis is not ONE:  # a whole axis never goes
                        pin(axis, ONE.why)

    def _pin_all(self, node: Node, why: str) -> Outputs:
        """Nothing is known of this operator: nothing around it may shrink."""
        self.unknown.setdefault(node.op, why)
        for i, name in enumerate(node.inputs):
            if name and (name in self.constants or self.axes_of.get(name) is not None):
                for axis in self.axes(node, i):
                    pin(axis, why)
        for body in subgraphs(node.proto):
            self._pin_captures(body, why)
        return [
            None if sizes is None else [fix(size, why) for size in sizes] for sizes in self.output_sizes(node)
        ]

    def _pin_captures(self, graph: onnx.GraphProto, why: str) -> None:
        """A body without a rule reads outer tensors and constants as they are."""
        for inner in walk_graphs(graph):
            read = [name for proto in inner.node for name in proto.input]
            for name in [*read, *(output.name for output in inner.output)]:
                for axis in self.axes_of.get(name) or []:
                    pin(axis, why)
