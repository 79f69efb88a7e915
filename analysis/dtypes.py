"""Types of the elements of computed tensors: as the model declares them, or as ONNX's schemas say."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx

from .graph import Node
from .walk import MALFORMED, Walk, malformed

DType = np.dtype[Any]
_FLOAT: DType = np.dtype(np.float32)
_NAMES = {"float": "float32", "double": "float64"}


def dtypes(walk: Walk) -> dict[str, DType]:
    """For each computed tensor the type of its elements; float32 where nothing tells.

    Raises:
        ModelError: a node asks for a type that there is not.
    """
    found: dict[str, DType] = {}
    for name in walk.axes_of:
        found[name] = walk.declared_dtype(name) or _FLOAT
    for node in walk.nodes:
        try:
            for k, name in enumerate(node.outputs):
                if name and walk.declared_dtype(name) is None:
                    found[name] = _result(walk, node, k, found)
        except MALFORMED as error:
            raise malformed(node, error) from None
    return found


def bits(dtype: DType) -> int:
    """Bits of an element as ONNX packs it."""
    for kind in ("int", "uint", "float"):
        rest = dtype.name.removeprefix(kind)
        if dtype.itemsize == 1 and rest != dtype.name and rest[:1] in ("2", "4", "6"):
            return int(rest[0])
    return 8 * dtype.itemsize


def _result(walk: Walk, node: Node, k: int, found: dict[str, DType]) -> DType:
    asked = node.attrs.get("to", node.attrs.get("dtype"))
    if isinstance(asked, int) and asked:
        return onnx.helper.tensor_dtype_to_np_dtype(asked)
    sources, otherwise = _schema(node.op, walk.opset, k)
    for i in sources:
        if node.has(i):
            name = node.inputs[i]
            constant = walk.constants.get(name)
            return found.get(name, _FLOAT) if constant is None else constant.dtype
    return otherwise


@cache
def _schema(op: str, opset: int, k: int) -> tuple[tuple[int, ...], DType]:
    """The inputs that have the type of output ``k``, and that type where none of them is there."""
    domain, _, name = op.rpartition("::")
    try:
        schema = onnx.defs.get_schema(name, domain) if domain else onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:  # a custom operator: what it reads is the best guess
        return (0,), _FLOAT
    outputs = schema.outputs
    if not outputs:
        return (), _FLOAT
    kind = outputs[min(k, len(outputs) - 1)].type_str
    sources = tuple(i for i, parameter in enumerate(schema.inputs) if parameter.type_str == kind)
    allowed = next((c.allowed_type_strs for c in schema.type_constraints if c.type_param_str == kind), [kind])
    return sources, _dtype(allowed[0]) if not sources else _FLOAT


def _dtype(text: str) -> DType:
    name = text.removeprefix("tensor(").removesuffix(")")
    try:
        return np.dtype(_NAMES.get(name, name))
    except TypeError:  # sequences, and types NumPy has no name for
        return _FLOAT
