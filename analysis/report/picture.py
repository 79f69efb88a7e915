"""The groups of a model as a picture: what can shrink, what shrinks together, what is pinned.

A small model is drawn node by node, in layers (Sugiyama's method, by grandalf). Of a large one only the
layers with weights are drawn, one in a row, and each group is a bar across the rows of the layers it is in.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log2
from textwrap import wrap

from grandalf.graphs import Edge, Graph, Vertex
from grandalf.layouts import SugiyamaLayout, VertexViewer
from grandalf.routing import EdgeViewer, route_with_lines
from markupsafe import Markup

from ..axes import ONE, Axis, find, reason, units
from ..graph import Node, subgraphs
from ..groups import Analysis, Group
from .drawing import ink, render, short

NODES_DRAWN = 150  # of a model with more, only layers and groups are

_GREY = "#aab2bd"
_LEGEND = 30
_ROW, _LANE = 26, 20


@dataclass(frozen=True)
class Box:
    """A rectangle with a text in it. ``groups`` are the numbers of the groups it has to do with."""

    x: float
    y: float
    width: float
    height: float
    fill: str
    stroke: str
    ink: str
    text: str
    tip: str
    groups: str
    round: float = 4


@dataclass(frozen=True)
class Line:
    """A chain of straight lines."""

    points: str
    width: float
    stroke: str
    tip: str
    groups: str


@dataclass(frozen=True)
class Entry:
    """A line of the legend."""

    colour: str
    name: str
    told: str
    tip: str
    groups: str


@dataclass(frozen=True)
class Scene:
    """Everything to be drawn, and how large it is."""

    title: str
    how: tuple[str, ...]
    width: float
    height: float
    lines: tuple[Line, ...]
    boxes: tuple[Box, ...]
    legend: tuple[Entry, ...]
    unlisted: int
    pinned: int


def svg(analysis: Analysis, title: str) -> str:
    """The picture as a file of its own; the same arguments give the same text.

    Args:
        title: names the model.
    """
    return render("picture.svg.j2", scene=draw(analysis, title))


def page(analysis: Analysis, title: str) -> str:
    """The picture as a page, where pointing at something shows all that has to do with its groups."""
    picture = Markup(svg(analysis, title))  # rendered with every name escaped
    return render("picture.html.j2", title=title, picture=picture)


def draw(analysis: Analysis, title: str) -> Scene:
    """What `svg` draws."""
    colours = _Colours(analysis)
    if len(analysis.walk.nodes) <= NODES_DRAWN:
        lines, boxes, width, height = _Nodes(analysis, colours).drawn()
        how = "Boxes are nodes: full ones have weights. A line is a tensor, the thicker the more channels."
    else:
        lines, boxes, width, height = _Layers(analysis, colours).drawn()
        how = (
            "Rows are layers with weights. A bar is a group, the wider the more units: a full square"
            " writes its units, an open one reads them."
        )
    return Scene(
        title=title,
        how=tuple(wrap(f"{how} One colour shrinks together, grey is pinned.", 62)),
        width=width,
        height=height,
        lines=tuple(lines),
        boxes=tuple(boxes),
        legend=tuple(colours.legend()),
        unlisted=max(0, len(analysis.groups) - _LEGEND),
        pinned=len(analysis.pins),
    )


class _Colours:
    """Groups by the parameters that go with them, each with a colour and a number."""

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.ranked = sorted(analysis.groups, key=_params, reverse=True)
        self.of = {group.axis: i for i, group in enumerate(self.ranked)}

    def colour(self, number: int | None) -> str:
        """Neighbours in rank get hues far apart."""
        if number is None:
            return _GREY
        hue, light = (0.58 + number * 0.381966) % 1, (0.42, 0.55, 0.34)[number // 8 % 3]
        return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(hue, light, 0.6))

    def numbers(self, axes: Iterable[Axis]) -> list[int]:
        """The groups on some axes, the one with most parameters first."""
        return sorted({self.of[unit] for axis in axes for unit in units(axis) if unit in self.of})

    def legend(self) -> Iterable[Entry]:
        whole = sum(constant.elements for constant, _, _ in self.analysis.parameter_uses) or 1
        for i, group in enumerate(self.ranked[:_LEGEND]):
            params = _params(group)
            units_, axes = (
                f"{count} {one if count == 1 else many}"
                for count, one, many in ((group.size, "unit", "units"), (len(group.members), "axis", "axes"))
            )
            told = f"{units_} on {axes}, {params:,.0f} parameters"
            share = f" ({params / whole:.1%})" if params <= whole else ""
            yield Entry(self.colour(i), short(group.id, 44), told + share, group.explain(), f"g{i}")


def _params(group: Group) -> float:
    return group.size * group.params_per_unit


def _classes(numbers: Iterable[int]) -> str:
    return " ".join(f"g{number}" for number in numbers)


def _shape(axes: Sequence[Axis]) -> str:
    return "×".join(str(axis.size) for axis in axes) or "scalar"


def _axes_told(name: str, axes: Sequence[Axis], colours: _Colours) -> Iterable[str]:
    """For a tooltip: what each axis of a tensor is."""
    for k, axis in enumerate(axes):
        told = [colours.ranked[number].id for number in colours.numbers([axis])]
        if told:
            yield f"{name}:{k} ({axis.size}): group {', '.join(told)}"
        elif find(axis) is not ONE:
            yield f"{name}:{k} ({axis.size}): {'pinned, ' + why if (why := reason(axis)) else 'free'}"


class _Nodes:
    """A model node by node."""

    def __init__(self, analysis: Analysis, colours: _Colours) -> None:
        self.walk = analysis.walk
        self.colours = colours
        self.weights = _weights(analysis)

    def drawn(self) -> tuple[list[Line], list[Box], float, float]:
        vertices = {node.index: self._vertex(short(_title(node), 34), node) for node in self.walk.nodes}
        makers = {name: vertices[n.index] for n in self.walk.nodes for name in n.outputs if name}
        inputs = {name: self._vertex(short(name, 30), name) for name in self._inputs(makers)}
        makers |= inputs
        edges = [
            self._edge(makers[name], vertices[node.index], name)
            for node in self.walk.nodes
            for name in dict.fromkeys(_reads(node))
            if name in makers
        ]
        outputs = [self._vertex(short(name, 30), name) for name in self.walk.outputs]
        edges += [self._edge(makers[v.data], v, v.data) for v in outputs if v.data in makers]
        width, height = _lay_out([*inputs.values(), *vertices.values(), *outputs], edges)
        boxes = [self._box(v) for v in (*inputs.values(), *vertices.values(), *outputs)]
        return [self._line(edge) for edge in edges], boxes, width, height

    def _inputs(self, makers: dict[str, Vertex]) -> list[str]:
        read = dict.fromkeys(name for node in self.walk.nodes for name in _reads(node))
        return [name for name in read if name in self.walk.axes_of and name not in makers]

    def _vertex(self, text: str, data: Node | str) -> Vertex:
        vertex = Vertex(data)
        vertex.view = VertexViewer(7 * len(text) + 16, 22)
        vertex.text = text
        return vertex

    def _edge(self, start: Vertex, end: Vertex, name: str) -> Edge:
        edge = Edge(start, end, data=name)
        edge.view = EdgeViewer()
        return edge

    def _box(self, vertex: Vertex) -> Box:
        data, (x, y), w, h = vertex.data, vertex.view.xy, vertex.view.w, vertex.view.h
        place = (x - w / 2, y - h / 2, w, h)
        if isinstance(data, str):  # an input or output of the model
            tip = "\n".join([data, *_axes_told(data, self.walk.axes_of.get(data) or (), self.colours)])
            return Box(*place, "#eef0f3", _GREY, "#4b5666", vertex.text, tip, "", h / 2)
        written = [axis for name in data.outputs for axis in self.walk.axes_of.get(name) or ()]
        numbers = self.colours.numbers(written)
        colour = self.colours.colour(numbers[0] if numbers else None)
        weights = self.weights.get(data.index, ())
        lines = [data.name]
        for name, axes in weights:
            numbers += [n for n in self.colours.numbers(axes) if n not in numbers]
            lines += _axes_told(name, axes, self.colours)
        for name in data.outputs:
            lines += _axes_told(name, self.walk.axes_of.get(name) or (), self.colours)
        fill = colour if weights else "#ffffff"
        return Box(*place, fill, colour, ink(fill), vertex.text, "\n".join(lines), _classes(numbers))

    def _line(self, edge: Edge) -> Line:
        axes = self.walk.axes_of.get(edge.data) or []
        numbers = self.colours.numbers(axes)
        sizes = [axis.size for axis in axes if self.colours.numbers([axis])[:1] == numbers[:1]]
        points = getattr(edge.view, "_pts", None) or [v.view.xy for v in edge.v]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        tip = "\n".join([f"{edge.data}: {_shape(axes)}", *_axes_told(edge.data, axes, self.colours)])
        width = 1 + log2(max(sizes)) / 2 if numbers else 1.2
        return Line(
            text,
            round(width, 2),
            self.colours.colour(numbers[0] if numbers else None),
            tip,
            _classes(numbers),
        )


def _weights(analysis: Analysis) -> dict[int, list[tuple[str, Sequence[Axis]]]]:
    """The parameters that each node reads, with the types of their axes there."""
    found: dict[int, list[tuple[str, Sequence[Axis]]]] = {}
    inputs = {node.index: node.inputs for node in analysis.walk.nodes}
    for (index, i), axes in analysis.walk.uses.items():
        constant = analysis.walk.constants[inputs[index][i]]
        if constant.is_parameter and axes:
            found.setdefault(index, []).append((constant.name, axes))
    return found


def _title(node: Node) -> str:
    name = node.proto.name or node.key
    return f"{node.op.rpartition('::')[2]} {name}"


def _reads(node: Node) -> Iterable[str]:
    yield from filter(None, node.inputs)
    for body in subgraphs(node.proto):
        yield from (output.name for output in body.output)


def _lay_out(vertices: Sequence[Vertex], edges: Sequence[Edge]) -> tuple[float, float]:
    """Give each vertex and edge its place, connected parts side by side; the size of it all."""
    right = bottom = 0.0
    for part in Graph(list(vertices), list(edges)).C:
        layout = SugiyamaLayout(part)
        layout.route_edge = route_with_lines
        layout.xspace, layout.yspace = 30, 22
        layout.init_all()
        layout.draw(4)
        inside = list(part.sV)
        left = min(v.view.xy[0] - v.view.w / 2 for v in inside)
        top = min(v.view.xy[1] - v.view.h / 2 for v in inside)
        dx, dy = right + 20 - left, 20 - top
        for v in inside:
            v.view.xy = (v.view.xy[0] + dx, v.view.xy[1] + dy)
        for edge in part.sE:
            edge.view.setpath([(x + dx, y + dy) for x, y in edge.view._pts])
        right = max(v.view.xy[0] + v.view.w / 2 for v in inside)
        bottom = max(bottom, *(v.view.xy[1] + v.view.h / 2 for v in inside))
    return right + 20, bottom + 20


class _Layers:
    """The layers with weights in rows, and groups as bars across them."""

    def __init__(self, analysis: Analysis, colours: _Colours) -> None:
        self.walk = analysis.walk
        self.colours = colours
        self.weights = _weights(analysis)
        self.layers = [node for node in self.walk.nodes if self._is_layer(node)]

    def _is_layer(self, node: Node) -> bool:
        return any(len(axes) > 1 for _, axes in self.weights.get(node.index, ()))

    def drawn(self) -> tuple[list[Line], list[Box], float, float]:
        texts = [self._text(node) for node in self.layers]
        left = 40 + 6.6 * max(map(len, texts), default=0)
        rows: dict[int, list[int]] = {}
        for row, node in enumerate(self.layers):
            for number in self.colours.numbers(self._axes(node)):
                rows.setdefault(number, []).append(row)
        lanes = _lanes({number: (where[0], where[-1]) for number, where in rows.items()})
        at = {number: left + 30 + _LANE * lane for number, lane in lanes.items()}
        lines: list[Line] = []
        boxes: list[Box] = []
        for number, where in rows.items():
            boxes.append(self._bar(number, at[number], where[0], where[-1]))
        for row, node in enumerate(self.layers):
            self._row(node, row, texts[row], left, at, lines, boxes)
        width = left + 60 + _LANE * (1 + max(lanes.values(), default=0))
        return lines, boxes, width, _y(len(self.layers)) + 10

    def _axes(self, node: Node) -> list[Axis]:
        return [axis for _, axes in self.weights[node.index] for axis in axes]

    def _text(self, node: Node) -> str:
        shapes = [_shape(axes) for _, axes in self.weights[node.index] if len(axes) > 1]
        return f"{short(_title(node), 48)}  {shapes[0]}"

    def _bar(self, number: int, x: float, first: int, last: int) -> Box:
        group = self.colours.ranked[number]
        width = 2 + log2(group.size)
        colour = self.colours.colour(number)
        tall = _y(last) - _y(first) + 14
        tip, numbers = group.explain(), _classes([number])
        return Box(
            x - width / 2, _y(first) - 7, width, tall, colour, "none", colour, "", tip, numbers, width / 2
        )

    def _row(
        self,
        node: Node,
        row: int,
        text: str,
        left: float,
        at: dict[int, float],
        lines: list[Line],
        boxes: list[Box],
    ) -> None:
        weights = self.weights[node.index]
        tip = "\n".join(
            [node.name, *(t for name, axes in weights for t in _axes_told(name, axes, self.colours))]
        )
        numbers = self.colours.numbers(self._axes(node))
        written = self.colours.numbers(a for n in node.outputs for a in self.walk.axes_of.get(n) or ())
        y, classes = _y(row), _classes(numbers)
        if numbers:
            end = max(at[number] for number in numbers)
            lines.append(Line(f"{left:.1f},{y} {end:.1f},{y}", 1, "#c9d0d8", tip, classes))
        own = [number for number in written if number in numbers]
        colour = self.colours.colour(own[0] if own else None)
        boxes.append(Box(10, y - 10, left - 10, 20, colour, colour, ink(colour), text, tip, classes))
        for number in numbers:
            full = self.colours.colour(number)
            inside = full if number in written else "#ffffff"
            told = (
                f"{node.name} {'writes' if number in written else 'reads'} {self.colours.ranked[number].id}"
            )
            boxes.append(Box(at[number] - 6, y - 6, 12, 12, inside, full, full, "", told, f"g{number}", 2))


def _y(row: int) -> int:
    return 24 + _ROW * row


def _lanes(spans: dict[int, tuple[int, int]]) -> dict[int, int]:
    """A lane for each span so that no two in one lane meet: long ones first, each as far left as it can."""
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    for number, (first, last) in sorted(spans.items(), key=lambda item: (item[1][0] - item[1][1], item[1])):
        lane = next(
            (i for i, others in enumerate(taken) if all(last < a or b < first for a, b in others)), len(taken)
        )
        if lane == len(taken):
            taken.append([])
        taken[lane].append((first, last))
        lanes[number] = lane
    return lanes
