"""Models as other tools write them: quantised, in 16-bit floats, fused, with weights in other places.

A variant is a function of a model, which it may change, that returns the other one. `VARIANTS` says which
nets each is tried on.
"""

from __future__ import annotations

import functools
import logging
import lzma
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx_prune.analysis.graph import walk_graphs
from onnx_prune.models import zoo
from onnx_prune.models.digits import FOLDER as DIGITS
from onnx_prune.models.digits import MODELS
from onnx_prune.passes.execute import Arrays, open_session, random_inputs
from onnxruntime import quantization
from wrapping import in_function, in_if, in_loop, in_nested_functions, in_scan, in_scan_of_elements

EXPORTS = Path(__file__).parent / "exports"
SUFFIX = ".onnx.xz"


# ---------------------------------------------------------------------- nets


def exports() -> tuple[str, ...]:
    """Names of the stored exports: the net and how it was made."""
    return tuple(sorted(path.name.removesuffix(SUFFIX) for path in EXPORTS.glob("*" + SUFFIX)))


@functools.cache
def _bytes(name: str) -> bytes:
    with lzma.open(EXPORTS / (name + SUFFIX)) as file:
        return file.read()


def exported(name: str) -> onnx.ModelProto:
    """A stored export with its weights drawn."""
    return zoo.fill(onnx.load_from_string(_bytes(name)))


def net(name: str) -> onnx.ModelProto:
    """A trained model, a graph of the zoo, an export, or the static export of a net."""
    if name in MODELS:
        return onnx.load(DIGITS / f"{name}.onnx")
    if name in zoo.names():
        return zoo.load(name)
    return exported(name if "." in name else f"{name}.static")


def weights(proto: onnx.ModelProto) -> int:
    """Elements of all constants of at least two axes that hold floats or integers of at most 8 bits."""
    used = set()
    for nodes in _bodies(proto):
        for node in nodes:
            used.update(node.input)
    found = {
        tensor.name: prod(tensor.dims)
        for graph in walk_graphs(proto.graph)
        for tensor in graph.initializer
        if tensor.name in used and _learned(tensor.data_type) and len(tensor.dims) > 1
    }
    for graph in walk_graphs(proto.graph):
        for sparse in graph.sparse_initializer:
            found[sparse.values.name] = prod(sparse.dims)
    for nodes in _bodies(proto):
        for node in nodes:
            for attribute in node.attribute if node.op_type == "Constant" else ():
                if len(attribute.t.dims) > 1 and _learned(attribute.t.data_type):
                    found[node.output[0]] = prod(attribute.t.dims)
    return sum(found.values())


def _bodies(proto: onnx.ModelProto) -> Iterator[list[onnx.NodeProto]]:
    yield from (list(graph.node) for graph in walk_graphs(proto.graph))
    yield from (list(function.node) for function in proto.functions)


def _learned(kind: int) -> bool:
    if kind in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE):
        return True
    return kind in (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4)


# ---------------------------------------------------------------------- quantised


