"""Choose and breed samples until BatchNormalizations see the means and variances they were trained on.

The mean and the mean square of a channel over a set of samples are averages over the samples, so a set can be
put together from many candidates that brings all of them near to what is wanted: herding (Welling, ICML 2009)
with exchanges. New candidates are bred from the chosen ones. It asks for what data-free distillation asks for
(Yin et al., *Dreaming to Distill*, CVPR 2020), needs no gradients, and so works for any operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

from ...analysis.cost import measure
from ...analysis.errors import ModelError
from ...analysis.model import Model
from ..execute import Arrays, first_line, open_session
from .inputs import Signature

Floats = NDArray[np.float32]
Draw = Callable[[np.random.Generator, int], Arrays]

# What the search may cost: candidates in all and at once, multiply-accumulates, bytes held.
_CANDIDATES, _AT_ONCE, _WORK, _BYTES = 12 << 10, 1024, 5e11, 1 << 28
_SCALES = tuple(4.0**k for k in range(-3, 5))
_RUN_ELEMENTS = 1 << 21
_EXCHANGES = 2
_TRIED = 48  # candidates by which the scale is chosen
_FAR = 1e3  # as far as a candidate is told to be off


@dataclass(frozen=True)
class Statistic:
    """Means and variances (channels,) that a BatchNormalization keeps of the tensor it reads."""

    tensor: str
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


def statistics(proto: onnx.ModelProto) -> list[Statistic]:
    """What the BatchNormalizations of a model know; one that was never trained (0 and 1) knows nothing."""
    values = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            values[node.output[0]] = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    found: dict[str, Statistic] = {}
    for node in proto.graph.node:
        if node.op_type != "BatchNormalization" or not all(name in values for name in node.input[3:5]):
            continue
        mean, variance = (numpy_helper.to_array(values[name]).astype(np.float64) for name in node.input[3:5])
        if np.any(mean != 0) or np.any(variance != 1):
            # A channel that hardly moves would weigh more than all the others.
            floor = 1e-3 * variance.mean() + 1e-5
            found.setdefault(node.input[0], Statistic(node.input[0], mean, np.maximum(variance, floor)))
    return list(found.values())


class Probe:
    """Runs candidates and says how far each takes the wanted statistics: rows that should average to zero."""

    def __init__(self, proto: onnx.ModelProto, known: Sequence[Statistic], wanted: Signature) -> None:
        self._known, self._wanted = known, wanted
        part = onnx.ModelProto()
        part.CopyFrom(proto)
        inputs = {info.name for info in proto.graph.input}
        self._names = [one.tensor for one in known if one.tensor not in inputs]
        del part.graph.output[:]
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._names)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 2
        try:
            self._session = open_session(part, options) if self._names else None
        except Exception as error:  # the runtime raises its own classes, one for each failure
            raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None
        elements = sum(int(np.prod([int(s) for s in i.shape[1:]])) for i in wanted.inputs if i.unit)
        self._run = wanted.batch or int(np.clip(_RUN_ELEMENTS // max(1, elements), 1, 256))

    def __call__(self, candidates: Arrays) -> Floats:
        """Deviations (n, statistics) of n candidates."""
        count = len(candidates[self._wanted.first.name])
        rows = []
        for start in range(0, count, self._run):
            feeds = {name: value[start : start + self._run] for name, value in candidates.items()}
            try:
                made = self._session.run(self._names, feeds) if self._session is not None else []
            except Exception as error:
                raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None
            values = {**feeds, **dict(zip(self._names, made, strict=True))}
            ran = min(self._run, count - start)
            parts = [part for s in self._known for part in self._deviations(s, values[s.tensor], ran)]
            row = np.concatenate(parts, axis=1)
            rows.append(np.nan_to_num(row, nan=_FAR, posinf=_FAR, neginf=-_FAR).clip(-_FAR, _FAR))
        return np.concatenate(rows)

    def _deviations(self, one: Statistic, value: NDArray[Any], count: int) -> tuple[Floats, Floats]:
        """Of ``count`` samples, each of which may have several rows of the tensor (frames, windows)."""
        rows = value.reshape(len(value), value.shape[1], -1).astype(np.float32, copy=False)
        rows = rows - one.mean.astype(np.float32)[:, None]
        mean = rows.mean(axis=2)
        square = np.einsum("ncp,ncp->nc", rows, rows) / np.float32(rows.shape[2])
        if len(mean) % count:  # rows that belong to no sample in particular
            mean, square = (np.repeat(m.mean(0, keepdims=True), count, 0) for m in (mean, square))
        if len(mean) > count:
            mean, square = (m.reshape(count, -1, m.shape[1]).mean(1) for m in (mean, square))
        weight = np.float32(1 / np.sqrt(len(one.mean) * len(self._known)))
        deviation = mean / np.sqrt(one.variance).astype(np.float32) * weight
        return deviation, (square / one.variance.astype(np.float32) - 1) * weight


def herd(rows: Floats, count: int) -> tuple[NDArray[np.int64], float]:
    """``count`` of the rows, whose average is near to zero, and the square of its length."""
    gram = (rows @ rows.T).astype(np.float64)
    square = np.diag(gram).copy()
    towards, used, chosen = np.zeros(len(rows)), np.zeros(len(rows), bool), np.zeros(count, np.int64)
    for turn in range(count * (1 + _EXCHANGES)):
        k = turn % count
        if turn >= count:
            used[chosen[k]] = False
            towards -= gram[chosen[k]]
        chosen[k] = np.where(used, np.inf, 2 * towards + square).argmin()
        used[chosen[k]] = True
        towards += gram[chosen[k]]
    return chosen, float(towards[chosen].sum() / count**2)


def matched(
    model: Model,
    known: Sequence[Statistic],
    wanted: Signature,
    draw: Draw,
    noises: Mapping[str, Callable[[np.random.Generator, int], Floats]],
    samples: int,
    seed: int,
) -> Arrays:
    """Samples over which the known statistics come out.

    Args:
        draw: makes candidates to begin with.
        noises: of each float input, what is added to and mixed into it to breed.

    Returns:
        Arrays by input name, ``samples`` of them or as many as may be held in memory.
    """
    probe = Probe(model.proto, known, wanted)
    rng = np.random.default_rng([seed, samples])
    unit = wanted.first.unit
    size = sum(value.nbytes for value in draw(np.random.default_rng(seed), unit).values()) // unit
    samples = min(samples, max(1, _BYTES // size // unit) * unit)
    macs = max(1, measure(model).macs)
    total = int(np.clip(_WORK / macs, 2 * samples, _CANDIDATES))
    each = int(np.clip(min(total // 2, _AT_ONCE, _BYTES // size) // unit * unit, samples, None))

    scale = min(_SCALES, key=lambda s: _loss_at(probe, draw, noises, s, seed, unit))
    pool = _scaled(draw(rng, each), noises, scale)
    rows = probe(pool)
    chosen, _ = herd(rows, samples)
    for _ in range(max(total // each - 1, 1)):
        pool, rows = _pick(pool, chosen), rows[chosen]
        young = breed(pool, noises, each, rng)
        pool = {name: np.concatenate([pool[name], young[name]]) for name in pool}
        rows = np.concatenate([rows, probe(young)])
        chosen, _ = herd(rows, samples)
    return _pick(pool, chosen)


def _pick(pool: Arrays, chosen: NDArray[np.int64]) -> Arrays:
    return {name: value[chosen] for name, value in pool.items()}


def _scaled(pool: Arrays, noises: Mapping[str, object], scale: float) -> Arrays:
    return {k: (v * scale).astype(v.dtype) if k in noises else v for k, v in pool.items()}


def _loss_at(
    probe: Probe, draw: Draw, noises: Mapping[str, object], scale: float, seed: int, unit: int
) -> float:
    some = draw(np.random.default_rng(seed), -(-_TRIED // unit) * unit)
    return herd(probe(_scaled(some, noises, scale)), _TRIED // 4)[1]


def breed(
    parents: Arrays,
    noises: Mapping[str, Callable[[np.random.Generator, int], Floats]],
    count: int,
    rng: np.random.Generator,
) -> Arrays:
    """Children of two parents each: parts of one and of the other along a random border, changed a little."""
    some = next(iter(parents.values()))
    one, other = rng.integers(0, len(some), (2, count))
    children: Arrays = {}
    for name, value in parents.items():
        if name not in noises:
            children[name] = value[one]
            continue
        noise, each = noises[name], (count, *[1] * (value.ndim - 1))
        child = np.where(noise(rng, count) > 0, value[one], value[other]).astype(np.float32)
        step = value.std() * np.exp(rng.uniform(np.log(0.05), np.log(1), each))
        child += np.where(rng.random(each) < 0.7, step, 0) * noise(rng, count)
        # What saturates stays so.
        axes = tuple(range(1, value.ndim))
        low, high = value[one].min(axes, keepdims=True), value[one].max(axes, keepdims=True)
        child = np.where(rng.random(each) < 0.7, np.clip(child, low, high), child)
        children[name] = child.astype(value.dtype)
    return children
