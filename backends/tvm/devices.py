"""Where kernels are timed: in this process, or on a device that a tracker lends for a trial."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import tvm
from numpy.typing import NDArray

from ..processor import Linker
from ..threads import use_threads
from ..tracker import Tracker
from .computed import Operand

_BIG_CORES = 1  # the mode of TVM's thread pool that prefers them
_LIBRARY = "kernel{}.so"
_FILL = "tvm.contrib.random.random_fill_for_measure"  # servers of TVM's bare runtime lack it


class Session(Protocol):
    """A device at hand."""

    @property
    def device(self) -> Any:
        """What TVM calls it."""
        ...

    def load(self, kernel: Any) -> Any:
        """A compiled kernel as a module of the device."""
        ...

    def tensor(self, operand: Operand) -> Any:
        """What a kernel takes, in the device's memory: float32 of a shape, of random values, or an array."""
        ...


class Device(Protocol):
    """A device that sessions are had on; a value, for it goes to the process that guards them."""

    @property
    def patience(self) -> float:
        """Seconds that a session may be waited for."""
        ...

    def session(self, threads: int, seconds: float) -> AbstractContextManager[Session]:
        """A session in which kernels run on so many threads, for so long at most.

        Raises:
            NoDevice: there is none to be had.
        """
        ...


@dataclass(frozen=True)
class Here:
    """The machine and the process that this runs in."""

    patience: ClassVar[float] = 0.0

    @contextmanager
    def session(self, threads: int, seconds: float) -> Iterator[Session]:
        use_threads(threads)
        yield _HereSession()


@dataclass(frozen=True)
class Lent:
    """A device of a tracker: kernels are linked here and sent there.

    Attributes:
        linker: for its system, if it is not this machine's.
        patience: long enough for a server that is started again after a crash.
    """

    tracker: Tracker
    linker: Linker | None = None
    patience: float = 30.0

    @contextmanager
    def session(self, threads: int, seconds: float) -> Iterator[Session]:
        session = self.tracker.session(seconds, self.patience)
        session.get_function("runtime.config_threadpool")(_BIG_CORES, threads)
        with tempfile.TemporaryDirectory() as folder:
            yield _LentSession(session, Path(folder), self.linker)


class _HereSession:
    def __init__(self) -> None:
        self.device = tvm.cpu()
        self._rng = np.random.default_rng(0)

    def load(self, kernel: Any) -> Any:
        return kernel.jit()

    def tensor(self, operand: Operand) -> Any:
        return tvm.runtime.tensor(array_of(self._rng, operand))


class _LentSession:
    def __init__(self, session: Any, folder: Path, linker: Linker | None) -> None:
        self.device = session.cpu()
        self._linker = linker
        self._session = session
        self._folder = folder
        self._loaded = 0
        self._rng = np.random.default_rng(0)
        try:
            self._fill = session.get_function(_FILL)
        except Exception:  # whatever its runtime raises
            self._fill = None

    def load(self, kernel: Any) -> Any:
        path = self._folder / _LIBRARY.format(self._loaded)
        self._loaded += 1
        kernel.export_library(str(path), fcompile=self._linker)
        self._session.upload(str(path))
        return self._session.load_module(path.name)

    def tensor(self, operand: Operand) -> Any:
        if self._fill is None or not isinstance(operand, tuple):
            return tvm.runtime.tensor(array_of(self._rng, operand), self.device)
        made = tvm.runtime.empty(operand, "float32", self.device)
        self._fill(made)
        return made


def array_of(rng: np.random.Generator, operand: Operand) -> NDArray[Any]:
    return rng.standard_normal(operand, np.float32) if isinstance(operand, tuple) else operand
