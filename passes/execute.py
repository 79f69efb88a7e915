"""Run a model once in ONNX Runtime, as the reference for checks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from ..analysis.dynamic import symbol_of
from ..analysis.errors import ModelError

Arrays = dict[str, NDArray[Any]]

# Protobuf cannot serialise more in one piece.
_PROTO_LIMIT = (1 << 31) - 1
_TOKENS = 32  # random integer inputs stay below this, inside any vocabulary
_DYNAMIC = 2


def random_inputs(
    proto: onnx.ModelProto, seed: int = 0, dynamic: int = _DYNAMIC, sizes: Mapping[str, int] | None = None
) -> Arrays:
    """Inputs for one run: normal floats, small non-negative integers, true and false.

    Axes whose size is known only at run time get what ``sizes`` says of their symbol (see
    `analysis.dynamic.symbol_of`), or ``dynamic`` positions.
    """
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs: Arrays = {}
    for info in proto.graph.input:
        if info.name in weights:
            continue
        tensor = info.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = []
        for k, dim in enumerate(tensor.shape.dim):
            symbol = symbol_of(info, k)
            shape.append(dim.dim_value if symbol is None else (sizes or {}).get(symbol, dynamic))
        if dtype.kind == "b":
            inputs[info.name] = np.ones(shape, dtype)
        elif dtype.kind in "iu":
            inputs[info.name] = rng.integers(0, _TOKENS, shape).astype(dtype)
        else:
            inputs[info.name] = rng.standard_normal(shape).astype(dtype)
    return inputs


def execute(proto: onnx.ModelProto, inputs: Mapping[str, NDArray[Any]], optimised: bool = False) -> Arrays:
    """Outputs of a model by name.

    Args:
        optimised: with all graph optimisations of the runtime. Fusions change rounding: without them the
            two sides of a check compute the same way.

    Raises:
        ModelError: the runtime refuses the model, or fails on these inputs.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = open_session(proto, options)
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))
    except Exception as error:  # the runtime raises its own classes, one for each failure
        raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None


def open_session(
    proto: onnx.ModelProto, options: onnxruntime.SessionOptions, without: Sequence[str] = ()
) -> onnxruntime.InferenceSession:
    """A CPU session; raises whatever the runtime does.

    Args:
        without: names of graph optimisations to leave out.
    """
    arguments = {
        "providers": ["CPUExecutionProvider"],
        "disabled_optimizers": list(without),
        "enable_fallback": 0,  # which would print to standard output before it fails the same way again
    }
    if proto.ByteSize() < _PROTO_LIMIT:
        return onnxruntime.InferenceSession(proto.SerializeToString(), options, **arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)  # saving with external data empties the tensors of what it saves
        onnx.save(copy, path, save_as_external_data=True)
        return onnxruntime.InferenceSession(path, options, **arguments)


def first_line(error: BaseException) -> str:
    """What an error says, without its traceback or the lines of native code after it."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
