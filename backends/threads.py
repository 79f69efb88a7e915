"""How many threads compiled kernels run on. TVM has a pool for each thread that calls kernels."""

from __future__ import annotations

import os
import threading

_SHARE_CORES = -3  # the mode of TVM's pool in which any thread runs on any of the cores given
_pool = threading.local()


def use_threads(count: int) -> None:
    """Let kernels that this thread calls run on ``count`` threads, on any core this process may use.

    TVM would bind each to a core of its own, where it starves as soon as another program runs there, and
    takes half of the cores for twins of the others on x86.
    """
    if getattr(_pool, "count", None) == count:
        return
    cores = _cores()
    os.environ.setdefault("TVM_NUM_THREADS", str(max(count, len(cores))))  # read when the pool is made
    import tvm

    tvm.get_global_func("runtime.config_threadpool")(_SHARE_CORES, count, [str(core) for core in cores])
    _pool.count = count


def _cores() -> list[int]:
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return list(range(os.cpu_count() or 1))
