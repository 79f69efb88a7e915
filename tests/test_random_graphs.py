"""Random graphs: pruned and masked agree to the last bit, whatever the structure and the ratio.

ONNX_PRUNE_EXAMPLES sets how many are drawn: 300 in `make test`, 10,000 in `make random`.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from casebook import Net
from graphs import pruned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx_prune import Model, PlanError

EXAMPLES = int(os.environ.get("ONNX_PRUNE_EXAMPLES", "300"))
# Equal sizes everywhere: a rule that confuses two axes is not saved by a mismatch of shapes.
SIDE = 4
PIXELS = SIDE * SIDE
LARGEST = 24
IMAGE = (SIDE, SIDE)


class Builder:
    """Grows a net of images of SIDE × SIDE with channels in multiples of four, by drawn steps."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.net = Net(draw(st.integers(0, 1 << 16)))
        x = self.net.whole(1, 4, *IMAGE)
        self.flag = self.net("Greater", self.net("ReduceSum", x, keepdims=0), self.net.scalar(0))
        self.values = [(self.net.conv(x, 4, 8), 8)]

    def pick(self) -> tuple[str, int]:
        return self.draw(st.sampled_from(self.values[-4:]))

    def like(self, channels: int) -> str:
        return self.draw(st.sampled_from([name for name, c in self.values if c == channels]))

    def add(self, name: str, channels: int) -> None:
        """A new value, kept to small whole numbers, so that float sums are exact."""
        clipped = self.net("Clip", name, self.net.scalar(-3), self.net.scalar(3))
        self.values.append((clipped, channels))

    def small(self, name: str) -> str:
        return str(self.net("Clip", name, self.net.scalar(-3), self.net.scalar(3)))

    def one_of(self, *things: int) -> int:
        return self.draw(st.sampled_from(things))

    def tokens(self, x: str, c: int) -> str:
        """(pixels, channels)"""
        return str(self.net("Transpose", self.net("Reshape", x, self.net.ints(c, PIXELS)), perm=[1, 0]))

    def image(self, tokens: str, c: int) -> str:
        turned = self.net("Transpose", tokens, perm=[1, 0])
        return str(self.net("Reshape", turned, self.net.ints(1, c, *IMAGE)))


STEPS: dict[str, Callable[[Builder, Net, str, int], None]] = {}


def step(function: Callable[[Builder, Net, str, int], None]) -> Callable[[Builder, Net, str, int], None]:
    STEPS[function.__name__] = function
    return function


# ------------------------------------------------------------------ layers


@step
def conv(b: Builder, g: Net, x: str, c: int) -> None:
    out = b.one_of(4, 8, 12)
    b.add(g.conv(x, c, out, b.one_of(1, 3)), out)


@step
def grouped(b: Builder, g: Net, x: str, c: int) -> None:
    groups = b.one_of(2, 4)
    out = b.one_of(c, groups * 2, groups * 4)
    b.add(g.conv(x, c, out, 1, group=groups), out)


@step
def depthwise(b: Builder, g: Net, x: str, c: int) -> None:
    times = b.one_of(1, 2) if c <= LARGEST // 2 else 1
    b.add(g.conv(x, c, c * times, 3, group=c), c * times)


@step
def transposed(b: Builder, g: Net, x: str, c: int) -> None:
    groups = b.one_of(1, 2)
    b.add(g("ConvTranspose", x, g.weight(c, 4, 1, 1), g.weight(4 * groups), group=groups), 4 * groups)


@step
def twice_one_weight(b: Builder, g: Net, x: str, c: int) -> None:
    weight = g.weight(c, c, 1, 1)
    b.add(g("Conv", b.small(g("Conv", x, weight)), weight), c)


@step
def weight_and_its_transpose(b: Builder, g: Net, x: str, c: int) -> None:
    weight = g.weight(c, 8)
    h = b.small(g("MatMul", b.tokens(x, c), weight))
    b.add(b.image(g("MatMul", h, g("Transpose", weight, perm=[1, 0])), c), c)


@step
def weight_in_slices(b: Builder, g: Net, x: str, c: int) -> None:
    """The slices need not be read in order, and may overlap."""
    weight, h = g.weight(c, 12), b.tokens(x, c)
    starts = [b.one_of(0, 3, 4), b.one_of(0, 6, 8)]
    parts = [g("Slice", weight, g.ints(s), g.ints(s + 4), g.ints(1)) for s in starts]
    b.add(b.image(g("Add", *(g("MatMul", h, part) for part in parts)), 4), 4)


