"""Inputs for calibration where there is no data.

Images are random fields with the spectrum of natural ones, 1/f^a, that saturate in places. For a model with
BatchNormalization, which keeps the mean and variance that each of its channels had over the training data,
those samples are chosen and bred that bring these back (`passes.data.matching`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ...analysis.errors import ModelError, UsageError
from ...analysis.model import Model
from ..execute import Arrays, execute
from .inputs import Input, Signature
from .matching import matched, statistics

Floats = NDArray[np.float32]
Noise = Callable[[np.random.Generator, int], Floats]

# Samples drawn at once from one seed: the same ones whatever the batches.
_BLOCK = 32
# Sizes tried for axes other than that of samples which are known only at run time.
_SIDES = (224, 256, 64, 32)
_LENGTHS = (32, 128, 16, 8)
# Where images are normalised, it is with about this mean and deviation of their range of 0 to 1.
_MEAN, _DEVIATION = 0.45, 0.25


@dataclass(frozen=True)
class Synthetic:
    """Made-up inputs.

    Attributes:
        chunks: the samples, piece by piece, the same each time.
        samples: how many there are.
        source: what they are, in a line.
    """

    chunks: Callable[[], Iterator[Arrays]]
    samples: int
    source: str


def synthesise(model: Model, wanted: Signature, samples: int, batch: int, seed: int = 0) -> Synthetic:
    """Inputs for ``model``, deterministic by ``seed``.

    Floats of rank 4 and 5 (and bytes of rank 4) are images, other floats are normal. Integers that choose
    rows of a table are tokens below its length; other integers and truths are one, as in masks.

    Raises:
        UsageError: sizes that the model leaves open could not be found out; it needs data.
    """
    tokens = _vocabularies(model.proto)
    wanted = _sized(model.proto, wanted, tokens, seed)
    samples = max(samples // wanted.first.unit, 1) * wanted.first.unit
    made = f"{samples} synthetic samples: no data was given"

    def blocks() -> Iterator[Arrays]:
        for block in range(-(-samples // _BLOCK)):
            count = min(_BLOCK, samples - block * _BLOCK)
            yield _draw(wanted, tokens, np.random.default_rng([seed, block]), count)

    known = statistics(model.proto)
    noises = {i.name: _noise_of(i) for i in wanted.inputs if _is_float(i.dtype)}
    # Samples are exchanged one by one, which takes one position of each input for each.
    alike = len({i.unit for i in wanted.inputs}) == 1
    if not known or not noises or not alike:
        return Synthetic(blocks, samples, made)

    def draw(rng: np.random.Generator, count: int) -> Arrays:
        return _draw(wanted, tokens, rng, count)

    arrays = matched(model, known, wanted, draw, noises, samples, seed)
    count = len(arrays[wanted.first.name])
    source = f"{count} synthetic samples, matched to {len(known)} BatchNormalizations: no data was given"
    return Synthetic(lambda: iter([arrays]), count, source)


def _draw(wanted: Signature, tokens: Mapping[str, int], rng: np.random.Generator, samples: int) -> Arrays:
    out: Arrays = {}
    for i in wanted.inputs:
        count = samples * i.unit // wanted.first.unit if i.unit else 1
        rest = tuple(int(size) for size in i.shape[1:])
        shape = (count if i.unit else int(i.shape[0]), *rest) if i.shape else ()
        if i.name in tokens:
            value: NDArray[Any] = rng.integers(0, tokens[i.name], shape)
        elif _is_image(i):
            value = images(rng, shape)
            if i.dtype.kind in "iu":
                value = np.clip(value, 0, 1) * np.iinfo(i.dtype).max
        elif _is_float(i.dtype):
            value = rng.standard_normal(shape, np.float32)
        else:
            value = np.ones(shape)
        out[i.name] = value.astype(i.dtype)
    return out


def _is_float(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "fV"


def _is_image(i: Input) -> bool:
    return bool(i.unit) and (
        len(i.shape) in (4, 5) if _is_float(i.dtype) else i.dtype.name == "uint8" and len(i.shape) == 4
    )


# ---------------------------------------------------------------------- images


def fields(rng: np.random.Generator, shape: tuple[int, ...], exponents: Floats) -> Floats:
    """Gaussian fields (n, c, spatial…) with amplitudes 1/f^a, of variance one.

    Three channels are taken for colours, which go together in natural images; others are independent.

    Args:
        exponents: a, one for each sample, (n,).
    """
    count, channels, *space = shape
    grid = [side + (side + 1) // 2 for side in space]  # a field is periodic, a piece of it is not
    axes = [np.fft.fftfreq(side) for side in grid[:-1]] + [np.fft.rfftfreq(grid[-1])]
    squares = sum(a.reshape([-1 if k == j else 1 for k in range(len(axes))]) ** 2 for j, a in enumerate(axes))
    frequency = np.sqrt(np.asarray(squares))
    frequency.flat[0] = 1 / max(grid)
    twice = np.full(frequency.shape[-1], 2.0)  # a half spectrum stands for both halves
    twice[0] = 1
    if grid[-1] % 2 == 0:
        twice[-1] = 1
    amplitude = frequency ** -exponents.reshape(-1, *[1] * len(space))
    power = (amplitude**2 * twice).sum(axis=tuple(range(1, amplitude.ndim)), keepdims=True)
    amplitude *= np.sqrt(np.prod(grid) / power)
    noise = rng.standard_normal((count, channels, *grid), np.float32)
    if channels == 3:
        shared = rng.standard_normal((count, 1, *grid), np.float32)
        noise = np.sqrt(np.float32(0.8)) * shared + np.sqrt(np.float32(0.2)) * noise
    dims = tuple(range(2, 2 + len(space)))
    spectrum = np.fft.rfftn(noise, axes=dims) * amplitude[:, None]
    whole = np.fft.irfftn(spectrum, grid, axes=dims)
    piece = tuple(slice(side) for side in (count, channels, *space))
    return whole[piece].astype(np.float32)


def images(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Random images (n, c, spatial…): exponents of 0.5 to 2, all kinds of light and contrast, flat where
    they saturate; half from 0 to 1, half normalised, since what the model was trained on is not known."""
    count = shape[0]
    each = (count, *[1] * (len(shape) - 1))
    exponents = rng.choice(np.array([0.5, 1, 1.5, 2], np.float32), count)
    contrast = np.exp(rng.uniform(np.log(0.3), np.log(3), each))
    light = 0.5 + 0.5 * (contrast * fields(rng, shape, exponents) + rng.uniform(-1, 1, each))
    made = np.clip(light, 0, 1)
    normalised = rng.random(each) < 0.5
    out: Floats = np.where(normalised, (made - _MEAN) / _DEVIATION, made).astype(np.float32)
    return out


