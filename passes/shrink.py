"""Apply a plan: slice weights, rewrite the constants a size is baked into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from ..analysis.axes import Axis, find
from ..analysis.facts import Baked, BoundsBaked, CountBaked, DefaultBaked, IndicesBaked, SizesBaked, SizesRead
from ..analysis.graph import Constant, Node
from ..analysis.groups import Analysis, analyze
from ..analysis.memory import keeps_all
from ..analysis.model import Model
from ..analysis.plan import Plan, select
from ..analysis.selection import Selection
from ..analysis.walk import Walk
from .edit import Edit, node_key

Array = NDArray[Any]


@dataclass(frozen=True)
class Shrink:
    """The pass that removes the channels of a plan.

    Attributes:
        analysis: of the model, where there is one already.

    Raises (when called):
        PlanError: the plan does not fit the model.
    """

    plan: Plan
    analysis: Analysis | None = None

    @keeps_all
    def __call__(self, model: Model) -> Model:
        analysis = self.analysis or analyze(model)
        return Model(_Shrinker(analysis, select(analysis, self.plan)).run(), model.path)


def shrink(model: Model, plan: Plan, analysis: Analysis | None = None) -> Model:
    """`Shrink` as a function."""
    return Shrink(plan, analysis)(model)


def slice_axes(value: Array, axes: list[Axis], selection: Selection) -> Array:
    """The kept positions of a constant: ragged axes block by block, the others at once."""
    for k, axis in enumerate(axes):
        if find(axis).kind != "ragged":
            kept = selection.positions(axis)
            if kept is not None and k > 0:
                value = value.take(kept, axis=k)
    rows = selection.positions(axes[0]) if axes else None
    blocks = next(((k, find(a)) for k, a in enumerate(axes) if find(a).kind == "ragged"), None)
    if blocks is None:
        return value if rows is None else value.take(rows, axis=0)
    along, ragged = blocks
    per_block = value.shape[0] // len(ragged.parts)
    rows = np.arange(value.shape[0]) if rows is None else rows
    pieces = []
    for g, part in enumerate(ragged.parts):
        piece = value[rows[rows // per_block == g]]
        kept = selection.positions(part)
        pieces.append(piece if kept is None else piece.take(kept, axis=along))
    return np.concatenate(pieces)


class _Shrinker:
    def __init__(self, analysis: Analysis, selection: Selection) -> None:
        self.walk: Walk = analysis.walk
        self.selection = selection
        self.edit = Edit(analysis.model.proto)
        self.original_of: dict[str, str] = {}  # new initializer -> the one it was sliced from
        self._signatures: dict[Axis, Any] = {}
        self._made: dict[Any, str] = {}  # constant and what is kept of it -> new initializer

    def run(self) -> onnx.ModelProto:
        handled = {fact: self._rewrite(fact) for fact in self.walk.baked}
        baked = {(f.node.index, i) for f, inputs in handled.items() for i in inputs}
        nodes = {node.index: node for node in self.walk.nodes}
        for (index, i), axes in self.walk.uses.items():
            if (index, i) not in baked:
                self._rewrite_use(nodes[index], i, axes)
        walked = {node.key for node in self.walk.nodes}
        proto = self.edit.finish(removable=lambda n: node_key(n) not in walked)
        self._restore_names(proto)
        self._update_shapes()
        return proto

    # ------------------------------------------------------------------ weights

    def _rewrite_use(self, node: Node, i: int, axes: list[Axis]) -> None:
        if not any(map(self.selection.shrinks, axes)):
            return
        constant = self.walk.constants[node.inputs[i]]
        proto = self.edit.nodes[node.key]
        if constant.static is None:
            self.edit.set_input(proto, i, self._sliced(constant, axes))
            return
        for k, axis in enumerate(axes):  # computed from sizes known only at run time: picked from there
            kept = self.selection.positions(axis)
            if kept is not None:
                key = node.key
                index = self.edit.constant(kept, f"{key}.kept")
                picked = self.edit.insert_before(
                    key, "Gather", [proto.input[i], index], f"{key}.picked", axis=k
                )
                self.edit.set_input(proto, i, picked)

    def _sliced(self, constant: Constant, axes: list[Axis]) -> str:
        """One tensor for all uses that keep the same positions."""
        signature = (constant.name, tuple(self._signature(axis) for axis in axes))
        if signature not in self._made:
            value = slice_axes(constant.value, axes, self.selection)
            name = self.edit.constant(value, f"{constant.name}.pruned")
            self._made[signature] = name
            if constant.tensor is not None:
                self.original_of[name] = constant.name
        return self._made[signature]

    def _signature(self, axis: Axis) -> Any:
        axis = find(axis)
        if axis not in self._signatures:
            if axis.kind == "ragged":
                self._signatures[axis] = tuple(self._signature(part) for part in axis.parts)
            else:
                kept = self.selection.positions(axis)
                self._signatures[axis] = None if kept is None else kept.tobytes()
        return self._signatures[axis]

    def _restore_names(self, proto: onnx.ModelProto) -> None:
        """A sliced weight takes its old name back when nothing reads the whole one any more."""
        present = {t.name for t in proto.graph.initializer}
        taken = {name for g in self.edit.graphs for node in g.node for name in (*node.input, *node.output)}
        taken.update(output.name for output in proto.graph.output)
        names: dict[str, str] = {}
        for new, old in self.original_of.items():
            if new in present and old not in taken:
                names[new] = old
                taken.add(old)
        self.edit.rename_initializers(names)

    # ------------------------------------------------------------------ baked sizes

    def _rewrite(self, fact: Baked) -> tuple[int, ...]:
        """Rewrite one fact; the inputs it has taken care of."""
        proto = self.edit.nodes[fact.node.key]
        if isinstance(fact, CountBaked):
            _set_attribute(proto, fact.attribute, self.selection.count(fact.axis))
            return ()
        if isinstance(fact, DefaultBaked):
            if self.selection.shrinks(fact.axis):
                _set_attribute(proto, fact.attribute, fact.value)
            return ()
        if isinstance(fact, SizesBaked):
            return self._rewrite_sizes(fact, proto)
        if isinstance(fact, IndicesBaked):
            return self._rewrite_indices(fact, proto)
        if isinstance(fact, SizesRead):
            self._restore_sizes(fact, proto)
            return ()
        return self._rewrite_bounds(fact, proto)

    def _restore_sizes(self, fact: SizesRead, proto: onnx.NodeProto) -> None:
        """Let the graph go on computing with the sizes from before: where they count, they are rewritten."""
        if not any(self.selection.shrinks(axis) for axis in fact.axes):
            return
        constant = self.walk.constants[fact.node.outputs[0]]
        key, output = node_key(proto), proto.output[0]
        old = self.edit.constant(constant.value, f"{key}.old")
        now = self.edit.rename_output(proto, 0, f"{key}.now")
        if constant.static is None:
            self.edit.insert_after(key, "Identity", [old], output)
        elif constant.value.ndim:
            mask = self.edit.constant(constant.static, f"{key}.static")
            self.edit.insert_after(key, "Where", [mask, old, now], output)
        else:  # a Size: as many times more as there were positions
            shrunk = [axis for axis in fact.axes if self.selection.shrinks(axis)]
            was = self.edit.constant(np.array(math.prod(axis.size for axis in shrunk)), f"{key}.was")
            left = self.edit.constant(
                np.array(math.prod(self.selection.count(axis) for axis in shrunk)), f"{key}.left"
            )
            more = self.edit.fresh(f"{key}.more")
            self.edit.insert_after(key, "Mul", [now, was], more)
            self.edit.insert_after(key, "Div", [more, left], output)

    def _rewrite_sizes(self, fact: SizesBaked, proto: onnx.NodeProto) -> tuple[int, ...]:
        count = self.selection.count
        node = fact.node
        constant = self.walk.constants.get(node.inputs[fact.input]) if node.has(fact.input) else None
        if not any(self.selection.shrinks(axis) for axis in (*fact.axes, *fact.before)):
            return ()
        if constant is not None:
            old = [int(v) for v in constant.value.reshape(-1)]
        else:
            old = [axis.size for axis in fact.axes]
        new = []
        for k, (size, axis) in enumerate(zip(old, fact.axes, strict=True)):
            copies = size == 0 and k < len(fact.before) and count(fact.before[k]) == count(axis)
            new.append(size if size == -1 or copies or (size == 1 and axis.size != 1) else count(axis))
        if fact.attribute is not None:
            _set_attribute(proto, fact.attribute, new)
            return ()
        static = None if constant is None else constant.static
        if static is not None and node.op == "Reshape" and -1 not in new and (~static).sum() == 1:
            new = [size if known else -1 for size, known in zip(new, static, strict=True)]
            static = None
        self._write_ints(proto, fact.input, new, static, old)
        _drop_attribute(proto, "num_outputs")
        return (fact.input,)

    def _write_ints(
        self,
        proto: onnx.NodeProto,
        i: int,
        new: list[int],
        static: NDArray[np.bool_] | None = None,
        old: list[int] | None = None,
    ) -> None:
        """Write integers to input ``i``; those not ``static`` stay computed, in proportion to ``old``."""
        key = node_key(proto)
        values = self.edit.constant(np.array(new, np.int64), f"{key}.new")
        if static is not None and not static.all():
            computed = self.edit.insert_before(
                key, "Cast", [proto.input[i]], f"{key}.computed", to=onnx.TensorProto.INT64
            )
            shrunk = [
                not known and now != was for known, now, was in zip(static, new, old or new, strict=True)
            ]
            if any(shrunk):
                for op, factors in (("Mul", new), ("Div", old or new)):
                    factor = [f if s else 1 for f, s in zip(factors, shrunk, strict=True)]
                    by = self.edit.constant(np.array(factor, np.int64), f"{key}.by")
                    computed = self.edit.insert_before(key, op, [computed, by], f"{key}.scaled")
            mask = self.edit.constant(static, f"{key}.static")
            values = self.edit.insert_before(key, "Where", [mask, values, computed], f"{key}.sizes")
        self.edit.set_input(proto, i, values)

    def _rewrite_indices(self, fact: IndicesBaked, proto: onnx.NodeProto) -> tuple[int, ...]:
        positions = self._moved(np.array(fact.index), fact.source, fact.target)
        if positions is None:
            return ()
        positions = positions.reshape([self.selection.count(axis) for axis in fact.axes])
        name = self.edit.constant(positions, f"{node_key(proto)}.indices")
        self.edit.set_input(proto, fact.input, name)
        return (fact.input,)

    def _moved(self, index: Array, source: Axis, target: Axis) -> Array | None:
        """Where the picked positions that stay are among those that stay of the source."""
        kept_source, kept_target = self.selection.positions(source), self.selection.positions(target)
        if kept_source is None and kept_target is None:
            return None
        picked = index if kept_target is None else index[kept_target]
        if kept_source is None:
            return picked
        return np.searchsorted(kept_source, picked)

    def _rewrite_bounds(self, fact: BoundsBaked, proto: onnx.NodeProto) -> tuple[int, ...]:
        moved = {
            k: self._moved(np.array(positions), fact.source[k], fact.target[k])
            for k, positions in fact.ranges
        }
        if all(positions is None for positions in moved.values()):
            return ()
        key = node_key(proto)
        entries: list[tuple[int, int, int, int]] = []  # start, end, axis, step
        for k, positions in fact.ranges:
            new = moved[k]
            run = positions if new is None else _as_range(new)
            if run is None:  # what stays is not evenly spaced any more: pick it one by one
                assert new is not None
                index = self.edit.constant(new, f"{key}.indices")
                data = self.edit.insert_before(
                    key, "Gather", [proto.input[0], index], f"{key}.picked", axis=k
                )
                self.edit.set_input(proto, 0, data)
                run = range(len(new))
            stop = run.stop if run.stop >= 0 else np.iinfo(np.int64).min
            entries.append((run.start, stop, k, run.step))
        starts, ends, axes, steps = ([entry[c] for entry in entries] for c in range(4))
        if self.walk.opset < 10:
            if set(steps) != {1}:
                raise AssertionError("a Slice before opset 10 has no steps")
            for name, column in (("starts", starts), ("ends", ends), ("axes", axes)):
                _set_attribute(proto, name, column)
            return ()
        self._write_ints(proto, 1, starts, self.walk.static(fact.node, 1))
        self._write_ints(proto, 2, ends, self.walk.static(fact.node, 2))
        self._write_ints(proto, 3, axes)
        self._write_ints(proto, 4, steps)
        return (1, 2, 3, 4)

    # ------------------------------------------------------------------ declared shapes

    def _update_shapes(self) -> None:
        """Shapes written down for intermediate tensors, bodies, and weights that are inputs with defaults."""
        for graph in self.edit.graphs:
            weights = {t.name: t for t in graph.initializer}
            for info in [*graph.value_info, *graph.input, *graph.output]:
                dims = info.type.tensor_type.shape.dim
                if info.name in weights:
                    for dim, size in zip(dims, weights[info.name].dims, strict=False):
                        dim.dim_value = size
                else:
                    for dim, axis in zip(dims, self.walk.axes_of.get(info.name) or (), strict=False):
                        if dim.HasField("dim_value") and self.selection.shrinks(axis):
                            dim.dim_value = self.selection.count(axis)


def _as_range(positions: Array) -> range | None:
    """Evenly spaced positions as a range, or None."""
    if len(positions) == 1:
        return range(int(positions[0]), int(positions[0]) + 1)
    steps = np.diff(positions)
    step = int(steps[0])
    if step == 0 or (steps != step).any():
        return None
    return range(int(positions[0]), int(positions[-1]) + step, step)


def _set_attribute(node: onnx.NodeProto, name: str, value: int | float | list[int]) -> None:
    _drop_attribute(node, name)
    node.attribute.append(helper.make_attribute(name, value))


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    for i in reversed(range(len(node.attribute))):
        if node.attribute[i].name == name:
            del node.attribute[i]
