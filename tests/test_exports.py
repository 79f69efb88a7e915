"""Nets of our own, exported static and with dynamic axes by both exporters of torch, at ratio 0.5.

``tools/export_models.py`` makes the files, ``tools/fuse_exports.py`` those that were fused afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from graphs import PLAIN
from onnx_prune import Model, PruneResult, prune
from onnx_prune.analysis.dynamic import symbols
from onnx_prune.analysis.plan import select
from onnx_prune.passes.execute import Arrays, execute, random_inputs
from onnx_prune.passes.verify import TOLERANCE, masked_original
from variants import exported, exports

NAMES = exports()
DYNAMIC = tuple(name for name in NAMES if name.endswith("dynamic"))
BY_TORCH = tuple(name for name in NAMES if name.endswith(("ts-dynamic", "dynamo-dynamic")))
LOST = 0.02  # what an export with dynamic axes may keep more than its static sibling

# One column a run. Torch calls an axis that must be a multiple of 32 "32*height_steps".
SIZES = {"batch": (1, 2, 3), "sequence": (5, 17, 8), "height": (32, 64, 96), "width": (64, 32, 96)}


def sizes_of(proto: onnx.ModelProto, run: int) -> Mapping[str, int]:
    return {symbol: next(SIZES[k][run] for k in SIZES if k in symbol) for symbol in symbols(proto.graph)}


def removed(result: PruneResult) -> float:
    return 1 - result.after.params / result.before.params


def assert_equal(got: Arrays, wanted: Arrays) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        scale = float(np.abs(value).max())
        assert scale > 0 and got[name].shape == value.shape
        np.testing.assert_allclose(got[name], value, rtol=0, atol=TOLERANCE * scale)


@pytest.mark.parametrize("name", NAMES)
def test_an_export_is_pruned_and_keeps_its_signature(name: str) -> None:
    proto = exported(name)
    result = prune(Model(proto), ratio=0.5, **PLAIN)
    assert result.verdict is not None and result.verdict.ok, result.verdict
    smaller = result.model.proto
    assert list(smaller.graph.input) == list(proto.graph.input)
    assert list(smaller.graph.output) == list(proto.graph.output)


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_axes_take_other_sizes(name: str) -> None:
    proto = exported(name)
    assert symbols(proto.graph), "the export has no dynamic axes"
    result = prune(Model(proto), ratio=0.5, check=False, **PLAIN)
    masked = masked_original(result.analysis, select(result.analysis, result.plan))
    shapes = set()
    for run in range(3):
        inputs = random_inputs(proto, run, sizes=sizes_of(proto, run))
        got = execute(result.model.proto, inputs)
        assert_equal(got, execute(masked, inputs))
        assert {k: v.shape for k, v in got.items()} == {k: v.shape for k, v in execute(proto, inputs).items()}
        shapes.add(tuple(value.shape for value in got.values()))
    assert len(shapes) == 3


@pytest.mark.parametrize("name", BY_TORCH)
def test_a_dynamic_export_loses_as_much_as_its_static_sibling(name: str) -> None:
    static = prune(Model(exported(f"{name.split('.')[0]}.static")), ratio=0.5, check=False, **PLAIN)
    dynamic = prune(Model(exported(name)), ratio=0.5, check=False, **PLAIN)
    assert removed(dynamic) >= removed(static) - LOST
