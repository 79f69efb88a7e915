"""Models of one operator, whose weight is given as a pattern sees it and stored in one of several ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

OPSET = 21
IR_VERSION = 10
_BATCH = 3  # rows of a matrix that is multiplied
_IMAGE = 6  # pixels of an image, each way
WEIGHT = "weight"


@dataclass(frozen=True)
class Operator:
    """How an operator takes its weight.

    Attributes:
        op: its type.
        place: number of the input with the weight.
        lay: the operand of a weight (groups, outputs, positions, inputs).
        image: whether it is a convolution.
        quantised: whether it reads integers as they are.
        attributes: of the node.
    """

    op: str
    place: int
    lay: Callable[[Array, tuple[int, ...]], Array]
    image: bool = False
    quantised: bool = False
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _filters(grid: Array, kernel: tuple[int, ...]) -> Array:
    groups, outputs, _, inputs = grid.shape
    return grid.transpose(0, 1, 3, 2).reshape(groups * outputs, inputs, *kernel)


def _spread(grid: Array, kernel: tuple[int, ...]) -> Array:
    groups, outputs, _, inputs = grid.shape
    return grid.transpose(0, 3, 1, 2).reshape(groups * inputs, outputs, *kernel)


def _rows(grid: Array, kernel: tuple[int, ...]) -> Array:
    return grid[0, :, 0, :]


def _columns(grid: Array, kernel: tuple[int, ...]) -> Array:
    return grid[0, :, 0, :].T


# By their names in rules. Those that several ways are known for are tried in each.
OPERATORS: Mapping[str, tuple[Operator, ...]] = {
    "Conv": (Operator("Conv", 1, _filters, image=True),),
    "ConvInteger": (Operator("ConvInteger", 1, _filters, image=True, quantised=True),),
    "QLinearConv": (Operator("QLinearConv", 3, _filters, image=True, quantised=True),),
    "ConvTranspose": (Operator("ConvTranspose", 1, _spread, image=True),),
    "Gemm": (
        Operator("Gemm", 1, _rows, attributes={"transB": 1}),
        Operator("Gemm", 1, _columns, attributes={"transB": 0}),
    ),
    "MatMul": (Operator("MatMul", 1, _columns),),
    "MatMulInteger": (Operator("MatMulInteger", 1, _columns, quantised=True),),
    "QLinearMatMul": (Operator("QLinearMatMul", 3, _columns, quantised=True),),
}


def reads(operator: Operator, dtype: str) -> str:
    """The type of the data that an operator multiplies by weights of a type."""
    if operator.quantised:
        return "uint8"
    return "float32" if dtype.startswith("float8") else dtype


@dataclass(frozen=True)
class Storing:
    """How a weight is stored: with its axes in another order, in a row, with another number for zero."""

    name: str
    transposed: bool = False
    flat: bool = False
    zero: int = 0


PLAIN = Storing("plain")
STORINGS = (Storing("transposed", transposed=True), Storing("reshaped", flat=True))
OFF_ZERO = Storing("off zero", zero=3)


@dataclass(frozen=True)
class Single:
    """One operator with a weight.

    Attributes:
        weight: integers (groups, outputs, positions, inputs).
        kernel: its shape; () for products of matrices.
        dtype: name of the type the weight is stored in.
    """

    operator: Operator
    weight: Array
    kernel: tuple[int, ...]
    dtype: str
    storing: Storing = PLAIN

    def model(self) -> onnx.ModelProto:
        """The model; its input is ``x``, its output ``y``."""
        build = _Build()
        stored = np.dtype(_type(self.dtype))
        operand = self.operator.lay(self.weight, self.kernel)
        name = build.weight(operand, stored, self.storing, self._dequantised)
        attributes: dict[str, Any] = dict(self.operator.attributes)
        if self.operator.image:
            attributes |= {"group": self.weight.shape[0], "pads": [k // 2 for k in self.kernel] * 2}
        element = _element(reads(self.operator, self.dtype))
        data = "x"
        if self._dequantised and reads(self.operator, self.dtype) != "float32":
            build.constant("x_scale", np.float32(1))
            data = build.node("DequantizeLinear", ["x", "x_scale"], "x_real")
        inputs = {1: [data, name], 3: ["x", "one", "zero", name, "one", "w_zero", "one", "y_zero"]}
        if self.operator.place == 3:
            build.constant("one", np.float32(1))
            build.constant("zero", np.uint8(0))
            build.constant("w_zero", np.zeros((), stored))
            build.constant("y_zero", np.uint8(128))
        build.node(self.operator.op, inputs[self.operator.place], "y", **attributes)
        result = {"ConvInteger": TensorProto.INT32, "MatMulInteger": TensorProto.INT32}
        output = result.get(self.operator.op, TensorProto.FLOAT if self._dequantised else element)
        return build.model(("x", element, self.data_shape), ("y", output, self.result_shape))

    def data(self, rng: np.random.Generator) -> Array:
        """Small integers for the input."""
        low = 0 if reads(self.operator, self.dtype) == "uint8" else -2
        return rng.integers(low, 3, self.data_shape).astype(_type(reads(self.operator, self.dtype)))

    @property
    def _dequantised(self) -> bool:
        """Whether the weight is made real before the operator reads it."""
        return self.dtype.startswith(("int", "uint", "float8")) and not self.operator.quantised

    @property
    def data_shape(self) -> tuple[int, ...]:
        groups, _, _, inputs = self.weight.shape
        return (1, groups * inputs, *[_IMAGE] * len(self.kernel)) if self.operator.image else (_BATCH, inputs)

    @property
    def result_shape(self) -> tuple[int, ...]:
        groups, outputs, _, _ = self.weight.shape
        if not self.operator.image:
            return (_BATCH, outputs)
        even = [
            _IMAGE + 1 - k % 2 if self.operator.op != "ConvTranspose" else _IMAGE - 1 + k % 2
            for k in self.kernel
        ]
        return (1, groups * outputs, *even)


class _Build:
    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[TensorProto] = []

    def constant(self, name: str, value: Any) -> str:
        self._constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def weight(self, operand: Array, stored: np.dtype[Any], storing: Storing, dequantise: bool) -> str:
        """Store an operand; the name of what makes it."""
        value = operand
        shape = operand.shape
        order = (*range(1, operand.ndim), 0)  # undone by another order, not by itself, from three axes on
        if storing.transposed:
            value = value.transpose(order)
        if storing.flat:
            value = value.reshape(-1)
        name = self.constant(WEIGHT, (value + storing.zero).astype(stored))
        if dequantise:
            self.constant("scale", np.float32(1))
            self.constant("zero_point", np.asarray(storing.zero).astype(stored))
            name = self.node("DequantizeLinear", [name, "scale", "zero_point"], "dequantised")
        if storing.flat:
            self.constant("shape", np.array(shape, np.int64))
            name = self.node("Reshape", [name, "shape"], "reshaped")
        if storing.transposed:
            back = [int(k) for k in np.argsort(order)]
            name = self.node("Transpose", [name], "transposed", perm=back)
        return name

    def model(
        self, data: tuple[str, int, tuple[int, ...]], result: tuple[str, int, tuple[int, ...]]
    ) -> onnx.ModelProto:
        inputs = [helper.make_tensor_value_info(data[0], data[1], list(data[2]))]
        outputs = [helper.make_tensor_value_info(result[0], result[1], list(result[2]))]
        graph = helper.make_graph(self._nodes, "conformance", inputs, outputs, self._constants)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="onnx-prune",
        )


def _element(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(_type(dtype))))


def _type(dtype: str) -> Any:
    """NumPy's type of a name, or that of ml_dtypes."""
    for element in TensorProto.DataType.values():
        if element not in (TensorProto.UNDEFINED, TensorProto.STRING):
            found = helper.tensor_dtype_to_np_dtype(element)
            if found.name == dtype:
                return found
    raise ValueError(f"ONNX has no type {dtype}")
