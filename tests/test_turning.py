"""Images to channels in blocks of eight, and back."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def called(function: Any, x: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    import tvm

    got = tvm.runtime.tensor(np.full(shape, 77, x.dtype))
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    tvm.compile(module, target="llvm").jit()["main"](tvm.runtime.tensor(np.ascontiguousarray(x)), got)
    return np.asarray(got.numpy())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("shape", [(1, 16, 4, 6), (2, 13, 3, 5), (1, 8, 1, 1), (1, 3, 2, 2), (2, 24, 1, 17)])
def test_images_are_packed_and_unpacked(shape: tuple[int, int, int, int], dtype: str) -> None:
    from onnx_prune.backends.tvm.schedules import turning
    from onnx_prune.backends.tvm.schedules.common import Core

    n, c, h, w = shape
    x = np.random.default_rng(0).integers(-100, 100, shape).astype(dtype)
    filled = np.zeros((n, -(-c // 8) * 8, h, w), dtype)
    filled[:, :c] = x
    wanted = filled.reshape(n, -1, 8, h, w).transpose(0, 1, 3, 4, 2)
    assert np.array_equal(called(turning.pack(shape, dtype, Core()), x, wanted.shape), wanted)
    assert np.array_equal(called(turning.unpack(shape, dtype, Core()), wanted, shape), x)
