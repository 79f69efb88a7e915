"""Instructions of a run by kernel: blocks belong to functions of the library, and functions to kernels."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ...analysis.errors import BackendError
from ..tvm.described import plain
from .run import Block

_ENTRY, _BODY = "__tvm_ffi_", "_compute_"  # how TVM names a kernel's functions
_CALLER, _BETWEEN = "__vmtir__", "between kernels"  # of what calls them
_REST = "everything else"
_FLOATS = 4  # of a vector of NEON


@dataclass(frozen=True)
class Count:
    """Instructions of all runs of a kernel.

    Attributes:
        what: it computes.
        calls: of it in a run of the model.
        macs: multiply-adds that it is asked for; None where it has none.
        instructions: that were executed; of these ``vector`` multiply vectors and add, ``scalar`` single
            numbers, and ``memory`` read or write.
        blocks: the code it was.
    """

    what: str
    calls: int
    macs: float | None
    instructions: int
    vector: int
    scalar: int
    memory: int
    blocks: tuple[Block, ...]

    @property
    def work(self) -> float | None:
        """Multiply-adds of vectors over those that four at a time need, at least."""
        return None if self.macs is None else self.vector / (self.macs / _FLOATS)


@dataclass(frozen=True)
class _Function:
    start: int
    end: int
    name: str


def counted(
    library: Path, blocks: Sequence[Block], kernels: Mapping[str, tuple[str, float]]
) -> tuple[Count, ...]:
    """What each kernel of a library executed, the most first; the same kernels together.

    Args:
        kernels: what functions compute, and their floating-point operations.

    Raises:
        BackendError: the library has no names of functions.
    """
    functions = _functions(library)
    starts = [function.start for function in functions]
    inside: defaultdict[str, list[Block]] = defaultdict(list)
    calls: defaultdict[str, int] = defaultdict(int)
    macs: defaultdict[str, float] = defaultdict(float)
    for block in blocks:
        function = functions[max(0, bisect_right(starts, block.offset) - 1)]
        what, flops = _REST, 0.0
        if function.start <= block.offset < function.end:
            name = function.name.removeprefix(_ENTRY).removesuffix(_BODY)
            unknown = _BETWEEN if name.startswith(_CALLER) else plain(name)
            what, flops = kernels.get(name, (unknown, 0.0))
            if block.offset == function.start and function.name.endswith(_BODY):
                calls[what] += block.runs
                macs[what] += block.runs * flops / 2
        inside[what].append(block)
    found = [_count(what, calls[what], macs[what] or None, each) for what, each in inside.items()]
    return tuple(sorted(found, key=lambda count: -count.instructions))


def _count(what: str, calls: int, macs: float | None, blocks: Sequence[Block]) -> Count:
    def total(kind: str) -> int:
        return sum(block.runs * int(getattr(block, kind)) for block in blocks)

    vector = total("neon") + total("sve")
    return Count(
        what, calls, macs, total("instructions"), vector, total("scalar"), total("memory"), tuple(blocks)
    )


def _functions(library: Path) -> list[_Function]:
    with library.open("rb") as file:
        symbols = ELFFile(file).get_section_by_name(".symtab")
        if not isinstance(symbols, SymbolTableSection):
            raise BackendError(f"'{library}' has no names of functions: it is stripped")
        found = [
            _Function(symbol["st_value"], symbol["st_value"] + symbol["st_size"], symbol.name)
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]
        ]
    return sorted(found, key=lambda function: function.start)
