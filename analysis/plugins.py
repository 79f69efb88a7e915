"""What other packages bring, found by their entry points."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .errors import PluginWarning

T = TypeVar("T")

BUILT_IN = "onnx-prune itself"


@dataclass(frozen=True)
class Brought(Generic[T]):
    """Things that plug-ins bring.

    Attributes:
        things: by name, each with the title of its plug-in.
        clashes: names that two claim, with the titles of both.
    """

    things: dict[str, tuple[T, str]]
    clashes: dict[str, tuple[str, str]]


def installed(group: str) -> list[EntryPoint]:
    """Entry points of all installed plug-ins, in an order that does not depend on the search path."""
    return sorted(entry_points(group=group), key=_title)


def bring(
    points: Iterable[EntryPoint], built_in: Iterable[str], read: Callable[[object], Mapping[str, T]]
) -> Brought[T]:
    """Load plug-ins.

    Args:
        built_in: names that are taken already.
        read: the things an entry point stands for, by name; raises what it likes when they are none.

    Warns:
        PluginWarning: an entry point cannot be loaded or read; it is left out.
    """
    owners = dict.fromkeys(built_in, BUILT_IN)
    things: dict[str, tuple[T, str]] = {}
    clashes: dict[str, tuple[str, str]] = {}
    for point in points:
        title = _title(point)
        try:
            brought = read(point.load())
        except Exception as error:  # whatever importing somebody else's module can raise
            told = " ".join(f"{type(error).__name__}: {error}".split())
            warnings.warn(f"{title} is left out: {told}", PluginWarning, stacklevel=2)
            continue
        for name, thing in brought.items():
            if name in owners:
                clashes[name] = owners[name], title
                things.pop(name, None)
            else:
                owners[name] = title
                things[name] = thing, title
    return Brought(things, clashes)


def _title(point: EntryPoint) -> str:
    origin = f" of {point.dist.name} {point.dist.version}" if point.dist is not None else ""
    return f"the plug-in '{point.name}'{origin} ({point.value})"
