"""LayerNorm before a layer whose weights are mostly zero is part of its kernel."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from test_backends import Net
from test_sparse_kernels import MASKS, forced, results, with_zeros

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def normalised(net: Net, x: str) -> str:
    parameters = [net.op("Add", net.weight(30), net.weight(30)), net.weight(30)]
    return net.op("LayerNormalization", x, *parameters, epsilon=1e-3)


def model(*lead: int, layers: int = 1) -> onnx.ModelProto:
    net = Net(*lead, 30)
    y = net.op("MatMul", normalised(net, "x"), net.weight(30, 50))
    if layers == 2:
        y = net.op("MatMul", net.op("Relu", y), net.weight(50, 22))
    return with_zeros(net.model(y), MASKS["4x1"], 0)


def stays(made: onnx.ModelProto) -> bool:
    """Whether LayerNorm is an operator or a kernel of its own after layers became kernels."""
    import tvm
    from onnx_prune.backends.tvm import frontend, machine
    from onnx_prune.backends.tvm.passes import PackedKernels, Tidy

    with tvm.target.Target(machine.host_target(1)):
        module = PackedKernels()(Tidy()(frontend.import_model(frontend.fold(made))))
    text = module.script()
    assert "call_tir(cls.sparse" in text
    return "layer_norm" in text


@pytest.mark.parametrize(("number", "lead", "threads"), [(0, (2, 37), 1), (3, (8,), 2), (6, (1, 197), 2)])
@pytest.mark.parametrize("layers", [1, 2])
def test_it_computes_what_the_model_does(
    number: int, lead: tuple[int, ...], threads: int, layers: int
) -> None:
    made = model(*lead, layers=layers)
    got, dense = results(forced(made, number, threads)[0], made, seed=1)
    assert np.abs(got - dense).max() <= 1e-5 * np.abs(dense).max()


def test_it_is_no_kernel_of_its_own() -> None:
    assert not stays(model(2, 37))


@pytest.mark.parametrize("why", ["few", "read again", "over two axes"])
def test_it_stays_apart(why: str) -> None:
    net = Net(1, 3 if why == "few" else 40, 30)
    if why == "over two axes":
        mean = net.op("LayerNormalization", "x", net.weight(40, 30), axis=1)
    else:
        mean = normalised(net, "x")
    y = net.op("MatMul", mean, net.weight(30, 22))
    if why == "read again":
        y = net.op("Concat", y, mean, axis=2)
    made = with_zeros(net.model(y), MASKS["4x1"], 0)
    assert stays(made)
    got, dense = results(forced(made, 0, 1)[0], made, seed=1)
    assert np.abs(got - dense).max() <= 1e-5 * np.abs(dense).max()
