"""GPUs of NVIDIA by the name of their architecture: what kernels are made for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """An architecture, and the largest chip of it.

    Attributes:
        multiprocessors: of the chip.
        halves: products of float16 that all tensor cores of a multiprocessor do in a cycle, dense.
    """

    multiprocessors: int
    halves: int


# From NVIDIA's white papers on these architectures.
GPUS = {
    "sm_80": Gpu(108, 1024),
    "sm_86": Gpu(84, 512),
    "sm_89": Gpu(128, 512),
    "sm_90": Gpu(132, 2048),
}
