"""Compile a model for a target, and time models against another runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeGuard, overload

from ..analysis.errors import UsageError
from ..analysis.model import Model
from ..passes.clocks import CLOCKS, LAYER_CLOCKS, PREDICTORS
from .arm import ArmBackend
from .artifact import Compiled, CpuArtifact
from .base import Backend, Kernel, Progress
from .clock import foretold, stopwatch
from .cpu import CpuBackend
from .cuda import PRECISIONS, CudaBackend, GpuBackend
from .emulator.gpu_report import EmulatedGpu, emulated_gpu
from .emulator.report import Emulated, emulated
from .measure import Timing, compare
from .onnxruntime import OnnxRuntimeBackend
from .processor import SYSTEMS, Processor
from .remote import RemoteTiming, timed
from .table import Table
from .tracker import Tracker

POINTS = 4  # of an axis in a latency table

# What `plan` and `prune` can measure a budget of time on.
CLOCKS["cpu"] = lambda dense: stopwatch(CpuBackend(), dense)
LAYER_CLOCKS["cpu"] = lambda model, report: CpuBackend().layer_times(model.proto, report)
CLOCKS["onnxruntime"] = lambda dense: stopwatch(OnnxRuntimeBackend(), dense)
PREDICTORS["cpu"] = lambda dense, table: foretold(Table.read(table), CpuBackend(), dense)


@overload
def compile(
    model: Model,
    target: Literal["cpu"] = "cpu",
    threads: int = 1,
    database: str | Path | None = None,
    batches: Sequence[int] = (1,),
) -> CpuArtifact: ...


@overload
def compile(
    model: Model,
    target: str,
    threads: int = 1,
    database: str | Path | None = None,
    batches: Sequence[int] = (1,),
    mcpu: str | None = None,
    mattr: str | None = None,
    precision: str | None = None,
) -> Compiled: ...


def compile(
    model: Model,
    target: str = "cpu",
    threads: int = 1,
    database: str | Path | None = None,
    batches: Sequence[int] = (1,),
    mcpu: str | None = None,
    mattr: str | None = None,
    precision: str | None = None,
) -> Compiled:
    """Compile a model with Apache TVM; what comes out saves itself as one .so, and runs if it is of "cpu".

    Args:
        target: what to compile for: "cpu" is this machine's processor; "arm:cortex-a72" is one of 64-bit ARM
            with Linux, "android:cortex-a76" with Android, by LLVM's names, "arm:cortex-a76+dotprod" with a
            feature besides; "cuda:sm_80" is a GPU of NVIDIA by its architecture.
        mcpu, mattr: the processor of ``target`` "arm" or "android", and features such as "+dotprod,-sve".
        precision: what the tensor cores of a GPU multiply, "tf32" by default or "fp16"; they add float32.
        threads: threads its kernels run on.
        database: the folder that `tune` fills: of each kernel the fastest known way is taken.
        batches: sizes to compile for of a batch whose size is known only at run time; a batch of another
            size is run in pieces, where it is proven that its positions do not depend on each other.

    Example:
        ``compile(load("smaller.onnx")).save(Path("smaller.so"))``

    Raises:
        UsageError: there is no such target or processor, or ``threads`` or a batch is not positive.
        BackendError: TVM is not installed, cannot take the model, or the model has no batch of that kind; or
            there is no linker or assembler for the target.
    """
    gpu = _gpu(target, precision, threads, batches)
    if gpu is None:
        return _backend(target, threads, database, batches, mcpu, mattr).compile(model.proto)
    if database is not None or mcpu or mattr:
        raise UsageError(
            f"kernels for {target} are not tuned and have no processor: give no more than --precision"
        )
    return gpu.compile(model.proto)


def emulate(
    models: Sequence[tuple[str, Model]],
    target: str,
    mcpu: str | None = None,
    mattr: str | None = None,
    database: str | Path | None = None,
) -> list[Emulated]:
    """Compile models for a processor of 64-bit ARM and run each once under QEMU, on random inputs.

    Tells the difference from ONNX Runtime, and how many instructions were executed: no times, for those of an
    emulator say nothing of the processor's.

    Args:
        target, mcpu, mattr: as for `compile`.

    Example:
        ``emulate([("dense", dense), ("pruned", pruned)], "arm:cortex-a72")``

    Raises:
        UsageError: ``target`` is no processor of 64-bit ARM with Linux.
        BackendError: TVM, QEMU or another tool is missing, or a model cannot be compiled or run.
    """
    backend = _backend(target, 1, database, (1,), mcpu, mattr)
    if not _emulable(backend):
        raise UsageError(f"'{target}' cannot be emulated; choose a processor such as arm:cortex-a72")
    return [emulated(name, model.proto, backend) for name, model in models]


def emulate_gpu(
    models: Sequence[tuple[str, Model]], target: str, precision: str | None = None
) -> list[EmulatedGpu]:
    """Compile models for a GPU of NVIDIA, and run each once with its tensor cores emulated here.

    Kernels on tensor cores run from the CUDA source that is assembled for the GPU; all others as this
    machine's. Tells the difference from ONNX Runtime, and what kernels take: no times.

    Args:
        target, precision: as for `compile`.

    Example:
        ``emulate_gpu([("dense", dense), ("2:4", sparse)], "cuda:sm_80", "fp16")``

    Raises:
        UsageError: ``target`` is no GPU.
        BackendError: TVM, nvcc or a C++ compiler is missing, or a model cannot be compiled.
    """
    backend = _gpu(target, precision, 1)
    if backend is None:
        raise UsageError(f"'{target}' is no GPU; choose an architecture such as cuda:sm_80")
    return [emulated_gpu(name, model.proto, backend) for name, model in models]


def tune(
    model: Model,
    database: str | Path,
    seconds: float = 300,
    target: str = "cpu",
    threads: int = 1,
    progress: Callable[[Progress], None] = lambda progress: None,
    tracker: str | None = None,
    key: str | None = None,
    batches: Sequence[int] = (1,),
    emulate: bool = False,
) -> Progress:
    """Time the kernels of a model in several ways each, and keep the fastest in a database.

    Kernels that the database knows are not timed again. It is one of TVM's MetaSchedule.

    Args:
        database: a folder, made where there is none.
        seconds: after which it ends; the kernels with the most work come first.
        progress: called before each kernel.
        tracker: HOST:PORT of a tracker of TVM's RPC: the devices that it has with ``key`` time the kernels,
            as many at once as there are. They must be what ``target`` says.
        batches: sizes of the batch, as for `compile`.
        emulate: compare kernels for a processor of 64-bit ARM under QEMU, by cycles that llvm-mca estimates:
            no times, and taken where nothing was timed.

    Example:
        ``tune(model, "tuned", seconds=60)``, then ``compile(model, database="tuned")``

    Raises:
        UsageError: there is no such target, ``threads`` is not positive, or a tracker is given without a key.
        BackendError: TVM is not installed, cannot take the model, or the database cannot be opened; or the
            tracker does not answer, or has no such device.
    """
    backend = _backend(target, threads, database, batches)
    if (tracker is None) != (key is None):
        raise UsageError("a tracker and the key of its devices go together: give both or none")
    if emulate:
        if tracker is not None or not _emulable(backend):
            raise UsageError(f"'{target}' cannot be emulated; choose a processor such as arm:cortex-a72")
        return backend.tune_emulated(model.proto, seconds, progress)
    if tracker is None and not isinstance(backend, CpuBackend):
        raise UsageError(f"kernels for {target} cannot be timed here: give a tracker of such devices")
    lender = None if tracker is None or key is None else Tracker.of(tracker, key)
    return backend.tune(model.proto, seconds, progress, lender)


def latency_table(
    model: Model,
    output: str | Path,
    points: int = POINTS,
    seconds: float | None = None,
    target: str = "cpu",
    threads: int = 1,
    database: str | Path | None = None,
    progress: Callable[[Table], None] = lambda table: None,
) -> Table:
    """Measure how long the kernels of a model take with fewer channels; `plan` can foretell times from it.

    Args:
        output: a JSON file, written when it ends or is interrupted; where there is one of the same model and
            target, what it lacks is measured.
        points: how many counts of input and of output channels, in all combinations.
        seconds: after which it ends; without, when all is measured.
        database: the folder that `tune` fills: of each kernel the fastest known way is timed.
        progress: called before each measurement with what is known.

    Example:
        ``latency_table(model, "t.json")``, then ``plan(model, latency="60%", latency_table="t.json")``

    Raises:
        UsageError: there is no such target, ``threads`` is not positive, or there are fewer than 2 points.
        BackendError: TVM is not installed, cannot take the model, a kernel fails, or ``output`` is no table.
        OutputError: the file cannot be written.
    """
    return _here(target, threads, database).tabulate(model.proto, Path(output), points, seconds, progress)


def bench(
    models: Sequence[tuple[str, Model]],
    target: str = "cpu",
    against: str = "onnxruntime",
    threads: int = 1,
    database: str | Path | None = None,
    precision: str | None = None,
) -> list[Timing]:
    """Time models compiled by TVM and in the runtime ``against``, interleaved on the same random inputs.

    Axes whose size is known only at run time have one position. Kernels are taken from ``database`` where it
    knows them. With a target such as "cuda:sm_80", which this machine must have, ``precision`` is as for
    `compile`; inputs and results are copied each time.

    Example:
        ``bench([("dense", load("model.onnx")), ("pruned", load("smaller.onnx"))])``

    Raises:
        UsageError: there is no such target or runtime, or ``threads`` is not positive.
        BackendError: TVM is not installed, or one of the runtimes cannot take a model.
    """
    gpu = _gpu(target, precision, threads)
    ours: Backend = _here(target, threads, database) if gpu is None else GpuBackend(gpu)
    if against != OnnxRuntimeBackend.name:
        raise UsageError(f"there is no runtime '{against}' to compare with; choose {OnnxRuntimeBackend.name}")
    backends: list[Backend] = [OnnxRuntimeBackend(threads), ours]
    return compare([(name, model.proto) for name, model in models], backends, against)


def bench_remote(
    models: Sequence[tuple[str, Model]],
    tracker: str,
    key: str,
    target: str = "cpu",
    threads: int = 1,
    database: str | Path | None = None,
    mcpu: str | None = None,
    mattr: str | None = None,
) -> list[RemoteTiming]:
    """Time models compiled by TVM on a device of a tracker of TVM's RPC, in turn on the same random inputs.

    Sizes known only at run time are 1. Outputs are compared with those of ONNX Runtime here.

    Args:
        tracker: its HOST:PORT.
        key: the name of the devices, which must be what ``target`` says.
        target, mcpu, mattr: as for `compile`.

    Example:
        ``bench_remote([("m", model)], "192.168.1.2:9190", "board", "arm:cortex-a72")``

    Raises:
        UsageError: there is no such target, ``threads`` is not positive, or ``tracker`` is no address.
        BackendError: TVM or a linker is missing, a model cannot be compiled; the tracker does not answer, has
            no such device, or it fails.
    """
    backend = _backend(target, threads, database, (1,), mcpu, mattr)
    return timed([(name, model.proto) for name, model in models], backend, Tracker.of(tracker, key))


def profile(
    model: Model, target: str = "cpu", threads: int = 1, database: str | Path | None = None
) -> tuple[Kernel, ...]:
    """What each kernel of a compiled model takes in a run on random inputs, the most first.

    Axes whose size is known only at run time have one position. Kernels are taken from ``database`` where it
    knows them.

    Example:
        ``worst = min((k for k in profile(model) if k.share), key=lambda k: k.share)``

    Raises:
        UsageError: there is no such target, or ``threads`` is not positive.
        BackendError: TVM is not installed, or cannot take the model.
    """
    return _here(target, threads, database).profile(model.proto)


def _backend(
    target: str,
    threads: int,
    database: str | Path | None,
    batches: Sequence[int] = (1,),
    mcpu: str | None = None,
    mattr: str | None = None,
) -> CpuBackend | ArmBackend:
    folder = None if database is None else Path(database)
    processor = Processor.of(target, mcpu, mattr)
    if processor is not None:
        return ArmBackend(threads, database=folder, batches=tuple(batches), processor=processor)
    if CudaBackend.architecture(target) is not None:
        raise UsageError(
            f"kernels for {target} can be compiled and emulated, but not tuned or timed by a tracker"
        )
    if target != "cpu":
        raise UsageError(
            f"there is no target '{target}'; choose cpu, a processor such as arm:cortex-a72, or a GPU such as"
            " cuda:sm_80"
        )
    if mcpu or mattr:
        raise UsageError(
            "--mcpu and --mattr go with --target arm or android: cpu is this machine's processor"
        )
    return CpuBackend(threads, database=folder, batches=tuple(batches))


def _emulable(backend: CpuBackend | ArmBackend) -> TypeGuard[ArmBackend]:
    return isinstance(backend, ArmBackend) and backend.processor.system == SYSTEMS["arm"]


def _gpu(
    target: str, precision: str | None, threads: int, batches: Sequence[int] = (1,)
) -> CudaBackend | None:
    """The backend of a GPU; None where the target is none."""
    arch = CudaBackend.architecture(target)
    if arch is not None:
        return CudaBackend(threads, batches=tuple(batches), arch=arch, precision=precision or PRECISIONS[0])
    if precision is not None:
        raise UsageError(
            f"--precision goes with a GPU, such as --target cuda:sm_80; {target} computes in float32"
        )
    return None


def _here(target: str, threads: int, database: str | Path | None) -> CpuBackend:
    """The backend of this machine."""
    backend = _backend(target, threads, database)
    if not isinstance(backend, CpuBackend):
        raise UsageError(
            f"{target} is not this machine, so it cannot be timed here; bench --emulate counts instructions"
        )
    return backend
