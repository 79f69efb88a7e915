"""Small models around one weight, written as the steps it goes through, and what a rule says of it.

``of(stored, transpose(3, 0, 1, 2), conv())`` is the model of a convolution whose filters are stored with the
outputs last. The stored tensor is ``w``; data is made to fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

Array: TypeAlias = NDArray[Any]
Index: TypeAlias = tuple[int, ...]
Verdict: TypeAlias = Literal["yes", "no", "other"]

YES: Verdict = "yes"
NO: Verdict = "no"
OTHER: Verdict = "other"

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
E4M3 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN)
E5M2 = helper.tensor_dtype_to_np_dtype(TensorProto.FLOAT8E5M2)
INT4 = helper.tensor_dtype_to_np_dtype(TensorProto.INT4)

_PIXELS = 8
_BATCH = 3


@dataclass(frozen=True)
class Truth:
    """What a rule says of a weight, found by reading the rule.

    Attributes:
        about: what is particular about the model.
        rule: id of the rule.
        model: makes the model.
        verdict: YES, the weight satisfies the rule; NO, it does not; OTHER, the rule is not about it.
        weight: its name.
        first: where the non-zeros of the first group that is too full are stored; nothing where not checked.
        node: the name of the node that reads it, where several do and the verdicts differ.
    """

    about: str
    rule: str
    model: Callable[[], ModelProto]
    verdict: Verdict
    weight: str = "w"
    first: Sequence[Index] = ()
    node: str = ""


class Net:
    """Builds a model node by node; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.ends: list[str] = []  # outputs besides the last step's

    def const(self, value: Any, dtype: Any = None, name: str = "") -> str:
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def input(self, dtype: Any, *shape: int | str) -> str:
        name = f"x{len(self.inputs)}"
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.inputs.append(helper.make_tensor_value_info(name, element, shape))
        return name

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node named after its operator, with a number where it is not the first of them."""
        domain, _, kind = op.rpartition("::")
        number = sum(node.op_type == kind for node in self.nodes)
        name = f"{kind}{number or ''}"
        node = helper.make_node(kind, inputs, [f"{name}.y"], name, domain=domain, **attributes)
        self.nodes.append(node)
        return f"{name}.y"

    def data(self, dtype: Any, *shape: int | str, real: bool = False) -> str:
        """Data beside a weight: quantised where the weight is, if it is not to be ``real``."""
        quantised = any(node.op_type == "DequantizeLinear" for node in self.nodes)
        if not quantised or real:
            return self.input(dtype, *shape)
        return self("DequantizeLinear", self.input(np.int8, *shape), self.const(1, dtype))

    def type_of(self, name: str) -> tuple[Any, tuple[int, ...]]:
        """Type and shape of a tensor that does not depend on data."""
        for tensor in self.constants:
            if tensor.name == name:
                return helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
        graph = helper.make_graph(self.nodes, "part", self.inputs, [], self.constants)
        typed = onnx.shape_inference.infer_shapes(_model(graph), data_prop=True)
        found = next(info.type.tensor_type for info in typed.graph.value_info if info.name == name)
        dims = tuple(dim.dim_value for dim in found.shape.dim)
        return helper.tensor_dtype_to_np_dtype(found.elem_type), dims

    def model(self, *outputs: str) -> ModelProto:
        made = [onnx.ValueInfoProto(name=name) for name in (*outputs, *self.ends)]
        proto = _model(helper.make_graph(self.nodes, "g", self.inputs, made, self.constants))
        typed = onnx.shape_inference.infer_shapes(proto)
        del proto.graph.output[:]
        proto.graph.output.extend(typed.graph.output)
        return proto


def _model(graph: onnx.GraphProto) -> ModelProto:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


Make: TypeAlias = Callable[[], ModelProto]
Step: TypeAlias = Callable[[Net, str], str]


def of(stored: Array, *steps: Step, held: str = "") -> Make:
    """The model in which a stored tensor goes through steps; ``held``: by that attribute of a Constant."""

    def make() -> ModelProto:
        net = Net()
        name = "w" if held else net.const(stored, name="w")
        if held:
            value = numpy_helper.from_array(stored, "held") if held == "value" else stored.tolist()
            net.nodes.append(helper.make_node("Constant", [], ["w"], "held", **{held: value}))
        for step in steps:
            name = step(net, name)
        return net.model(name)

    return make


def fork(*branches: tuple[Step, ...]) -> Step:
    """Several readers of one tensor; what they make is put into a row of its own each."""

    def step(net: Net, name: str) -> str:
        ends = []
        for branch in branches:
            end = name
            for one in branch:
                end = one(net, end)
            ends.append(net("Reshape", end, net.const([-1])))
        return net("Concat", *ends, axis=0)

    return step


# ---------------------------------------------------------------------- between the weight and its reader


def node(op: str, **attributes: Any) -> Step:
    return lambda net, name: net(op, name, **attributes)


def transpose(*perm: int) -> Step:
    """Axes in another order; reversed where none is given."""
    return node("Transpose", **({"perm": perm} if perm else {}))


def reshape(*shape: int) -> Step:
    return lambda net, name: net("Reshape", name, net.const(shape, np.int64))


def squeeze(*axes: int) -> Step:
    return lambda net, name: net("Squeeze", name, *([net.const(axes, np.int64)] if axes else []))


def unsqueeze(*axes: int) -> Step:
    return lambda net, name: net("Unsqueeze", name, net.const(axes, np.int64))


def cast(dtype: Any) -> Step:
    return node("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def times(value: Any) -> Step:
    """A product with a constant: the weight is computed."""
    return lambda net, name: net("Mul", name, net.const(value, np.float32))


def dq(zero: Any = None, scale: Any = 1, dtype: Any = np.float32, **attributes: Any) -> Step:
    """DequantizeLinear; zero points are of the type of what it reads."""

    def step(net: Net, name: str) -> str:
        zeros = [] if zero is None else [net.const(zero, net.type_of(name)[0])]
        return net("DequantizeLinear", name, net.const(scale, dtype), *zeros, **attributes)

    return step


def q(zero: Any = 0, scale: Any = 1, to: Any = np.int8, **attributes: Any) -> Step:
    """QuantizeLinear of floats."""
    return lambda net, name: net(
        "QuantizeLinear", name, net.const(scale, np.float32), net.const(zero, to), **attributes
    )


# ---------------------------------------------------------------------- readers


def conv(group: int = 1, *, op: str = "Conv", real: bool = False, **attributes: Any) -> Step:
    def step(net: Net, name: str) -> str:
        dtype, shape = net.type_of(name)
        inputs = shape[0] if op == "ConvTranspose" else shape[1] * group
        x = net.data(dtype, 1, inputs, *[_PIXELS] * len(shape[2:]), real=real)
        return net(op, x, name, group=group, **attributes)

    return step


def gemm(trans: bool = False, *, left: bool = False, op: str = "Gemm", batch: int | str = _BATCH) -> Step:
    """A product with data on the left; or, ``left``, with the weight there. ``trans`` is of the weight."""

    def step(net: Net, name: str) -> str:
        dtype, (rows, columns) = net.type_of(name)
        summed = columns if trans != left else rows
        if left:
            return net(op, name, net.data(dtype, summed, batch), transA=int(trans))
        return net(op, net.data(dtype, batch, summed), name, transB=int(trans))

    return step


def matmul(*, left: bool = False, op: str = "MatMul") -> Step:
    def step(net: Net, name: str) -> str:
        dtype, shape = net.type_of(name)
        x = net.data(dtype, *_factor(shape, left))
        return net(op, *((name, x) if left else (x, name)))

    return step


def _factor(shape: tuple[int, ...], left: bool) -> tuple[int, ...]:
    """The shape of data that is multiplied by a matrix, or by a stack of them."""
    if left:
        return (*shape[:-2], shape[-1], _BATCH)
    return (*shape[:-2], _BATCH, shape[-2] if len(shape) > 1 else shape[0])


def _zero(net: Net, zero: Any, name: str) -> str:
    """The zero point of a weight; one that is known only when the model runs where it is "input"."""
    dtype = net.type_of(name)[0]
    return net.input(dtype) if isinstance(zero, str) else net.const(zero, dtype)


def conv_integer(group: int = 1, *, zero: Any = None) -> Step:
    def step(net: Net, name: str) -> str:
        _, shape = net.type_of(name)
        x = net.input(np.uint8, 1, shape[1] * group, *[_PIXELS] * len(shape[2:]))
        zeros = [] if zero is None else [net.const(0, np.uint8), _zero(net, zero, name)]
        return net("ConvInteger", x, name, *zeros, group=group)

    return step


def qlinear_conv(group: int = 1, *, zero: Any = 0, scale: Any = 1) -> Step:
    def step(net: Net, name: str) -> str:
        _, shape = net.type_of(name)
        x = net.input(np.uint8, 1, shape[1] * group, *[_PIXELS] * len(shape[2:]))
        one, middle, weights = net.const(1, np.float32), net.const(0, np.uint8), net.const(scale, np.float32)
        point = _zero(net, zero, name)
        return net("QLinearConv", x, one, middle, name, weights, point, one, middle, group=group)

    return step


def matmul_integer(*, zero: Any = None, left: bool = False) -> Step:
    def step(net: Net, name: str) -> str:
        x = net.input(np.uint8, *_factor(net.type_of(name)[1], left))
        if zero is None:
            return net("MatMulInteger", *((name, x) if left else (x, name)))
        points = net.const(0, np.uint8), _zero(net, zero, name)
        return net("MatMulInteger", *((name, x, *points[::-1]) if left else (x, name, *points)))

    return step


def qlinear_matmul(*, zero: Any = 0, left: bool = False, scale: Any = 1) -> Step:
    def step(net: Net, name: str) -> str:
        x = net.input(np.uint8, *_factor(net.type_of(name)[1], left))
        one, middle = net.const(1, np.float32), net.const(0, np.uint8)
        data = x, one, middle
        weight = name, net.const(scale, np.float32), _zero(net, zero, name)
        return net("QLinearMatMul", *((*weight, *data) if left else (*data, *weight)), one, middle)

    return step


def qgemm(trans: bool = False, *, zero: Any = 0) -> Step:
    """QGemm of ONNX Runtime. ONNX does not know what it makes, so that something known follows."""

    def step(net: Net, name: str) -> str:
        shape = net.type_of(name)[1]
        x = net.input(np.uint8, _BATCH, shape[1] if trans else shape[0])
        one, middle = net.const(1, np.float32), net.const(0, np.uint8)
        points = one, _zero(net, zero, name)
        y = net("com.microsoft::QGemm", x, one, middle, name, *points, "", one, middle, transB=int(trans))
        return net("Reshape", net("DequantizeLinear", y, one, middle), net.const([-1]))

    return step


# ---------------------------------------------------------------------- weights


def rows(pattern: str, outputs: int = 4, dtype: Any = np.float32) -> Array:
    """A matrix of equal rows, each with these digits."""
    digits = [int(digit) for digit in pattern.replace(" ", "")]
    return np.array([digits] * outputs).astype(dtype)


def filters(matrix: Array, *kernel: int) -> Array:
    """(outputs, inputs) the same at each position of a kernel."""
    return np.broadcast_to(matrix.reshape(*matrix.shape, *[1] * len(kernel)), (*matrix.shape, *kernel)).copy()


def zeros(count: int, *shape: int, dtype: Any = np.float32) -> Array:
    """Ones, but for the first ``count`` elements in a row."""
    found = np.ones(shape, dtype)
    found.reshape(-1)[:count] = 0
    return found


def put(values: Array, *places: Index, value: float = 1) -> Array:
    """With another number at some places."""
    changed = values.copy()
    for place in places:
        changed[place] = value
    return changed


def negative_zeros(values: Array) -> Array:
    """The same with -0.0 for 0.0."""
    return np.where(values == 0, -values - values.dtype.type(0), values)


def cycled(pairs: int, outputs: int, dtype: Any = np.float16) -> Array:
    """(pairs, 2, outputs), of inputs in pairs: the first of each is not zero."""
    return np.stack([np.ones((pairs, outputs)), np.zeros((pairs, outputs))], axis=1).astype(dtype)


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return np.ones(shape, dtype)


def byte(values: Array) -> Array:
    return values.astype(np.int8)


def half(values: Array) -> Array:
    return values.astype(np.float16)


# ---------------------------------------------------------------------- the same for several rules


def products(rule: str, good: Array, of_: int, *via: Step, only: str = "Gemm MatMul") -> list[Truth]:
    """One square matrix, whose rows satisfy a pattern and whose first column is full, in all orientations.

    What is summed over is a row where the weight is B of Gemm and transposed, or the left factor and is not.
    """
    column = [(k, 0) for k in range(of_)]
    found = [
        ("Gemm transB=1", gemm(True), YES),
        ("Gemm transB=0", gemm(False), NO),
        ("Gemm transA=0, weight on the left", gemm(False, left=True), YES),
        ("Gemm transA=1, weight on the left", gemm(True, left=True), NO),
        ("MatMul, weight on the right", matmul(), NO),
        ("MatMul, weight on the left", matmul(left=True), YES),
    ]
    return [
        Truth(
            f"{rule}, pattern along stored rows: {name}",
            rule,
            of(good, *via, reader),
            verdict,
            first=column if verdict == NO else (),
        )
        for name, reader, verdict in found
        if name.split()[0].strip(",") in only.split()
    ]


def layouts(rule: str, *via: Step, dtype: Any = np.float32) -> list[Truth]:
    """Filters of four axes of four, stored in several orders. Inputs 0 and 2 of four are not zero.

    As all axes are equally long, an order that is undone by the wrong one fits as well.
    """
    good = filters(rows("1010", 4, dtype), 4, 4)
    last = good.transpose(1, 2, 3, 0)  # inputs, height, width, outputs
    inner = good.transpose(0, 2, 3, 1)  # outputs, height, width, inputs
    return [
        Truth(f"{rule}, filters as Conv wants them", rule, of(good, *via, conv()), YES),
        Truth(
            f"{rule}, filters with inputs before outputs and no Transpose",
            rule,
            of(good.transpose(1, 0, 2, 3), *via, conv()),
            NO,
            first=[(0, 0, 0, 0), (0, 1, 0, 0), (0, 2, 0, 0), (0, 3, 0, 0)],
        ),
        Truth(
            f"{rule}, outputs stored last, Transpose (3,0,1,2)",
            rule,
            of(last, *via, transpose(3, 0, 1, 2), conv()),
            YES,
        ),
        Truth(  # the summed axis is now the width, which is axis 2 of what is stored
            f"{rule}, outputs stored last, the inverse Transpose (1,2,3,0)",
            rule,
            of(last, *via, transpose(1, 2, 3, 0), conv()),
            NO,
            first=[(0, 0, 0, 0), (0, 0, 1, 0), (0, 0, 2, 0), (0, 0, 3, 0)],
        ),
        Truth(
            f"{rule}, one too many behind the 3-cycle (0,3,1,2)",
            rule,
            of(put(inner, (1, 2, 3, 1)), *via, transpose(0, 3, 1, 2), conv()),
            NO,
            first=[(1, 2, 3, 0), (1, 2, 3, 1), (1, 2, 3, 2)],
        ),
    ]
