"""Functions as polynomials, as the compiler emits them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from math import erf as exact_erf
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def computed(function: Callable[[Any], Any], x: NDArray[np.float32]) -> NDArray[np.float32]:
    import tvm
    from tvm import te

    data = te.placeholder(x.shape, "float32", "x")
    made = te.create_prim_func([data, te.compute(x.shape, lambda i: function(data[i]), name="y")])
    got = tvm.runtime.tensor(np.zeros_like(x))
    tvm.compile(made, target="llvm").jit()["main"](tvm.runtime.tensor(x), got)
    return np.asarray(got.numpy())


def test_powers_of_two_are_exact_at_whole_numbers() -> None:
    from onnx_prune.backends.tvm.vecmath import exp2

    x = np.concatenate([np.arange(-126, 128), np.linspace(-126, 127, 10001)]).astype(np.float32)
    got, wanted = computed(exp2, x), np.exp2(x.astype(float))
    assert np.array_equal(got[:254], wanted[:254].astype(np.float32))
    assert np.abs(got / wanted - 1).max() < 2e-7


def test_erf() -> None:
    from onnx_prune.backends.tvm.vecmath import erf

    x = np.concatenate([np.linspace(-5, 5, 20001), [1e30, -1e30, 0.0]]).astype(np.float32)
    got, wanted = computed(erf, x), np.array([exact_erf(value) for value in x.astype(float)])
    assert np.abs(got - wanted).max() < 3e-7
    assert np.all(np.abs(got - wanted) <= 1e-6 * np.abs(x))


def test_gelu() -> None:
    from onnx_prune.backends.tvm.vecmath import gelu

    x = np.concatenate([np.linspace(-12, 12, 20001), [1e30, -1e30, 0.0]]).astype(np.float32)
    wanted = np.array([v * (1 + exact_erf(v * 0.5**0.5)) / 2 for v in x.astype(float)])
    assert np.all(np.abs(computed(gelu, x) - wanted) < 3e-7 * np.maximum(1, np.abs(x)))
    small = np.linspace(-1e-2, 1e-2, 2000).astype(np.float32)
    wanted = np.array([v * (1 + exact_erf(v * 0.5**0.5)) / 2 for v in small.astype(float)])
    assert np.abs(computed(gelu, small) / wanted - 1).max() < 1e-6
