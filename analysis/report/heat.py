"""Sensitivity as a picture: a row for each group, a column for each ratio, the darker the worse."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log10, sqrt
from textwrap import wrap

from markupsafe import Markup

from ..sensitivity import Curve, Sensitivity
from .drawing import ink, render, short

# From ColorBrewer's YlOrRd (Harrower and Brewer, 2003), which can be told apart in grey as well.
_COLOURS = ("#fffbe6", "#fed976", "#fd8d3c", "#e31a1c", "#7a0026")
_DECADES = (-4.0, 0.0)  # logarithms of the errors that get the first and the last colour
_WORST = 0.5  # the drop of accuracy that gets the last colour
_FEW = 40  # rows that have room for larger letters
_NAME = 56
_COLUMN = 48
_NARROWEST = 260  # of a panel, for its title and legend


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    x: float
    fill: str
    ink: str
    text: str
    tip: str


@dataclass(frozen=True)
class Panel:
    """One quantity for all groups.

    Attributes:
        rows: for each group its cells.
        scale: colours along the legend, and ``ticks`` as places from 0 to 1 with their texts.
    """

    title: str
    x: float
    rows: tuple[tuple[Cell, ...], ...]
    scale: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Heat:
    """Everything to be drawn, and how large it is."""

    title: str
    told: tuple[str, ...]
    left: float
    column: float
    row: float
    font: float
    ratios: tuple[str, ...]
    names: tuple[tuple[str, str, str], ...]
    panels: tuple[Panel, ...]

    @property
    def across(self) -> float:
        """The width of a panel."""
        return max(_NARROWEST, self.column * len(self.ratios))


def svg(sensitivity: Sensitivity, title: str) -> str:
    """The picture as a file of its own; the same arguments give the same text.

    Args:
        title: names the model.
    """
    return render("heat.svg.j2", heat=draw(sensitivity, title))


def page(sensitivity: Sensitivity, title: str) -> str:
    """The picture as a page."""
    return render("heat.html.j2", title=title, picture=Markup(svg(sensitivity, title)))  # names are escaped


def draw(sensitivity: Sensitivity, title: str) -> Heat:
    """What `svg` draws."""
    curves = sensitivity.curves
    points = [k for k, ratio in enumerate(sensitivity.ratios) if ratio]
    row, font = (22, 11) if len(curves) <= _FEW else (16, 9.5)
    names = tuple(
        (short(_name(curve), _NAME), f"{curve.size:,}", "\n".join(curve.groups)) for curve in curves
    )
    left = 70 + 0.58 * font * max(len(name) for name, _, _ in names)
    panels = [_errors(curves, points)]
    if sensitivity.accuracy is not None:
        panels.append(_accuracies(curves, points, sensitivity.accuracy))
    how = (
        f"One group at a time loses units, the least important by {sensitivity.criterion} first;"
        f" {_fitted(sensitivity.recover)}. Errors are squared, relative to half the squared distance between"
        f" two samples. Measured on {sensitivity.calibration.get('source', 'inputs')}."
    )
    if any(not curve.removed[k] for curve in curves for k in points):
        how += " A dash: rounded, no unit goes."
    return Heat(
        title=title,
        told=tuple(wrap(how, 96)),
        left=left,
        column=_COLUMN,
        row=row,
        font=font,
        ratios=tuple(f"{sensitivity.ratios[k]:.0%}" for k in points),
        names=names,
        panels=tuple(panels),
    )


def _name(curve: Curve) -> str:
    more = len(curve.groups) - 1
    return curve.groups[0] + (f" +{more}" if more else "")


def _fitted(recover: str) -> str:
    return "the layers that stay are as they were" if recover == "none" else "what reads them is fitted again"


def _errors(curves: Sequence[Curve], points: Sequence[int]) -> Panel:
    low, high = _DECADES

    def place(error: float) -> float:
        return (log10(max(error, 1e-12)) - low) / (high - low)

    def row(curve: Curve) -> tuple[Cell, ...]:
        return _row(
            curve,
            points,
            lambda k: place(curve.measured[k]),
            lambda k: percent(curve.measured[k]),
            lambda k: f"error {curve.measured[k]:.3g}, predicted {curve.predicted[k]:.3g}",
        )

    ticks = tuple((place(10.0**k), f"{100 * 10.0**k:g}%") for k in range(int(low), int(high) + 1))
    return Panel("error of the outputs", 0, tuple(map(row, curves)), _COLOURS, ticks)


def _accuracies(curves: Sequence[Curve], points: Sequence[int], whole: float) -> Panel:
    def place(drop: float) -> float:
        return sqrt(max(drop, 0.0) / _WORST)

    def row(curve: Curve) -> tuple[Cell, ...]:
        accuracy = curve.accuracy or (whole,) * len(curve.removed)
        return _row(
            curve,
            points,
            lambda k: place(whole - accuracy[k]),
            lambda k: f"{accuracy[k]:.1%}",
            lambda k: f"accuracy {accuracy[k]:.2%}, {100 * (accuracy[k] - whole):+.2f} points",
        )

    ticks = tuple((place(drop), f"−{drop:.0%}" if drop else "0") for drop in (0, 0.01, 0.05, 0.2, _WORST))
    title = f"accuracy (whole {whole:.1%}), coloured by its fall"
    x = max(_NARROWEST, _COLUMN * len(points)) + 36
    return Panel(title, x, tuple(map(row, curves)), _COLOURS, ticks)


def _row(
    curve: Curve,
    points: Sequence[int],
    place: Callable[[int], float],
    text: Callable[[int], str],
    tip: Callable[[int], str],
) -> tuple[Cell, ...]:
    cells = []
    for n, k in enumerate(points):
        told = f"{_name(curve)}: {curve.removed[k]:,} of {curve.size:,} units removed\n"
        if curve.removed[k]:
            fill = _colour(place(k))
            cells.append(Cell(n * _COLUMN, fill, ink(fill), text(k), told + tip(k)))
        else:
            cells.append(Cell(n * _COLUMN, "#f4f5f7", "#8a93a0", "–", told.strip()))
    return tuple(cells)


def _colour(place: float) -> str:
    """Between the colours of the scale, at a place from 0 to 1."""
    at = min(max(place, 0.0), 1.0) * (len(_COLOURS) - 1)
    first, second = list(pairwise(_COLOURS))[min(int(at), len(_COLOURS) - 2)]
    share = at - min(int(at), len(_COLOURS) - 2)
    mixed = (
        round((1 - share) * int(first[i : i + 2], 16) + share * int(second[i : i + 2], 16)) for i in (1, 3, 5)
    )
    return "#" + "".join(f"{value:02x}" for value in mixed)


def percent(error: float) -> str:
    """An error in two digits at most."""
    if error and error < 0.9995e-4:
        return "<0.01%"
    if error < 0.00995:
        return f"{error:.2%}"
    return f"{error:.1%}" if error < 0.0995 else f"{error:.0%}"
