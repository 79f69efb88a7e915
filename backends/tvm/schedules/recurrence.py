"""One direction of an LSTM, GRU or RNN as one kernel: the loop over steps is inside, so the state stays near.

What the gates get from the input is computed before, as one product over all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as script

from ..vecmath import exp, f32, sigmoid, tanh
from .common import LANES, Core, i64
from .gemm import pack_weights, tiles

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}

# With the default parameters of ONNX, where an activation has any.
ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "Elu": lambda x: tirx.Select(x < f32(0), exp(x) - f32(1), x),
    "HardSigmoid": lambda x: tirx.max(f32(0), tirx.min(f32(1), f32(0.2) * x + f32(0.5))),
    "LeakyRelu": lambda x: tirx.Select(x < f32(0), f32(0.01) * x, x),
    "Relu": lambda x: tirx.max(x, f32(0)),
    "Sigmoid": sigmoid,
    "Softsign": lambda x: x / (f32(1) + tirx.max(x, f32(0) - x)),
    "Tanh": tanh,
}


@dataclass(frozen=True)
class Cell:
    """What one direction computes.

    Attributes:
        kind: LSTM, GRU or RNN.
        activations: names from `ACTIVATIONS`, in ONNX's order.
        reverse: whether the last step comes first.
        linear: of a GRU, whether the reset gate applies after the product.
    """

    kind: str
    steps: int
    batch: int
    hidden: int
    activations: tuple[str, ...]
    reverse: bool
    linear: bool


def panels(cell: Cell, weights: NDArray[Any]) -> list[NDArray[Any]]:
    """Weights (gates·hidden, hidden) of the state, packed: one product, or two for a GRU."""
    parts = [weights[: 2 * cell.hidden], weights[2 * cell.hidden :]] if cell.kind == "GRU" else [weights]
    return [pack_weights(part.T, tiles(cell.batch, len(part), Core())[0][1]) for part in parts]


def kernel(cell: Cell, packed: Sequence[NDArray[Any]]) -> Any:
    """A PrimFunc of the gates' input (steps, batch, gates·hidden), h and c (batch, hidden), a bias (hidden)
    of the state's part in a GRU's new state, peepholes (3, hidden), and ``packed``; it gives the states
    (steps, batch, hidden), the last one and the last c (batch, hidden).
    """
    size = (i64(cell.batch), i64(cell.hidden))
    with IRBuilder() as builder, script.prim_func(s_tir=True):
        script.func_attr({"tirx.is_scheduled": True, "op_pattern": 8, "tirx.noalias": True})

        def argument(name: str, *shape: int) -> Any:
            return script.arg(name, script.buffer([i64(d) for d in shape], "float32"))

        x = argument("x", cell.steps, cell.batch, GATES[cell.kind] * cell.hidden)
        first_h, first_c = (argument(name, cell.batch, cell.hidden) for name in ("first_h", "first_c"))
        bias, peepholes = argument("bias", cell.hidden), argument("peepholes", 3, cell.hidden)
        weights = [argument(f"weights{n}", *value.shape) for n, value in enumerate(packed)]
        states = argument("states", cell.steps, cell.batch, cell.hidden)
        h, c = (argument(name, cell.batch, cell.hidden) for name in ("h", "c"))
        sums = [
            script.sblock_alloc_buffer([size[0], i64(value.shape[0] * value.shape[2])], "float32")
            for value in packed
        ]
        reset = script.sblock_alloc_buffer(size, "float32")
        _copy(size, first_h, h)
        _copy(size, first_c, c)
        with script.serial(i64(0), i64(cell.steps)) as step:
            at = i64(cell.steps - 1) - step if cell.reverse else step
            parts = _Step(cell, x, at, h, c, bias, peepholes, weights, sums, reset, states)
            getattr(parts, cell.kind.lower())()
    return builder.get()


def _each(size: tuple[Any, Any], body: Callable[[Any, Any], Any]) -> None:
    """A loop over the batch around one over channels, which LLVM vectorises."""
    with script.serial(i64(0), size[0]) as b, script.serial(i64(0), size[1]) as j:
        body(b, j)


def _copy(size: tuple[Any, Any], source: Any, target: Any) -> None:
    _each(size, lambda b, j: script.buffer_store(target, source[b, j], [b, j]))


@dataclass(frozen=True)
class _Step:
    """Buffers of one step."""

    cell: Cell
    x: Any
    at: Any
    h: Any
    c: Any
    bias: Any
    peepholes: Any
    weights: Sequence[Any]
    sums: Sequence[Any]
    reset: Any
    states: Any

    def lstm(self) -> None:
        """Gates i, o, f, c."""
        f, g, last = (ACTIVATIONS[name] for name in self.cell.activations)
        self._product(self.h, 0)

        def body(b: Any, j: Any) -> None:
            i, o, forget, new = (self._gate(n, b, j) for n in range(4))
            old = self.c[b, j]
            i, forget = f(i + old * self.peepholes[0, j]), f(forget + old * self.peepholes[2, j])
            script.buffer_store(self.c, forget * old + i * g(new), [b, j])
            now = self.c[b, j]
            self._keep(f(o + now * self.peepholes[1, j]) * last(now), b, j)

        self._each(body)

    def gru(self) -> None:
        """Gates z, r, h."""
        f, g = (ACTIVATIONS[name] for name in self.cell.activations)
        hidden = self.cell.hidden
        self._product(self.h, 0)
        if self.cell.linear:
            self._product(self.h, 1)
        else:
            self._each(
                lambda b, j: script.buffer_store(self.reset, f(self._gate(1, b, j)) * self.h[b, j], [b, j])
            )
            self._product(self.reset, 1)

        def body(b: Any, j: Any) -> None:
            state = self.sums[1][b, j] + self.bias[j]
            if self.cell.linear:
                state = f(self._gate(1, b, j)) * state
            new = g(self.x[self.at, b, i64(2 * hidden) + j] + state)
            self._keep(new + f(self._gate(0, b, j)) * (self.h[b, j] - new), b, j)

        self._each(body)

    def rnn(self) -> None:
        f = ACTIVATIONS[self.cell.activations[0]]
        self._product(self.h, 0)
        self._each(lambda b, j: self._keep(f(self._gate(0, b, j)), b, j))

    def _each(self, body: Callable[[Any, Any], Any]) -> None:
        _each((i64(self.cell.batch), i64(self.cell.hidden)), body)

    def _gate(self, number: int, b: Any, j: Any) -> Any:
        place = i64(number * self.cell.hidden) + j
        return self.x[self.at, b, place] + self.sums[0][b, place]

    def _keep(self, value: Any, b: Any, j: Any) -> None:
        script.buffer_store(self.h, value, [b, j])
        script.buffer_store(self.states, self.h[b, j], [self.at, b, j])

    def _product(self, state: Any, number: int) -> None:
        """sums = state · weights, a tile of rows and columns in registers at a time."""
        weights, sums = self.weights[number], self.sums[number]
        count, _, width = (int(d) for d in weights.shape)
        most, _ = tiles(self.cell.batch, count * width, Core())[0]
        rows = max(r for r in range(1, most + 1) if self.cell.batch % r == 0)
        tile = script.sblock_alloc_buffer([i64(rows), i64(width)], "float32", scope="local")

        def lanes(body: Callable[[Any, Any], Any]) -> None:
            with (
                script.unroll(i64(0), i64(rows)) as r,
                script.unroll(i64(0), i64(width // LANES)) as u,
                script.vectorized(i64(0), i64(LANES)) as v,
            ):
                body(r, u * i64(LANES) + v)

        blocks = self.cell.batch // rows
        with script.serial(i64(0), i64(count)) as p, script.serial(i64(0), i64(blocks)) as i:
            lanes(lambda r, v: script.buffer_store(tile, f32(0), [r, v]))
            with script.serial(i64(0), i64(self.cell.hidden)) as k:
                lanes(
                    lambda r, v: script.buffer_store(
                        tile, tile[r, v] + state[i * i64(rows) + r, k] * weights[p, k, v], [r, v]
                    )
                )
            lanes(lambda r, v: script.buffer_store(sums, tile[r, v], [i * i64(rows) + r, p * i64(width) + v]))


def bias_of(cell: Cell, bias: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """ONNX's biases (2·gates·hidden) as what goes to the gates' input and what to a GRU's new state."""
    inputs, state = np.split(bias, 2)
    if cell.kind != "GRU":
        return inputs + state, np.zeros(cell.hidden, np.float32)
    both = inputs + state
    both[2 * cell.hidden :] = inputs[2 * cell.hidden :]
    if cell.linear:
        return both, state[2 * cell.hidden :]
    both[2 * cell.hidden :] += state[2 * cell.hidden :]
    return both, np.zeros(cell.hidden, np.float32)
