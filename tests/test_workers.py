"""Sensitivity by several processes, here and on a cluster: the same to the last bit, and none is left."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from graphs import PLAIN
from onnx_prune import BackendError, ModelError, UsageError, analyze, load, sensitivity
from onnx_prune.models.digits import FOLDER, load_digits
from test_cli import RESNET, start
from test_sensitivity import changed, measured, net


def test_processes_measure_the_same_to_the_last_bit() -> None:
    model = net()
    assert measured(model, jobs=2) == measured(model, jobs=1)


def test_what_a_process_refuses_is_told_as_it_is() -> None:
    model = changed(net(), w4=np.zeros((8, 3)))
    with pytest.raises(ModelError, match="same for every sample"):
        measured(model, jobs=2, **PLAIN)


def workers_of(process: int) -> list[Path]:
    """Folders in /proc of the processes that measure."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        return [
            Path("/proc", n) for n in children if b"popen_loky" in Path("/proc", n, "cmdline").read_bytes()
        ]
    except FileNotFoundError:
        return []


def settled(condition: Callable[[], bool]) -> bool:
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def is_busy(process: Path) -> bool:
    """Whether it has worked for longer than it takes to start: two seconds."""
    try:
        user = int((process / "stat").read_text().rpartition(")")[2].split()[11])
    except OSError:  # it has just ended
        return False
    return user > 2 * os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes in /proc")
def test_control_c_ends_the_workers() -> None:
    slow = ("--criterion", "l2", "--recover", "least-squares", "--jobs", "2")
    # A shell starts what it runs in the background with Ctrl-C ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    with start("sensitivity", FOLDER / "digits_vit.onnx", *slow, before=heard) as running:
        assert settled(lambda: len([w for w in workers_of(running.pid) if is_busy(w)]) == 2)
        workers = workers_of(running.pid)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate()
    assert running.returncode == 130
    assert "Traceback" not in told
    assert settled(lambda: not any(worker.exists() for worker in workers))


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as local:
        yield local.scheduler_address


def test_a_cluster_measures_the_same_to_the_last_bit(cluster: str, tmp_path: Path) -> None:
    model = load(RESNET)
    np.savez(tmp_path / "images.npz", x=load_digits("train").images[:48])
    options: dict[str, Any] = {"calibration": str(tmp_path / "images.npz"), "ratios": (0.3, 0.6)}
    here = sensitivity(model, **options, jobs=1)
    there = sensitivity(model, **options, cluster=cluster)
    assert there == here
    assert {curve.groups for curve in here.curves} == {(group.id,) for group in analyze(model).groups}


def test_errors_come_back_from_a_cluster(cluster: str) -> None:
    with pytest.raises(ModelError, match="same for every sample"):
        measured(changed(net(), w4=np.zeros((8, 3))), jobs=None, cluster=cluster, **PLAIN)


def test_a_scheduler_that_does_not_answer_is_told() -> None:
    pytest.importorskip("distributed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnx_prune.passes.parallel._CONNECT", 1)
        with pytest.raises(UsageError, match=r"127\.0\.0\.1:1"):
            measured(net(), jobs=None, cluster="tcp://127.0.0.1:1")


def test_without_dask_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BackendError, match=r"onnx-prune\[cluster\]"):
        measured(net(), jobs=None, cluster="tcp://127.0.0.1:1")
