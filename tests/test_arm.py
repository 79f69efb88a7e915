"""64-bit ARM: processors by name, libraries linked for them, and run in emulation where its tools are."""

from __future__ import annotations

import json
import shutil
import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_prune import BackendError, UsageError, compile, emulate, load, prune, tune
from onnx_prune.analysis.errors import OnnxPruneError
from onnx_prune.backends.artifact import load_artifact
from onnx_prune.backends.processor import ANDROID_LINKER, Processor, linker
from onnx_prune.models.digits import FOLDER
from test_backends import Net
from test_cli import assert_one_line, run

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
TOLERANCE = 1e-5  # of max|y|
AARCH64 = 183  # machine in an ELF file


def _missing() -> str | None:
    from onnx_prune.backends.emulator.tools import find

    try:
        find()
    except OnnxPruneError as error:
        return str(error)
    return None if find_spec("elftools") else "pyelftools is not installed"


MISSING = _missing() if find_spec("tvm") else None
needs_linker = pytest.mark.skipif(
    not shutil.which("aarch64-linux-gnu-g++"), reason="no linker for 64-bit ARM"
)
needs_qemu = pytest.mark.skipif(MISSING is not None, reason=f"no emulation: {MISSING}")


def machine(library: Path) -> int:
    """Of an ELF file."""
    header = library.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    return int(struct.unpack_from("<H", header, 18)[0])


@pytest.mark.parametrize(
    ("target", "mcpu", "mattr", "wanted"),
    [
        ("arm:cortex-a72", None, None, Processor("aarch64-linux-gnu", "cortex-a72")),
        (
            "arm:cortex-a76+dotprod+fp16",
            None,
            None,
            Processor("aarch64-linux-gnu", "cortex-a76", ("+dotprod", "+fp16")),
        ),
        ("arm", "cortex-a53", "+crc,-sve", Processor("aarch64-linux-gnu", "cortex-a53", ("+crc", "-sve"))),
        ("android:cortex-a76", None, None, Processor("aarch64-linux-android", "cortex-a76")),
        ("cpu", None, None, None),
        ("cuda:sm_80", None, None, None),
    ],
)
def test_targets_name_processors(
    target: str, mcpu: str | None, mattr: str | None, wanted: Processor | None
) -> None:
    assert Processor.of(target, mcpu, mattr) == wanted


@pytest.mark.parametrize(
    ("target", "mcpu", "mattr", "says"),
    [
        ("arm", None, None, "once"),
        ("arm:cortex-a72", "cortex-a72", None, "once"),
        ("arm:cortex-a72", None, "dotprod", "+dotprod"),
        ("arm:cortex-a27", None, None, "cortex-a7"),
        ("riscv:u74", None, None, "no target"),
        ("cpu", "znver3", None, "--mcpu"),
    ],
)
def test_what_names_none_is_refused(target: str, mcpu: str | None, mattr: str | None, says: str) -> None:
    model = load(FOLDER / "digits_resnet.onnx")
    with pytest.raises((UsageError, BackendError), match=says.replace("+", r"\+")):
        compile(model, target, mcpu=mcpu, mattr=mattr)


