"""Workloads whose kernels TE computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tvm import te

from .schedules import conv
from .schedules.common import Core, i64

# How a kernel is computed, as its schedule takes it: sizes of a register tile, and which loop is outermost.
Choice: TypeAlias = tuple[int, ...]
# Of a kernel by itself: the shape of a random tensor, or its value.
Operand: TypeAlias = tuple[int, ...] | NDArray[Any]

MOST = 12  # choices of a workload


class Computed(ABC):
    """A workload whose kernel is computed by TE."""

    def function(self, choice: Choice, core: Core) -> Any:
        """The kernel of a choice, not scheduled yet."""
        return te.create_prim_func(list(self.tensors(choice)))

    def operands(self, choice: Choice, core: Core) -> list[Operand]:
        """What it takes, the result last."""
        return [_operand(tensor) for tensor in self.tensors(choice)]

    @abstractmethod
    def tensors(self, choice: Choice) -> tuple[Any, Any, Any]:
        """What a choice reads and computes."""


def _operand(tensor: Any) -> Operand:
    shape = tuple(int(size) for size in tensor.shape)
    return shape if tensor.dtype == "float32" else np.zeros(shape, str(tensor.dtype))


def placeholder(shape: tuple[int, ...], name: str, dtype: str = "float32") -> Any:
    """A tensor that a kernel reads."""
    return te.placeholder([i64(size) for size in shape], dtype, name)


def shown(data: tuple[int, int, int, int], window: conv.Window) -> str:
    """Window and image: "3 x 3 / 2 of 8 x 56 x 56" is three by three in steps of two, a batch of eight."""
    step = "" if window.strides == (1, 1) else f" / {window.strides[0]}"
    batch = "" if data[0] == 1 else f"{data[0]} x "
    return f"{window.kernel[0]} x {window.kernel[1]}{step} of {batch}{data[2]} x {data[3]}"