@step
def einsum(b: Builder, g: Net, x: str, c: int) -> None:
    y = g("Reshape", x, g.ints(1, c, PIXELS))
    y = g("Einsum", y, g.weight(c, 8), equation="bcp,cd->bdp")
    b.add(g("Reshape", y, g.ints(1, 8, *IMAGE)), 8)


@step
def fully_connected(b: Builder, g: Net, x: str, c: int) -> None:
    h = g("Flatten", x, axis=b.one_of(1, 0, -3))
    y = g("Gemm", h, g.weight(64, c * PIXELS), g.weight(64), transB=1)
    b.add(g("Reshape", y, g.ints(1, SIDE, *IMAGE)), SIDE)


@step
def norm(b: Builder, g: Net, x: str, c: int) -> None:
    y = g("BatchNormalization", x, g.weight(c), g.weight(c), g.weight(c), g("Abs", g.weight(c)))
    b.add(g("Sign", y), c)


# ------------------------------------------------------------------ values


@step
def relu(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g("Relu", x), c)


@step
def add(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g("Add", x, b.like(c)), c)


@step
def mul(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g("Mul", x, b.like(c)), c)


@step
def choose(b: Builder, g: Net, x: str, c: int) -> None:
    y = b.like(c)
    b.add(g("Where", g("Greater", y, g.scalar(0)), x, g("Neg", y)), c)


@step
def scale(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g("Mul", x, g.weight(1, c, 1, 1)), c)


@step
def residual(b: Builder, g: Net, x: str, c: int) -> None:
    inner = b.one_of(4, 8)
    h = g("Relu", b.small(g.conv(x, c, inner, b.one_of(1, 3))))
    b.add(g("Add", g.conv(h, inner, c), x), c)


@step
def gate_by_sum(b: Builder, g: Net, x: str, c: int) -> None:
    """A reduction over the channels: it changes the function, but sums of whole numbers stay exact."""
    op = b.draw(st.sampled_from(["ReduceSum", "ReduceMax"]))
    total = g(op, x, g.ints(1)) if op == "ReduceSum" else g(op, x, axes=[1])
    b.add(g("Mul", x, b.small(total)), c)


@step
def squeeze_and_excite(b: Builder, g: Net, x: str, c: int) -> None:
    pooled = b.small(g("ReduceSum", x, g.ints(-1, 2)))
    gate = g.conv(g("Relu", b.small(g.conv(pooled, c, 4))), 4, c)
    b.add(g("Mul", x, b.small(gate)), c)


@step
def neighbours(b: Builder, g: Net, x: str, c: int) -> None:
    """A window that slides over the channels, as in efficient channel attention."""
    row = g("Reshape", b.small(g("ReduceSum", x, g.ints(2, 3))), g.ints(1, 1, c))
    gate = g("Conv", row, g.weight(1, 1, 3), pads=[1, 1])
    b.add(g("Mul", x, b.small(g("Reshape", gate, g.ints(1, c, 1, 1)))), c)


@step
def mixed_pixels(b: Builder, g: Net, x: str, c: int) -> None:
    """Weights along the axes of the image: these could shrink as well as the channels."""
    if b.draw(st.booleans()):
        x = g("MatMul", x, g.weight(SIDE, SIDE))
    if b.draw(st.booleans()):
        x = g("MatMul", g.weight(SIDE, SIDE), b.small(x))
    if b.draw(st.booleans()):
        x = g("Transpose", x, perm=[0, 1, 3, 2])
    b.add(x, c)


@step
def running_sum(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g("CumSum", x, g.ints(1)), c)


# ------------------------------------------------------------------ joining and parting


@step
def concat(b: Builder, g: Net, x: str, c: int) -> None:
    y, d = b.pick()
    if c + d <= LARGEST:
        b.add(g("Concat", x, y, axis=1), c + d)


@step
def concat_then_groups(b: Builder, g: Net, x: str, c: int) -> None:
    """Unequal parts: the groups do not begin where the parts do."""
    h = g("Concat", g.conv(x, c, 4), g.conv(x, c, 8), axis=b.one_of(1, -3))
    out = b.one_of(12, 24)
    b.add(g.conv(b.small(h), 12, out, 1, group=b.one_of(2, 3, 6)), out)


@step
def dense_block(b: Builder, g: Net, x: str, c: int) -> None:
    parts, width = [x], c
    for _ in range(b.one_of(2, 3)):
        joined = g("Concat", *parts, axis=1) if len(parts) > 1 else x
        parts.append(b.small(g.conv(joined, width, 4)))
        width += 4
    b.add(g.conv(g("Concat", *parts, axis=1), width, 8), 8)


