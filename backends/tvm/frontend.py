"""From ONNX to Relax: sizes made static, constants folded, unsupported operators named first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from tvm.relax.frontend import onnx as relax_onnx

from ...analysis.errors import BackendError
from ...analysis.graph import walk_graphs


def prepare(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with dynamic axes at 1 and its constants folded, by ONNX Runtime's basic optimiser.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    static = onnx.ModelProto()
    static.CopyFrom(proto)
    for info in static.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = 1
    for info in static.graph.output:
        info.type.tensor_type.ClearField("shape")
    del static.graph.value_info[:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        try:
            onnxruntime.InferenceSession(
                static.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises its own classes, one for each failure
            first = str(error).strip().splitlines()[0][:300]
            raise BackendError(f"ONNX Runtime refuses the model: {first}") from None
        return onnx.load(path)


def unsupported(proto: onnx.ModelProto) -> list[str]:
    """Operators of the model that TVM's importer does not know, sorted."""
    known = set(relax_onnx.onnx_frontend._get_convert_map())
    return sorted(
        {
            node.op_type
            for graph in walk_graphs(proto.graph)
            for node in graph.node
            if node.op_type not in known
        }
    )


def import_model(proto: onnx.ModelProto) -> Any:
    """The Relax module of a prepared model, weights as constants.

    Raises:
        BackendError: naming the operators, or the node, that cannot be imported.
    """
    missing = unsupported(proto)
    if missing:
        raise BackendError(f"TVM's importer does not know the operators {', '.join(missing)}")
    try:
        return relax_onnx.from_onnx(proto, keep_params_in_input=False)
    except Exception as error:  # the importer lets any exception of its converters out
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise BackendError(f"TVM cannot import the model: {lines[-1][:300]}") from None
