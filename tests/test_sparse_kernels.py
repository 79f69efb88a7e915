"""Kernels that skip zeros compute what dense ones do, and are taken where they are faster."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import astuple, replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx_prune import Model, compile, save, tune
from onnx_prune.backends.artifact import CpuArtifact
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from test_backends import Net
from test_cli import run

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
Mask = Callable[[np.random.Generator, int, int], NDArray[Any]]


def blocks(rows: int, density: float) -> Mask:
    def mask(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
        kept = rng.random((-(-outputs // rows), columns)) < density
        return np.repeat(kept, rows, 0)[:outputs]

    return mask


def two_of_four(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
    """Of each row of its own; the last group is ragged."""
    places = np.argsort(rng.random((outputs, -(-columns // 4), 4)), -1) < 2
    return places.reshape(outputs, -1)[:, :columns]


def empty_rows(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
    return (rng.random((outputs, columns)) < 0.5) & (np.arange(outputs) % 3 == 0)[:, None]


def one(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
    return np.arange(outputs * columns).reshape(outputs, columns) == outputs * columns - 2


def nothing(rng: np.random.Generator, outputs: int, columns: int) -> NDArray[Any]:
    return np.zeros((outputs, columns), bool)


MASKS: dict[str, Mask] = {
    "4x1": blocks(4, 0.3),
    "16x1": blocks(16, 0.3),
    "single": blocks(1, 0.2),
    "2:4": two_of_four,
    "empty rows": empty_rows,
    "one": one,
    "nothing": nothing,
}


def layers() -> dict[str, onnx.ModelProto]:
    """Odd sizes, strides, dilations, groups, batches, epilogues; few positions, and one."""
    found = {}
    net = Net(1, 13, 9, 11)
    x = net.conv("x", 13, 21, 3, pads=[1, 1, 1, 1])
    found["3x3"] = net.model(net.op("Relu", net.op("Add", x, net.weight(21, 1, 1))))
    net = Net(2, 5, 6, 70)
    found["wide"] = net.model(net.op("Relu", net.conv("x", 5, 12, 3, pads=[1] * 4)))
    net = Net(2, 10, 12, 7)
    found["strided"] = net.model(net.conv("x", 10, 19, 3, strides=[2, 2], pads=[0, 1, 1, 0]))
    net = Net(1, 6, 13, 12)
    found["dilated"] = net.model(net.conv("x", 6, 9, 3, dilations=[2, 3], pads=[2] * 4, strides=[1, 2]))
    net = Net(1, 3, 35, 32)
    found["patches"] = net.model(net.conv("x", 3, 10, 16, strides=[16, 16], pads=[0, 0, 1, 0]))
    net = Net(1, 24, 8, 8)
    found["groups"] = net.model(net.conv("x", 24, 12, 3, groups=3, pads=[1] * 4))
    net = Net(1, 20, 7, 9)
    y = net.conv("x", 20, 20, 1)
    found["residual"] = net.model(net.op("Sigmoid", net.op("Add", y, "x")))
    net = Net(1, 20, 4, 5)
    y = net.conv("x", 20, 20, 1)
    found["squared"] = net.model(net.op("Add", net.op("Mul", y, net.op("Sigmoid", y)), "x"))
    net = Net(3, 18, 5, 5)
    found["1x1 strided"] = net.model(net.conv("x", 18, 33, 1, strides=[2, 2]))
    net = Net(1, 16, 2, 2)
    found["few positions"] = net.model(net.conv("x", 16, 22, 3, pads=[1] * 4))
    net = Net(1, 12, 1, 1)
    found["one pixel"] = net.model(net.conv("x", 12, 10, 3, pads=[1] * 4))
    net = Net(2, 37, 30)
    found["tokens"] = net.model(net.op("Add", net.op("MatMul", "x", net.weight(30, 50)), net.weight(50)))
    net = Net(1, 3, 7, 41)
    found["few tokens"] = net.model(net.op("Relu", net.op("MatMul", "x", net.weight(41, 27))))
    net = Net(1, 64)
    found["one token"] = net.model(net.op("MatMul", "x", net.weight(64, 45)))
    return found


def with_zeros(model: onnx.ModelProto, mask: Mask, seed: int) -> onnx.ModelProto:
    """Weights of small integers, so that every order of summing gives the same; zero where the mask is.

    With an odd seed half precision holds none of them.
    """
    model, rng = onnx.ModelProto.FromString(model.SerializeToString()), np.random.default_rng(seed)
    kinds = {node.input[1]: node.op_type for node in model.graph.node if node.op_type in ("Conv", "MatMul")}
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        drawn = rng.integers(-4, 5, value.shape).astype(np.float32)
        if tensor.name in kinds:
            matrix = value.T if kinds[tensor.name] == "MatMul" else value.reshape(len(value), -1)
            kept = mask(rng, *matrix.shape)
            drawn = np.where(drawn == 0, np.float32(5), drawn)
            drawn = 2 * drawn + np.sign(drawn) * 4095 if seed % 2 else drawn
            drawn = drawn * (kept.T if kinds[tensor.name] == "MatMul" else kept.reshape(value.shape))
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(drawn), tensor.name))
    return model


def built(model: onnx.ModelProto, number: int, threads: int, *features: str) -> tuple[CpuArtifact, list[Any]]:
    """Compiled with the zeros skipped everywhere, by the choice of a number; and those layers."""
    artifact, choices = forced(model, number, threads, *features)
    return artifact, choices.layers


def forced(model: onnx.ModelProto, number: int, threads: int, *features: str) -> tuple[CpuArtifact, Any]:
    """`built`, layers joined wherever they can be; and what was chosen."""
    from onnx_prune.backends.tvm import build, frontend, machine
    from onnx_prune.backends.tvm.chain import Chain
    from onnx_prune.backends.tvm.sparse import Sparse
    from onnx_prune.backends.tvm.workloads import Choices

    class Forced(Choices):
        def of(self, workload: Any) -> Any:
            options = self.options(workload)
            if not isinstance(workload, (Chain, Sparse)):
                return super().of(workload)
            self.seen[workload] += 1
            return options[number % len(options)]

        def joins(self, chain: Any) -> bool:
            return bool(self.options(chain))

        def skips(self, weights: Any, sparse: Any, dense: Any) -> bool:
            super().skips(weights, sparse, dense)
            self.layers[-1] = replace(self.layers[-1], taken=True)
            return True

    choices, target = Forced(), machine.host_target(threads)
    if features:
        target["mattr"] = list(features)
    program = build.build({"main": frontend.import_model(frontend.fold(model))}, target, choices)
    reference = OnnxRuntimeBackend(1).compile(model)
    return CpuArtifact(program, reference.inputs, reference.outputs, target), choices


def results(artifact: CpuArtifact, model: onnx.ModelProto, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of small integers, and those of the dense model in ONNX Runtime."""
    (spec,) = artifact.inputs
    rng = np.random.default_rng(seed)
    x = rng.integers(-5, 6, [int(size) for size in spec.shape]).astype(np.float32)  # type: ignore[arg-type]
    (wanted,) = OnnxRuntimeBackend(1).compile(model).run({spec.name: x}).values()
    (got,) = artifact.run({spec.name: x}).values()
    return got, wanted


