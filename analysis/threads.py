"""How many threads linear algebra gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController

# Columns of a matrix from which on more than one thread pays. Below, threads wait for each other longer than
# they work, and ten times as long where other programs run as well.
_LARGE = 1024


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def threads_for(columns: int) -> Iterator[None]:
    """One thread while small matrices are worked on, all of them for large ones."""
    if columns >= _LARGE:
        yield
    else:
        with _controller().limit(limits=1):
            yield
