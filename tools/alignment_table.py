"""Time against ratio with and without aligned channels in ONNX Runtime, for docs/alignment.md.

Run: ``python tools/alignment_table.py``. Models of different roundings are timed in turn with the dense one,
round after round, so that a busy machine slows all alike.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnxruntime
from onnx_prune import Analysis, Model, analyze, measure, plan
from onnx_prune.backends.measure import interleaved
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models import zoo
from onnx_prune.passes.execute import random_inputs
from onnx_prune.passes.pipeline import shrunk

NETS = ("tv_resnet50", "tv_mobilenet_v2")
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
SITTINGS, ROUNDS, SECONDS = 5, 21, 0.01
MULTIPLES = {"default": None, "no rounding": 1, "4": 4, "8": 8, "16": 16}
PAGE = Path(__file__).parent.parent / "docs" / "alignment.md"
HEAD = """# Alignment

Kernels compute channels in blocks. ONNX Runtime's convolutions for the CPU keep activations in blocks of 8
channels (AVX2) or 16 (AVX-512) and fill a last block with zeros, but only where a layer's channels are a
multiple of 4: a layer with 61 of 64 channels falls back to another kernel, and activations are reordered on
the way in and out. So a pruned model can be *slower than the dense one*. TVM's kernels here pack channels by
eight.

Matrix products take any size as well: ViT, Swin and BERT are as fast with any count.

Therefore the kept channels of convolutions are rounded up by default (`analysis/alignment.py`):

- to a multiple of 8 where a group has 64 units or more, and their number is one,
- to a multiple of 4 where it has 16 or more, and their number is one: eight would leave too few choices,
- not at all below, nor where the number itself is no such multiple, since such a layer was never aligned, nor
  for outer factors of an axis (heads), whose inner ones decide,
- where less than half a multiple would stay, to a power of two.

A group is one of channels of convolutions when one reads it, or when convolutions do most of the
multiply-accumulates that it takes part in. So the stream of a ConvNeXt is rounded, and that of a ViT is not.

`--multiple N` rounds every group to multiples of N instead, `--multiple 1` none. A budget takes the rounding
into account; where a small network has too few multiples to use 99 % of one, halves or quarters of them are
taken. With `--ratio` at most that ratio goes: of 32 channels nothing goes below a ratio of 1/8.

## Measured

Made by `make alignment`: the median time of the pruned model over that of the dense one in ONNX Runtime
{version}, {rounds} interleaved rounds, one thread, batch 1, {machine}; of that the median of {sittings}
sittings, in which all models are opened anew, since where their memory lies moves times of a millisecond.
Below 1 is faster. Channels are chosen by `--ratio` and `--criterion l2`. *MACs* are what the default leaves.
The other columns are `--multiple` 1, 4, 8 and 16.
"""


def timed(model: Model, analysis: Analysis, share: float) -> tuple[float, dict[str, float]]:
    """The MACs that the default leaves, and for each rounding its time over that of the dense model."""
    versions = {"dense": model}
    for name, multiple in MULTIPLES.items():
        chosen = plan(analysis, ratio=share, multiple=multiple, criterion="l2", recover="none")
        versions[name] = shrunk(model, chosen, analysis)
    sittings = [one_sitting(versions) for _ in range(SITTINGS)]
    left = measure(versions["default"]).macs / measure(model, analysis).macs
    return left, {name: median(sitting[name] for sitting in sittings) for name in MULTIPLES}


def one_sitting(versions: dict[str, Model]) -> dict[str, float]:
    """Median times over that of the dense model."""
    backend = OnnxRuntimeBackend(1)
    feed = random_inputs(versions["dense"].proto, dynamic=1)

    def runner(made: Model) -> Callable[[], object]:
        artifact = backend.compile(made.proto)
        return lambda: artifact.run(feed)

    times = interleaved({name: runner(made) for name, made in versions.items()}, ROUNDS, SECONDS)
    return {name: median(each) / median(times["dense"]) for name, each in times.items()}


def main() -> None:
    machine = f"{platform.machine()} with {vector_units()}"
    parts = [HEAD.format(sittings=SITTINGS, rounds=ROUNDS, version=onnxruntime.__version__, machine=machine)]
    for net in NETS:
        model = Model(zoo.load(net))
        analysis = analyze(model)
        rows = []
        for share in RATIOS:
            left, found = timed(model, analysis, share)
            cells = [f"{share:.2f}", f"{left:.0%}", *(f"{found[name]:.2f}" for name in MULTIPLES)]
            rows.append(f"| {' | '.join(cells)} |\n")
            print(net, rows[-1], end="", flush=True)
        titles = ["ratio", "MACs", *MULTIPLES]
        parts += [f"\n## {net}\n\n| {' | '.join(titles)} |\n", "| ---: " * len(titles) + "|\n", *rows]
    PAGE.write_text("".join(parts))


def vector_units() -> str:
    """Those of this processor, where the system tells."""
    about = Path("/proc/cpuinfo")
    flags = about.read_text() if about.exists() else ""
    return "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "unknown vector units"


if __name__ == "__main__":
    main()