@pytest.mark.parametrize("pattern", MASKS)
@pytest.mark.parametrize("layer", layers())
def test_every_pattern_computes_what_the_dense_layer_does(layer: str, pattern: str) -> None:
    number = (list(MASKS).index(pattern) * 5 + len(layer)) % 12
    model = with_zeros(layers()[layer], MASKS[pattern], number)
    artifact, sparse = built(model, number, 1 + number % 2)
    assert len(sparse) == 1
    got, wanted = results(artifact, model, seed=1)
    if "Sigmoid" in [node.op_type for node in model.graph.node]:
        assert np.abs(got - wanted).max() <= 1e-6 * max(1, np.abs(wanted).max())
    else:
        assert np.array_equal(got, wanted)
    assert pattern == "nothing" or np.any(wanted)


@pytest.mark.parametrize("number", range(12))
@pytest.mark.parametrize("layer", ["3x3", "wide", "1x1 strided", "few positions", "tokens", "few tokens"])
def test_every_choice_computes_the_same(layer: str, number: int) -> None:
    model = with_zeros(layers()[layer], MASKS["4x1"], number)
    artifact, _ = built(model, number, 1 + number % 2)
    got, wanted = results(artifact, model, seed=2)
    assert np.array_equal(got, wanted)


@pytest.mark.parametrize("number", [0, 3, 7, 10])
@pytest.mark.parametrize(("c", "hidden", "side"), [(13, 21, 9), (16, 36, 2)])
def test_blocks_of_channels_stay_beside_depthwise_layers(c: int, hidden: int, side: int, number: int) -> None:
    net, depthwise = Net(1, c, side, side), {"pads": [1] * 4}
    x = net.op("Relu", net.conv("x", c, c, 3, groups=c, **depthwise))
    y = net.op("Relu", net.conv(x, c, hidden, 1))
    y = net.op("Relu", net.conv(y, hidden, hidden, 3, groups=hidden, **depthwise))
    model = with_zeros(net.model(net.op("Relu", net.conv(y, hidden, c, 1, strides=[2, 2]))), MASKS["4x1"], 2)
    artifact, choices = forced(model, number, 1 + number % 2)
    wide, narrow = (layer.sparse for layer in choices.layers)
    assert (wide.source.blocked, wide.blocked) == (True, True)
    assert (narrow.source.blocked, narrow.blocked) == (True, False)
    got, wanted = results(artifact, model, seed=3)
    assert np.array_equal(got, wanted) and np.any(wanted)


