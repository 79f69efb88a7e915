"""Cycles of the code that was run most, as LLVM's model of a processor estimates them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .run import Block

_VERSIONS = ("19", "18", "17", "16")  # of LLVM, the best models first
_ITERATIONS = 100
_SHARE = 0.9  # of the instructions of a kernel, in the blocks that are looked at
_LINE = re.compile(r"\s*([0-9a-f]+):\s+([^/<]*)")
_BRANCH = re.compile(r"^((?:b|bl|b\.\w+|cbn?z|tbn?z)\s.*?)0x[0-9a-f]+\s*$")


@dataclass(frozen=True)
class Model:
    """LLVM's tools that know processors.

    Attributes:
        mca: estimates cycles.
        objdump: shows instructions.
    """

    mca: str
    objdump: str

    @staticmethod
    def find() -> Model | None:
        """Those that are installed; None where there are none."""
        for version in _VERSIONS:
            mca, objdump = (shutil.which(f"{name}-{version}") for name in ("llvm-mca", "llvm-objdump"))
            if mca and objdump:
                return Model(mca, objdump)
        return None

    def cycles(self, library: Path, kernels: Sequence[Sequence[Block]], cpu: str) -> list[float | None]:
        """Of kernels of a library, each as its blocks, with all data in the first cache.

        A block is taken to be repeated, as the body of a loop is. Cycles of blocks that are run seldom are
        taken to be in the same proportion to their instructions as those of the others.

        Args:
            cpu: LLVM's name of the processor.

        Returns:
            None where the model does not know an instruction.
        """
        hot = [list(_hot(blocks)) for blocks in kernels]
        code, regions = self._instructions(library), []
        for block in {block.offset: block for blocks in hot for block in blocks}.values():
            lines = [code.get(block.offset + 4 * n, "") for n in range(block.instructions)]
            regions += [f"# LLVM-MCA-BEGIN {block.offset}", *lines, "# LLVM-MCA-END"]
        known = self._estimated("\n".join(regions) + "\n", cpu)
        return [_sum(each, blocks, known) for each, blocks in zip(hot, kernels, strict=True)]

    def _instructions(self, library: Path) -> dict[int, str]:
        """By where they are in the library; branches lead nowhere."""
        command = [self.objdump, "-d", "--no-show-raw-insn", "--mattr=+all", str(library)]
        found = {}
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            if (match := _LINE.match(line)) is not None:
                found[int(match[1], 16)] = _BRANCH.sub(r"\g<1>0x0", match[2].strip())
        return found

    def _estimated(self, text: str, cpu: str) -> dict[int, float]:
        """Cycles of the regions of a text by their names."""
        command = [self.mca, "-march=aarch64", f"-mcpu={cpu}", "-mattr=+all", f"-iterations={_ITERATIONS}"]
        skip = [] if self.mca.endswith("-16") else ["-skip-unsupported-instructions=any"]
        done = subprocess.run([*command, *skip, "-json", "-"], input=text, capture_output=True, text=True)
        if done.returncode:
            return {}
        regions = json.loads(done.stdout)["CodeRegions"]
        return {int(each["Name"]): each["SummaryView"]["TotalCycles"] / _ITERATIONS for each in regions}


def _hot(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks that most instructions are of."""
    rest = (1 - _SHARE) * sum(block.runs * block.instructions for block in blocks)
    missing = sum(block.runs * block.instructions for block in blocks)
    for block in sorted(blocks, key=lambda block: -block.runs * block.instructions):
        if missing <= rest:
            return
        yield block
        missing -= block.runs * block.instructions


def _sum(hot: Sequence[Block], blocks: Sequence[Block], known: Mapping[int, float]) -> float | None:
    if not hot or any(block.offset not in known for block in hot):
        return None
    seen = sum(block.runs * block.instructions for block in hot)
    total = sum(block.runs * block.instructions for block in blocks)
    return sum(block.runs * known[block.offset] for block in hot) * total / seen
