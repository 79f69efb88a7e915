"""What XNNPACK's profile says of small networks: its rule is about parts of a graph, not about layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ModelProto
from truths_models import (
    NO,
    OTHER,
    YES,
    Array,
    Make,
    Net,
    Step,
    Truth,
    byte,
    dq,
    gemm,
    half,
    negative_zeros,
    node,
    of,
    ones,
    times,
    zeros,
)

X = "two-thirds"


def chain(*steps: Step, channels: int = 3, dtype: Any = np.float32) -> Make:
    """A network of steps one after another, from an image of some channels."""

    def make() -> ModelProto:
        net = Net()
        name = net.input(dtype, 1, channels, 16, 16)
        for step in steps:
            name = step(net, name)
        return net.model(name)

    return make


def layer(weight: Array, name: str = "", **attributes: Any) -> Step:
    return lambda net, x: net("Conv", x, net.const(weight, name=name), **attributes)


def entry(outputs: int = 4, inputs: int = 3, size: int = 3, stride: int = 2, dtype: Any = np.float32) -> Step:
    """The convolution a cluster begins with, if it is not told otherwise. All its weights are zero."""
    weight = np.zeros((outputs, inputs, size, size), dtype)
    return layer(weight, strides=[stride] * 2, pads=[size // 2] * 4)


def depthwise(size: int) -> Step:
    return layer(np.zeros((4, 1, size, size), np.float32), group=4, pads=[size // 2] * 4)


def reduced(op: str = "ReduceMean", keepdims: int = 1) -> Step:
    return lambda net, x: net(op, x, net.const([2, 3], np.int64), keepdims=keepdims)


def beside(*steps: Step) -> Step:
    """A side branch whose result is another output of the model; of no step, what it begins with is."""

    def step(net: Net, x: str) -> str:
        end = x
        for one in steps:
            end = one(net, end)
        net.ends.append(end)
        return x

    return step


def joined(op: str, *steps: Step) -> Step:
    """What a branch makes of a tensor, added to it or times it."""

    def step(net: Net, x: str) -> str:
        end = x
        for one in steps:
            end = one(net, end)
        return net(op, x, end)

    return step


def enlarged(net: Net, x: str) -> str:
    return net("Resize", x, "", net.const([1, 1, 2, 2], np.float32), mode="linear")


def with_input(net: Net, x: str) -> str:
    return net("Add", x, net.input(np.float32, 1, 4, 8, 8))


def shared(net: Net, x: str) -> str:
    """Two layers with one weight, of which one zero is missing."""
    w = net.const(zeros(15, 4, 4, 1, 1), name="w")
    return net("Conv", net("Conv", x, w), w)


def both(join: bool) -> Make:
    """Two entries, one before a weight of zeros, ``w``, one before ``v``, of which none is."""

    def make() -> ModelProto:
        net = Net()
        x = net.input(np.float32, 1, 3, 16, 16)
        ends = [layer(weight, name)(net, entry()(net, x)) for weight, name in ((ALL, "w"), (NONE, "v"))]
        if join:
            return net.model(net("GlobalAveragePool", net("Add", *ends)))
        return net.model(*(net("GlobalAveragePool", end) for end in ends))

    return make


def transposed(net: Net, x: str) -> str:
    """A weight stored as (outputs, height, width, inputs)."""
    stored = net.const(negative_zeros(zeros(17, 6, 1, 1, 4)), name="w")
    return net("Conv", x, net("Transpose", stored, perm=[0, 3, 1, 2]))


def dequantised(weight: Array, name: str) -> Step:
    return lambda net, x: net("Conv", x, dq()(net, net.const(byte(weight), name=name)))


def matrix(weight: Array, name: str) -> Step:
    return lambda net, x: net("Gemm", x, net.const(weight, name=name))


def squeezed(weight: Array) -> tuple[Step, ...]:
    """Squeeze and excitation."""
    first, last = layer(weight, "a"), layer(weight, "b")
    return node("GlobalAveragePool"), first, node("Relu"), last, node("HardSigmoid")


# Of 24 weights 16 are two thirds.
ENOUGH, THIRDS = zeros(17, 6, 4, 1, 1), zeros(16, 6, 4, 1, 1)
ALL, NONE = np.zeros((4, 4, 1, 1), np.float32), ones(4, 4, 1, 1)
HALF, LAST = ones(2, 4, 1, 1), zeros(1, 2, 4, 1, 1)
GAP, RELU, SOFTMAX = node("GlobalAveragePool"), node("Relu"), node("Softmax", axis=1)
POOL = node("MaxPool", kernel_shape=[2, 2])

XNNPACK = [
    Truth("more than two thirds", X, chain(entry(), RELU, layer(ENOUGH, "w"), GAP), YES),
    Truth("two thirds", X, chain(entry(), RELU, layer(THIRDS, "w"), GAP), NO),
    Truth("none", X, chain(entry(), layer(NONE, "w"), GAP), NO),
    Truth("two layers, two thirds together", X, chain(entry(), layer(ALL, "w"), layer(HALF, "v"), GAP), NO),
    Truth(
        "two layers, one more together", X, chain(entry(), layer(ALL, "w"), RELU, layer(LAST, "v"), GAP), YES
    ),
    Truth(
        "the layer with few zeros of the two",
        X,
        chain(entry(), layer(ALL, "w"), layer(LAST, "v"), GAP),
        YES,
        weight="v",
    ),
    Truth(
        "a weight that two layers share counts twice",
        X,
        chain(entry(), shared, layer(zeros(3, 4, 4, 1, 1)), GAP),
        YES,
    ),
    Truth("float16", X, chain(entry(dtype=np.float16), layer(half(ENOUGH), "w"), GAP, dtype=np.float16), YES),
    Truth("stored with inputs last, negative zeros", X, chain(entry(), transposed, GAP), YES),
    # ------------------------------------------------------------------ where it begins
    Truth("no entry", X, chain(layer(ENOUGH, "w"), GAP, channels=4), OTHER),
    Truth("an entry without stride", X, chain(entry(stride=1), layer(ENOUGH, "w"), GAP), OTHER),
    Truth("an entry of four channels", X, chain(entry(inputs=4), layer(ENOUGH, "w"), GAP, channels=4), OTHER),
    Truth("an entry of 5x5", X, chain(entry(size=5), layer(ENOUGH, "w"), GAP), OTHER),
    Truth(
        "another input of the model is added", X, chain(entry(), with_input, layer(ENOUGH, "w"), GAP), OTHER
    ),
    Truth("two clusters, the one of zeros", X, both(False), YES),
    Truth("two clusters, the one of none", X, both(False), NO, weight="v"),
    Truth("two entries whose branches join, half together", X, both(True), NO),
    # ------------------------------------------------------------------ where it ends
    Truth("no exit", X, chain(entry(), layer(ENOUGH, "w")), OTHER),
    Truth("no exit but Relu", X, chain(entry(), layer(ENOUGH, "w"), RELU), OTHER),
    Truth("Softmax is no exit", X, chain(entry(), layer(ENOUGH, "w"), SOFTMAX), OTHER),
    Truth("ReduceMean", X, chain(entry(), layer(ENOUGH, "w"), reduced()), YES),
    Truth(
        "ReduceSum without the reduced axes",
        X,
        chain(entry(), layer(THIRDS, "w"), reduced("ReduceSum", 0)),
        NO,
    ),
    Truth("ReduceMax is no exit", X, chain(entry(), layer(ENOUGH, "w"), reduced("ReduceMax")), OTHER),
    Truth("DepthToSpace", X, chain(entry(), layer(ALL, "w"), node("DepthToSpace", blocksize=2)), YES),
    Truth("the exit is read by a Softmax", X, chain(entry(), layer(ENOUGH, "w"), GAP, SOFTMAX), YES),
    Truth(
        "a matrix after the exit",
        X,
        chain(entry(), layer(ENOUGH, "w"), GAP, node("Flatten"), matrix(ones(6, 3), "v")),
        YES,
    ),
    Truth(
        "the matrix itself",
        X,
        chain(entry(), layer(ENOUGH, "w"), GAP, node("Flatten"), matrix(ones(6, 3), "v")),
        OTHER,
        weight="v",
    ),
    # The exit leaves the planes: what reads it does not keep what comes before from being a cluster.
    Truth(
        "a matrix right after the exit",
        X,
        chain(entry(), layer(ENOUGH, "w"), reduced(keepdims=0), matrix(zeros(17, 6, 3), "v")),
        YES,
    ),
    Truth(
        "a 1x1 convolution right after the exit",
        X,
        chain(entry(), layer(ENOUGH, "w"), GAP, layer(zeros(17, 3, 6, 1, 1), "v")),
        YES,
    ),
    Truth(
        "before DepthToSpace",
        X,
        chain(
            entry(),
            layer(zeros(12, 4, 4, 1, 1), "w"),
            node("DepthToSpace", blocksize=2),
            layer(ones(3, 1, 1, 1), "v"),
            GAP,
        ),
        YES,
    ),
    Truth(
        "after DepthToSpace",
        X,
        chain(
            entry(),
            layer(zeros(12, 4, 4, 1, 1), "w"),
            node("DepthToSpace", blocksize=2),
            layer(ones(3, 1, 1, 1), "v"),
            GAP,
        ),
        OTHER,
        weight="v",
    ),
    # ------------------------------------------------------------------ what is inside
    Truth("another reader of the layer", X, chain(entry(), layer(ENOUGH, "w"), beside(POOL), GAP), OTHER),
    Truth("another reader of the entry", X, chain(entry(), beside(SOFTMAX), layer(ENOUGH, "w"), GAP), OTHER),
    Truth(
        "another reader of the exit",
        X,
        chain(entry(), layer(ENOUGH, "w"), GAP, beside(SOFTMAX), SOFTMAX),
        YES,
    ),
    Truth(
        "what the layer makes is an output", X, chain(entry(), layer(ENOUGH, "w"), beside(), RELU, GAP), OTHER
    ),
    Truth(
        "a side branch with an exit of its own",
        X,
        chain(entry(), layer(ENOUGH, "w"), beside(GAP), RELU, GAP),
        YES,
    ),
    Truth("a residual branch", X, chain(entry(), joined("Add", layer(ALL, "w"), RELU), GAP), YES),
    Truth(
        "a residual branch with MaxPool",
        X,
        chain(entry(), layer(ALL, "w"), joined("Add", node("MaxPool", kernel_shape=[1, 1])), GAP),
        OTHER,
    ),
    Truth(
        "activations, Resize",
        X,
        chain(entry(), node("HardSwish"), layer(ENOUGH, "w"), enlarged, node("Tanh"), GAP),
        YES,
    ),
    Truth(
        "multiplied by a constant", X, chain(entry(), layer(ENOUGH, "w"), times(ones(1, 6, 1, 1)), GAP), YES
    ),
    Truth("before MaxPool", X, chain(entry(), layer(ALL, "w"), POOL, layer(ALL, "v"), GAP), OTHER),
    Truth("after MaxPool", X, chain(entry(), layer(ALL, "w"), POOL, layer(ALL, "v"), GAP), OTHER, weight="v"),
    Truth(
        "depthwise, whose zeros do not count", X, chain(entry(), depthwise(3), layer(THIRDS, "w"), GAP), NO
    ),
    Truth("depthwise of 5x5", X, chain(entry(), depthwise(5), layer(ENOUGH, "w"), GAP), YES),
    Truth("depthwise of 7x7", X, chain(entry(), depthwise(7), layer(ENOUGH, "w"), GAP), OTHER),
    Truth(
        "a 3x3 convolution inside",
        X,
        chain(entry(), layer(np.zeros((4, 4, 3, 3), np.float32)), layer(ENOUGH, "w"), GAP),
        OTHER,
    ),
    Truth("a layer with stride", X, chain(entry(), layer(ENOUGH, "w", strides=[2, 2]), GAP), OTHER),
    Truth(
        "a grouped layer",
        X,
        chain(entry(), layer(np.zeros((4, 2, 1, 1), np.float32), "w", group=2), GAP),
        OTHER,
    ),
    Truth(
        "beside a grouped layer",
        X,
        chain(entry(), layer(ALL, "w"), layer(np.zeros((4, 2, 1, 1), np.float32), group=2), GAP),
        OTHER,
    ),
    Truth("an int8 layer", X, chain(entry(), dequantised(ALL, "w"), GAP), OTHER),
    Truth("beside an int8 layer", X, chain(entry(), layer(ALL, "w"), dequantised(ALL, "v"), GAP), OTHER),
    Truth(
        "squeeze and excitation of zeros",
        X,
        chain(entry(), layer(ALL, "w"), joined("Mul", *squeezed(ALL)), GAP),
        YES,
    ),
    Truth(
        "squeeze and excitation of none",
        X,
        chain(entry(), layer(ALL, "w"), joined("Mul", *squeezed(NONE)), GAP),
        NO,
    ),
    Truth("a matrix alone", X, of(np.zeros((4, 4), np.float32), gemm()), OTHER),
]