def test_a_missing_linker_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("onnx_prune.backends.processor.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"g\+\+-aarch64-linux-gnu.*ziglang"):
        linker("aarch64-linux-gnu")
    monkeypatch.delenv(ANDROID_LINKER, raising=False)
    with pytest.raises(BackendError, match=ANDROID_LINKER):
        linker("aarch64-linux-android")


def test_zig_links_where_no_compiler_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("onnx_prune.backends.processor.find_spec", lambda name: object())
    assert linker("aarch64-linux-gnu").command[1:] == ("-m", "ziglang", "c++", "-target", "aarch64-linux-gnu")


@needs_linker
def test_a_library_for_linux(tmp_path: Path) -> None:
    library = tmp_path / "m.so"
    compile(load(FOLDER / "digits_vit.onnx"), "arm:cortex-a55").save(library)
    assert machine(library) == AARCH64
    about = json.loads((tmp_path / "m.so.json").read_text())
    assert about["target"]["mcpu"] == "cortex-a55"
    with pytest.raises(BackendError, match="cortex-a55"):
        load_artifact(library)


@needs_linker
def test_a_library_for_android(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Objects are Android's; here a stand-in links them, as there is no NDK."""
    monkeypatch.setenv(ANDROID_LINKER, str(shutil.which("aarch64-linux-gnu-g++")))
    library = tmp_path / "m.so"
    made = compile(load(FOLDER / "digits_resnet.onnx"), "android:cortex-a76")
    made.save(library)
    assert made.target["mtriple"] == "aarch64-linux-android" and machine(library) == AARCH64
    # What links finds no functions of glibc's alone.
    assert b"GLIBC_PRIVATE" not in library.read_bytes()


def test_kernels_of_others_are_not_timed_here(tmp_path: Path) -> None:
    from onnx_prune import bench, tune

    model = load(FOLDER / "digits_resnet.onnx")
    with pytest.raises(UsageError, match="tracker"):
        tune(model, tmp_path / "db", target="arm:cortex-a72")
    with pytest.raises(UsageError, match="--emulate"):
        bench([("m", model)], "arm:cortex-a72")
    with pytest.raises(UsageError, match="cannot be emulated"):
        emulate([("m", model)], "cpu")


def zeros(model: onnx.ModelProto, ratio: float) -> onnx.ModelProto:
    """Blocks of four outputs by one input, so many of them zero, in all products and convolutions but the
    first and the last.
    """
    from onnx import numpy_helper

    copy, rng = onnx.ModelProto.FromString(model.SerializeToString()), np.random.default_rng(0)
    matrices = [t for t in copy.graph.initializer if len(t.dims) == 4 and t.dims[0] % 4 == 0]
    for tensor in matrices[1:]:
        value = numpy_helper.to_array(tensor)
        matrix = value.reshape(len(value), -1)
        kept = np.repeat(rng.random((len(matrix) // 4, matrix.shape[1])) >= ratio, 4, 0)
        tensor.CopyFrom(numpy_helper.from_array((matrix * kept).reshape(value.shape), tensor.name))
    return copy


@needs_qemu
def test_a_run_is_what_the_model_computes() -> None:
    """Other nets and processors: `make arm-counts`."""
    dense = load(FOLDER / "digits_resnet.onnx")
    pruned = prune(dense, macs=0.5, multiple=8, check=False, criterion="l2", recover="none").model
    before, after = emulate([("dense", dense), ("pruned", pruned)], "arm:cortex-a76")
    assert max(before.error, after.error) < TOLERANCE
    for found in (before, after):
        assert found.vector_fmas > 0.25 * found.instructions
        assert sum(kernel.instructions for kernel in found.kernels) == found.instructions
    assert after.instructions < before.instructions


@needs_qemu
def test_zeros_are_skipped_there_too() -> None:
    from onnx_prune import Model

    net = Net(1, 16, 14, 14)
    x = net.conv("x", 16, 64, 1)
    for _ in range(3):
        x = net.op("Relu", net.conv(x, 64, 64, 3, pads=[1] * 4))
    dense = net.model(x)
    before, after = emulate([("dense", Model(dense)), ("zeros", Model(zeros(dense, 0.75)))], "arm:cortex-a72")
    assert max(before.error, after.error) < TOLERANCE
    skipping = [kernel for kernel in after.kernels if "zeros" in kernel.what]
    assert 0 < sum(kernel.macs or 0 for kernel in skipping) < 0.3 * before.macs
    # Rows of 14 positions are computed as vectors of 16.
    assert all(4 * kernel.vector_fmas < 1.2 * (kernel.macs or 0) for kernel in skipping)


@needs_qemu
def test_gates_are_made_once_for_all_positions() -> None:
    """Of four channels: a load, a product and a store a position."""
    from onnx_prune import Model

    net = Net(1, 64, 12, 12)
    x = net.conv("x", 64, 64, 1)
    gate = net.op("HardSigmoid", net.conv(net.op("GlobalAveragePool", x), 64, 64, 1))
    (found,) = emulate([("m", Model(net.model(net.op("Mul", x, gate))))], "arm:cortex-a72")
    (kernel,) = (kernel for kernel in found.kernels if kernel.what.endswith("multiply"))
    assert found.error < TOLERANCE
    assert kernel.instructions < 3.5 * 64 * 12 * 12 / 4


@needs_qemu
def test_counts_are_the_same_each_time() -> None:
    from onnx_prune import Model

    net = Net(1, 16, 14, 14)
    model = Model(net.model(net.conv(net.op("Relu", net.conv("x", 16, 32, 3)), 32, 16, 1)))
    first, second = (emulate([("m", model)], "arm:cortex-a72")[0] for _ in range(2))
    assert first.kernels == second.kernels


@needs_qemu
def test_an_instruction_that_a_processor_lacks_is_told() -> None:
    """Code with SVE, on a processor that has none."""
    from onnx_prune.backends.arm import ArmBackend
    from onnx_prune.backends.emulator.report import emulated

    processor = Processor.of("arm:neoverse-v1+sve")
    assert processor is not None
    model = load(FOLDER / "digits_vit.onnx").proto
    assert emulated("m", model, ArmBackend(processor=processor)).error < TOLERANCE
    with pytest.raises(BackendError, match=r"illegal instruction.*cortex-a72"):
        emulated("m", model, ArmBackend(processor=processor), "cortex-a72")


@needs_qemu
def test_multiply_adds_are_counted_exactly(tmp_path: Path) -> None:
    """A product of 6 x 32 by 32 x 16 without remainders: 3,072 multiply-adds in vectors of four."""
    from onnx_prune import Model

    net = Net(6, 32)
    (found,) = emulate([("m", Model(net.model(net.op("MatMul", "x", net.weight(32, 16)))))], "arm:cortex-a72")
    (kernel,) = (kernel for kernel in found.kernels if kernel.macs)
    assert kernel.macs == 6 * 32 * 16 and kernel.calls == 1
    assert kernel.vector_fmas * 4 in (kernel.macs, kernel.macs - 6 * 16)  # the first may be a multiplication


@needs_qemu
def test_the_command(tmp_path: Path) -> None:
    from onnx_prune import Model, save

    net, model = Net(1, 16, 14, 14), tmp_path / "m.onnx"
    save(Model(net.model(net.conv("x", 16, 32, 3))), model)
    done = run("bench", model, "--target", "arm:cortex-a72", "--emulate", "--kernels", "--json", "-")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["emulated"]
    assert found["processor"] == "cortex-a72" and found["error"] < TOLERANCE and found["kernels"][0]["calls"]
    refused = run("bench", model, "--target", "arm:cortex-a72")
    assert_one_line(refused)
    assert "--emulate" in refused.stderr


@needs_qemu
def test_kernels_are_compared_without_the_hardware(tmp_path: Path) -> None:
    """What they cost in emulation is kept, and taken where nothing was measured."""
    from onnx_prune import Model, save
    from onnx_prune.backends.arm import ArmBackend
    from onnx_prune.backends.tvm import build, frontend
    from onnx_prune.backends.tvm.database import Database
    from onnx_prune.backends.tvm.workloads import key

    net, database, target = Net(1, 96, 4, 4), tmp_path / "tuned", "arm:cortex-a72"
    model = net.model(net.conv("x", 96, 40, 1))
    save(Model(model), tmp_path / "m.onnx")
    done = run("tune", tmp_path / "m.onnx", "--database", database, "--target", target, "--emulate")
    assert done.returncode == 0, done.stderr
    assert "tuned 1 of 1 kernels" in done.stderr and "estimated" in done.stderr
    assert " ms" not in done.stderr
    processor = Processor.of(target)
    assert processor is not None
    backend = ArmBackend(processor=processor)
    ((name, found),) = Database(database).best(backend.target()).items()
    assert found.estimated
    (compiled,) = emulate([("m", Model(model))], target, database=database)
    assert compiled.error < TOLERANCE
    assert not tune(Model(model), database, 60, target, emulate=True).total  # all kernels are known
    # A time counts for more, even a longer one.
    choices = build.workloads_of(frontend.import_model(frontend.static(model, {})), backend.target())
    ((workload, _),) = choices.seen.items()
    other = next(choice for choice in choices.options(workload) if choice != found.choice)
    Database(database).add(workload, choices.far, other, 1.0, backend.target())
    measured = Database(database).best(backend.target())[key(workload, choices.far)]
    assert key(workload, choices.far) == name and measured.choice == other and not measured.estimated


@pytest.mark.parametrize("target", ["cpu", "android:cortex-a76"])
def test_what_cannot_be_compared_in_emulation_is_told(target: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be emulated"):
        tune(load(FOLDER / "digits_vit.onnx"), tmp_path, 1, target, emulate=True)
