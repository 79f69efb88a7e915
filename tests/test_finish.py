"""What follows a kernel that skips zeros is done where the kernel stores its results."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_prune import Model, compile
from test_backends import Net
from test_sparse_kernels import blocks, results, with_zeros

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")


def stages(model: onnx.ModelProto) -> list[list[str]]:
    """Names of the blocks that follow each other in each sparse kernel of a net."""
    import tvm
    from onnx_prune.backends.tvm import frontend, passes
    from onnx_prune.backends.tvm.machine import host_target
    from tvm import tirx

    def names(body: Any) -> list[str]:
        found = []
        for stage in body if isinstance(body, tirx.SeqStmt) else [body]:
            while isinstance(stage, tirx.For):
                stage = stage.body
            found.append(str(stage.block.name_hint))
        return found

    with tvm.target.Target(host_target(1)), tvm.transform.PassContext(opt_level=3, config=passes.CONFIG):
        module = passes.fused(passes.PackedKernels())(frontend.import_model(model))
        module = tvm.transform.Sequential([passes.kernels(), passes.Schedules()])(module)
    functions = {str(name.name_hint): function for name, function in module.functions.items()}
    return [names(f.body.block.body) for name, f in functions.items() if "sparse" in name]


def images() -> onnx.ModelProto:
    net = Net(1, 32, 12, 12)
    y = net.op("Add", net.conv("x", 32, 32, 1), net.weight(1, 32, 1, 1))
    return net.model(net.op("Add", net.op("Mul", y, net.op("Sigmoid", y)), "x"))


def rows() -> onnx.ModelProto:
    net = Net(1, 21, 64)
    y = net.op("Add", net.op("MatMul", "x", net.weight(64, 96)), net.weight(96))
    return net.model(net.op("Mul", y, net.op("Add", net.op("Erf", y), net.constant(np.float32(1)))))


def windows() -> onnx.ModelProto:
    net = Net(1, 16, 10, 40)
    y = net.conv("x", 16, 32, 3, pads=[1] * 4)
    return net.model(net.op("Relu", net.op("Add", y, net.weight(32, 1, 1))))


def gate() -> onnx.ModelProto:
    """What follows is spread over an image, and read again for each of its positions."""
    net = Net(1, 64, 6, 6)
    y = net.conv(net.op("GlobalAveragePool", "x"), 64, 64, 1)
    return net.model(net.op("Mul", "x", net.op("Sigmoid", y)))


@pytest.mark.parametrize("net", [images, rows, windows, gate])
def test_what_follows_is_done_in_place(net: Any) -> None:
    model = with_zeros(net(), blocks(4, 0.1), 0)
    assert stages(model) == [["sparse"]]
    got, wanted = results(compile(Model(model)), model, 0)
    assert np.abs(got - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_what_is_no_pass_over_the_results_stays_behind() -> None:
    """Of a buffer made for 4 x 6, one follower reads other places, another makes more of them."""
    from onnx_prune.backends.tvm.schedules.finish import finished_in_place
    from tvm import s_tir
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as script

    def function(shape: tuple[int, int], read: Any) -> Any:
        with IRBuilder() as builder, script.prim_func(s_tir=True):
            x = script.arg("x", script.buffer([4, 6], "float32"))
            y = script.arg("y", script.buffer(list(shape), "float32"))
            with script.sblock("root"):
                made = script.sblock_alloc_buffer([4, 6], "float32")
                with script.sblock("kernel"):
                    script.reads(x[0:4, 0:6])
                    script.writes(made[0:4, 0:6])
                    with script.serial(0, 4) as i, script.serial(0, 6) as j:
                        script.buffer_store(made, x[i, j] * 2.0, [i, j])
                with script.grid(*shape) as at, script.sblock("follower"):
                    a, b = script.axis.remap("SS", list(at))
                    script.buffer_store(y, made[read(a, b)] + 1.0, [a, b])
        return builder.get()

    def kept(shape: tuple[int, int], read: Any) -> bool:
        schedule = finished_in_place(s_tir.Schedule(function(shape, read)))
        return len(schedule.get_child_blocks(schedule.get_sblock("root"))) == 2

    assert not kept((4, 6), lambda a, b: (a, b))
    assert kept((4, 6), lambda a, b: (3 - a, b))
    assert kept((4, 4), lambda a, b: (a, b))
