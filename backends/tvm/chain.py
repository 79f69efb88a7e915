"""Two layers whose weights are mostly zero, and nothing but elementwise operators between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

from .computed import MOST, Operand
from .schedules import sparse
from .schedules.blocks import Blocks, Strip
from .schedules.chain import Between, Hidden
from .schedules.common import Core, Rule
from .sparse import Sparse


@dataclass(frozen=True)
class Chain:
    """Two layers in one kernel, tile by tile of positions: what is between them stays in the cache, with the
    positions in the lanes.

    Attributes:
        first, second: of tokens; the second reads the outputs of the first.
    """

    name: ClassVar[str] = "chain"
    rules: ClassVar[tuple[type[Rule], ...]] = (sparse.Sparse,)

    first: Sparse
    second: Sparse

    @property
    def description(self) -> str:
        source, zeros = self.first.source, f"{self.first.pattern} and {self.second.pattern}"
        sizes = f"{source.positions} x {source.channels} by {self.first.outputs} by {self.second.outputs}"
        return f"sparse products {sizes}, {zeros}"

    @property
    def flops(self) -> float:
        """Of the weights that are not zero."""
        return self.first.flops + self.second.flops

    def choices(self, core: Core, far: bool) -> Sequence[tuple[int, ...]]:
        """Rows of blocks of the first, of the second, and vectors of positions; the best by the static model
        first.
        """
        firsts, seconds = (
            [strip for strip in layer.strips(core) if strip.parts == 1 and not strip.chains]
            for layer in (self.first, self.second)
        )
        found = [(a.rows, b.rows, a.vectors) for a in firsts for b in seconds if a.vectors == b.vectors]
        return sorted(found, key=lambda choice: self.cycles(choice, core, far))[:MOST]

    def cycles(self, choice: tuple[int, ...], core: Core, far: bool) -> float:
        """What a choice takes, by the static model."""
        a, b = _strips(choice)
        first = self.first.cycles(astuple(a), core, far) - self.first.storing(a, core)
        return first + self.second.cycles(astuple(b), core, far) - self.second.packing(b, core)

    def kernel(
        self,
        blocks: tuple[Blocks, Blocks],
        choice: tuple[int, ...],
        core: Core,
        between: Between,
        others: Sequence[tuple[int, ...]] = (),
    ) -> Any:
        """A PrimFunc of the operand, the arrays of the first ``blocks``, what ``between`` reads, of shapes
        ``others``, and the arrays of the second.
        """
        (a, b), (first, second) = _strips(choice), blocks
        hidden = Hidden(self.first.source, self.first.outputs, first, a.rows, between, others)
        return sparse.kernel(hidden, self.second.outputs, second, b, self.second.result, core)

    def function(self, choice: tuple[int, ...], core: Core) -> Any:
        """A kernel for weights of the patterns."""

        def between(buffers: Sequence[Any], channel: Any, value: Any, keep: Any) -> Any:
            return value

        return self.kernel(self._drawn(choice, core), choice, core, between)

    def operands(self, choice: tuple[int, ...], core: Core) -> list[Operand]:
        """What it takes: shapes of random tensors, or arrays; the result last."""
        first, second = self._drawn(choice, core)
        return [self.first.source.shape, *first.arrays, *second.arrays, self.second.result.shape]

    def blocks(self, weights: tuple[Any, Any], choice: tuple[int, ...], core: Core) -> tuple[Blocks, Blocks]:
        """Weights (outputs, columns) of both as the kernel of a choice reads them."""
        (a, b), (first, second) = _strips(choice), weights
        return self.first.blocks(first, astuple(a), core), self.second.blocks(second, astuple(b), core)

    def _drawn(self, choice: tuple[int, ...], core: Core) -> tuple[Blocks, Blocks]:
        return self.blocks((self.first.drawn, self.second.drawn), choice, core)


def _strips(choice: tuple[int, ...]) -> tuple[Strip, Strip]:
    first, second, vectors = choice
    return Strip(first, vectors), Strip(second, vectors)
