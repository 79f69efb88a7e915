"""Profiles: every kernel that multiplies is named by what it computes, fused or not."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest
from onnx_prune.backends.base import Kernel
from onnx_prune.backends.cpu import CpuBackend
from test_backends import Net
from test_cli import run

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def by_name(kernels: tuple[Kernel, ...]) -> dict[str, Kernel]:
    return {kernel.what: kernel for kernel in kernels}


def test_kernels_are_named_by_what_they_compute() -> None:
    net = Net(2, 12, 9, 9)
    x = net.op("Relu", net.conv("x", 12, 24, 3, pads=[1] * 4))
    x = net.op("Relu", net.conv(x, 24, 24, 3, pads=[1] * 4, strides=[2, 2]))
    x = net.op("Relu", net.conv(x, 24, 24, 3, groups=24))
    x = net.op("Relu", net.conv(x, 24, 24, 3, groups=24, pads=[1] * 4))
    x = net.op("MatMul", net.op("Flatten", x), net.weight(24 * 9, 10))
    kernels = CpuBackend().profile(net.model(net.op("MatMul", x, net.weight(10, 10))))
    found = by_name(kernels)
    expected = {
        "convolution 3 x 3 of 2 x 9 x 9, 12 to 24 channels": 1,
        "convolution 3 x 3 / 2 of 2 x 9 x 9, 24 to 24 channels": 1,
        "depthwise convolution 3 x 3 of 2 x 5 x 5, 24 channels": 1,
        "depthwise convolution 3 x 3 of 2 x 3 x 3, 24 channels": 1,
        "product 2 x 216 by 216 x 10": 1,
        "product 2 x 10 by 10 x 10": 1,
    }
    assert expected == {what: found[what].calls for what in expected if what in found}
    assert all(found[what].share is not None and 0 < found[what].share < 4 for what in expected)
    assert all(kernel.share is None for kernel in kernels if kernel.what not in expected)
    times = [kernel.ms for kernel in kernels[:-1]]
    assert times == sorted(times, reverse=True) and kernels[-1].what == "between kernels"


def test_the_command_shows_and_writes_them(tmp_path: Path) -> None:
    net = Net(1, 12, 9, 9)
    x = net.conv(net.conv("x", 12, 12, 3, groups=12, pads=[1] * 4), 12, 24, 1)
    onnx.save(net.model(x), tmp_path / "model.onnx")
    result = run("bench", tmp_path / "model.onnx", "--kernels", "--json", "-")
    assert result.returncode == 0
    (kernels,) = json.loads(result.stdout)["kernels"].values()
    assert any(each["what"].startswith("depthwise convolution 3 x 3") for each in kernels)
    assert sum(each["ms"] for each in kernels) > 0
    assert "of the peak" in result.stderr
