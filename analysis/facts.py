"""What a rule can say about a node beyond the types of its outputs. Passes read these, rules state them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from .axes import Axis
from .graph import Node

Place: TypeAlias = tuple[int, int]  # (input or output number, axis)


@dataclass(frozen=True, eq=False, slots=True)
class Contraction:
    """The node sums products over these axes of its inputs; a removed position contributes nothing.

    Exact: the pruned model equals the original with the consumer's weights for the position zero.

    ``in_place``: the operator takes another size from these axes too (a hidden size, a default scale), so
    that a check must write zeros there and cannot leave positions out.
    """

    node: Node
    places: tuple[Place, ...]
    in_place: bool = False


# How a linear function reads its data: a window that slides (Conv), or that spreads (ConvTranspose); rows
# times a matrix (MatMul), a matrix times columns, Gemm; a factor or a term for each channel of its result.
Form: TypeAlias = Literal["window", "spread", "rows", "columns", "gemm", "scale", "shift"]


@dataclass(frozen=True, eq=False, slots=True)
class Linear:
    """The node is linear in input ``data``, with learned coefficients: y = features(x) W + b.

    ``weight`` and ``bias`` are numbers of inputs; a ``bias`` the node could take but has not is one past its
    inputs, and None is for an operator without one.
    """

    node: Node
    form: Form
    data: int
    weight: int
    bias: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Operand:
    """Input ``input`` holds factors of sums: those of (groups, outputs, positions of a kernel, inputs).

    That is what it is when it is reshaped to ``sizes`` and its axes are taken in ``order``. Each output is a
    sum over the inputs of its group, at all positions.

    ``data`` is the number of the input that is multiplied by it; None where that is no input. ``kernel`` is
    the shape of a kernel, where the node has one. ``zero`` is the number of the input that holds the zero
    point, None where zeros are 0.
    """

    node: Node
    input: int
    sizes: tuple[int, int, int, int]
    order: tuple[int, int, int, int]
    data: int | None
    kernel: tuple[int, ...] = ()
    zero: int | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Normalisation:
    """The node reduces or normalises over one axis: legal to prune, but the function changes.

    ``inputs`` are the places of that axis, in the data first and then in its parameters; ``outputs`` those it
    has in the results.
    """

    node: Node
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...]


@dataclass(frozen=True, eq=False, slots=True)
class SameCount:
    """Equal numbers of positions must stay on each axis, not the same ones (blocks of a grouped op)."""

    axes: tuple[Axis, ...]
    because: str


@dataclass(frozen=True, eq=False, slots=True)
class Work:
    """The node does ``scale`` times the product of the sizes of ``axes`` multiply-accumulates."""

    node: Node
    scale: int
    axes: tuple[Axis, ...]

    @property
    def macs(self) -> int:
        """How many these are."""
        return self.scale * prod(axis.size for axis in self.axes)


@dataclass(frozen=True, eq=False, slots=True)
class Alone:
    """These are whole axes of an operator that computes along them.

    A factor that stands alone somewhere (heads, width) is a dimension of the network; one that never
    does (the 2 of a channel shuffle) is a detail of how an axis is laid out, and does not shrink.
    """

    axes: Sequence[Axis]


@dataclass(frozen=True, eq=False, slots=True)
class SizesBaked:
    """Entry k of a shape-like input (or of attribute ``attribute``) is the size of ``axes[k]``.

    Entries of 0, 1 and -1 keep their meaning and are left as they are.
    """

    node: Node
    input: int
    axes: tuple[Axis, ...]
    before: tuple[Axis, ...] = ()  # what an entry of 0 copies, where the operator has that meaning
    attribute: str | None = None


@dataclass(frozen=True, eq=False, slots=True)
class CountBaked:
    """The integer attribute is the size of ``axis``."""

    node: Node
    attribute: str
    axis: Axis


@dataclass(frozen=True, eq=False, slots=True)
class DefaultBaked:
    """Without the attribute the operator computes ``value`` from the size of ``axis``: where that shrinks,
    ``value`` must be written down."""

    node: Node
    attribute: str
    value: int | float
    axis: Axis


@dataclass(frozen=True, eq=False, slots=True)
class IndicesBaked:
    """The index input, of ``axes``, picks positions of ``source``; ``target`` are its elements in a row."""

    node: Node
    input: int
    source: Axis
    target: Axis
    index: tuple[int, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, eq=False, slots=True)
class BoundsBaked:
    """A Slice: entry k of its bounds takes ``ranges[k]`` = (axis, positions) of ``source[axis]``."""

    node: Node
    source: tuple[Axis, ...]
    target: tuple[Axis, ...]
    ranges: tuple[tuple[int, range], ...]


@dataclass(frozen=True, eq=False, slots=True)
class SizesRead:
    """The output of the node holds the sizes of ``axes`` (Shape), or their product (Size).

    What the graph goes on to compute from it was folded with the old sizes, and must stay as it was.
    """

    node: Node
    axes: tuple[Axis, ...]


Baked: TypeAlias = SizesBaked | CountBaked | DefaultBaked | IndicesBaked | BoundsBaked | SizesRead
