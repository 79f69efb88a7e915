"""``onnx-prune compile`` and ``bench``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import onnx_prune as api
import typer
from rich.markup import escape
from rich.table import Table

from ..analysis.errors import UsageError
from ..backends.artifact import Batch
from ..backends.base import Kernel, Progress, SparseLayer
from ..backends.cuda import CudaBackend, CudaCompiled
from ..backends.library import description_path, weights_path
from . import amounts, options
from .app import app, examples
from .devices import show_assembled, show_emulated, show_emulated_gpu, show_remote
from .show import ROWS, check_outputs, console, emit, grid, say, step

TrackerAt = Annotated[
    str | None,
    typer.Option("--tracker", metavar="HOST:PORT", help="Time on devices of this tracker of TVM's."),
]
Key = Annotated[
    str | None, typer.Option("--key", metavar="NAME", help="The tracker's devices that are of --target.")
]
BatchSizes = Annotated[
    str, typer.Option("--batch", metavar="SIZES", help="Sizes of a dynamic batch to compile for: 1,8.")
]


@app.command(
    "compile",
    epilog=examples(
        "compile smaller.onnx -o smaller.so --target cpu",
        "compile smaller.onnx -o smaller.so --tune 5m --database tuned",
        "compile smaller.onnx -o smaller.so --batch 1,8",
        "compile smaller.onnx -o smaller.so --target arm:cortex-a72",
        "compile sparse.onnx -o sparse.so --target cuda:sm_80 --precision fp16",
    ),
)
def compile_(
    model: options.ModelPath,
    output: options.Output,
    target: options.Target = "cpu",
    mcpu: options.Mcpu = None,
    mattr: options.Mattr = None,
    precision: options.Precision = None,
    threads: options.Threads = 1,
    tune: Annotated[
        str | None,
        typer.Option("--tune", metavar="TIME", help="Look for faster kernels first, for 90s, 5m or 1h."),
    ] = None,
    database: options.Database = None,
    tracker: TrackerAt = None,
    key: Key = None,
    batch: BatchSizes = "1",
    weights: Annotated[
        str,
        typer.Option("--weights", metavar="WHERE", help="inside the library, or beside it in a file."),
    ] = "inside",
    json_: options.Json = None,
) -> None:
    """Compile a model with Apache TVM into one shared library with its weights inside."""
    if weights not in ("inside", "beside"):
        raise UsageError(f"--weights '{weights}' is no place: write inside or beside")
    beside = weights == "beside"
    others = [description_path(output), *([weights_path(output)] if beside else [])]
    check_outputs(output, *others, json_)
    limit = None if tune is None else amounts.seconds(tune, "--tune")
    if tracker is not None and limit is None:
        raise UsageError("--tracker says where --tune times kernels, which is not given")
    batches = amounts.counts(batch, "--batch")
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own) if database is None and limit else database
        if limit and folder is not None:
            _tune(loaded, folder, limit, target, threads, (tracker, key), batches, seconds)
        with step(seconds, "compile"):
            artifact = api.compile(loaded, target, threads, folder, batches, mcpu, mattr, precision)
    with step(seconds, "save"):
        artifact.save(output, beside)
    size = output.stat().st_size
    say(f"wrote {output} ({size:,} bytes)")
    if beside:
        say(f"wrote {weights_path(output)} ({weights_path(output).stat().st_size:,} bytes)")
    if artifact.batch is not None:
        say(_batch_told(artifact.batch))
    if artifact.sparse:
        _show_sparse(artifact.sparse, tunable=not isinstance(artifact, CudaCompiled))
    assembled = artifact.assembled.kernels if isinstance(artifact, CudaCompiled) else ()
    if assembled:
        show_assembled(target, assembled)
    emit(
        json_,
        {
            "output": str(output),
            "bytes": size,
            "target": target,
            "threads": threads,
            "batch": None if artifact.batch is None else asdict(artifact.batch),
            "sparse": [asdict(layer) for layer in artifact.sparse],
            "assembled": [asdict(kernel) for kernel in assembled],
            "seconds": seconds,
        },
    )


def _show_sparse(layers: Sequence[SparseLayer], tunable: bool) -> None:
    """Layers with zeros, and whether their kernels skip them."""
    table = grid("weight", "zeros", "skipped", "gain", title=f"{len(layers)} layers with zeros")
    for layer in layers[:ROWS]:
        skipped = "yes" if layer.sparse else "no: sparsity does not pay here"
        gain = f"{layer.gain:.2f}" + ("" if layer.measured else " estimated")
        table.add_row(escape(layer.weight or ""), f"{1 - layer.density:.0%}", skipped, gain)
    console.print(table)
    if len(layers) > ROWS:
        say(f"… and {len(layers) - ROWS} more: see --json")
    taken = sum(layer.sparse for layer in layers)
    how = "; --tune measures it" if tunable and not all(layer.measured for layer in layers) else ""
    say(f"{taken} of {len(layers)} layers with zeros skip them{how}")


def _batch_told(batch: Batch) -> str:
    sizes = " and ".join(map(str, batch.sizes))
    if batch.obstacle is None:
        return f"takes a batch '{batch.symbol}' of any size, in runs of {sizes}"
    return f"takes a batch '{batch.symbol}' of {sizes} only: {batch.obstacle}"


@app.command(
    epilog=examples(
        "tune model.onnx --database tuned --time 5m",
        "tune model.onnx --database tuned --tracker 192.168.1.2:9190 --key zen3",
        "tune model.onnx --database tuned --target arm:cortex-a72 --emulate",
    )
)
def tune(
    model: options.ModelPath,
    database: Annotated[
        Path, typer.Option("--database", metavar="FOLDER", help="Where to keep what was measured.")
    ],
    time: Annotated[str, typer.Option("--time", metavar="TIME", help="For how long: 90s, 5m, 1h.")] = "5m",
    target: options.Target = "cpu",
    threads: options.Threads = 1,
    tracker: TrackerAt = None,
    key: Key = None,
    emulate: Annotated[
        bool,
        typer.Option("--emulate", help="Compare kernels for ARM under QEMU, by estimated cycles: no times."),
    ] = False,
    batch: BatchSizes = "1",
    json_: options.Json = None,
) -> None:
    """Look for the fastest kernels of a model; go on where the database ends."""
    check_outputs(json_)
    limit = amounts.seconds(time, "--time")
    seconds: dict[str, float] = {}
    with step(seconds, "load"):
        loaded = api.load(model)
    batches = amounts.counts(batch, "--batch")
    found = _tune(loaded, database, limit, target, threads, (tracker, key), batches, seconds, emulate)
    emit(json_, {"database": str(database), **asdict(found), "seconds": seconds})


def _tune(
    model: api.Model,
    database: Path,
    limit: float,
    target: str,
    threads: int,
    farm: tuple[str | None, str | None],
    batches: Sequence[int],
    seconds: dict[str, float],
    emulate: bool = False,
) -> Progress:
    with step(seconds, "tune") as status:

        def show(progress: Progress) -> None:
            gain = f": {_gain(progress)}" if progress.done else ""
            status.update(f"tune kernel {progress.done + 1} of {progress.total}{gain}")

        found = api.tune(model, database, limit, target, threads, show, *farm, batches, emulate)
    if found.total:
        say(f"tuned {found.done} of {found.total} kernels: {_gain(found)}; kept in {database}")
    else:
        say(f"all kernels are known in {database}")
    if found.stopped:
        say(f"it ended early: {found.stopped}")
    return found


def _gain(progress: Progress) -> str:
    return f"{progress.before:.3f} {progress.unit} became {progress.after:.3f}"


@app.command(
    epilog=examples(
        "bench model.onnx",
        "bench model.onnx smaller.onnx --against onnxruntime --threads 2 --json -",
        "bench model.onnx smaller.onnx --target arm:cortex-a72 --emulate",
        "bench model.onnx --target arm:cortex-a72 --tracker 192.168.1.2:9190 --key board",
        "bench model.onnx sparse.onnx --target cuda:sm_80 --precision fp16 --emulate",
    )
)
def bench(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL.onnx...", help="Models to time.")],
    target: options.Target = "cpu",
    mcpu: options.Mcpu = None,
    mattr: options.Mattr = None,
    emulate: Annotated[
        bool,
        typer.Option(
            "--emulate", help="Run it here, checked, without times: on QEMU for ARM, tensor cores for CUDA."
        ),
    ] = False,
    precision: options.Precision = None,
    tracker: TrackerAt = None,
    key: Key = None,
    against: Annotated[
        str,
        typer.Option("--against", metavar="NAME", help="The runtime ratios compare with: onnxruntime."),
    ] = "onnxruntime",
    threads: options.Threads = 1,
    database: options.Database = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show what takes the time inside of each model as well.")
    ] = False,
    json_: options.Json = None,
) -> None:
    """Time models in TVM and in another runtime, interleaved; sizes known only at run time are 1."""
    check_outputs(json_)
    seconds: dict[str, float] = {}
    if (tracker is None) != (key is None):
        raise UsageError("--tracker and --key go together: where the tracker is, and which of its devices")
    if emulate and tracker is not None:
        raise UsageError("--emulate runs models here, --tracker on a device: choose one")
    if tracker is not None and key is not None:
        with step(seconds, "bench"):
            named = [(str(path), api.load(path)) for path in models]
            remote = api.bench_remote(named, tracker, key, target, threads, database, mcpu, mattr)
        show_remote(remote)
        emit(json_, {"runs": [asdict(timing) for timing in remote], "seconds": seconds})
        return
    if emulate and CudaBackend.architecture(target) is not None:
        with step(seconds, "emulate"):
            named = [(str(path), api.load(path)) for path in models]
            run = api.emulate_gpu(named, target, precision)
        show_emulated_gpu(run, kernels)
        emit(json_, {"emulated": [asdict(each) for each in run], "seconds": seconds})
        return
    if emulate:
        with step(seconds, "emulate"):
            named = [(str(path), api.load(path)) for path in models]
            counted = api.emulate(named, target, mcpu, mattr, database)
        show_emulated(counted, kernels)
        emit(json_, {"emulated": [asdict(each) for each in counted], "seconds": seconds})
        return
    with step(seconds, "bench"):
        loaded = [(str(path), api.load(path)) for path in models]
        timings = api.bench(loaded, target, against, threads, database, precision)
    profiles = {}
    if kernels:
        with step(seconds, "profile"):
            profiles = {name: api.profile(model, target, threads, database) for name, model in loaded}
    table = grid("model", "runtime", "median ms", f"÷ {against}")
    for timing in timings:
        table.add_row(escape(timing.model), timing.runtime, f"{timing.median_ms:.3f}", f"{timing.ratio:.2f}")
    console.print(table)
    for name, found in profiles.items():
        console.print(_kernels(name, found))
    shown = {name: [asdict(kernel) for kernel in found] for name, found in profiles.items()}
    emit(
        json_,
        {"runs": [asdict(timing) for timing in timings], "seconds": seconds}
        | ({"kernels": shown} if kernels else {}),
    )


def _kernels(name: str, kernels: Sequence[Kernel]) -> Table:
    """Kernels with what they take, and how near they are to what the processor can."""
    table = grid(f"kernels of {escape(name)}", "calls", "ms", "of the time", "of the peak")
    total = sum(kernel.ms for kernel in kernels)
    for kernel in kernels:
        share = "" if kernel.share is None else f"{kernel.share:.0%}"
        row = (str(kernel.calls), f"{kernel.ms:.3f}", f"{kernel.ms / total:.1%}", share)
        table.add_row(escape(kernel.what), *row)
    return table
