"""Winograd's algorithms: exact in fractions, and kernels that agree with the direct way."""

from __future__ import annotations

import random
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from onnx_prune.backends.artifact import CpuArtifact
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.passes.execute import random_inputs
from test_backends import Net

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
TOLERANCE = 2e-5  # of max|y|: sums in another basis round more


def product(matrix: list[list[Fraction]], vector: list[Fraction]) -> list[Fraction]:
    return [sum((a * b for a, b in zip(row, vector, strict=True)), Fraction()) for row in matrix]


@pytest.mark.parametrize(("m", "r"), [(m, r) for r in (2, 3, 4, 5) for m in (2, 3, 4, 5) if m + r < 8])
def test_matrices_give_the_correlation_exactly(m: int, r: int) -> None:
    from onnx_prune.backends.tvm.schedules.winograd import matrices

    draw = random.Random(m * 10 + r)
    data = [Fraction(draw.randint(-9, 9)) for _ in range(m + r - 1)]
    taps = [Fraction(draw.randint(-9, 9)) for _ in range(r)]
    back, turn_taps, turn_data = matrices(m, r)
    pairs = zip(product(turn_taps, taps), product(turn_data, data), strict=True)
    wanted = [sum(data[i + k] * taps[k] for k in range(r)) for i in range(m)]
    assert product(back, [a * b for a, b in pairs]) == wanted


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "out", "r", "pads"),
    [
        ((1, 16, 12, 10), 24, 3, [1, 1, 1, 1]),
        ((2, 37, 9, 13), 19, 3, [0, 1, 2, 0]),
        ((1, 24, 5, 5), 40, 2, [0, 0, 1, 1]),
        ((3, 17, 7, 6), 9, 4, [1, 2, 2, 1]),
        ((1, 8, 2, 2), 8, 3, [1, 1, 1, 1]),
        ((1, 12, 40, 40), 33, 5, [2, 2, 2, 2]),
    ],
)
def test_every_patch_agrees_and_fuses_what_follows(
    shape: tuple[int, ...], out: int, r: int, pads: list[int], threads: int
) -> None:
    from onnx_prune.backends.tvm import build, frontend, machine
    from onnx_prune.backends.tvm.workloads import Choices

    patches = set()

    class Short(Choices):
        """Winograd's choices, one after the other."""

        def of(self, workload: Any) -> Any:
            found = [c for c in self.options(workload) if len(c) == 5 and c[-1] and c[-1] not in patches]
            patches.update({found[0][-1]} if found else ())
            return found[0] if found else super().of(workload)

    net = Net(*shape)
    x = "x"
    for number in range(4):
        y = net.conv(x, shape[1] if number == 0 else out, out, r, pads=pads)
        x = net.op("Relu", y)
    proto = net.model(x)
    reference, target = OnnxRuntimeBackend(1).compile(proto), machine.host_target(threads)
    module = frontend.import_model(frontend.fold(proto))
    made = build.build({"main": module}, target, Short())
    inputs = random_inputs(proto)
    (wanted,) = reference.run(inputs).values()
    (got,) = CpuArtifact(made, reference.inputs, reference.outputs, target).run(inputs).values()
    assert patches
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_strides_dilations_groups_and_single_taps_are_not_for_it() -> None:
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.schedules.winograd import fits

    assert fits(Window((3, 3), (1, 1), (1, 1), (0, 0, 0, 0)))
    assert not fits(Window((1, 1), (1, 1), (1, 1), (0, 0, 0, 0)))
    assert not fits(Window((3, 3), (2, 2), (1, 1), (0, 0, 0, 0)))
    assert not fits(Window((3, 3), (1, 1), (2, 2), (0, 0, 0, 0)))
    assert not fits(Window((3, 5), (1, 1), (1, 1), (0, 0, 0, 0)))
