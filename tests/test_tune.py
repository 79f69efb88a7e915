"""Tuning: every way to compute a kernel gives the same, the fastest is kept, and a crash costs one trial."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_prune import Model, UsageError, compile, load, tune
from onnx_prune.backends.artifact import CpuArtifact
from onnx_prune.backends.cpu import CpuBackend
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.models.digits import FOLDER
from onnx_prune.passes.execute import random_inputs
from test_backends import TOLERANCE, Net
from test_cli import assert_one_line, run

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
MOBILENET = FOLDER / "digits_mobilenet.onnx"


def convolutions() -> Any:
    """Strides, odd channels, groups, a depthwise one and a thin stem."""
    net = Net(1, 3, 13, 11)
    x = net.conv("x", 3, 20, 3, pads=[1] * 4)
    x = net.op("Relu", net.conv(x, 20, 36, 3, strides=[2, 2]))
    x = net.conv(net.conv(x, 36, 36, 3, groups=36, pads=[1] * 4), 36, 48, 1)
    return net.model(net.conv(x, 48, 32, 3, groups=2, dilations=[2, 2], pads=[2] * 4))


def products() -> Any:
    net = Net(2, 7, 30)
    x = net.op("MatMul", "x", net.weight(30, 50))
    y = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 2, 1]))
    return net.model(net.op("MatMul", net.op("MatMul", y, x), net.weight(50, 19)))


@pytest.mark.parametrize("number", [0, 1, 2, 3, 5, 8, 13, 21])
@pytest.mark.parametrize("build", [convolutions, products])
def test_every_choice_computes_the_same(build: Any, number: int) -> None:
    from onnx_prune.backends.tvm import build as tvm_build
    from onnx_prune.backends.tvm import frontend
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.workloads import Choices

    class Forced(Choices):
        def of(self, workload: Any) -> Any:
            options = self.options(workload)
            self.seen[workload] += 1
            return options[number % len(options)]

    proto = build()
    choices, target = Forced(), host_target(1)
    module = frontend.import_model(frontend.fold(proto))
    reference = OnnxRuntimeBackend(1).compile(proto)
    built = tvm_build.build({"main": module}, target, choices)
    inputs = random_inputs(proto)
    (wanted,) = reference.run(inputs).values()
    (got,) = CpuArtifact(built, reference.inputs, reference.outputs, target).run(inputs).values()
    assert choices.seen
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_what_is_found_is_kept_and_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_prune.backends.base import Progress
    from onnx_prune.backends.tvm.database import Database
    from onnx_prune.backends.tvm.machine import host_target

    def interrupt(progress: Progress) -> None:
        if progress.done == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("onnx_prune.backends.tvm.workloads.MOST", 2)
    model, folder, target = load(MOBILENET), tmp_path / "tuned", host_target(1)
    with pytest.raises(KeyboardInterrupt):
        tune(model, folder, progress=interrupt)
    assert len(Database(folder).best(target)) == 3
    # Goes on where it was.
    everything = 3 + tune(model, folder, seconds=0.001).total
    assert len(Database(folder).best(target)) == 3 < everything
    # Another machine's times say nothing.
    assert not Database(folder).best(target | {"num-cores": 2})
    inputs = random_inputs(model.proto, dynamic=1)
    (wanted,) = OnnxRuntimeBackend(1).compile(model.proto).run(inputs).values()
    (got,) = compile(model, database=folder).run(inputs).values()
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_the_database_is_one_of_metaschedule(tmp_path: Path) -> None:
    from onnx_prune.backends.tvm.database import Database
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.schedules.common import Core
    from onnx_prune.backends.tvm.workloads import Product
    from tvm import s_tir
    from tvm.s_tir import meta_schedule

    workload = Product(5, 30, 50)
    choices = workload.choices(Core(), False)
    database = Database(tmp_path)
    for choice, seconds in ((choices[1], 3e-6), (choices[0], 2e-6), (choices[2], 4e-6)):
        database.add(workload, False, choice, seconds, host_target(1))
    (best,) = Database(tmp_path).best(host_target(1)).values()
    assert (best.choice, best.seconds) == (choices[0], 2e-6)
    records = meta_schedule.database.JSONDatabase(work_dir=str(tmp_path)).get_all_tuning_records()
    assert sorted(float(r.run_secs[0]) for r in records) == [2e-6, 3e-6, 4e-6]
    replayed = s_tir.Schedule(records[0].workload.mod)
    records[0].trace.apply_to_schedule(replayed, remove_postproc=False)
    assert "vectorized" in str(replayed.mod) or "T.vectorized" in replayed.mod.script()


def test_every_kind_of_kernel_is_read_again(tmp_path: Path) -> None:
    from onnx_prune.backends.tvm import build, frontend
    from onnx_prune.backends.tvm.database import Database
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.schedules.common import Core

    net = Net(1, 6, 11, 24)
    weights = net.rng.standard_normal((24, 16)).astype(np.float32)
    weights[:, net.rng.random(16) < 0.9] = 0
    x = net.op("MatMul", net.op("MatMul", "x", net.weight(24, 24)), net.constant(weights))
    y = net.op("MatMul", x, net.op("Transpose", x, perm=[0, 1, 3, 2]))
    attended = net.op("MatMul", net.op("Softmax", y, axis=-1), x)
    z = net.op("MatMul", attended, net.op("Transpose", attended, perm=[0, 1, 3, 2]))
    z = net.conv(net.conv(z, 6, 6, 3, groups=6), 6, 17, 3)
    target = host_target(1)
    modules = [net.model(z), convolutions()]
    seen = [build.workloads_of(frontend.import_model(frontend.fold(m)), target).seen for m in modules]
    kernels = [workload for each in seen for workload in each]
    assert {type(w).__name__ for w in kernels} >= {
        "Attention",
        "Batched",
        "Convolution",
        "Depthwise",
        "Product",
        "Sparse",
    }
    database = Database(tmp_path)
    for workload in kernels:
        database.add(workload, False, workload.choices(Core(), False)[0], 1e-6, target)
    assert len(Database(tmp_path).best(target)) == len(kernels)


@dataclass(frozen=True)
class Fatal:
    """A workload whose second choice ends the process."""

    name: str = "fatal"

    def choices(self) -> Sequence[tuple[int, ...]]:
        return [(0,), (1,)]

    @property
    def rules(self) -> Any:
        from onnx_prune.backends.tvm.workloads import Product

        return Product.rules

    def function(self, choice: tuple[int, ...], core: Any) -> Any:
        if choice == (1,):
            os._exit(1)
        from onnx_prune.backends.tvm.workloads import Product

        return Product(4, 8, 16).function((4, 16, 0), core)

    def operands(self, choice: tuple[int, ...], core: Any) -> Any:
        from onnx_prune.backends.tvm.workloads import Product

        return Product(4, 8, 16).operands((4, 16, 0), core)


def test_a_crash_costs_one_trial() -> None:
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.trial import Trials

    with Trials(host_target(1), 0) as trials:
        workload: Any = Fatal()
        assert trials.seconds(workload, [(1,)]) == [[]]
        ((seconds,),) = trials.seconds(workload, [(0,)])
        assert 0 < seconds < 1


class Scripted:
    """Trials that find what they are told."""

    def __init__(self, times: dict[int, float]) -> None:
        self.times = times

    def seconds(self, workload: Any, choices: Sequence[Any], rounds: int = 1) -> list[list[float]]:
        from onnx_prune.backends.tvm.schedules.common import Core

        options = list(workload.choices(Core(), False))
        return [[self.times.get(options.index(c), 1.0)] * rounds for c in choices]


@pytest.mark.parametrize(("times", "best"), [({4: 0.5}, 4), ({4: 0.995}, 0), ({0: 0.2}, 0), ({}, 0)])
def test_only_what_is_clearly_faster_replaces_the_default(times: dict[int, float], best: int) -> None:
    from onnx_prune.backends.tvm.schedules.common import Core
    from onnx_prune.backends.tvm.tune import _tuned
    from onnx_prune.backends.tvm.workloads import Product

    trials: Any = Scripted(times)
    workload = Product(64, 64, 64)
    found = _tuned(workload, workload.choices(Core(), False), trials, float("inf"))
    assert found is not None and found.choice == workload.choices(Core(), False)[best]
    assert found.after <= found.before


def test_kernels_of_every_size_of_the_batch_are_tuned(tmp_path: Path) -> None:
    net = Net("N", 8, 6, 6)
    model = Model(net.model(net.conv(net.op("Relu", net.conv("x", 8, 16)), 16, 8)))
    assert tune(model, tmp_path, seconds=0).total == 2
    assert tune(model, tmp_path, seconds=0, batches=(1, 3, 8)).total == 6


def test_tuning_without_a_database_is_refused() -> None:
    with pytest.raises(UsageError, match="database"):
        CpuBackend().tune(load(MOBILENET).proto, 1)


def test_the_commands(tmp_path: Path) -> None:
    folder, library, source = tmp_path / "tuned", tmp_path / "out.so", tmp_path / "model.onnx"
    onnx.save(convolutions(), source)
    done = run("tune", source, "--database", folder, "--time", "4s", "--json", "-")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["total"] > 0 and folder.is_dir()
    done = run("compile", source, "-o", library, "--database", folder, "--tune", "1s")
    assert done.returncode == 0 and library.exists(), done.stderr
    wrong = run("tune", source, "--database", folder, "--time", "5")
    assert wrong.returncode == 2 and "write 90s, 5m or 1h" in wrong.stderr
    assert_one_line(wrong)
