"""Take back the weights of a pruned model that were trained elsewhere and exported again.

Two graphs are compared from their outputs backwards: same operators, same attributes, same constants but for
floats. When that comes out, every float of the pruned model has its counterpart, whatever nodes and tensors
are called, and with the counterparts' values it computes what the trained model does. Otherwise weights are
found by name, and both models have to agree on random inputs.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx
from onnx import helper

from ..analysis.dynamic import symbols
from ..analysis.errors import ModelError
from ..analysis.graph import Constant, constant_of, folded, read_node, subgraphs, tensor_of, walk_graphs
from ..analysis.model import Model, check
from ..analysis.prepare import prepare
from ..analysis.shapes import constant_value
from .base import Pass, run_passes
from .cleanup import Cleanup
from .edit import Edit
from .execute import execute, random_inputs
from .fold import FoldConstants

# Of max|y|: exporters that fold and fuse differently round differently.
TOLERANCE = 1e-4
_STANDARD = ("", "ai.onnx")
_NAMES_TOLD = 4


class _DifferError(Exception):
    """The two models do not fit together, and why."""


def take_weights(pruned: Model, trained: Model) -> Model:
    """``pruned`` with the weights of ``trained``, the same network exported again after training.

    Names of nodes and of tensors may differ. BatchNormalization may be folded in one of them and not in the
    other: the result is folded then. Weights that ``pruned`` shares and ``trained`` does not come apart.

    Example:
        ``take_weights(load("smaller.onnx"), load("trained.onnx"))``

    Raises:
        ModelError: inputs or outputs differ, a weight has no counterpart or one of another shape, or the
            trained model computes something else.
    """
    other = prepare(trained)
    mine = prepare(pruned) if pruned.proto.functions else pruned
    _check_signature(mine.proto, other.proto)
    try:
        return _by_structure(mine, other)
    except _DifferError:
        pass
    passes: list[Pass] = [FoldConstants(), Cleanup()]
    folded_mine, folded_other = run_passes(mine, passes), run_passes(other, passes)
    try:
        return _by_structure(folded_mine, folded_other)
    except _DifferError as error:
        difference = error
    try:
        return _checked(_by_name(mine, other), trained)
    except _DifferError:
        pass
    try:
        return _checked(_by_name(folded_mine, folded_other), trained)
    except _DifferError as error:
        raise ModelError(
            f"the trained weights do not fit the pruned model: {difference}; nor by name: {error}"
        ) from None


def _by_structure(pruned: Model, trained: Model) -> Model:
    edit = Edit(pruned.proto)
    return _written(edit, _aligned(edit.proto, trained.proto), pruned)


def _by_name(pruned: Model, trained: Model) -> Model:
    edit = Edit(pruned.proto)
    return _written(edit, _named(edit.graphs, trained.proto), pruned)


def _checked(result: Model, trained: Model) -> Model:
    """``result`` when it computes what ``trained`` does."""
    sizes = dict.fromkeys((*symbols(result.proto.graph), *symbols(trained.proto.graph)), 2)
    inputs = random_inputs(result.proto, sizes=sizes)
    wanted = execute(trained.proto, inputs)
    for name, got in execute(result.proto, inputs).items():
        same = got.shape == wanted[name].shape
        scale = float(np.abs(wanted[name].astype(np.float64)).max(initial=0))
        if not same or not np.allclose(got, wanted[name], rtol=0, atol=TOLERANCE * scale, equal_nan=True):
            raise _DifferError(
                f"all weights are there, but with them output '{name}' is not what the trained model computes"
            )
    return result


# ---------------------------------------------------------------------- signature

_Sizes: TypeAlias = list[int | None] | None  # None for a size known only at run time, or for all of them


def _check_signature(pruned: onnx.ModelProto, trained: onnx.ModelProto) -> None:
    for what in ("input", "output"):
        mine, other = (_declared(proto.graph, what) for proto in (pruned, trained))
        if [name for name, _, _ in mine] != [name for name, _, _ in other]:
            raise ModelError(
                f"the pruned model has the {what}s {', '.join(name for name, _, _ in mine)}, the trained one"
                f" {', '.join(name for name, _, _ in other)}: export it with the same names"
            )
        for (name, element, sizes), (_, others_element, others_sizes) in zip(mine, other, strict=True):
            if element != others_element or not _fit(sizes, others_sizes, strict=what == "input"):
                raise ModelError(
                    f"the {what} '{name}' is {_typed(element, sizes)} in the pruned model and"
                    f" {_typed(others_element, others_sizes)} in the trained one: export it alike"
                )


def _declared(graph: onnx.GraphProto, what: str) -> list[tuple[str, int, _Sizes]]:
    """Name, element type and sizes of the inputs or outputs."""
    stored = {tensor.name for tensor in graph.initializer}
    found: list[tuple[str, int, _Sizes]] = []
    for info in graph.output if what == "output" else graph.input:
        if what == "output" or info.name not in stored:
            tensor = info.type.tensor_type
            sizes = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            found.append((info.name, tensor.elem_type, sizes if tensor.HasField("shape") else None))
    return found


def _fit(sizes: _Sizes, others: _Sizes, strict: bool) -> bool:
    """Whether sizes are the same; those of outputs may be written down in one model only."""
    if sizes is None or others is None:
        return sizes is others or not strict
    if len(sizes) != len(others):
        return False
    return all(a == b or (not strict and None in (a, b)) for a, b in zip(sizes, others, strict=True))


def _typed(element: int, sizes: _Sizes) -> str:
    name = helper.tensor_dtype_to_string(element).removeprefix("TensorProto.").lower()
    shape = "?" if sizes is None else ", ".join("?" if size is None else str(size) for size in sizes)
    return f"{name} [{shape}]"


# ---------------------------------------------------------------------- what a name stands for


@dataclass(frozen=True, eq=False)
class _Value:
    """A tensor of a graph: a constant, output ``number`` of a node, or input ``number`` of the graph."""

    name: str
    scope: _Scope
    constant: Constant | None = None
    node: onnx.NodeProto | None = None
    number: int = 0


class _Scope:
    """The names of a graph, and of those around it. Identity is looked through."""

    def __init__(self, graph: onnx.GraphProto, parent: _Scope | None = None) -> None:
        self.graph = graph
        self._parent = parent
        self._bodies: dict[int, _Scope] = {}
        self._values: dict[str, _Value] = {}
        for tensor in (*graph.initializer, *graph.sparse_initializer):
            constant = constant_of(tensor)
            self._values[constant.name] = _Value(constant.name, self, constant)
        fed = [info.name for info in graph.input if info.name not in self._values]
        for k, name in enumerate(fed):
            self._values[name] = _Value(name, self, number=k)
        for node in graph.node:
            value = _constant(node)
            for o, name in enumerate(node.output):
                self._values[name] = _Value(name, self, value, None if value else node, o)

    def resolve(self, name: str) -> _Value:
        value = self._values.get(name)
        if value is None:
            assert self._parent is not None, name  # the model was checked: something makes it
            return self._parent.resolve(name)
        if value.node is not None and value.node.op_type == "Identity" and not _domain(value.node):
            return self.resolve(value.node.input[0])
        return value

    def body(self, graph: onnx.GraphProto) -> _Scope:
        if id(graph) not in self._bodies:
            self._bodies[id(graph)] = _Scope(graph, self)
        return self._bodies[id(graph)]


def _constant(node: onnx.NodeProto) -> Constant | None:
    """The value of a Constant node; None for other nodes and for strings."""
    if node.op_type != "Constant" or _domain(node):
        return None
    attrs, name = read_node(0, node).attrs, node.output[0]
    for attribute in ("value", "sparse_value"):
        if attribute in attrs:
            return constant_of(attrs[attribute], name)
    value = constant_value(attrs)
    return None if value is None else folded(name, value)


def _domain(thing: onnx.NodeProto | onnx.OperatorSetIdProto) -> str:
    return "" if thing.domain in _STANDARD else thing.domain


def _title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"


# ---------------------------------------------------------------------- finding counterparts

_Reader: TypeAlias = tuple[onnx.NodeProto, int]  # a node and the number of its input


@dataclass(frozen=True, eq=False)
class _Pair:
    """A float constant of the pruned model and its trained value, at one place that reads it.

    Without a ``reader`` the place is an output of a graph, or all places are meant.
    """

    mine: Constant
    other: Constant
    reader: _Reader | None = None


def _aligned(pruned: onnx.ModelProto, trained: onnx.ModelProto) -> list[_Pair]:
    """The float constants that stand at the same places of two graphs.

    Raises:
        _DifferError: the graphs differ in more than these.
    """
    mine, other = _Scope(pruned.graph), _Scope(trained.graph)
    versions, others_versions = (
        {_domain(opset): opset.version for opset in proto.opset_import} for proto in (pruned, trained)
    )
    found: list[_Pair] = []
    seen: set[tuple[int, int]] = set()
    scopes: set[tuple[_Scope, _Scope]] = set()
    todo: list[tuple[_Value, _Value, _Reader | None]] = []

    def enter(one: _Scope, two: _Scope) -> None:
        scopes.add((one, two))
        for a, b in zip(one.graph.output, two.graph.output, strict=True):
            todo.append((one.resolve(a.name), two.resolve(b.name), None))

    enter(mine, other)
    while todo:
        a, b, reader = todo.pop()
        if a.constant is not None and b.constant is not None:
            if _compare(a.constant, b.constant):
                found.append(_Pair(a.constant, b.constant, reader))
        elif a.node is not None and b.node is not None:
            if (id(a.node), id(b.node)) not in seen:
                seen.add((id(a.node), id(b.node)))
                _compare_nodes(a.node, b.node, versions, others_versions)
                for i, (x, y) in enumerate(zip(_inputs(a.node), _inputs(b.node), strict=True)):
                    if x:
                        todo.append((a.scope.resolve(x), b.scope.resolve(y), (a.node, i)))
                for inner, others_inner in zip(subgraphs(a.node), subgraphs(b.node), strict=True):
                    enter(a.scope.body(inner), b.scope.body(others_inner))
            if a.number != b.number:
                raise _DifferError(f"'{a.name}' and '{b.name}' are different outputs of their nodes")
        elif _told(a) != _told(b) or (a.scope, b.scope) not in scopes or a.number != b.number:
            raise _DifferError(f"the pruned model has {_told(a)} where the trained one has {_told(b)}")
    return found


def _told(value: _Value) -> str:
    if value.constant is not None:
        return f"the constant '{value.name}'"
    return "an input" if value.node is None else _title(value.node)


def _inputs(node: onnx.NodeProto) -> list[str]:
    """Inputs without the optional ones that are left out at the end."""
    names = list(node.input)
    while names and not names[-1]:
        names.pop()
    return names


def _compare(mine: Constant, other: Constant) -> bool:
    """Whether the constants are floats, which may differ in their values.

    Raises:
        _DifferError: they have different shapes or types, or are no floats and have different values.
    """
    if mine.shape != other.shape or mine.dtype != other.dtype:
        raise _DifferError(_mismatch(mine, other))
    if mine.is_float:
        return True
    if not np.array_equal(mine.value, other.value):
        raise _DifferError(f"'{mine.name}' and '{other.name}' are no floats and have different values")
    return False


def _mismatch(mine: Constant, other: Constant) -> str:
    return (
        f"'{mine.name}' is {mine.dtype.name} {list(mine.shape)} in the pruned model, and '{other.name}'"
        f" {other.dtype.name} {list(other.shape)} in the trained one"
    )


def _compare_nodes(
    mine: onnx.NodeProto, other: onnx.NodeProto, versions: dict[str, int], others_versions: dict[str, int]
) -> None:
    """Hold that two nodes are the same but for names and for what they read.

    Raises:
        _DifferError: they are not.
    """
    if _form(mine) != _form(other):
        raise _DifferError(f"the pruned model has {_title(mine)} where the trained one has {_title(other)}")
    attributes, others = _attributes(mine, versions), _attributes(other, others_versions)
    for name in sorted(attributes.keys() | others.keys()):
        if attributes.get(name) != others.get(name):
            raise _DifferError(f"attribute '{name}' of {_title(mine)} and {_title(other)} differs")


def _form(node: onnx.NodeProto) -> tuple[str, str, list[bool], list[tuple[int, int]]]:
    """Operator, which inputs are there, and how many inputs and outputs the bodies have."""
    bodies = [(len(body.input), len(body.output)) for body in subgraphs(node)]
    return node.op_type, _domain(node), [bool(name) for name in _inputs(node)], bodies


def _attributes(node: onnx.NodeProto, versions: dict[str, int]) -> dict[str, bytes]:
    """Attributes that are no graphs and not at their default."""
    domain = _domain(node)
    defaults = _defaults(node.op_type, versions.get(domain, 1), domain)
    graphs = onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS
    found = {a.name: _plain(a) for a in node.attribute if a.type not in graphs}
    return {name: value for name, value in found.items() if defaults.get(name) != value}


@functools.cache
def _defaults(op: str, version: int, domain: str) -> dict[str, bytes]:
    try:
        schema = onnx.defs.get_schema(op, version, domain)
    except onnx.defs.SchemaError:
        return {}
    return {name: _plain(attribute.default_value) for name, attribute in schema.attributes.items()}


def _plain(attribute: onnx.AttributeProto) -> bytes:
    """An attribute's value, without what it and its tensor are called."""
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    if copy.type == onnx.AttributeProto.TENSOR:
        copy.t.CopyFrom(tensor_of(constant_of(copy.t).value, ""))
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def _named(graphs: list[onnx.GraphProto], trained: onnx.ModelProto) -> list[_Pair]:
    """The float initializers of the pruned ``graphs`` and those of the same names in the trained model.

    Raises:
        _DifferError: some are missing, or have other shapes or types.
    """
    others: dict[str, Constant] = {}
    for graph in walk_graphs(trained.graph):
        others.update((tensor.name, constant_of(tensor)) for tensor in graph.initializer)
        for node in graph.node:  # exporters store equal tensors once, under other names behind Identity
            if node.op_type == "Identity" and node.input[0] in others:
                others[node.output[0]] = others[node.input[0]]
    found: list[_Pair] = []
    missing: list[str] = []
    wrong: list[str] = []
    for tensor in (tensor for graph in graphs for tensor in graph.initializer):
        mine, other = constant_of(tensor), others.get(tensor.name)
        if not mine.is_float:
            continue
        if other is None:
            missing.append(f"'{mine.name}'")
        elif mine.shape != other.shape or mine.dtype != other.dtype:
            wrong.append(_mismatch(mine, other))
        else:
            found.append(_Pair(mine, other))
    told = wrong[:_NAMES_TOLD]
    if missing:
        more = f" and {len(missing) - _NAMES_TOLD} more" if len(missing) > _NAMES_TOLD else ""
        told.append(f"the trained model has no {', '.join(missing[:_NAMES_TOLD])}{more}")
    if told:
        raise _DifferError("; ".join(told))
    return found


