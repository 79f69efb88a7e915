"""What tests of rules ask of a pruned model: the certificate, on outputs that say something."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from graphs import PLAIN, pruned, shapes
from onnx_prune import Model, Plan, analyze, plan
from onnx_prune.analysis.plan import select
from onnx_prune.passes.execute import Arrays, execute, random_inputs
from onnx_prune.passes.shrink import shrink
from onnx_prune.passes.verify import masked_original

Shapes = dict[str, tuple[int, ...]]


def certified(model: Model, ratio: float = 0.5, kind: str = "exact", **options: Any) -> Shapes:
    """Shapes of the weights that are left, once the certificate of the wanted kind holds."""
    smaller, _, verdict = pruned(model, ratio, **options)
    assert verdict.ok, verdict.message
    assert verdict.kind == kind
    assert_telling(execute(smaller.proto, random_inputs(smaller.proto)))
    return shapes(smaller)


def assert_telling(outputs: Arrays) -> None:
    """Outputs that are all the same, or no numbers, agree with anything."""
    for name, value in outputs.items():
        assert np.isfinite(value).all() and np.any(value), f"output '{name}' says nothing"
        assert value.size == 1 or np.ptp(value) > 0, f"output '{name}' says nothing"


def assert_same_by_functions(model: Model, functions: list[onnx.FunctionProto], ratio: float = 0.5) -> Shapes:
    """`certified`, of operators without a kernel: functions of their names compute them."""
    analysis = analyze(model)
    chosen: Plan = plan(model, ratio=ratio, **PLAIN)
    masked = masked_original(analysis, select(analysis, chosen))
    smaller = shrink(model, chosen)
    for proto in (masked, smaller.proto):
        _call(proto, functions)
    inputs = random_inputs(model.proto)
    wanted, got = execute(masked, inputs), execute(smaller.proto, inputs)
    assert_telling(wanted)
    for name, value in wanted.items():
        assert np.abs(value - got[name]).max() <= 1e-5 * np.abs(value).max()
    return shapes(smaller)


def _call(proto: onnx.ModelProto, functions: list[onnx.FunctionProto]) -> None:
    """Let functions, in a domain of their own, stand for the operators of their names."""
    domains = {function.name: function.domain for function in functions}
    for node in proto.graph.node:
        node.domain = domains.get(node.op_type, node.domain)
    proto.functions.extend(functions)
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in set(domains.values()))