@step
def split(b: Builder, g: Net, x: str, c: int) -> None:
    at = b.draw(st.integers(1, c - 1))
    left, right = g("Split", x, g.ints(at, c - at), outputs=2, axis=1)
    b.add(g.conv(left, at, 4), 4)
    b.add(g.conv(right, c - at, 4), 4)


@step
def split_into_many(b: Builder, g: Net, x: str, c: int) -> None:
    count = b.one_of(2, 4)
    parts = g("Split", x, outputs=count, axis=1)
    order = b.draw(st.permutations(range(count)))
    some = [parts[i] if b.draw(st.booleans()) else g("Neg", parts[i]) for i in order]
    if b.draw(st.booleans()):
        b.add(g("Concat", *some, axis=1), c)
    else:
        b.add(g.conv(g("Sum", *some), c // count, 8), 8)


@step
def part(b: Builder, g: Net, x: str, c: int) -> None:
    start = b.draw(st.integers(0, c - 4))
    b.add(g("Slice", x, g.ints(start), g.ints(start + 4), g.ints(1)), 4)


@step
def strided(b: Builder, g: Net, x: str, c: int) -> None:
    """Backwards by one, or forwards by two."""
    start, end, by, size = (0, c, 2, c // 2) if b.draw(st.booleans()) else (c - 1, -c - 1, -1, c)
    y = g("Slice", x, g.ints(start), g.ints(end), g.ints(1), g.ints(by))
    b.add(g.conv(y, size, 8), 8)


@step
def gather(b: Builder, g: Net, x: str, c: int) -> None:
    order = b.draw(st.permutations(range(c)))
    b.add(g("Gather", x, g.ints(*order), axis=1), c)


@step
def gather_with_repeats(b: Builder, g: Net, x: str, c: int) -> None:
    picked = b.draw(st.lists(st.integers(-c, c - 1), min_size=8, max_size=8))
    b.add(g("Gather", x, g.ints(*picked), axis=1), 8)


@step
def pad(b: Builder, g: Net, x: str, c: int) -> None:
    """Longer or shorter at either end."""
    before, after = b.draw(st.sampled_from([(1, 3), (-1, -3), (-2, 2), (3, -3), (0, 4)]))
    size = c + before + after
    if size > 0:
        y = g("Pad", x, g.ints(0, before, 0, 0, 0, after, 0, 0), g.scalar(b.one_of(0, 2)))
        b.add(g.conv(y, size, 8), 8)


@step
def tile(b: Builder, g: Net, x: str, c: int) -> None:
    b.add(g.conv(g("Tile", x, g.ints(1, 2, 1, 1)), 2 * c, 8), 8)


# ------------------------------------------------------------------ layouts


@step
def shuffle(b: Builder, g: Net, x: str, c: int) -> None:
    parts = b.one_of(2, 4)
    y = g("Reshape", x, g.ints(1, parts, c // parts, *IMAGE))
    y = g("Transpose", y, perm=[0, 2, 1, 3, 4])
    b.add(g("Reshape", y, g.ints(1, c, *IMAGE)), c)


@step
def regrouped(b: Builder, g: Net, x: str, c: int) -> None:
    """Channels and pixels merged and split at other places, with axes of equal sizes in between."""
    y = g("Reshape", x, g.ints(c // 4, 4, 4, 4))
    y = g("Transpose", y, perm=b.draw(st.sampled_from([[0, 1, 2, 3], [1, 0, 2, 3], [1, 0, 3, 2]])))
    y = g("Reshape", y, g.ints(-1, PIXELS))
    b.add(g("Reshape", y, g.ints(1, c, *IMAGE)), c)


@step
def channels_last(b: Builder, g: Net, x: str, c: int) -> None:
    h = g("MatMul", g("Transpose", x, perm=[0, 2, 3, 1]), g.weight(c, 8))
    b.add(g("Transpose", h, perm=[0, 3, 1, 2]), 8)


@step
def pixel_shuffle(b: Builder, g: Net, x: str, c: int) -> None:
    mode = b.draw(st.sampled_from(["DCR", "CRD"]))
    wide = b.small(g.conv(g("DepthToSpace", x, blocksize=2, mode=mode), c // 4, 4))
    b.add(g("SpaceToDepth", wide, blocksize=2), 16)


def _heads(g: Net, tokens: str, heads: int, c: int) -> str:
    """(heads, pixels, width of four)"""
    h = g("Reshape", g("MatMul", tokens, g.weight(c, heads * 4)), g.ints(PIXELS, heads, 4))
    return str(g("Transpose", h, perm=[1, 0, 2]))


def _attend(b: Builder, g: Net, q: str, k: str, v: str) -> None:
    scores = b.small(g("MatMul", b.small(q), g("Transpose", b.small(k), perm=[0, 2, 1])))
    mixed = g("Transpose", b.small(g("MatMul", scores, b.small(v))), perm=[1, 0, 2])
    b.add(b.image(g("MatMul", g("Reshape", mixed, g.ints(PIXELS, 16)), g.weight(16, 8)), 8), 8)


@step
def attention(b: Builder, g: Net, x: str, c: int) -> None:
    tokens = b.tokens(x, c)
    _attend(b, g, *(_heads(g, tokens, 4, c) for _ in range(3)))


@step
def fused_attention(b: Builder, g: Net, x: str, c: int) -> None:
    """Queries, keys and values by one weight."""
    h = g("Reshape", g("MatMul", b.tokens(x, c), g.weight(c, 48)), g.ints(PIXELS, 3, 4, 4))
    parts = g("Split", g("Transpose", h, perm=[1, 2, 0, 3]), outputs=3, axis=0)
    _attend(b, g, *(g("Squeeze", p, g.ints(0)) for p in parts))


@step
def grouped_attention(b: Builder, g: Net, x: str, c: int) -> None:
    """Two heads of keys and values for four of queries, repeated by Expand or Tile."""
    tokens = b.tokens(x, c)
    q, by_tile = _heads(g, tokens, 4, c), b.draw(st.booleans())
    repeated = []
    for _ in range(2):
        k = g("Unsqueeze", _heads(g, tokens, 2, c), g.ints(1))
        k = g("Tile", k, g.ints(1, 2, 1, 1)) if by_tile else g("Expand", k, g.ints(2, 2, PIXELS, 4))
        repeated.append(g("Reshape", k, g.ints(4, PIXELS, 4)))
    _attend(b, g, q, *repeated)


# ------------------------------------------------------------------ bodies


@step
def branches(b: Builder, g: Net, x: str, c: int) -> None:
    """An If whose branches capture outer tensors and have weights of their own."""
    y, shape = b.like(c), [1, c, *IMAGE]
    then, other = g.inside(f"then{len(g.nodes)}"), g.inside(f"else{len(g.nodes)}")
    one = then("Add", x, then("Mul", y, then.weight(1, c, 1, 1)))
    two = other.conv(x, c, c) if b.draw(st.booleans()) else other("Neg", y)
    graphs = [net.body([(name, shape, TensorProto.FLOAT)]) for net, name in ((then, one), (other, two))]
    b.add(g("If", b.flag, then_branch=graphs[0], else_branch=graphs[1]), c)


@step
def loop(b: Builder, g: Net, x: str, c: int) -> None:
    """A Loop whose body captures an outer tensor and a weight."""
    y, shape = b.like(c), [1, c, *IMAGE]
    net = g.inside(f"loop{len(g.nodes)}")
    net.takes(name="step", kind=TensorProto.INT64)
    on = net.takes(name="on", kind=TensorProto.BOOL)
    state = net.takes(*shape, name="state")
    new = net("Add", net.conv(state, c, c) if b.draw(st.booleans()) else net("Neg", state), y)
    new = net("Clip", new, net.scalar(-3), net.scalar(3))
    body = net.body([(net("Identity", on), [], TensorProto.BOOL), (new, shape, TensorProto.FLOAT)])
    b.add(g("Loop", g.const(2, "int64"), "", x, body=body), c)


@st.composite
def networks(draw: st.DrawFn) -> Model:
    b = Builder(draw)
    for _ in range(draw(st.integers(2, 12))):
        x, c = b.pick()
        STEPS[draw(st.sampled_from(sorted(STEPS)))](b, b.net, x, c)
    x, c = b.values[-1]
    return b.net.build(b.net.conv(x, c, 3))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), st.sampled_from([0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9]), st.sampled_from([1, 1, 2, 4]))
def test_random_networks_are_bit_exact(model: Model, ratio: float, multiple: int) -> None:
    try:
        _, _, verdict = pruned(model, ratio, multiple=multiple)
    except PlanError as error:
        assert "no group" in str(error)
        return
    assert verdict.ok and verdict.max_relative_error == 0.0, verdict.message
