"""Models for another batch than the one they were exported for, for tools/bench.py."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.passes.execute import random_inputs

TOLERANCE = 1e-4  # of max|y|


def rebatched(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """A model of batch 1 for ``batch``: constants that activations are reshaped to or joined with count it.

    Raises:
        ValueError: the rows of the result are not what the model gives for each alone.
    """
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    graph = made.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    values = weights | {
        node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"
    }
    known = {info.name for info in graph.input if info.name not in weights}
    for info in graph.input:
        if info.name in known:
            info.type.tensor_type.shape.dim[0].dim_value = batch
    del graph.value_info[:]
    for info in graph.output:
        info.type.tensor_type.ClearField("shape")
    nodes = []
    for node in list(graph.node):
        if not known.intersection(node.input):
            nodes.append(node)
            continue
        known.update(node.output)
        if node.op_type in ("Reshape", "Expand") and node.input[1] in values:
            shape = numpy_helper.to_array(values[node.input[1]]).copy()
            if shape.size and shape[0] > 0:
                shape[0] *= batch
            name = f"{node.output[0]}.rebatched"
            graph.initializer.append(numpy_helper.from_array(shape, name))
            node.input[1] = name
        if node.op_type == "Concat" and node.attribute[0].i != 0:
            for number, part in enumerate(node.input):
                if part not in known:
                    name = f"{node.output[0]}.{number}.rebatched"
                    nodes.append(helper.make_node("Concat", [part] * batch, [name], axis=0))
                    node.input[number] = name
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _check(proto, made, batch)
    return made


def _check(one: onnx.ModelProto, many: onnx.ModelProto, batch: int) -> None:
    # Rows alike: exporters write masks that are looked up in the first row for all.
    row = random_inputs(one)
    got = OnnxRuntimeBackend(1).compile(many).run({k: np.repeat(x, batch, axis=0) for k, x in row.items()})
    for name, wanted in OnnxRuntimeBackend(1).compile(one).run(row).items():
        difference = np.abs(got[name].reshape(batch, -1) - wanted.reshape(1, -1)).max()
        if difference > TOLERANCE * max(np.abs(wanted).max(), 1e-30):
            raise ValueError(f"the model does not compute its output '{name}' row by row")
