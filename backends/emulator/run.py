"""Run a compiled model of 64-bit ARM under QEMU: its outputs, and how often each block of it was run."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...analysis.errors import BackendError
from ..artifact import Compiled
from ..base import Arrays, check_inputs
from ..weights import Place
from .tools import Tools

SECONDS = 600.0  # that a run may take
# What QEMU lacks is run on its processor of all features, with vectors of SVE as long as the real one's.
_ALL = "max"
_VECTORS = {"neoverse-v1": 32, "a64fx": 64}  # bytes; others with SVE have 16
_CODES = {"i": 0, "u": 1, "f": 2}  # of DLPack
_KINDS = {code: kind for kind, code in _CODES.items()} | {6: "b"}


@dataclass(frozen=True)
class Block:
    """Code without a branch.

    Attributes:
        offset: in the library.
        runs: how often it was run.
        instructions: in it; of these ``neon`` and ``sve`` are multiply-adds of vectors, ``scalar`` of single
            numbers, and ``memory`` read or write.
    """

    offset: int
    runs: int
    instructions: int
    neon: int
    sve: int
    scalar: int
    memory: int


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        outputs: by name.
        blocks: of the library.
        elsewhere: instructions outside of it: loading, and TVM's runtime.
    """

    outputs: Arrays
    blocks: tuple[Block, ...]
    elsewhere: int


def emulate(
    tools: Tools,
    library: Path,
    compiled: Compiled,
    inputs: Mapping[str, NDArray[Any]],
    cpu: str | None = None,
) -> Run:
    """Run a saved library once.

    Args:
        library: where ``compiled`` was saved.
        cpu: the processor to emulate by its name in LLVM; what was compiled for by default.

    Raises:
        BackendError: inputs are not those of the model; the library has instructions that the processor
            lacks, fails, or takes longer than `SECONDS`.
    """
    check_inputs(compiled.inputs, inputs)
    name = cpu or str(compiled.target["mcpu"])
    with tempfile.TemporaryDirectory() as folder:
        data, counts, result = (Path(folder) / part for part in ("data", "counts", "result"))
        job = Path(folder) / "job"
        ordered = [np.ascontiguousarray(inputs[spec.name]) for spec in compiled.inputs]
        places = _write(data, ordered, compiled)
        lines = [f"library {library.resolve()}", "function main", f"data {data}", f"result {result}"]
        job.write_text("\n".join([*lines, *map(_told, places)]) + "\n")
        command = tools.command(_emulated(tools, name), f"{tools.counter},out={counts}")
        threads = {"TVM_NUM_THREADS": str(compiled.target["num-cores"])}
        done = _finished([*command, str(job)], threads, name)
        base, size = map(int, done.split())  # in memory: the file has weights after the library
        arrays = _read(result)
        blocks, elsewhere = _counted(counts, base, base + size)
    outputs = {spec.name: array for spec, array in zip(compiled.outputs, arrays, strict=True)}
    return Run(outputs, blocks, elsewhere)


def _write(path: Path, inputs: Sequence[NDArray[Any]], compiled: Compiled) -> list[Place]:
    """Write arguments of ``main`` one after the other; where they are."""
    weights = compiled.program.weights.tensors
    places = []
    with path.open("wb") as file:
        for array in [*inputs, *(weights[i] for i in compiled.program.uses["main"])]:
            places.append(Place(array.dtype.name, array.shape, file.tell()))
            file.write(array.tobytes())
    return places


def _told(place: Place) -> str:
    dtype = np.dtype(place.dtype)
    code = 6 if dtype.kind == "b" else _CODES[dtype.kind]
    sizes = " ".join(map(str, place.shape))
    return f"tensor {code} {8 * dtype.itemsize} {place.offset} {len(place.shape)} {sizes}"


def _emulated(tools: Tools, cpu: str) -> str:
    """A processor as QEMU calls it."""
    known = subprocess.run([str(tools.qemu), "-cpu", "help"], capture_output=True, text=True).stdout.split()
    return cpu if cpu in known else f"{_ALL},sve-default-vector-length={_VECTORS.get(cpu, 16)}"


def _finished(command: Sequence[str], variables: Mapping[str, str], cpu: str) -> str:
    """What a command printed.

    Raises:
        BackendError: it failed; says how.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **variables}
        )
    except subprocess.TimeoutExpired:
        raise BackendError(f"the emulated run took longer than {SECONDS:.0f} s") from None
    if done.returncode in (-signal.SIGILL, 128 + signal.SIGILL):
        raise BackendError(f"illegal instruction: the library has instructions that {cpu} lacks")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise BackendError(f"the emulated run fails: {said[-1][:300]}")
    return done.stdout


def _read(path: Path) -> list[NDArray[Any]]:
    """Tensors as the runner writes them."""
    found = []
    with path.open("rb") as file:
        while line := file.readline():
            code, bits, _, *shape = map(int, line.split())
            dtype = np.dtype(f"{_KINDS[code]}{bits // 8}")
            count = int(np.prod(shape))
            found.append(np.frombuffer(file.read(count * dtype.itemsize), dtype).reshape(shape))
    return found


def _counted(path: Path, start: int, end: int) -> tuple[tuple[Block, ...], int]:
    """Blocks between two addresses, and instructions of all others."""
    blocks, elsewhere = [], 0
    for line in path.read_text().splitlines():
        address, runs, *inside = map(int, line.split())
        if start <= address < end:
            blocks.append(Block(address - start, runs, *inside))
        else:
            elsewhere += runs * inside[0]
    return tuple(blocks), elsewhere
