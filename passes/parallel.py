"""Run tasks in several processes of this machine, or on the workers of a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import joblib
import numpy as np
from joblib.externals import loky
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ..analysis.errors import BackendError, OnnxPruneError, UsageError
from .execute import first_line

Task = TypeVar("Task")
Result = TypeVar("Result")
# One array is written to memory that all processes map, and is sent to a cluster only once.
Shared = NDArray[np.uint8]

_CONNECT = 10  # seconds


def run_all(
    work: Callable[[Shared, Task], Result],
    shared: Shared,
    tasks: Sequence[Task],
    jobs: int | None = None,
    cluster: str | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """``work(shared, task)`` for each task, in their order.

    Each has one thread for linear algebra, so that results do not depend on where it runs.

    Args:
        work: a function of a module, which can be sent elsewhere by its name.
        jobs: how many processes; one for each core, and no more than tasks, when None. With one everything
            runs in this process.
        cluster: the address of a Dask scheduler, whose workers are used instead.
        done: called with the number of tasks done.

    Raises:
        UsageError: there is no scheduler at the address, or both ``jobs`` and ``cluster`` are given.
        BackendError: Dask is not installed, or a worker was lost.
        OnnxPruneError: what a task raised.
    """
    if jobs is not None and cluster is not None:
        raise UsageError("give jobs or a cluster, not both: a cluster has the workers it has")
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs {jobs} is out of range: it must be at least 1")
    count = min(jobs or joblib.cpu_count(), max(1, len(tasks)))
    results: dict[int, Result] = {}
    with _cluster(cluster) if cluster is not None else _processes(count):
        # A cluster has as many jobs as its workers have threads.
        parallel = joblib.Parallel(
            n_jobs=-1 if cluster else None, return_as="generator_unordered", batch_size=1
        )
        calls = (joblib.delayed(_one)(work, k, shared, task) for k, task in enumerate(tasks))
        for k, result in parallel(calls):
            results[k] = result
            done(len(results))
    return [results[k] for k in range(len(tasks))]


def _one(
    work: Callable[[Shared, Task], Result], number: int, shared: Shared, task: Task
) -> tuple[int, Result]:
    with threadpool_limits(1):
        return number, work(shared, task)


@contextmanager
def _processes(count: int) -> Iterator[None]:
    with joblib.parallel_config(backend="loky", n_jobs=count, inner_max_num_threads=1):
        try:
            yield
        except loky.process_executor.TerminatedWorkerError:
            raise BackendError(
                "a worker process was killed, which is mostly for want of memory: use fewer --jobs"
            ) from None
        except KeyboardInterrupt:  # early on, workers that are still starting would be left behind
            loky.get_reusable_executor(max_workers=count).shutdown(wait=False, kill_workers=True)
            raise


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    try:
        from distributed import Client
    except ImportError:
        raise BackendError("a cluster needs Dask: pip install 'onnx-prune[cluster]'") from None
    try:
        client: Any = Client(address, timeout=_CONNECT, set_as_default=False)
    except Exception as error:  # an address of a wrong form and one where nobody answers raise many kinds
        raise UsageError(f"no Dask scheduler answers at '{address}': {first_line(error)}") from None
    # Closing the client takes back what has not run yet.
    with client, joblib.parallel_config(backend="dask", client=client):
        try:
            yield
        except OnnxPruneError:
            raise
        except Exception as error:
            told = f"{type(error).__name__}: {first_line(error)}"
            raise BackendError(f"the cluster at '{address}' could not run it: {told}") from error
