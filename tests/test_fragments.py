"""Weights packed for tensor cores, decoded as the PTX ISA says that tensor cores read them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

if find_spec("tvm") is None:
    pytest.skip("Apache TVM is not installed", allow_module_level=True)

from onnx_prune.backends.tvm.cuda.fragments import (
    FP16,
    TF32,
    Precision,
    block_density,
    blocks,
    dense,
    is_two_of_four,
    two_of_four,
)

Array = NDArray[Any]
LANE = np.arange(32)
GROUP, THREAD = LANE // 4, LANE % 4


def halves(words: Array) -> Array:
    """The two float16 of each register, the lower first."""
    return np.stack([words & 0xFFFF, words >> 16], -1).astype(np.uint16).view(np.float16).astype(np.float64)


def read_halves(registers: Array) -> Array:
    """Operand A of m16n8k16: registers (..., 32, 4) as matrices (..., 16, 16)."""
    found = np.full((*registers.shape[:-2], 16, 16), np.nan)
    values = halves(registers)
    for r in range(4):
        for half in range(2):
            row, column = GROUP + 8 * (r % 2), 2 * THREAD + half + 8 * (r // 2)
            found[..., row, column] = values[..., LANE, r, half]
    return found


def read_tf32(registers: Array) -> Array:
    """Operand A of m16n8k8: registers (..., 32, 4) as matrices (..., 16, 8)."""
    found = np.full((*registers.shape[:-2], 16, 8), np.nan)
    values = registers.view(np.float32)
    for r in range(4):
        found[..., GROUP + 8 * (r % 2), THREAD + 4 * (r // 2)] = values[..., LANE, r]
    return found


def read_sparse(registers: Array, words: Array) -> Array:
    """Operand A of mma.sp.m16n8k32 with selector 0, as matrices (..., 16, 32).

    Threads 4 g and 4 g + 1 bring metadata, here from words (..., 16) as the kernel reads them.
    """
    metadata = words[..., GROUP * 2 + LANE % 2]
    kept = read_halves(registers)
    found = np.zeros((*registers.shape[:-2], 16, 32))
    for row in range(16):
        for four in range(8):
            bits = metadata[..., row % 8 * 4 + four // 4] >> np.uint32(row // 8 * 16 + four % 4 * 4)
            first, second = bits & 3, bits >> 2 & 3
            assert (first < second).all()
            for place, n in ((first, 0), (second, 1)):
                line = found[..., row, four * 4 : four * 4 + 4]
                np.put_along_axis(line, place[..., None].astype(int), kept[..., row, four * 2 + n, None], -1)
    return found


def read_dense(registers: Array, precision: Precision) -> Array:
    """A matrix of fragments (rows, steps, 2, 32, 4)."""
    read = read_halves if precision is FP16 else read_tf32
    tiles = read(registers)  # (rows, steps, 2, 16, columns)
    return tiles.transpose(0, 3, 1, 2, 4).reshape(len(tiles) * 16, -1)


def random_two_of_four(rng: np.random.Generator, outputs: int, columns: int, empty: float = 0.1) -> Array:
    matrix = rng.integers(-4, 5, (outputs, -(-columns // 4), 4)).astype(np.float32)
    matrix *= np.argsort(rng.random(matrix.shape), -1) < 2
    matrix *= rng.random((outputs, 1, 1)) >= empty
    return matrix.reshape(outputs, -1)[:, :columns]


@pytest.mark.parametrize("seed", range(200))
def test_two_of_four_equals_the_dense_product(seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, columns, positions = (int(rng.integers(1, most)) for most in (80, 200, 40))
    matrix = random_two_of_four(rng, outputs, columns)
    packed = two_of_four(matrix)
    values, metadata = packed.arrays
    assert values.shape[2:] == (1, 32, 4) and metadata.shape == (*values.shape[:2], 16)
    read = read_sparse(values[:, :, 0], metadata)
    read = read.transpose(0, 2, 1, 3).reshape(len(read) * 16, -1)
    x = rng.integers(-4, 5, (columns, positions))
    np.testing.assert_array_equal(read[:outputs, :columns] @ x, matrix.astype(np.float64) @ x)
    assert not read[outputs:].any() and not read[:, columns:].any()


@pytest.mark.parametrize("precision", [FP16, TF32], ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (100, 203)])
def test_dense_fragments_hold_the_matrix(precision: Precision, shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    packed = dense(matrix, precision)
    read = read_dense(packed.arrays[0], precision)
    assert read.shape == (-(-shape[0] // 16) * 16, packed.steps * precision.step)
    np.testing.assert_array_equal(read[: shape[0], : shape[1]], precision.rounded(matrix))


@pytest.mark.parametrize("precision", [FP16, TF32], ids=str)
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_blocks_hold_what_is_not_zero(precision: Precision, size: int, density: float) -> None:
    rng = np.random.default_rng(1)
    outputs, columns = 100, 203
    kept = rng.random((-(-outputs // size), -(-columns // size))) < density
    kept[1] = False
    matrix = np.kron(kept, np.ones((size, size)))[:outputs, :columns] * rng.integers(1, 5, (outputs, columns))
    values, places, starts = blocks(matrix, precision, size).arrays
    assert values.shape[:2] == (len(places), size // 16) and starts[-1] == len(places) - 1
    assert starts[1] == starts[2]  # nothing is multiplied for the empty row
    found = np.zeros((len(kept) * size, -(-columns // 32) * 32))
    part = precision.step // places.shape[1]
    for row in range(len(kept)):
        for step in range(starts[row], starts[row + 1]):
            read = read_dense(values[step][:, None], precision)
            for n, place in enumerate(places[step]):
                lines = slice(row * size, row * size + size)
                found[lines, place * part : place * part + part] += read[:, n * part : n * part + part]
    np.testing.assert_array_equal(found[:outputs, :columns], matrix)
    assert block_density(matrix, size) == pytest.approx(kept.mean())


def test_tf32_is_rounded_to_the_nearest() -> None:
    one = np.float32(1)
    given = np.array([one + 2.0**-11, one + 2.0**-12, -one - 2.0**-11, 3e38, 0, 2.0**-140], np.float32)
    got = TF32.rounded(given)
    assert got[:3].tolist() == [1 + 2.0**-10, 1, -1 - 2.0**-10]
    np.testing.assert_allclose(got, given, rtol=2.0**-11, atol=2.0**-136)
    assert (got.view(np.uint32) & 0x1FFF == 0).all()


def test_what_is_two_of_four() -> None:
    assert is_two_of_four(np.array([[1, 0, 2, 0, 0, 0, 0, 3]]))
    assert is_two_of_four(np.array([[1, 0, 2, 0, 5, 6]])) and is_two_of_four(np.zeros((3, 7)))
    assert not is_two_of_four(np.array([[1, 0, 2, 3, 0, 0, 0, 3]]))
    assert not is_two_of_four(np.array([[0, 0, 0, 0, 1, 1, 1]]))
