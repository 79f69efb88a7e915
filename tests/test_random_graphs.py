"""Random graphs: pruned and masked agree to the last bit, whatever the structure and the ratio."""

from __future__ import annotations

import os

from graphs import Graph, pruned
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_prune import Model, PlanError

EXAMPLES = int(os.environ.get("ONNX_PRUNE_EXAMPLES", "150"))
# Equal sizes everywhere: a rule that confuses two axes is not saved by a mismatch of shapes.
SIDE = 4


@st.composite
def networks(draw: st.DrawFn) -> Model:
    """A convolutional net of channels in multiples of four, over SIDE × SIDE images."""
    g = Graph(draw(st.integers(0, 1 << 16)))
    x = g("Round", g.input(1, 4, SIDE, SIDE))  # the certificate draws normal inputs
    values = [(g.conv(x, 4, 8), 8)]

    def pick() -> tuple[str, int]:
        return draw(st.sampled_from(values[-3:]))

    def pick_like(channels: int) -> str:
        return draw(st.sampled_from([name for name, c in values if c == channels]))

    for _ in range(draw(st.integers(2, 8))):
        x, c = pick()
        kind = draw(
            st.sampled_from(
                "conv grouped depthwise relu add mul concat split slice strided gather shuffle transpose "
                "tile pad norm shared einsum scale".split()
            )
        )
        if kind == "conv":
            out = draw(st.sampled_from([4, 8, 12]))
            values.append((g.conv(x, c, out, draw(st.sampled_from([1, 3]))), out))
        elif kind == "grouped":
            values.append((g.conv(x, c, c, 1, group=2), c))
        elif kind == "depthwise":
            values.append((g.conv(x, c, c, 3, group=c), c))
        elif kind == "relu":
            values.append((g("Relu", x), c))
        elif kind in ("add", "mul"):
            values.append((g(kind.capitalize(), x, pick_like(c)), c))
        elif kind == "concat":
            y, d = pick()
            if c + d <= 24:
                values.append((g("Concat", x, y, axis=1), c + d))
        elif kind == "split":
            at = draw(st.integers(1, c - 1))
            a, b = g("Split", x, g.ints(at, c - at), outputs=2, axis=1)
            values.append((g.conv(a, at, 4), 4))
            values.append((g.conv(b, c - at, 4), 4))
        elif kind == "slice":
            start = draw(st.integers(0, c - 4))
            values.append((g("Slice", x, g.ints(start), g.ints(start + 4), g.ints(1)), 4))
        elif kind == "strided":
            step = draw(st.sampled_from([2, -1]))
            start, end, size = (0, c, c // 2) if step == 2 else (c - 1, -c - 1, c)
            y = g("Slice", x, g.ints(start), g.ints(end), g.ints(1), g.ints(step))
            values.append((g.conv(y, size, 8), 8))
        elif kind == "gather":
            order = draw(st.permutations(range(c)))
            values.append((g("Gather", x, g.ints(*order), axis=1), c))
        elif kind == "shuffle":
            parts = draw(st.sampled_from([2, 4]))
            y = g("Reshape", x, g.ints(1, parts, c // parts, SIDE, SIDE))
            y = g("Transpose", y, perm=[0, 2, 1, 3, 4])
            values.append((g("Reshape", y, g.ints(1, c, SIDE, SIDE)), c))
        elif kind == "transpose":
            flat = g("Reshape", x, g.ints(1, c, SIDE * SIDE))
            y = g("MatMul", g("Transpose", flat, perm=[0, 2, 1]), g.weight(c, 8))
            y = g("Transpose", y, perm=[0, 2, 1])
            values.append((g("Reshape", y, g.ints(1, 8, SIDE, SIDE)), 8))
        elif kind == "tile":
            values.append((g.conv(g("Tile", x, g.ints(1, 2, 1, 1)), 2 * c, 8), 8))
        elif kind == "pad":
            values.append((g.conv(g("Pad", x, g.ints(0, 1, 0, 0, 0, 3, 0, 0)), c + 4, 8), 8))
        elif kind == "norm":
            y = g("BatchNormalization", x, g.weight(c), g.weight(c), g.weight(c), g("Abs", g.weight(c)))
            values.append((g.conv(g("Sign", y), c, 4), 4))
        elif kind == "shared":
            weight = g.weight(c, c, 1, 1)
            values.append((g("Conv", g("Conv", x, weight), weight), c))
        elif kind == "einsum":
            y = g("Reshape", x, g.ints(1, c, SIDE * SIDE))
            y = g("Einsum", y, g.weight(c, 8), equation="bcp,cd->bdp")
            values.append((g("Reshape", y, g.ints(1, 8, SIDE, SIDE)), 8))
        else:
            values.append((g("Mul", x, g.weight(1, c, 1, 1)), c))
        # Values stay small integers, so that float sums are exact.
        name, c = values[-1]
        values[-1] = (g("Clip", name, g.scalar(-3), g.scalar(3)), c)
    x, c = values[-1]
    return g.model(g.conv(x, c, 3))


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(networks(), st.sampled_from([0.25, 0.5, 0.75]))
def test_random_networks_are_bit_exact(model: Model, ratio: float) -> None:
    try:
        _, _, verdict = pruned(model, ratio)
    except PlanError as error:
        assert "no group" in str(error)
        return
    assert verdict.ok and verdict.max_relative_error == 0.0, verdict.message