@pytest.mark.parametrize(("rows", "parts", "chains"), [(1, 1, 0), (4, 1, 0), (4, 3, 0), (1, 8, 0), (8, 1, 4)])
def test_blocks_hold_the_weights(rows: int, parts: int, chains: int) -> None:
    from onnx_prune.backends.tvm.schedules.blocks import Strip, blocks_of

    rng = np.random.default_rng(0)
    weights = rng.standard_normal((31, 22)).astype(np.float32) * MASKS["4x1"](rng, 31, 22)
    weights[4:8] = 0
    strip = Strip(rows, 1, parts, chains)
    columns = np.arange(22)[None]
    found = blocks_of(weights, columns * 7, strip, unit=7, parts=columns * parts // 22)
    count = -(-31 // rows)
    values = found.values.reshape(-1, rows)
    back = np.zeros((count * rows, 22), np.float32)
    assert len(found.starts) == parts * count + 1
    for number, (start, end) in enumerate(pairwise(found.starts)):
        part, place = number // count, number % count * rows
        reads = found.offsets[start * strip.turn : end * strip.turn]
        assert all(22 * part <= parts * reads) and all(parts * reads < 22 * (part + 1))
        for k, column in enumerate(reads, start * strip.turn):
            back[place : place + rows, column] += values[k]
    assert np.array_equal(back[:31], weights)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("size", "stride", "groups", "blocked"),
    [
        ((9, 11), 1, 1, False),
        ((21, 20), 2, 2, False),
        ((7, 7), 1, 1, False),
        ((9, 11), 1, 1, True),
        ((99, 0), 1, 1, False),
    ],
)
def test_parts_and_cuts_give_the_same_sums(
    size: tuple[int, int], stride: int, groups: int, blocked: bool, threads: int
) -> None:
    """Of an image, a pointwise layer and a product: threads share tiles, or the blocks of the only one."""
    from onnx_prune.backends.tvm.build import kernel_of
    from onnx_prune.backends.tvm.machine import core_of, host_target
    from onnx_prune.backends.tvm.schedules.blocks import Strip
    from onnx_prune.backends.tvm.schedules.common import LANES
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.schedules.image import Image
    from onnx_prune.backends.tvm.schedules.sources import Pixels, Tokens
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse
    from tvm.runtime import tensor
    from tvm.target import Target

    source: Any = Image((stride, 64, *size), Window((3, 3), (stride, stride), (1, 1), (1, 1, 1, 1)))
    if blocked:
        source = Pixels((1, 560, *size), blocked=True)
    elif not size[1]:
        source = Tokens(size[:1], 570)
    layer = Sparse(source, 40, Pattern(4, 30), groups, blocked=blocked)
    rng, found = np.random.default_rng(0), []
    x = rng.integers(-4, 5, source.shape).astype(np.float32)
    strips = [Strip(4, 3), Strip(4, 3, 3), Strip(4, 13, 4), Strip(1, 13, 16)]
    if isinstance(source, Image):
        lanes = core_of(Target(host_target(threads))).lanes
        each = lanes // LANES
        strips += [Strip(4, 2 * each, cuts=cuts) for cuts in (1, 2, lanes)] + [Strip(1, 3 * each, 4, cuts=4)]
    for strip in strips:
        kernel, (_, *arrays, shape) = kernel_of(layer, astuple(strip), host_target(threads))
        result = tensor(np.full(shape, 7, np.float32))
        kernel["main"](tensor(x), *map(tensor, arrays), result)
        found.append(result.numpy())
    assert np.ptp(found[0]) > 99 and all(np.array_equal(other, found[0]) for other in found)


def test_code_does_not_grow_with_the_stride() -> None:
    """Of a network that begins with patches of 16 by 16: an image of each phase, in a loop."""
    from onnx_prune.backends.tvm.machine import core_of, host_target
    from onnx_prune.backends.tvm.schedules.blocks import Strip
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.schedules.image import Image
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse
    from tvm.target import Target

    core = core_of(Target(host_target(1)))

    def code(stride: int) -> int:
        window = Window((stride, stride), (stride, stride), (1, 1), (0,) * 4)
        layer = Sparse(Image((1, 3, 16 * stride, 16 * stride), window), 16, Pattern(1, 25))
        strip = Strip(1, core.lanes // 8, cuts=core.lanes // 4)
        return len(layer.function(astuple(strip), core).script())

    assert code(16) < 1.5 * code(4)


def test_blocks_read_the_channels_of_their_group() -> None:
    from onnx_prune.backends.tvm.schedules.blocks import Strip, blocks_of

    weights = np.eye(6, 3, dtype=np.float32) + np.eye(6, 3, -3, dtype=np.float32)
    strip = Strip(1, 1)
    found = blocks_of(weights, np.array([[0, 1, 2], [10, 20, 30]]), strip)
    reads = found.offsets[: -strip.turn].reshape(6, -1)
    assert [set(row) for row in reads] == [{0}, {1}, {2}, {10}, {20}, {30}]


def test_the_pattern_is_that_of_the_highest_blocks() -> None:
    from onnx_prune.backends.tvm.sparse import Pattern, pattern_of

    rng = np.random.default_rng(0)
    for rows in (1, 2, 4, 8, 16):
        found = pattern_of(MASKS["nothing"](rng, 64, 100) | blocks(rows, 0.25)(rng, 64, 100))
        assert found.rows == rows and 20 < found.density < 31
    assert pattern_of(np.zeros((8, 8))) == Pattern(16, 0)
    assert Pattern(4, 25).share(4) == Pattern(4, 25).share(1) == 0.25
    assert Pattern(4, 25).share(8) == 1 - 0.75**2


def test_zeros_are_skipped_where_it_pays(tmp_path: Path) -> None:
    """Of two layers one is nearly full of zeros, of the other every third weight is zero."""
    net = Net(1, 64, 14, 14)
    model = net.model(net.conv(net.op("Relu", net.conv("x", 64, 64, 1)), 64, 64, 1))
    first, second = (node.input[1] for node in model.graph.node if node.op_type == "Conv")
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name in (first, second):
            value = numpy_helper.to_array(tensor)
            mask = blocks(4, 0.1) if tensor.name == first else blocks(1, 0.67)
            value = value * mask(rng, 64, 64).reshape(value.shape)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    found = {layer.weight: layer for layer in compile(Model(model)).sparse}
    assert found[first].sparse and found[first].gain > 1 and 0.05 < found[first].density < 0.15
    assert not found[second].sparse and not found[second].measured
    assert not compile(Model(layers()["3x3"])).sparse
    # What was measured counts.
    tune(Model(model), tmp_path / "tuned", seconds=120)
    assert all(layer.measured for layer in compile(Model(model), database=tmp_path / "tuned").sparse)
    save(Model(model), tmp_path / "m.onnx")
    result = run("compile", tmp_path / "m.onnx", "-o", tmp_path / "m.so", "--json", tmp_path / "m.json")
    assert result.returncode == 0
    told = json.loads((tmp_path / "m.json").read_text())["sparse"]
    assert [layer["weight"] for layer in told] == [first, second]
    assert "1 of 2 layers with zeros skip them" in result.stderr


def test_few_outputs_at_few_positions_are_one_vector() -> None:
    from onnx_prune.backends.tvm.schedules.blocks import Strip
    from onnx_prune.backends.tvm.schedules.common import Core
    from onnx_prune.backends.tvm.schedules.conv import Window
    from onnx_prune.backends.tvm.schedules.image import Image
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse

    image = Image((1, 16, 2, 2), Window((3, 3), (1, 1), (1, 1), (1,) * 4))
    core = Core(1, lanes=16, registers=32)
    strips = [Strip(*choice) for choice in Sparse(image, 22, Pattern(4, 20)).choices(core, False)]
    assert any(strip.crossed(core) and (strip.rows, strip.wide) == (4, 4) for strip in strips)


def test_small_buffers_are_not_allocated() -> None:
    from onnx_prune.backends.tvm.build import kernel_of
    from onnx_prune.backends.tvm.machine import core_of, host_target
    from onnx_prune.backends.tvm.schedules.sources import Tokens
    from onnx_prune.backends.tvm.sparse import Pattern, Sparse
    from tvm.target import Target

    target, workload = host_target(1), Sparse(Tokens((16,), 64), 32, Pattern(4, 20))
    choice = workload.choices(core_of(Target(target)), False)[0]
    assembly = kernel_of(workload, choice, target)[0].mod.inspect_source("asm")
    assert "__TVMBackendAllocWorkspace@GOT" not in assembly and "call" in assembly
