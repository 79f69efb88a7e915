"""Parts of a graph moved into functions and into bodies of If, Loop and Scan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "tests.local"
_LARGEST = 0.9  # of all parameters: a body holds a part of the model
FLAG = "flag"  # the input that chooses the branch of an If


class Run(NamedTuple):
    """A run of nodes that become one: what it reads from outside, and what of it is read after it."""

    nodes: list[onnx.NodeProto]
    reads: list[str]
    gives: list[str]


class Region(NamedTuple):
    """Nodes between two activations, with no other way out."""

    nodes: list[int]
    start: str
    end: str


# ---------------------------------------------------------------------- functions


def in_function(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The middle half of the nodes in a model-local function."""
    nodes, run = _middle(proto.graph.node, {info.name for info in proto.graph.output})
    _call(proto, run, "Middle")
    _replace(proto.graph, nodes, helper.make_node("Middle", run.reads, run.gives, "call", domain=DOMAIN))
    return proto


def in_nested_functions(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The middle half in a function, and the middle half of that in another."""
    nodes, run = _middle(proto.graph.node, {info.name for info in proto.graph.output})
    places, inner = _middle(run.nodes, set(run.gives))
    _call(proto, inner, "Inner")
    body = list(run.nodes)
    call = helper.make_node("Inner", inner.reads, inner.gives, "inner", domain=DOMAIN)
    body[places.start : places.stop] = [call]
    _call(proto, Run(body, run.reads, run.gives), "Outer")
    _replace(proto.graph, nodes, helper.make_node("Outer", run.reads, run.gives, "outer", domain=DOMAIN))
    return proto


def _middle(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> tuple[range, Run]:
    """The middle half of ``nodes``, of which ``wanted`` is read elsewhere."""
    places = range(len(nodes) // 4, 3 * len(nodes) // 4)
    inside = [nodes[i] for i in places]
    made = [name for node in inside for name in node.output if name]
    reads = dict.fromkeys(name for node in inside for name in node.input if name and name not in made)
    later = wanted | {name for node in nodes[places.stop :] for name in node.input}
    return places, Run(inside, list(reads), [name for name in made if name in later])


def _call(proto: onnx.ModelProto, run: Run, name: str) -> None:
    """Add a function of what ``run`` does."""
    if not any(entry.domain == DOMAIN for entry in proto.opset_import):
        proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    proto.ir_version = max(proto.ir_version, 8)  # the first with functions
    function = helper.make_function(DOMAIN, name, run.reads, run.gives, run.nodes, list(proto.opset_import))
    proto.functions.append(function)


def _replace(graph: onnx.GraphProto, places: Iterable[int], node: onnx.NodeProto) -> None:
    """Put ``node`` where the last of the nodes at ``places`` was; the others go."""
    gone = set(places)
    kept: list[onnx.NodeProto] = []
    for i, old in enumerate(graph.node):
        if i not in gone:
            kept.append(old)
        elif i == max(gone):
            kept.append(node)
    made = {name for i in gone for name in graph.node[i].output} - set(node.output)
    infos = [info for info in graph.value_info if info.name not in made]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.value_info.extend(infos)


# ---------------------------------------------------------------------- bodies


def in_if(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A large part in both branches of an If that an input decides."""
    region = _region(proto, same_shape=False)
    body = _body("branch", _inside(proto, region, {region.end: "chosen"}), [], ["chosen"])
    node = helper.make_node("If", [FLAG], [region.end], "choice", then_branch=body, else_branch=body)
    _replace(proto.graph, region.nodes, node)
    proto.graph.input.append(helper.make_tensor_value_info(FLAG, TensorProto.BOOL, []))
    return proto


def in_loop(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A part with the same shape in and out runs twice in a Loop whose body reads the outer weights."""
    region = _region(proto)
    inside = _inside(proto, region, {region.start: "state", region.end: "next"})
    nodes = [*inside, helper.make_node("Identity", ["go"], ["on"])]
    state = _info(proto, region.start, "state")
    scalars = [_scalar("trip", TensorProto.INT64), _scalar("go", TensorProto.BOOL)]
    body = _body("body", nodes, [*scalars, state], ["on", "next"])
    trips = numpy_helper.from_array(np.array(2, np.int64), "trips")
    proto.graph.initializer.append(trips)
    loop = helper.make_node("Loop", ["trips", "", region.start], [region.end], "loop", body=body)
    _replace(proto.graph, region.nodes, loop)
    return proto


def in_scan(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A part with the same shape in and out is the state of a Scan over two gains."""
    region = _region(proto)
    inside = _inside(proto, region, {region.start: "state", region.end: "made"})
    nodes = [*inside, helper.make_node("Mul", ["made", "gain"], ["next"])]
    gain = helper.make_tensor_value_info("gain", TensorProto.FLOAT, [])
    body = _body("body", nodes, [_info(proto, region.start, "state"), gain], ["next"])
    gains = numpy_helper.from_array(np.array([1.0, 0.5], np.float32), "gains")
    proto.graph.initializer.append(gains)
    scan = helper.make_node(
        "Scan", [region.start, "gains"], [region.end], "scan", body=body, num_scan_inputs=1
    )
    _replace(proto.graph, region.nodes, scan)
    return proto


def in_scan_of_elements(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A part runs on one element of axis 0 at a time and a Scan stacks what it gives.

    For static exports, whose axis 0 has one position there.
    """
    region = _region(proto)
    inside = _inside(proto, region, {region.start: "batch", region.end: "made"})
    proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first"))
    nodes = [
        helper.make_node("Unsqueeze", ["element", "first"], ["batch"]),
        *inside,
        helper.make_node("Squeeze", ["made", "first"], ["given"]),
    ]
    element = _info(proto, region.start, "element")
    del element.type.tensor_type.shape.dim[0]
    body = _body("body", nodes, [element], ["given"])
    scan = helper.make_node("Scan", [region.start], [region.end], "scan", body=body, num_scan_inputs=1)
    _replace(proto.graph, region.nodes, scan)
    return proto


def _body(
    name: str, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[str]
) -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, [onnx.ValueInfoProto(name=output) for output in outputs])


def _scalar(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def _renamed(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for fields in (copy.input, copy.output):
        for i, name in enumerate(fields):
            fields[i] = names.get(name, name)
    return copy


def _inside(proto: onnx.ModelProto, region: Region, names: dict[str, str]) -> list[onnx.NodeProto]:
    return [_renamed(proto.graph.node[i], names) for i in region.nodes]


# ---------------------------------------------------------------------- regions


def _typed(proto: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}


def _info(proto: onnx.ModelProto, name: str, new: str) -> onnx.ValueInfoProto:
    info = onnx.ValueInfoProto()
    info.CopyFrom(_typed(proto)[name])
    info.name = new
    return info


def _region(proto: onnx.ModelProto, same_shape: bool = True) -> Region:
    """The region with the most parameters, but not nearly all, between two activations.

    Args:
        same_shape: between two of one shape alone.

    Raises:
        ValueError: the model has none.
    """
    graph = proto.graph
    shapes = {
        name: tuple(dim.dim_value for dim in info.type.tensor_type.shape.dim)
        for name, info in _typed(proto).items()
        if info.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    links = _Links(graph)
    weights = {tensor.name: prod(tensor.dims) for tensor in graph.initializer}
    loads = [sum(weights.get(name, 0) for name in set(node.input)) for node in graph.node]
    best, most = None, 0
    for end, last in links.maker.items():
        for start in shapes.keys() & links.maker.keys() if end in shapes else ():
            if len(shapes[start]) < 3 or (same_shape and shapes[start] != shapes[end]):
                continue
            places = links.between(start, last)
            load = sum(loads[i] for i in places)
            if most < load <= _LARGEST * sum(weights.values()) and links.closed(places, end):
                best, most = Region(places, start, end), load
    if best is None:
        raise ValueError("there is no such region")
    return best


class _Links:
    """Which nodes feed which, as bits of integers."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.maker = {name: i for i, node in enumerate(graph.node) for name in node.output}
        self.readers: dict[str, int] = {}
        self.feeding: list[int] = []  # for each node, itself and the nodes it depends on
        for i, node in enumerate(graph.node):
            mask = 1 << i
            for name in node.input:
                self.readers[name] = self.readers.get(name, 0) | 1 << i
                mask |= self.feeding[self.maker[name]] if name in self.maker else 0
            self.feeding.append(mask)

    def between(self, start: str, last: int) -> list[int]:
        """Nodes on the ways from the value ``start`` to the node ``last``."""
        readers = self.readers.get(start, 0)
        within = self.feeding[last]
        if not within & readers:
            return []
        return [i for i in range(last + 1) if within >> i & 1 and self.feeding[i] & readers]

    def closed(self, places: list[int], end: str) -> bool:
        """Whether only ``end`` is read outside the nodes at ``places``."""
        inside = sum(1 << i for i in places)
        made = {name for i in places for name in self.graph.node[i].output} - {end}
        if any(self.readers.get(name, 0) & ~inside for name in made):
            return False
        return made.isdisjoint(info.name for info in self.graph.output)
