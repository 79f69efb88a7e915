"""Budgets and limits as they are written on the command line: 50%, 200M, 10MB, NAME=25%:75%."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..analysis.errors import UsageError
from ..analysis.goal import Amount, Range
from ..analysis.resources import RESOURCES

_NUMBER = re.compile(r"\s*([+-]?[\d.]+(?:e[+-]?\d+)?|[+-]?nan|[+-]?inf)\s*([A-Za-z]*|%)\s*", re.IGNORECASE)


def share(text: str) -> float:
    """50% or 50 as a fraction.

    Raises:
        ValueError: it is none.
    """
    return float(text.strip().removesuffix("%")) / 100


def fraction(text: str | None, option: str) -> float | None:
    """A share as a fraction, where one is given.

    Raises:
        UsageError: it is none.
    """
    try:
        return None if text is None else share(text)
    except ValueError:
        raise UsageError(f"{option} '{text}' is no percentage: write 1%") from None


def budget(text: str | None, resource: str) -> Amount | None:
    """A budget of a resource: a share such as 50% or 50 as a float, an amount such as 200M as an integer.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    units = RESOURCES[resource].units
    return amount(text, f"--{resource}", units, f"50% or {'10MB' if 'MB' in units else '5M'}")


def amount(text: str, option: str, units: Mapping[str, int], example: str) -> Amount:
    """A share as a float, or a number with a unit as an integer of basic units.

    Raises:
        UsageError: it is neither.
    """
    known = {unit.lower(): factor for unit, factor in units.items()}
    match = _NUMBER.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        number, unit = float(match[1]), match[2].lower()
        if unit in ("", "%"):
            return number / 100
        found = int(number * known[unit])
    except (ValueError, KeyError, OverflowError):
        raise UsageError(
            f"{option} '{text}' is no budget: write {example}; units are %, {', '.join(units)}"
        ) from None
    if found < 2:
        raise UsageError(f"{option} '{text}' is out of range: it is what may remain")
    return found


def seconds(text: str, option: str) -> float:
    """A time such as 90s, 5m or 1h.

    Raises:
        UsageError: it is none.
    """
    match = _NUMBER.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        found = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2].lower()]
        if not 0 < found < float("inf"):
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(f"{option} '{text}' is no time: write 90s, 5m or 1h") from None
    return found


def counts(text: str, option: str) -> list[int]:
    """Counts such as 1,8.

    Raises:
        UsageError: it is no list of counts.
    """
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} '{text}' is no list of counts: write 1,8") from None


def limits(texts: Sequence[str]) -> dict[str, Range]:
    """``NAME=MIN:MAX``, of which either end may be missing; an end is a count, or a share such as 25%.

    Raises:
        UsageError: one is not of that form, or a name is given twice.
    """
    found: dict[str, Range] = {}
    for text in texts:
        name, equals, between = text.rpartition("=")
        ends = between.split(":")
        try:
            if not (name and equals and len(ends) == 2 and any(ends)):
                raise ValueError
            least, most = (_end(end) for end in ends)
        except ValueError:
            raise UsageError(
                f"--limit '{text}' is no limit: write NAME=MIN:MAX, each a count or a share such as 25%"
            ) from None
        if name in found:
            raise UsageError(f"--limit names '{name}' twice")
        found[name] = least, most
    return found


def _end(text: str) -> float | None:
    if not text.strip():
        return None
    return share(text) if text.strip().endswith("%") else int(text)