# ---------------------------------------------------------------------- writing


def _written(edit: Edit, pairs: list[_Pair], pruned: Model) -> Model:
    """The edited model with trained values; places that get the same value share one tensor as before."""
    places: dict[int, list[_Pair]] = {}
    for pair in pairs:
        places.setdefault(id(pair.mine), []).append(pair)
    for group in places.values():
        apart = _distinct(group)
        stored = group[0].mine.tensor
        if isinstance(stored, onnx.TensorProto):
            stored.CopyFrom(_renamed(apart.pop(0)[0].other, stored.name))
        for alike in apart:  # also numbers in attributes and sparse tensors, which cannot be written over
            name = edit.constant(alike[0].other.value, f"{alike[0].mine.name}.trained")
            for pair in alike:
                if pair.reader is None:
                    raise _DifferError(f"an output of the pruned model is the constant '{pair.mine.name}'")
                edit.set_input(*pair.reader, name)
    proto = edit.finish(removable=lambda node: node.op_type == "Identity" and not _domain(node))
    check(proto)
    return Model(proto, pruned.path)


def _distinct(pairs: list[_Pair]) -> list[list[_Pair]]:
    """The pairs in sets of equal trained values; the set of an output of a graph first."""
    if len({id(pair.other) for pair in pairs}) == 1:
        return [pairs]
    found: dict[bytes, list[_Pair]] = {}
    for pair in sorted(pairs, key=lambda pair: pair.reader is not None):
        found.setdefault(pair.other.value.tobytes(), []).append(pair)
    return list(found.values())


def _renamed(constant: Constant, name: str) -> onnx.TensorProto:
    if not isinstance(constant.tensor, onnx.TensorProto):
        return tensor_of(constant.value, name)
    tensor = onnx.TensorProto()
    tensor.CopyFrom(constant.tensor)
    tensor.name = name
    return tensor
