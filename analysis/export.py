"""A plan in terms of the source model: which positions of which weights stay, and which constants change."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from .axes import Axis, find
from .facts import BoundsBaked, CountBaked, DefaultBaked, IndicesBaked, SizesBaked, SizesRead
from .graph import Array, Constant, Node, read_node, walk_graphs
from .groups import Analysis
from .plan import Plan, select
from .selection import Selection
from .shapes import evaluate

FORMAT = "onnx-prune index lists"
VERSION = 1

# For each axis that shrinks: the positions that stay, or {"blocks": those for each block of axis 0}.
Kept: TypeAlias = dict[str, list[int] | dict[str, list[list[int]]]]
Json: TypeAlias = dict[str, Any]

# Operators that lay the elements of their first input out anew, some of them more than once.
_LAYOUT = frozenset(
    ["Cast", "Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"]
)


def index_lists(analysis: Analysis, plan: Plan, whole: Analysis | None = None) -> Json:
    """What ``plan`` keeps of each weight, by the name it had before anything was pruned.

    The same analysis and plan give the same lists in the same order. docs/finetune.md describes each entry.

    Args:
        analysis: of the model without the plan's blocks; of the model, where the plan drops none.
        whole: of the model with them. Without it the weights that go with blocks are not listed.

    Raises:
        PlanError: the plan does not fit the model.
    """
    selection = select(analysis, plan)
    lists = _Lists(analysis, selection)
    weights = lists.weights()
    return {
        "format": FORMAT,
        "version": VERSION,
        "plan": plan.digest,
        "blocks": list(plan.blocks),
        "gone": [] if whole is None else sorted(_parameters(whole) - _parameters(analysis)),
        "weights": weights,
        "attributes": list(lists.attributes()),
        "constants": [*lists.constants(), *lists.unnamed],
        "sizes": list(lists.sizes()),
    }


def to_json(lists: Json) -> str:
    """Index lists as a text with one line an entry; the same lists give the same text."""
    fields = []
    for name, value in lists.items():
        if isinstance(value, dict):
            rows = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
            text = "{\n    " + ",\n    ".join(rows) + "\n  }" if rows else "{}"
        elif isinstance(value, list):
            text = "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]" if value else "[]"
        else:
            text = json.dumps(value)
        fields.append(f"{json.dumps(name)}: {text}")
    return "{\n  " + ",\n  ".join(fields) + "\n}\n"


def sizes_after(fact: SizesBaked, old: list[int], selection: Selection) -> list[int]:
    """The entries ``old`` of a shape-like constant under ``selection``; 0, 1 and -1 keep their meaning."""
    new = []
    for k, (size, axis) in enumerate(zip(old, fact.axes, strict=True)):
        count = selection.count(axis)
        copies = size == 0 and k < len(fact.before) and selection.count(fact.before[k]) == count
        new.append(size if size == -1 or copies or (size == 1 and axis.size != 1) else count)
    return new


def moved(index: Array, source: Axis, target: Axis, selection: Selection) -> Array | None:
    """Where the picked positions that stay are among those that stay of ``source``; None when all stay."""
    kept_source, kept_target = selection.positions(source), selection.positions(target)
    if kept_source is None and kept_target is None:
        return None
    picked = index if kept_target is None else index[kept_target]
    return picked if kept_source is None else np.searchsorted(kept_source, picked)


def _parameters(analysis: Analysis) -> set[str]:
    return {
        name
        for node in analysis.walk.nodes
        for name in node.inputs
        if name in analysis.walk.constants and analysis.walk.constants[name].is_parameter
    }


def _title(node: Node) -> str:
    return node.proto.name or node.key


class _Lists:
    def __init__(self, analysis: Analysis, selection: Selection) -> None:
        self.walk = analysis.walk
        self.selection = selection
        self.unnamed: list[Json] = []  # constants that shrink and are no tensor of the source model
        self._makers = {
            output: proto
            for graph in walk_graphs(analysis.model.proto.graph)
            for proto in graph.node
            for output in proto.output
        }

    # ------------------------------------------------------------------ weights

    def weights(self) -> Json:
        """What stays of each weight of which something goes, by each name that a node reads it under."""
        found: dict[str, dict[str, Json]] = {}
        shapes: dict[str, list[int]] = {}
        stored: dict[str, str] = {}
        for node, i, constant, axes in self._uses():
            use = self._named(node, i, constant, axes)
            if use is None:
                continue
            name, shapes[name], kept = use
            if constant.tensor is not None and constant.name != name:  # read through an Identity
                stored[name] = constant.name
            copy = found.setdefault(name, {}).setdefault(json.dumps(kept), {"keep": kept, "nodes": []})
            if _title(node) not in copy["nodes"]:
                copy["nodes"].append(_title(node))
        weights: Json = {}
        for name, by_kept in found.items():
            copies = list(by_kept.values())
            if any(copy["keep"] for copy in copies):
                entry = copies[0] if len(copies) == 1 else {"copies": copies}
                origin = {"initializer": stored[name]} if name in stored else {}
                weights[name] = {"shape": shapes[name]} | origin | entry
        return weights

    def _named(
        self, node: Node, i: int, constant: Constant, axes: list[Axis]
    ) -> tuple[str, list[int], Kept] | None:
        """Name, shape and kept positions of the weight that is used here; None where the source has none."""
        kept = self._kept(axes)
        if constant.is_parameter and constant.tensor is not None:
            return node.inputs[i], list(constant.shape), kept
        source = self._traced(node.inputs[i], axes) if constant.is_parameter else None
        if source is None and kept:
            self.unnamed.append(self._place(node, i) | {"shape": list(constant.shape), "keep": kept})
        return source

    def _uses(self) -> Iterator[tuple[Node, int, Constant, list[Axis]]]:
        """Every use of a constant as data, in the order of the graph."""
        baked = {
            (fact.node.index, fact.input)
            for fact in self.walk.baked
            if isinstance(fact, SizesBaked | IndicesBaked)
        }
        for node in self.walk.nodes:
            for i, name in enumerate(node.inputs):
                constant = self.walk.constants.get(name)
                axes = self.walk.uses.get((node.index, i))
                if constant is not None and axes is not None and (node.index, i) not in baked:
                    yield node, i, constant, axes

    def _kept(self, axes: list[Axis]) -> Kept:
        kept: Kept = {}
        for k, axis in enumerate(map(find, axes)):
            if not self.selection.shrinks(axis):
                continue
            if axis.kind != "ragged":
                kept[str(k)] = self._positions(axis)
            else:
                blocks = [self._positions(part) for part in axis.parts]
                same = all(block == blocks[0] for block in blocks)
                kept[str(k)] = blocks[0] if same else {"blocks": blocks}
        return kept

    def _positions(self, axis: Axis) -> list[int]:
        kept = self.selection.positions(axis)
        return list(range(axis.size)) if kept is None else [int(position) for position in kept]

    def _traced(self, name: str, axes: list[Axis]) -> tuple[str, list[int], Kept] | None:
        """What stays of the weight that the folded constant ``name`` lays out anew: its name, shape, axes.

        None when it is made from something else, or when what stays is no choice of positions of its axes.
        """
        source = self._layout(name)
        if source is None or any(find(axis).kind == "ragged" for axis in axes):
            return None
        origin, elements = source
        shape = self.walk.constants[origin].shape
        if len(np.unique(elements)) < np.prod(shape):
            return None
        for k, axis in enumerate(axes):
            elements = elements.take(self._positions(axis), axis=k)
        left = np.unique(elements)
        places = [np.unique(found) for found in np.unravel_index(left, shape)]
        if np.prod([len(found) for found in places]) != len(left):
            return None
        kept: Kept = {str(k): p.tolist() for k, p in enumerate(places) if len(p) < shape[k]}
        return origin, list(shape), kept

    def _layout(self, name: str) -> tuple[str, Array] | None:
        """The initializer that ``name`` is a layout of, and which of its elements stands where."""
        constant = self.walk.constants.get(name)
        if constant is None:
            return None
        if constant.tensor is not None:
            return name, np.arange(constant.elements).reshape(constant.shape)
        proto = self._makers.get(name)
        if proto is None or proto.op_type not in _LAYOUT or proto.domain not in ("", "ai.onnx"):
            return None
        source = self._layout(proto.input[0])
        if source is None:
            return None
        node = read_node(0, proto)
        given = [self.walk.constants[other].value if other else None for other in node.inputs[1:]]
        elements = source[1] if node.op == "Cast" else evaluate(node, [source[1], *given])
        return None if elements is None else (source[0], elements)

    # ------------------------------------------------------------------ what sizes are baked into

    def attributes(self) -> Iterator[Json]:
        """Attributes that change, with the weights their node reads."""
        for fact in self.walk.baked:
            if isinstance(fact, CountBaked):
                before: Any = find(fact.axis).size
                after: Any = self.selection.count(fact.axis)
            elif isinstance(fact, DefaultBaked) and self.selection.shrinks(fact.axis):
                before, after = None, fact.value
            elif isinstance(fact, SizesBaked) and fact.attribute is not None:
                before = [axis.size for axis in fact.axes]
                after = sizes_after(fact, before, self.selection)
            else:
                continue
            if before != after:
                constants = (self.walk.constants.get(name) for name in fact.node.inputs)
                read = [
                    name
                    for name, constant in zip(fact.node.inputs, constants, strict=True)
                    if constant is not None and constant.is_parameter
                ]
                yield {
                    "node": _title(fact.node),
                    "op": fact.node.op,
                    "attribute": fact.attribute,
                    "before": before,
                    "after": after,
                    "weights": read,
                }

    def constants(self) -> Iterator[Json]:
        """Shapes, counts, indices and bounds that change. An entry known only at run time is null."""
        for fact in self.walk.baked:
            if isinstance(fact, SizesBaked) and fact.attribute is None:
                yield from self._shape(fact)
            elif isinstance(fact, IndicesBaked):
                positions = moved(np.array(fact.index), fact.source, fact.target, self.selection)
                if positions is not None:
                    yield self._place(fact.node, fact.input) | {
                        "before": list(fact.index),
                        "after": positions.tolist(),
                    }
            elif isinstance(fact, BoundsBaked):
                for k, picked in fact.ranges:
                    positions = moved(np.array(picked), fact.source[k], fact.target[k], self.selection)
                    if positions is not None:
                        place = {"node": _title(fact.node), "op": fact.node.op, "axis": k}
                        yield place | {"before": list(picked), "after": positions.tolist()}

    def _shape(self, fact: SizesBaked) -> Iterator[Json]:
        node = fact.node
        constant = self.walk.constants.get(node.inputs[fact.input]) if node.has(fact.input) else None
        if constant is None:
            old: list[int] = [axis.size for axis in fact.axes]
        else:
            old = [int(size) for size in constant.value.reshape(-1)]
        new = sizes_after(fact, old, self.selection)
        if new != old:
            static = None if constant is None else constant.static
            yield self._place(node, fact.input) | {
                "before": _known(old, static),
                "after": _known(new, static),
            }

    def sizes(self) -> Iterator[Json]:
        """Sizes the graph reads while it runs: what the source computes from them must stay as it was."""
        for fact in self.walk.baked:
            if isinstance(fact, SizesRead) and any(map(self.selection.shrinks, fact.axes)):
                constant = self.walk.constants[fact.node.outputs[0]]
                old = [axis.size for axis in fact.axes]
                new = [self.selection.count(axis) for axis in fact.axes]
                static = constant.static if constant.value.ndim else None
                yield {
                    "node": _title(fact.node),
                    "op": fact.node.op,
                    "tensor": fact.node.inputs[0],
                    "before": _known(old, static),
                    "after": _known(new, static),
                }

    def _place(self, node: Node, i: int) -> Json:
        tensor = node.inputs[i] if node.has(i) else None
        return {"node": _title(node), "op": node.op, "input": i, "tensor": tensor}


def _known(sizes: list[int], static: Array | None) -> list[int | None]:
    if static is None:
        return list(sizes)
    known = static.reshape(-1).tolist()
    return [size if fixed else None for size, fixed in zip(sizes, known, strict=True)]
