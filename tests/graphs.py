"""Small graphs for tests, with integer weights so that sums are exact in any order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_prune import Model, Plan, Verdict, analyze, plan
from onnx_prune.passes.cleanup import Cleanup
from onnx_prune.passes.shrink import shrink
from onnx_prune.passes.verify import certify

# Options of a plan that reads weights alone and leaves those that stay as they are.
PLAIN: dict[str, Any] = {"criterion": "l2", "recover": "none"}


class Graph:
    """Builds a graph node by node; every method returns the name of what it made."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []

    def input(self, *shape: int | str, name: str = "x") -> str:
        self.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)))
        return name

    def weight(self, *shape: int, name: str | None = None) -> str:
        """Random integers from -2 to 2."""
        name = name or f"w{len(self.weights)}"
        value = self.rng.integers(-2, 3, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def ints(self, *values: int) -> str:
        name = f"i{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def scalar(self, value: float) -> str:
        name = f"s{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.array(value, np.float32), name))
        return name

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        names = [f"{op.lower()}{len(self.nodes)}_{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"{op}_{len(self.nodes)}", **attrs))
        return names[0] if outputs == 1 else names

    def conv(self, x: str, inner: int, outer: int, kernel: int = 1, group: int = 1) -> str:
        weight = self.weight(outer, inner // group, kernel, kernel)
        pads = [kernel // 2] * 4
        return self("Conv", x, weight, self.weight(outer), group=group, pads=pads)

    def model(self, *outputs: str, opset: int = 17, shape: Sequence[int | str] | None = None) -> Model:
        """The model; ``shape`` is that of an output ONNX cannot infer."""
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "g", self.inputs, made, self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
        typed = onnx.shape_inference.infer_shapes(proto)
        del proto.graph.output[:]
        proto.graph.output.extend(typed.graph.output)
        for output in proto.graph.output:
            if shape is not None and not output.type.tensor_type.HasField("shape"):
                output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, shape))
        onnx.checker.check_model(proto)
        return Model(proto)


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in model.proto.graph.initializer}


def pruned(model: Model, ratio: float = 0.5, **options: Any) -> tuple[Model, Plan, Verdict]:
    chosen = plan(model, ratio=ratio, **(PLAIN | options))
    smaller = Cleanup(fold_batch_norm=False)(shrink(model, chosen))
    return smaller, chosen, certify(model, smaller, chosen)


def assert_bit_exact(model: Model, ratio: float = 0.5, **options: Any) -> Model:
    """Prune, and demand equality with the masked original to the last bit."""
    smaller, _, verdict = pruned(model, ratio, **options)
    assert verdict.ok, verdict.message
    assert verdict.max_relative_error == 0.0
    return smaller


def reasons(model: Model) -> list[str]:
    return [pin.reason for pin in analyze(model).pins]
