"""LSTM, GRU and RNN, which TVM's importer lacks: a product over all steps, then one kernel a direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from tvm import relax
from tvm.ir import Constant

from .forms import static_shape
from .schedules.recurrence import ACTIVATIONS, DEFAULTS, GATES, Cell, bias_of, kernel, panels
from .writer import Writer

_REFUSED = ("activation_alpha", "activation_beta", "clip")
_DIRECTIONS = {b"forward": [False], b"reverse": [True], b"bidirectional": [False, True]}


def obstacle(writer: Writer, node: onnx.NodeProto) -> str:
    """Why a node cannot be converted, or an empty string."""
    attrs = writer.attributes(node)
    for name in _REFUSED:
        if attrs.get(name):
            return f"with the attribute {name}"
    if attrs.get("layout", 0) or attrs.get("input_forget", 0):
        return "with batches first or coupled gates"
    unknown = {name.decode() for name in attrs.get("activations", [])} - set(ACTIVATIONS)
    if unknown:
        return f"with the activation {min(unknown)}"
    shape = writer.shape(node.input[0])
    if shape is None:
        return "of a sequence whose length is not static"
    _, w, r, b, lengths, _, _, p = writer.inputs(node, 8)
    if not all(writer.is_constant(name) for name in (w, r, b, p) if name):
        return "with weights that are computed"
    if lengths:
        value = writer.value(lengths)
        if value is None or (value != shape[0]).any():
            return "of sequences of different lengths"
    return ""


def convert(builder: Any, kind: str, inputs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """The outputs Y, Y_h and, of an LSTM, Y_c of a node that has no obstacle."""
    x, w, r, b, _, h, c, p = [*inputs, *[None] * 8][:8]
    steps, batch, _ = static_shape(x)
    hidden, directions = int(attrs["hidden_size"]), _DIRECTIONS[attrs.get("direction", b"forward")]
    names = [name.decode() for name in attrs.get("activations", [])] or DEFAULTS[kind] * len(directions)
    each = len(DEFAULTS[kind])
    results = []
    for number, reverse in enumerate(directions):
        activations = tuple(names[number * each : (number + 1) * each])
        linear = bool(attrs.get("linear_before_reset", 0))
        cell = Cell(kind, steps, batch, hidden, activations, reverse, linear)

        def weight(value: Any, *shape: int, at: int = number) -> Any:
            return np.zeros(shape, np.float32) if value is None else value.value.numpy()[at].reshape(shape)

        def state(value: Any, at: int = number) -> Any:
            if value is None or isinstance(value, Constant):
                return relax.const(np.ascontiguousarray(weight(value, batch, hidden, at=at)))
            part = builder.emit(relax.op.strided_slice(value, [0], [at], [at + 1]))
            return builder.emit(relax.op.reshape(part, [batch, hidden]))

        to_input, to_state = bias_of(cell, weight(b, 2 * GATES[kind] * hidden))
        matrix = relax.const(np.ascontiguousarray(w.value.numpy()[number].T))
        gates = builder.emit(relax.op.add(relax.op.matmul(x, matrix), relax.const(to_input)))
        packed = panels(cell, r.value.numpy()[number])
        function = builder.add_func(kernel(cell, packed), kind.lower())
        peepholes = relax.const(np.ascontiguousarray(weight(p, 3, hidden)))
        arguments = [gates, state(h), state(c), relax.const(to_state), peepholes, *map(relax.const, packed)]
        sizes = [(steps, batch, hidden), (batch, hidden), (batch, hidden)]
        types = [relax.TensorType(size, "float32") for size in sizes]
        results.append(builder.emit(relax.call_tir(function, arguments, types)))
    outputs = [
        relax.op.stack([builder.emit(relax.TupleGetItem(result, n)) for result in results], axis=axis)
        for n, axis in enumerate((1, 0, 0)[: 3 if kind == "LSTM" else 2])
    ]
    return relax.Tuple([builder.emit(output) for output in outputs])
