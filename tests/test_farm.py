"""Tuning on devices of a tracker: all of them at once, and what becomes of it when one goes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from farming import KEY, Farm, farm
from onnx_prune import BackendError, Model, UsageError, bench_remote, compile, save, tune
from onnx_prune.backends.base import Progress
from onnx_prune.backends.onnxruntime import OnnxRuntimeBackend
from onnx_prune.backends.tracker import Tracker
from onnx_prune.passes.execute import random_inputs
from test_backends import TOLERANCE, Net
from test_cli import run
from test_tune import convolutions

pytestmark = pytest.mark.skipif(find_spec("tvm") is None, reason="Apache TVM is not installed")
_WAIT = 60  # seconds for a device to be known, or to be known to be gone


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_prune.backends.tvm.workloads.MOST", 2)


def known(farm: Farm, count: int) -> Tracker:
    """The farm's tracker, once it knows so many devices."""
    tracker, end = Tracker.of(farm.address, KEY), time.monotonic() + _WAIT
    while time.monotonic() < end:
        try:
            if tracker.devices() == count:
                break
        except BackendError:
            if not count:
                break
        time.sleep(0.1)
    return tracker


def records(folder: Path) -> int:
    from onnx_prune.backends.tvm.database import Database
    from onnx_prune.backends.tvm.machine import host_target

    return len(Database(folder).best(host_target(1)))


def test_models_are_timed_on_a_device(tmp_path: Path) -> None:
    small, net, path = Model(convolutions()), Net(1, 16, 28, 28), tmp_path / "m.onnx"
    large = Model(net.model(net.conv("x", 16, 32, 3)))
    save(small, path)
    with farm(tmp_path, 1) as devices:
        known(devices, 1)
        found = bench_remote([("small", small), ("large", large)], devices.address, KEY)
        assert [each.model for each in found] == ["small", "large"]
        assert all(each.error < TOLERANCE and each.median_ms > 0 for each in found)
        assert found[0].ratio == 1 and found[1].ratio > 0
        done = run("bench", path, "--tracker", devices.address, "--key", KEY, "--json", "-")
        assert done.returncode == 0, done.stderr
        (timing,) = json.loads(done.stdout)["runs"]
        assert timing["device"] == KEY and timing["error"] < TOLERANCE
    with pytest.raises(BackendError):
        bench_remote([("small", small)], devices.address, KEY)


def test_all_devices_time_kernels_and_compilation_takes_them(tmp_path: Path) -> None:
    model, folder = Model(convolutions()), tmp_path / "tuned"
    with farm(tmp_path, 2) as devices:
        known(devices, 2)
        seen: list[Progress] = []
        told = tune(model, folder, progress=seen.append, tracker=devices.address, key=KEY)
        assert all(server.sessions > 1 for server in devices.servers)
    assert told.done == told.total == records(folder) > 2 and told.stopped is None
    # A kernel was begun before the one before it was done.
    assert seen[1].done == 0
    inputs = random_inputs(model.proto)
    (wanted,) = OnnxRuntimeBackend(1).compile(model.proto).run(inputs).values()
    (got,) = compile(model, database=folder).run(inputs).values()
    assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_another_device_goes_on_for_one_that_dies(tmp_path: Path) -> None:
    model, folder = Model(convolutions()), tmp_path / "tuned"
    with farm(tmp_path, 2) as devices:
        known(devices, 2)

        def kill(progress: Progress) -> None:
            if progress.done == 1 and devices.servers[0].process.poll() is None:
                devices.servers[0].kill()

        told = tune(model, folder, progress=kill, tracker=devices.address, key=KEY)
    assert told.done == told.total and told.stopped is None
    # The one trial that was under way may have been the default's own.
    assert records(folder) >= told.total - 1


def test_it_ends_with_what_it_has_when_no_device_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx_prune.backends.tvm import devices as places

    monkeypatch.setattr(places, "Lent", partial(places.Lent, patience=2))
    model, folder = Model(convolutions()), tmp_path / "tuned"
    with farm(tmp_path, 1) as devices:
        known(devices, 1)

        def kill(progress: Progress) -> None:
            if progress.done == 2:
                devices.servers[0].kill()
                known(devices, 0)

        told = tune(model, folder, progress=kill, tracker=devices.address, key=KEY)
    assert 2 == told.done == records(folder) < told.total
    assert told.stopped is not None and f"has no device '{KEY}'" in told.stopped


@dataclass(frozen=True)
class Fatal:
    """A workload whose kernel ends the process that runs it, if its choice says so."""

    name: str = "fatal"

    @property
    def rules(self) -> Any:
        return (AsItIs,)

    def function(self, choice: tuple[int, ...], core: Any) -> Any:
        from tvm import te, tirx

        x, w = (te.placeholder((8,), "float32", name) for name in "xw")
        end = tirx.call_extern("float32", "abort")
        made = te.compute((8,), lambda i: end if choice == (1,) else x[i] + w[i], "y")
        return te.create_prim_func([x, w, made])

    def operands(self, choice: tuple[int, ...], core: Any) -> list[Any]:
        return [(8,)] * 3


class AsItIs:
    """A rule that leaves a kernel a plain loop."""

    def __init__(self, core: Any) -> None:
        pass

    def schedule(self, schedule: Any) -> Any:
        return schedule


def test_a_kernel_that_crashes_a_device_costs_one_trial(tmp_path: Path) -> None:
    from onnx_prune.backends.tvm.devices import Lent
    from onnx_prune.backends.tvm.machine import host_target
    from onnx_prune.backends.tvm.trial import Trials

    workload: Any = Fatal()
    with farm(tmp_path, 2) as devices:
        device = Lent(known(devices, 2))
        with Trials(host_target(1), 0, device) as trials:
            assert trials.seconds(workload, [(1,)]) == [[]]
            ((seconds,),) = trials.seconds(workload, [(0,)])
            assert seconds > 0


def test_a_tracker_that_cannot_help_is_named(tmp_path: Path) -> None:
    model = Model(convolutions())
    with pytest.raises(BackendError, match=r"no tracker answers at 127\.0\.0\.1:9"):
        tune(model, tmp_path, tracker="127.0.0.1:9", key=KEY)
    with farm(tmp_path, 1) as devices:
        known(devices, 1)
        with pytest.raises(BackendError, match=f"has no device 'other'; it has {KEY}"):
            tune(model, tmp_path, tracker=devices.address, key="other")


@pytest.mark.parametrize("address", ["9190", "host:", "host:port", ":9190", "host:99999"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        tune(Model(convolutions()), tmp_path, tracker=address, key=KEY)


def test_a_tracker_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both or none"):
        tune(Model(convolutions()), tmp_path, tracker="127.0.0.1:9190")


def test_the_commands_refuse_a_tracker_that_times_nothing(tmp_path: Path) -> None:
    done = run("compile", "x.onnx", "-o", tmp_path / "x.so", "--tracker", "127.0.0.1:9", "--key", KEY)
    assert done.returncode == 2 and "--tune" in done.stderr
    wrong = run("tune", "models/digits_resnet.onnx", "--database", tmp_path, "--tracker", "a", "--key", KEY)
    assert wrong.returncode == 2 and "HOST:PORT" in wrong.stderr