class _Random(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Two random batches."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.batches = iter([random_inputs(proto, seed) for seed in range(2)])

    def get_next(self) -> Arrays | None:
        return next(self.batches, None)


def _quantised(proto: onnx.ModelProto, kind: quantization.QuantFormat, per_channel: bool) -> onnx.ModelProto:
    if kind == quantization.QuantFormat.QOperator:  # it wants biases that are initializers themselves
        proto = _optimised(proto, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC)
    logging.disable(logging.WARNING)  # it advises to prepare the model first
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        reader = _Random(proto)
        quantization.quantize_static(proto, path, reader, quant_format=kind, per_channel=per_channel)
        return onnx.load(path)


def qdq(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _quantised(proto, quantization.QuantFormat.QDQ, per_channel=False)


def qdq_per_channel(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _quantised(proto, quantization.QuantFormat.QDQ, per_channel=True)


def qoperator(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _quantised(proto, quantization.QuantFormat.QOperator, per_channel=False)


def qoperator_per_channel(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _quantised(proto, quantization.QuantFormat.QOperator, per_channel=True)


def quantised_dynamically(proto: onnx.ModelProto) -> onnx.ModelProto:
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantization.quantize_dynamic(proto, path)
        return onnx.load(path)


# ---------------------------------------------------------------------- 16-bit floats

_FLOAT_INPUTS = {("Resize", 1), ("Resize", 2)}  # regions and scales stay float32 in every type

_LARGEST_HALF = 65504.0


def _in_halves(proto: onnx.ModelProto, kind: int) -> onnx.ModelProto:
    graphs = list(walk_graphs(proto.graph))
    nodes = [node for graph in graphs for node in graph.node]
    wide = {n.input[i] for n in nodes for op, i in _FLOAT_INPUTS if n.op_type == op and i < len(n.input)}
    for graph in graphs:
        for tensor in graph.initializer:
            if tensor.name not in wide:
                _narrow(tensor, kind)
        for info in (*graph.input, *graph.output, *graph.value_info):
            if info.type.tensor_type.elem_type == TensorProto.FLOAT and info.name not in wide:
                info.type.tensor_type.elem_type = kind
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.TENSOR and wide.isdisjoint(node.output):
                    _narrow(attribute.t, kind)
                elif attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                    attribute.i = kind
    return proto


def _narrow(tensor: TensorProto, kind: int) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        value = np.clip(numpy_helper.to_array(tensor), -_LARGEST_HALF, _LARGEST_HALF)
        value = value.astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _in_halves(proto, TensorProto.FLOAT16)


def bf16(proto: onnx.ModelProto) -> onnx.ModelProto:
    return _in_halves(proto, TensorProto.BFLOAT16)


def fp16_inside(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Computed in fp16 between inputs and outputs in float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    converted: onnx.ModelProto = convert_float_to_float16(proto, keep_io_types=True)
    return converted


# ---------------------------------------------------------------------- fused


def fused_by_the_runtime(proto: onnx.ModelProto) -> onnx.ModelProto:
    """As ONNX Runtime optimises it for a CPU: FusedConv, FusedMatMul, SkipLayerNormalization and others."""
    return _optimised(proto, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED)


def _optimised(proto: onnx.ModelProto, level: onnxruntime.GraphOptimizationLevel) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/model.onnx"
        open_session(proto, options)
        return onnx.load(f"{folder}/model.onnx")


def as_stored(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A net that is a variant already; see ``tools/fuse_exports.py``."""
    return proto


# ---------------------------------------------------------------------- weights in other places


def weights_in_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer a Constant node."""
    constants = [
        helper.make_node("Constant", [], [tensor.name], f"{tensor.name}.node", value=tensor)
        for tensor in proto.graph.initializer
    ]
    nodes = list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.node.extend([*constants, *nodes])
    return proto


def weights_as_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every float initializer the default of an input, as before IR version 4."""
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            proto.graph.input.append(info)
    return proto


def one_sparse_weight(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The largest weight a sparse initializer, a third of its elements zero."""
    floats = [tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    largest = max(floats, key=lambda tensor: prod(tensor.dims))
    value = numpy_helper.to_array(largest).copy()
    value.reshape(-1)[::3] = 0
    indices = np.flatnonzero(value)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(value.reshape(-1)[indices], largest.name),
        numpy_helper.from_array(indices.astype(np.int64), f"{largest.name}.indices"),
        list(value.shape),
    )
    proto.graph.initializer.remove(largest)
    proto.graph.sparse_initializer.append(sparse)
    return proto


def empty_optional_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Every optional input and output that is missing is there with an empty name."""
    version = max(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for node in proto.graph.node:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        for names, formal in ((node.input, schema.inputs), (node.output, schema.outputs)):
            if node.op_type == "BatchNormalization":  # how many outputs it has says whether it trains
                continue
            for parameter in formal[len(names) :]:
                if parameter.option != optional:
                    break
                names.append("")
    return proto


# ---------------------------------------------------------------------- which net for which


@dataclass(frozen=True)
class Variant:
    """A variant and what it is tried on.

    Attributes:
        make: from a net, the variant.
        nets: names of the nets it is tried on.
        runs: whether ONNX Runtime can run it on a CPU.
    """

    make: Callable[[onnx.ModelProto], onnx.ModelProto]
    nets: tuple[str, ...]
    runs: bool = True


_CONVOLUTIONS = ("resnet", "mobilenet", "shufflenet", "unet", "textcnn")
_TRANSFORMERS = ("vit", "bert", "llama", "swin")
_RECURRENT = ("lstm", "gru")
_NETS = (*_CONVOLUTIONS, *_TRANSFORMERS, *_RECURRENT)
_ZOO = ("tv_squeezenet1_1", "tv_mobilenet_v3_small", "hf_bert", "hf_llama_gqa", "hf_vit")
# A loop around a channel shuffle ties most channels to each other.
_REPEATED = ("resnet", "mobilenet", "unet", "vit", "bert", "llama", "swin", "lstm", "gru")
_FUSED = tuple(name for name in exports() if ".fused" in name or ".mha" in name)
_QUANTISED = (*_CONVOLUTIONS, *_TRANSFORMERS, *MODELS)

VARIANTS = {
    "qdq": Variant(qdq, (*_QUANTISED, *_ZOO)),
    "qdq per channel": Variant(qdq_per_channel, (*_QUANTISED, *_RECURRENT)),
    "qoperator": Variant(qoperator, (*_QUANTISED, *_ZOO[:2])),
    "qoperator per channel": Variant(qoperator_per_channel, _QUANTISED),
    # A quantised LSTM takes the range of its own state at every step: no rule can say what removal does.
    "dynamically quantised": Variant(
        quantised_dynamically, tuple(name for name in (*_NETS, *_ZOO) if name != "lstm")
    ),
    "fp16": Variant(fp16, (*_NETS, *MODELS, "hf_bert")),
    "fp16 inside": Variant(fp16_inside, (*_NETS, "hf_vit")),
    "bf16": Variant(bf16, (*_NETS, *MODELS, "hf_llama_gqa"), runs=False),
    "fused by the runtime": Variant(fused_by_the_runtime, (*_NETS, *MODELS, *_ZOO)),
    "fused for transformers": Variant(as_stored, _FUSED),
    "weights in Constant nodes": Variant(weights_in_constants, (*_NETS, *MODELS, "hf_bert")),
    "weights as inputs": Variant(weights_as_inputs, (*_NETS, *MODELS)),
    "one sparse weight": Variant(one_sparse_weight, _NETS),
    "empty optional inputs": Variant(empty_optional_inputs, (*_NETS, "tv_mobilenet_v3_small")),
    "function": Variant(in_function, (*_NETS, "hf_vit")),
    "nested functions": Variant(in_nested_functions, (*_NETS, *MODELS)),
    "If": Variant(in_if, (*_NETS, "tv_squeezenet1_1", "hf_bert")),
    "Loop": Variant(in_loop, (*_REPEATED, "hf_vit")),
    "Scan": Variant(in_scan, _REPEATED),
    "Scan of elements": Variant(in_scan_of_elements, ("resnet", "mobilenet", "unet", "vit", "bert", "llama")),
}
