"""Writes ONNX nodes, with fresh names and constants."""

from __future__ import annotations

from collections.abc import Mapping, Set
from itertools import count
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_PREFIX = "decomposed."


class Writer:
    """Collects nodes and constants until they are taken.

    Args:
        shapes: static shapes by name, as far as they are known.
        values: small constants by name.
        constants: names of all constants.
        opset: of the model.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        values: Mapping[str, NDArray[Any]],
        constants: Set[str],
        opset: int,
    ) -> None:
        self.opset = opset
        self._shapes, self._values, self._constants = shapes, values, constants
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}
        self._numbers = count()

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._shapes.get(name)

    def value(self, name: str) -> NDArray[Any] | None:
        """The value of a small constant."""
        return self._values.get(name)

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    @staticmethod
    def attributes(node: onnx.NodeProto) -> dict[str, Any]:
        return {a.name: helper.get_attribute_value(a) for a in node.attribute}

    @staticmethod
    def inputs(node: onnx.NodeProto, number: int) -> list[str]:
        """The names of so many inputs, empty where there is none."""
        return [*node.input, *[""] * number][:number]

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Write a node of one output; its name."""
        name = f"{_PREFIX}{next(self._numbers)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def give(self, name: str, value: str) -> None:
        """Let ``name``, unless it is empty, be ``value``."""
        if name:
            self._nodes.append(helper.make_node("Identity", [value], [name]))

    def constant(self, value: NDArray[Any]) -> str:
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._tensors:
            self._tensors[key] = numpy_helper.from_array(array, f"{_PREFIX}{next(self._numbers)}")
        return self._tensors[key].name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.ints(*shape))

    def take_nodes(self) -> list[onnx.NodeProto]:
        """The nodes written since the last call."""
        nodes, self._nodes = self._nodes, []
        return nodes

    def take_constants(self) -> list[onnx.TensorProto]:
        """The constants made since the last call."""
        tensors, self._tensors = list(self._tensors.values()), {}
        return tensors
