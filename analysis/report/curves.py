"""Curves in small panels, side by side: as for a latency table, milliseconds against counts of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

from .drawing import render, short

# From ColorBrewer's Dark2 (Harrower and Brewer, 2003).
_COLOURS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a")
_ACROSS = 4  # panels in a row
_WIDE, _TALL = 190.0, 96.0  # of the area of curves
_TITLE = 34


@dataclass(frozen=True)
class Curve:
    """A named line through points (x, y), in order of x; neither is negative."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Curves with axes of their own, from zero; ``unit`` is that of y."""

    title: str
    unit: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    tip: str


@dataclass(frozen=True)
class Line:
    name: str
    colour: str
    dots: tuple[Dot, ...]

    @property
    def path(self) -> str:
        """As SVG writes it."""
        return " ".join(f"{dot.x:.1f},{dot.y:.1f}" for dot in self.dots)


@dataclass(frozen=True)
class Frame:
    """A panel where it stands.

    Attributes:
        x_ticks, y_ticks: places inside with their texts.
    """

    title: str
    whole_title: str
    x: float
    y: float
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Sheet:
    """Everything to be drawn, and how large it is."""

    title: str
    told: tuple[str, ...]
    frames: tuple[Frame, ...]
    width: float
    height: float
    wide: float = _WIDE
    tall: float = _TALL


def svg(panels: Sequence[Panel], title: str, told: str) -> str:
    """The picture as a file; the same arguments give the same text.

    Args:
        told: what the panels show, in a sentence or two.
    """
    return render("curves.svg.j2", sheet=draw(panels, title, told))


def draw(panels: Sequence[Panel], title: str, told: str) -> Sheet:
    """What `svg` draws."""
    lines = tuple(wrap(told, 140))
    top = 62 + 15 * len(lines)
    frames = tuple(
        _frame(panel, 56 + k % _ACROSS * (_WIDE + 64), top + 30 + k // _ACROSS * (_TALL + 74))
        for k, panel in enumerate(panels)
    )
    rows = math.ceil(len(panels) / _ACROSS)
    return Sheet(title, lines, frames, _ACROSS * (_WIDE + 64) + 16, top + rows * (_TALL + 74) + 12)


def _frame(panel: Panel, left: float, top: float) -> Frame:
    points = [point for curve in panel.curves for point in curve.points]
    most_x, most_y = (_round(max((point[k] for point in points), default=1.0)) for k in (0, 1))
    lines = tuple(
        Line(
            curve.name,
            _COLOURS[n % len(_COLOURS)],
            tuple(
                Dot(x / most_x * _WIDE, _TALL * (1 - y / most_y), f"{curve.name} {x:g}: {y:.3g} {panel.unit}")
                for x, y in curve.points
            ),
        )
        for n, curve in enumerate(panel.curves)
    )
    halves = (0.0, 0.5, 1.0)
    return Frame(
        short(panel.title, _TITLE),
        panel.title,
        left,
        top,
        lines,
        tuple((_WIDE * part, f"{most_x * part:g}") for part in halves),
        tuple((_TALL * (1 - part), f"{most_y * part:.2g}") for part in halves),
    )


def _round(value: float) -> float:
    """The least of 1, 2, 4, 6 and 8 times a power of ten that is not below."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 4, 6, 8, 10) if value <= power * step * (1 + 1e-9))
