"""Transposed convolution as convolutions of stride one, one for each phase of the output.

Output position o reads taps r, r + s, r + 2s, …, where s is the stride and r = (o + padding) mod s its phase:
a convolution of stride one. Phases with equally many taps share one, as so many more channels; what they
compute is then interleaved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx
from tvm.ir import Constant

from .forms import ALONE, FUSIBLE, INJECTIVE, Forms, static_shape
from .packed import convolve, four, pair
from .schedules import conv
from .schedules.common import LANES, ceil_div, i64


@dataclass(frozen=True)
class Axis:
    """One axis of a transposed convolution: sizes before and after, stride, padding before."""

    size: int
    out: int
    stride: int
    padding: int

    @property
    def first(self) -> int:
        """The first step, counted in strides from the start of the padding, that any output falls into."""
        return self.padding // self.stride

    @property
    def steps(self) -> int:
        return (self.out - 1 + self.padding) // self.stride - self.first + 1

    def pads(self, taps: int) -> tuple[int, int]:
        """What a convolution of so many taps needs before and after the input to give every step."""
        before = taps - 1 - self.first
        return before, self.steps - self.size - before + taps - 1

    def classes(self, kernel: int) -> list[tuple[int, range]]:
        """Numbers of taps above zero, and the phases that have so many."""
        most, rest = ceil_div(kernel, self.stride), (kernel - 1) % self.stride + 1
        found = [(most, range(rest)), (most - 1, range(rest, self.stride))]
        return [(taps, phases) for taps, phases in found if taps and phases]


@dataclass(frozen=True)
class Part:
    """Phases that one convolution computes: all pairs of ``down`` and ``across``, row by row."""

    taps: tuple[int, int]
    down: range
    across: range


def conv2d_transpose(forms: Forms, var: Any, call: Any) -> bool:
    """A transposed convolution with constant weights; dilated ones are given the zeros they skip."""
    attrs, (x, w) = call.attrs, call.args
    if attrs.data_layout != "NCHW" or not isinstance(w, Constant):
        return False
    groups, (top, left, _, _) = int(attrs.groups), four(attrs.padding)
    weights = _by_group(_dilated(w.value.numpy(), pair(attrs.dilation)), groups)
    (_, _, h, width), (_, c, oh, ow) = static_shape(x), static_shape(var)
    sy, sx = pair(attrs.strides)
    axes = Axis(h, oh, sy, top), Axis(width, ow, sx, left)
    classes = (axis.classes(k) for axis, k in zip(axes, weights.shape[-2:], strict=True))
    parts = [Part((a, b), down, across) for (a, down), (b, across) in product(*classes)]
    alone = (sy, sx) == (1, 1)
    pattern = FUSIBLE if alone and (oh, ow) != (1, 1) else ALONE
    # A channel keeps its lane in every phase, where channels are not in groups.
    lanes = LANES if groups == 1 and not alone else 1
    convolved = [
        convolve(forms, x, _phases(weights, axes, part, lanes), _window(axes, part.taps), groups, pattern)
        for part in parts
    ]
    each = ceil_div(c, lanes) * lanes // groups
    forms.packed[var] = (
        convolved[0]
        if alone
        else forms.emit(lambda *z: interleave(z, parts, axes, c, each), "interleave", INJECTIVE, *convolved)
    )
    return True


def interleave(
    convolved: Sequence[Any], parts: Sequence[Part], axes: tuple[Axis, Axis], channels: int, each: int
) -> Any:
    """The output (N, C/8, H, W, 8) from phases (N, groups·phases·each/8, steps, steps, 8).

    Args:
        parts: phases in each of ``convolved``; phases in none are zero.
        each: channels of a group in one phase.
    """
    y, x = axes

    def at(b: Any, k: Any, i: Any, j: Any, v: Any) -> Any:
        channel = k * i64(LANES) + v
        if each < channels:
            channel = tirx.min(channel, i64(channels - 1))
        group, place = tirx.floordiv(channel, i64(each)), tirx.floormod(channel, i64(each))
        (down, row), (across, column) = _position(y, i), _position(x, j)
        value: Any = tirx.const(0.0, "float32")
        for data, part in zip(convolved, parts, strict=True):
            phase = (down - part.down.start) * len(part.across) + (across - part.across.start)
            source = (group * (len(part.down) * len(part.across)) + phase) * i64(each) + place
            read = data[b, tirx.floordiv(source, i64(LANES)), row, column, tirx.floormod(source, i64(LANES))]
            inside = [*_within(down, part.down, y.stride), *_within(across, part.across, x.stride)]
            value = tirx.if_then_else(tirx.all(*inside), read, value) if inside else read
        return value

    shape = (convolved[0].shape[0], ceil_div(channels, LANES), y.out, x.out, LANES)
    return te.compute([i64(int(size)) for size in shape], at, name="interleave")


def _position(axis: Axis, at: Any) -> tuple[Any, Any]:
    """Phase and step of an output position."""
    moved, stride = at + i64(axis.padding), i64(axis.stride)
    return tirx.floormod(moved, stride), tirx.floordiv(moved, stride) - i64(axis.first)


def _within(phase: Any, phases: range, stride: int) -> list[Any]:
    tests = [phase >= i64(phases.start)] if phases.start else []
    return tests + ([phase < i64(phases.stop)] if phases.stop < stride else [])


def _window(axes: tuple[Axis, Axis], taps: tuple[int, int]) -> conv.Window:
    (top, bottom), (left, right) = (axis.pads(k) for axis, k in zip(axes, taps, strict=True))
    return conv.Window(taps, (1, 1), (1, 1), (top, left, bottom, right))


def _dilated(weights: NDArray[Any], dilations: tuple[int, int]) -> NDArray[Any]:
    if dilations == (1, 1):
        return weights
    sizes = [(k - 1) * d + 1 for k, d in zip(weights.shape[2:], dilations, strict=True)]
    wide = np.zeros((*weights.shape[:2], *sizes), weights.dtype)
    wide[:, :, :: dilations[0], :: dilations[1]] = weights
    return wide


def _by_group(weights: NDArray[Any], groups: int) -> NDArray[Any]:
    """(I, O/g, KH, KW) as (g, O/g, I/g, KH, KW)."""
    each_out, kernel = weights.shape[1], weights.shape[2:]
    return weights.reshape(groups, -1, each_out, *kernel).swapaxes(1, 2)


def _phases(weights: NDArray[Any], axes: tuple[Axis, Axis], part: Part, lanes: int) -> NDArray[Any]:
    """Weights (g·phases·O/g, I/g, taps, taps) of the convolution that computes a part of the output.

    Args:
        lanes: channels of a phase are made a multiple of this.
    """
    (sy, sx), (each_out, each_in) = (axis.stride for axis in axes), weights.shape[1:3]
    phases = product(part.down, part.across)
    taps = [weights[..., r::sy, c::sx][..., ::-1, ::-1] for r, c in phases]
    missing = ceil_div(each_out, lanes) * lanes - each_out
    padded = [np.pad(t, ((0, 0), (0, missing), (0, 0), (0, 0), (0, 0))) for t in taps]
    joined = np.stack(padded, axis=1)
    return joined.reshape(math.prod(joined.shape[:3]), each_in, *joined.shape[4:])


RULES: dict[str, Callable[[Forms, Any, Any], bool]] = {"relax.nn.conv2d_transpose": conv2d_transpose}