def _noise_of(i: Input) -> Noise:
    rest = tuple(int(size) for size in i.shape[1:])

    def smooth(rng: np.random.Generator, count: int) -> Floats:
        return fields(rng, (count, *rest), rng.choice(np.array([1, 1.5, 2], np.float32), count))

    def white(rng: np.random.Generator, count: int) -> Floats:
        return rng.standard_normal((count, *rest), np.float32)

    return smooth if _is_image(i) else white


# ---------------------------------------------------------------------- tokens and sizes

_SAME_VALUES = frozenset("Cast Identity Reshape Unsqueeze Squeeze Flatten Slice Transpose Expand".split())


def _vocabularies(proto: onnx.ModelProto) -> dict[str, int]:
    """For inputs that choose rows of a table by Gather, the number of its rows."""
    rows = {t.name: t.dims[0] for t in proto.graph.initializer if t.dims}
    kind = {info.name: {info.name} for info in proto.graph.input}
    found: dict[str, int] = {}
    for node in proto.graph.node:
        if node.op_type in _SAME_VALUES and node.input and node.input[0] in kind:
            kind[node.output[0]] = kind[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in rows and node.input[1] in kind:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            for name in kind[node.input[1]] if axis == 0 else ():
                found[name] = min(found.get(name, rows[node.input[0]]), rows[node.input[0]])
    integers = {i.name for i in proto.graph.input if i.type.tensor_type.elem_type in (6, 7, 12, 13)}
    return {name: size for name, size in found.items() if name in integers}


def _sized(proto: onnx.ModelProto, wanted: Signature, tokens: Mapping[str, int], seed: int) -> Signature:
    """``wanted`` with sizes the model takes for what it leaves open: the first tried with which it runs."""
    leading = {i.shape[0] for i in wanted.inputs if i.unit}
    if not any(isinstance(size, str) for i in wanted.inputs for size in i.shape[1:]) and all(
        isinstance(size, int) or size in leading for i in wanted.inputs for size in i.shape[:1]
    ):
        return wanted
    why = ""
    for side, length in zip(_SIDES, _LENGTHS, strict=True):
        inputs = []
        for i in wanted.inputs:
            size = side if _is_image(i) else length
            shape = tuple(size if isinstance(s, str) and k else s for k, s in enumerate(i.shape))
            inputs.append(replace(i, shape=shape))
        tried = replace(wanted, inputs=tuple(inputs))
        try:
            execute(proto, _draw(tried, tokens, np.random.default_rng(seed), tried.first.unit))
        except ModelError as error:
            why = str(error)
            continue
        return tried
    raise UsageError(f"cannot make up inputs of a size the model takes, give calibration data ({why})")
