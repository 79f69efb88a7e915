"""From ONNX to Relax: sizes made static, constants folded, operators decomposed or named as unsupported."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from tvm import relax
from tvm.relax.frontend import onnx as relax_onnx

from ...analysis.errors import BackendError
from ...analysis.graph import walk_graphs
from ...passes.execute import first_line
from ..onnxruntime import session, session_options
from . import recurrent
from .decompose import decompose, writer_of
from .forms import is_float
from .schedules.recurrence import GATES

# Handled by the importer itself, outside its table of operators.
_DIRECT = {"Constant", "If"}
_FATAL = 4  # log severity
# It puts a product and its bias into a Gemm between two reshapes, which keep others from fusing with it.
_WITHOUT = ("MatMulAddFusion",)


def static(proto: onnx.ModelProto, dims: Mapping[str, int]) -> onnx.ModelProto:
    """A copy of the model whose inputs have no sizes known only at run time.

    Args:
        dims: sizes by their symbolic name; others become 1.

    Raises:
        BackendError: ``dims`` names a size that no input has.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    unknown = set(dims)
    for info in copy.graph.input:
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                unknown.discard(dim.dim_param)
                dim.dim_value = dims.get(dim.dim_param, 1)
    if unknown:
        raise BackendError(f"no input of the model has a size called '{min(unknown)}'")
    # What was inferred for symbolic sizes no longer says anything.
    del copy.graph.value_info[:]
    for info in copy.graph.output:
        info.type.tensor_type.ClearField("shape")
    return copy


def fold(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with constants folded and identities gone, by ONNX Runtime's basic optimisations.

    The importer fails on shape arithmetic that this removes.

    Raises:
        BackendError: ONNX Runtime refuses the model.
    """
    options = session_options(threads=1)
    options.log_severity_level = _FATAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(path)
        # Weights go beside the model, since one file holds no more than 2 GB.
        prefix = "session.optimized_model_external_initializers_"
        options.add_session_config_entry(prefix + "file_name", "folded.data")
        options.add_session_config_entry(prefix + "min_size_in_bytes", "1024")
        session(proto, options, _WITHOUT)
        return onnx.load(path)


def unsupported(proto: onnx.ModelProto) -> list[str]:
    """Operators of the model that cannot be imported, sorted; ``domain::Op`` outside ONNX's own."""
    known = _DIRECT | set(relax_onnx.onnx_frontend._get_convert_map())  # not public; nothing public tells
    missing = set()
    cells = []
    for graph in walk_graphs(proto.graph):
        for node in graph.node:
            own = node.domain in ("", "ai.onnx")
            if own and node.op_type in GATES:
                cells.append(node)
            elif not own or node.op_type not in known:
                missing.add(node.op_type if own else f"{node.domain}::{node.op_type}")
    if cells:
        writer = writer_of(proto)
        found = ((node.op_type, recurrent.obstacle(writer, node)) for node in cells)
        missing |= {f"{name} {reason}" for name, reason in found if reason}
    return sorted(missing)


def import_model(proto: onnx.ModelProto) -> Any:
    """The Relax module of a static model, weights as constants.

    Raises:
        BackendError: naming the operators, or what is wrong, if it cannot be imported.
    """
    folded = fold(proto)
    plain, reasons = decompose(folded)
    if plain is not folded:
        plain = fold(plain)
    missing = [f"{name} {reasons[name]}" if name in reasons else name for name in unsupported(plain)]
    if missing:
        raise BackendError(f"TVM's importer does not know the operators {', '.join(missing)}")
    opset = next((o.version for o in plain.opset_import if o.domain in ("", "ai.onnx")), 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _Importer({}, "float32").from_onnx(plain.graph, opset)
    except Exception as error:  # the importer lets any exception of its converters out
        raise BackendError(f"TVM cannot import the model: {first_line(error)}") from error


class _Importer(relax_onnx.onnx_frontend.ONNXGraphImporter):  # type: ignore[misc]
    """TVM's importer, and what it lacks or does slowly."""

    def _check_for_unsupported_ops(self, graph: onnx.GraphProto) -> None:
        """`unsupported` has."""

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict[str, Any], opset: int) -> Any:
        if op_name in GATES:
            return recurrent.convert(self.bb, op_name, list(inputs), attrs)
        if op_name == "Cast" and attrs["to"] == onnx.TensorProto.INT32 and is_float(inputs[0]):
            # TVM's own wraps what does not fit, which ONNX leaves open, in int64 and with nine readers of
            # what is cast: fused, they are computed nine times.
            return relax.op.astype(inputs[0], "int32")
        return super()._convert_operator(op_name, inputs, attrs, opset)
