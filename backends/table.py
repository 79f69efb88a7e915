"""A latency table: milliseconds of a model's kernels at other counts of channels, and what they foretell.

Kernels that differ in counts of channels alone are a family. Of each kernel of the model a grid of counts is
measured; between its points time is taken to be linear in each count.

Between two runs of a kernel the model reads all its other weights, so a smaller model finds more in the
caches. Times are therefore taken with few bytes read between two runs and with as many as the whole model has
weights; in between, time is taken to be linear in the bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from ..analysis.errors import BackendError
from ..passes.save import save_text

FORMAT, VERSION = "onnx-prune latency table", 1
_ALIGNED = 8  # what grids are made of multiples of

Sizes = tuple[int, ...]
Times = tuple[float, ...]  # milliseconds, for each of `Table.between`


@dataclass(frozen=True)
class Axis:
    """One of the counts of a family.

    Attributes:
        name: such as "out".
        step: counts are rounded up to a multiple of it before the kernel sees them.
        linear: whether time is known to be in proportion to it, so that one count tells all.
    """

    name: str
    step: int
    linear: bool = False


@dataclass(frozen=True)
class Call:
    """A kernel as a model uses it.

    Attributes:
        family: a text that tells all but the counts.
        name: for people.
        calls: how often it is run.
        flops: of one run.
    """

    family: str
    name: str
    axes: tuple[Axis, ...]
    sizes: Sizes
    calls: int
    flops: float


@dataclass(frozen=True)
class Kernel:
    """A kernel of the model, and times of it with fewer channels.

    Attributes:
        call: with all channels.
        grid: for each axis the counts that are measured in every combination.
        extra: counts that are measured besides.
        ms: milliseconds of a run, by counts, as far as they are measured; for each of `Table.between`.
    """

    call: Call
    grid: tuple[Sizes, ...]
    extra: tuple[Sizes, ...]
    ms: Mapping[Sizes, Times]

    @staticmethod
    def of(call: Call, points: int) -> Kernel:
        """A kernel that nothing is known of yet.

        Args:
            points: counts of an axis, evenly spread and multiples of eight. Each but the first and the last
                is measured with one channel more too, all other axes whole, which shows the steps.
        """
        grid = tuple(
            _grid(size, 1 if axis.linear else points)
            for axis, size in zip(call.axes, call.sizes, strict=True)
        )
        extra = tuple(
            (*call.sizes[:k], size + 1, *call.sizes[k + 1 :])
            for k, sizes in enumerate(grid)
            for size in sizes[1:-1]
            if size + 1 < sizes[-1]
        )
        return Kernel(call, grid, extra, {})

    @property
    def wanted(self) -> list[Sizes]:
        """What has not been measured yet, the whole kernel first."""
        every = [self.call.sizes, *product(*self.grid), *self.extra]
        return [sizes for sizes in dict.fromkeys(every) if sizes not in self.ms]

    def at(self, sizes: Sizes) -> Times:
        """Milliseconds with other counts of channels."""
        rounded = [
            min(math.ceil(size / axis.step) * axis.step, max(size, whole))
            for size, axis, whole in zip(sizes, self.call.axes, self.call.sizes, strict=True)
        ]
        return tuple(max(self._between((), rounded, k), 0.0) for k in range(len(self.ms[self.call.sizes])))

    def curves(self) -> list[tuple[str, list[tuple[int, float]]]]:
        """For each axis that was varied its name, and counts with milliseconds, all other axes whole."""
        whole, found = self.call.sizes, []
        for k, axis in enumerate(self.call.axes):
            others = whole[:k] + whole[k + 1 :]
            points = sorted((s[k], ms[-1]) for s, ms in self.ms.items() if s[:k] + s[k + 1 :] == others)
            if len(points) > 1:
                found.append((axis.name, points))
        return found

    def _between(self, chosen: Sizes, left: Sequence[int], which: int) -> float:
        """Milliseconds where the first counts are on the grid, and ``left`` are the others."""
        if not left:
            return self.ms[chosen][which]
        size, *rest = left
        counts = self.grid[len(chosen)]
        if len(counts) == 1:
            linear = self.call.axes[len(chosen)].linear
            return self._between((*chosen, counts[0]), rest, which) * (size / counts[0] if linear else 1.0)
        low, high = next((pair for pair in pairwise(counts) if size <= pair[1]), counts[-2:])
        share = (size - low) / (high - low)
        below, above = (self._between((*chosen, count), rest, which) for count in (low, high))
        return below + share * (above - below)


@dataclass(frozen=True)
class Table:
    """Times of the kernels of a model on a target.

    Attributes:
        target: as TVM describes it.
        threads: that kernels ran on.
        versions: of what compiled them.
        between: bytes read between two runs of a kernel, rising; the last as many as the model has weights.
        dense_ms: milliseconds of the whole model; None where it was not measured.
    """

    target: Mapping[str, Any]
    threads: int
    versions: Mapping[str, Any]
    between: tuple[int, ...]
    kernels: tuple[Kernel, ...]
    dense_ms: float | None = None

    @property
    def missing_kernels(self) -> int:
        """How many times of kernels are to be measured yet."""
        return sum(len(kernel.wanted) for kernel in self.kernels)

    @property
    def missing(self) -> int:
        """How many times are to be measured yet, that of the whole model among them."""
        return self.missing_kernels + (self.dense_ms is None)

    @property
    def known(self) -> int:
        """How many times have been measured."""
        return sum(len(kernel.ms) for kernel in self.kernels) + (self.dense_ms is not None)

    def with_times_of(self, other: Table) -> Table:
        """With what another table knows of these kernels; none where it is of another target or version."""
        if replace(self, kernels=(), dense_ms=None) != replace(other, kernels=(), dense_ms=None):
            return self
        known = {(k.call.family, sizes): ms for k in other.kernels for sizes, ms in k.ms.items()}
        kernels = []
        for kernel in self.kernels:
            found = ((sizes, known.get((kernel.call.family, sizes))) for sizes in kernel.wanted)
            ms = {sizes: times for sizes, times in found if times is not None}
            kernels.append(replace(kernel, ms={**kernel.ms, **ms}))
        return replace(self, kernels=tuple(kernels))

    def predicted(self, calls: Sequence[Call], weights: int) -> float:
        """Milliseconds of a model with these kernels, made from the one measured by removing channels.

        What the whole model takes beyond its kernels is taken to stay as it is.

        Args:
            weights: bytes of the model's weights.

        Raises:
            BackendError: the table is not complete.
        """
        if self.missing or self.dense_ms is None:
            raise BackendError(
                f"the latency table lacks {self.missing} times: run 'onnx-prune latency' again to go on"
            )
        whole = self.kernels_ms
        kernels = sum(call.calls * self._mixed(self._of(call), weights) for call in calls)
        # By themselves, kernels read from further away than in the model, so their sum can be more than it.
        return max(self.dense_ms - whole, 0.0) + kernels * min(self.dense_ms / max(whole, 1e-9), 1.0)

    @property
    def kernels_ms(self) -> float:
        """Milliseconds of the kernels of the whole model, by themselves.

        Raises:
            KeyError: a kernel has not been measured.
        """
        return sum(kernel.call.calls * kernel.ms[kernel.call.sizes][-1] for kernel in self.kernels)

    def _mixed(self, times: Times, weights: int) -> float:
        if len(times) == 1:
            return times[0]
        low, high = self.between
        share = min(max((weights - low) / (high - low), 0.0), 1.0)
        return times[0] + share * (times[1] - times[0])

    def knows(self, call: Call) -> bool:
        """Whether a kernel is one of those measured, or is one with fewer channels."""
        return any(True for _ in self._like(call))

    def _like(self, call: Call) -> Iterator[Kernel]:
        return (
            kernel
            for kernel in self.kernels
            if kernel.call.family == call.family
            and all(size <= whole for size, whole in zip(call.sizes, kernel.call.sizes, strict=True))
        )

    def _of(self, call: Call) -> Times:
        """By the smallest kernel that it is a part of; else by what the nearest takes for its work."""
        nearest = min(self._like(call), key=lambda kernel: kernel.call.flops, default=None)
        if nearest is not None:
            return nearest.at(call.sizes)
        nearest = min(self.kernels, key=lambda kernel: abs(math.log(kernel.call.flops / call.flops)))
        return tuple(ms * call.flops / nearest.call.flops for ms in nearest.ms[nearest.call.sizes])

    def save(self, path: Path) -> None:
        """As JSON.

        Raises:
            OutputError: the file cannot be written.
        """
        head = {
            "format": FORMAT,
            "version": VERSION,
            "target": dict(self.target),
            "threads": self.threads,
            "versions": dict(self.versions),
            "between": self.between,
            "dense_ms": self.dense_ms,
        }
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        kernels = ",\n    ".join(json.dumps(_plain(kernel)) for kernel in self.kernels)
        save_text("{\n" + ",\n".join(lines) + f',\n  "kernels": [\n    {kernels}\n  ]\n}}\n', path)

    @staticmethod
    def read(path: Path) -> Table:
        """From a file that `save` wrote.

        Raises:
            BackendError: it cannot be read, or is no latency table.
        """
        try:
            data = json.loads(path.read_text("utf-8"))
            if (data["format"], data["version"]) != (FORMAT, VERSION):
                raise ValueError(f"it is no {FORMAT} of version {VERSION}")
            kernels = tuple(_kernel(each) for each in data["kernels"])
            dense = None if data["dense_ms"] is None else _positive(data["dense_ms"])
            how = data["target"], int(data["threads"]), data["versions"], tuple(map(int, data["between"]))
            return Table(*how, kernels, dense)
        except OSError as error:
            raise BackendError(f"cannot read the latency table '{path}': {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError(f"'{path}' is no latency table: {error}") from None


def _grid(size: int, points: int) -> Sizes:
    """So many multiples of eight up to a size, and the size itself at the end."""
    even = (math.ceil(size * k / points / _ALIGNED) * _ALIGNED for k in range(1, points))
    return (*sorted({count for count in even if count < size}), size)


def _plain(kernel: Kernel) -> dict[str, Any]:
    call = kernel.call
    return {
        "name": call.name,
        "family": call.family,
        "calls": call.calls,
        "flops": call.flops,
        "sizes": dict(zip((axis.name for axis in call.axes), call.sizes, strict=True)),
        "steps": [axis.step for axis in call.axes],
        "linear": [axis.linear for axis in call.axes],
        "grid": kernel.grid,
        "extra": kernel.extra,
        "points": [{"sizes": sizes, "ms": ms} for sizes, ms in sorted(kernel.ms.items())],
    }


def _kernel(data: Mapping[str, Any]) -> Kernel:
    names, sizes = tuple(data["sizes"]), tuple(map(int, data["sizes"].values()))
    axes = tuple(
        Axis(str(name), int(step), bool(linear))
        for name, step, linear in zip(names, data["steps"], data["linear"], strict=True)
    )
    call = Call(
        str(data["family"]), str(data["name"]), axes, sizes, int(data["calls"]), _positive(data["flops"])
    )
    grid = tuple(tuple(map(int, counts)) for counts in data["grid"])
    extra = tuple(tuple(map(int, each)) for each in data["extra"])
    ms = {tuple(map(int, point["sizes"])): tuple(map(_positive, point["ms"])) for point in data["points"]}
    rising = all(a < b for counts in grid for a, b in pairwise(counts))
    if len(grid) != len(axes) or not all(grid) or not rising:
        raise ValueError(f"the grid of '{call.name}' is none")
    return Kernel(call, grid, extra, ms)


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{value} is out of range")
    return number
