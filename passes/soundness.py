"""Is a rule sound? Found out by running the operator on tensors in which every position has its own label.

A *bench* is built around the model that holds the operator: each of its inputs is read from a weight all of
whose axes are free, and each output goes into one, so that nothing is pinned but by rules. Units are then
removed as in any model, and the smaller operator is compared with the masked original (`passes.verify`)
position by position: the weights of the bench hold the number of each position, and what is left of them
after shrinking says which positions the rules think stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from ..analysis.axes import Axis, unify
from ..analysis.errors import PlanError, UsageError
from ..analysis.graph import Node
from ..analysis.groups import Analysis, Group
from ..analysis.model import Model
from ..analysis.plan import Entry, Plan, select
from ..analysis.prepare import prepare
from ..analysis.rules.registry import Outputs, Rule, all_rules
from ..analysis.walk import Walk
from .execute import execute
from .shrink import shrink
from .verify import TOLERANCE, masked_original

Array: TypeAlias = NDArray[Any]
Executor: TypeAlias = Callable[[onnx.ModelProto, Mapping[str, Array]], Mapping[str, Array]]
Kind: TypeAlias = Literal["no rule", "shape", "pinned", "fails", "leak", "differs"]

_DOMAIN = "onnx_prune.soundness"
_MIXES = 4  # selections of half of all units at once


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a rule.

    Attributes:
        kind: "no rule": no rule fits the operator. "shape": an output has other sizes than the rule says.
            "pinned": an axis that was said to be free is not. "fails": the operator without the units, or its
            masked original, does not run. "leak": what is removed has an influence on what stays.
            "differs": what is left computes something else.
        message: which units were removed from which axes, and what came out.
    """

    kind: Kind
    message: str


def reference(*operators: type[OpRun]) -> Executor:
    """An executor for operators that ONNX Runtime does not have: ONNX's reference evaluator with these."""

    def run(proto: onnx.ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array]:
        evaluator = ReferenceEvaluator(proto, new_ops=list(operators))
        return dict(zip(evaluator.output_names, evaluator.run(None, dict(inputs)), strict=True))

    return run


def model_of(node: onnx.NodeProto, inputs: Mapping[str, Sequence[int] | Array], opset: int = 17) -> Model:
    """A model of one node. Inputs given as a shape are float32 inputs, those given as arrays weights."""
    given: dict[str, Array] = {}
    asked: list[onnx.ValueInfoProto] = []
    for name, value in inputs.items():
        if isinstance(value, np.ndarray):
            given[name] = value
        else:
            asked.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(value)))
    graph = helper.make_graph(
        [node],
        "rule",
        asked,
        [onnx.ValueInfoProto(name=name) for name in node.output if name],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    if node.domain not in ("", "ai.onnx"):
        opsets.append(helper.make_opsetid(node.domain, 1))
    return Model(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def check_rule(
    model: Model,
    rules: Mapping[str, Rule] | None = None,
    *,
    executor: Executor = execute,
    feeds: Mapping[str, Array] | None = None,
    free: Sequence[str] = (),
    units: int = 16,
    seed: int = 0,
) -> list[Finding]:
    """Look for models of pruning in which the rules of the operators of ``model`` are wrong.

    Every unit that the rules leave free (at most ``units`` a group) is removed by itself, then halves of all
    groups at once. Each time, other values at the removed positions must leave every kept position of every
    output as it is, except through contractions and normalisations that the rules declared; and the smaller
    operator must compute what the masked original has at the kept positions.

    Args:
        model: a model, best with little else than the operator; `model_of` makes one of a node. Sizes are
            static. Choose sizes that are all different, and again all equal.
        rules: used beside the installed ones and before them.
        executor: runs a model on inputs by name and returns its outputs by name. The default is ONNX
            Runtime; `reference` makes one for operators it does not have.
        feeds: values of inputs where arbitrary numbers make no sense, such as indices.
        free: axes of inputs and outputs that must be free to shrink, as "tensor:axis".
        units: how many units of each group are tried.

    Returns:
        What is wrong, the first selection for each kind and group; empty when nothing was found.

    Raises:
        UsageError: the model has sizes that are known only at run time, or ``free`` names no such axis.
        ModelError: the model does not run.
    """
    bench = _Bench(model, {**all_rules(), **(rules or {})}, executor, dict(feeds or {}), seed)
    findings = bench.sizes() or [*bench.fit(), *bench.pinned(free)]
    if findings:
        return findings
    seen: set[tuple[Kind, str]] = set()
    for about, plan in bench.single_units(units):
        finding = bench.judge(plan)
        if finding is not None and (finding.kind, about) not in seen:
            seen.add((finding.kind, about))
            findings.append(finding)
    if not findings:  # many at once tell less of what is wrong
        findings = list(filter(None, map(bench.judge, bench.mixes())))[:1]
    return findings


def _feed(walk: Walk, node: Node) -> Outputs:
    return [walk.axes(node, 0)[1:]]


def _take(walk: Walk, node: Node) -> Outputs:
    for mine, theirs in zip(walk.axes(node, 0), walk.axes(node, 1)[1:], strict=True):
        unify(mine, theirs)
    return [[]]


_BENCH_RULES: dict[str, Rule] = {f"{_DOMAIN}::Feed": _feed, f"{_DOMAIN}::Take": _take}


class _Bench:
    """The model between weights of labels, analysed; shrunk and masked versions of it are run bare."""

    def __init__(
        self, model: Model, rules: Mapping[str, Rule], executor: Executor, feeds: dict[str, Array], seed: int
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.executor = executor
        self.proto = prepare(model).proto
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        self.inputs = {info.name: info for info in self.proto.graph.input if info.name not in weights}
        self.outputs = [output.name for output in self.proto.graph.output]
        self.values = {name: feeds.get(name, self._labels(info)) for name, info in self.inputs.items()}
        self.fixed = set(feeds)
        self.run_whole = executor(self.proto, self.values)
        self.built = Model(self._build())
        self.analysis = Analysis(self.built, Walk(self.built.proto, {**rules, **_BENCH_RULES}))

    def _labels(self, info: onnx.ValueInfoProto) -> Array:
        """Different numbers around zero at all positions."""
        dims = info.type.tensor_type.shape.dim
        if not info.type.tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in dims):
            raise UsageError(f"the input '{info.name}' has sizes known only at run time: make them static")
        shape = [d.dim_value for d in dims]
        return self._fill(shape, helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))

    def _fill(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        count = int(np.prod(shape))
        numbers: Array = self.rng.permutation(count).reshape(shape)
        if dtype.kind == "b":
            numbers = numbers % 2
        elif dtype.kind not in "iu":
            numbers = (numbers + 0.5) * (4 / max(count, 1)) - 2 + 1 / 64
        filled: Array = numbers.astype(dtype)
        return filled

    def _build(self) -> onnx.ModelProto:
        """Feed(labels) → model → Take(labels): a label is the number of a position in row-major order."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        graph = proto.graph
        before, after = [], []
        for name, info in self.inputs.items():
            graph.value_info.append(info)
            before.append(self._stand(graph, "Feed", [], name, self.values[name].shape))
        for name in self.outputs:
            after.append(self._stand(graph, "Take", [name], f"{name}.taken", self.run_whole[name].shape))
        nodes = [*before, *graph.node, *after]
        kept = [info for info in graph.input if info.name not in self.inputs]
        del graph.node[:], graph.input[:], graph.output[:]
        graph.node.extend(nodes)
        graph.input.extend(kept)
        graph.output.extend(onnx.ValueInfoProto(name=node.output[0]) for node in after)
        proto.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
        return proto

    def _stand(
        self, graph: onnx.GraphProto, op: str, inputs: list[str], output: str, shape: Sequence[int]
    ) -> onnx.NodeProto:
        # An axis of one position in front gives a vector two axes: groups are not named after vectors.
        labels = np.arange(np.prod(shape), dtype=np.float64).reshape(1, *shape)
        name = _labels_of(inputs[0] if inputs else output)
        graph.initializer.append(numpy_helper.from_array(labels, name))
        return helper.make_node(op, [*inputs, name], [output], domain=_DOMAIN)

    # ------------------------------------------------------------------ what rules say

    def sizes(self) -> list[Finding]:
        found = []
        for name in self.outputs:
            types = self.analysis.walk.axes_of.get(name)
            real = self.run_whole[name].shape
            if types is not None and tuple(axis.size for axis in types) != real:
                told = tuple(axis.size for axis in types)
                message = f"the rules say that '{name}' has the shape {told}, the operator makes {real}"
                found.append(Finding("shape", message))
        return found

    def fit(self) -> list[Finding]:
        return [
            Finding("no rule", why)
            for operator, why in self.analysis.walk.unknown.items()
            if operator not in _BENCH_RULES
        ]

    def pinned(self, free: Sequence[str]) -> list[Finding]:
        found = []
        pins = {(pin.tensor, pin.axis): pin.reason for pin in self.analysis.pins}
        for place in free:
            name, _, k = place.rpartition(":")
            known = {**self.values, **self.run_whole}
            if name not in known or not k.isdecimal() or int(k) >= known[name].ndim:
                raise UsageError(f"'{place}' is no axis of an input or output: write TENSOR:AXIS")
            reason = pins.get((_labels_of(name), int(k) + 1))
            if reason is not None:
                found.append(Finding("pinned", f"'{name}' axis {k} cannot shrink: {reason}"))
        return found

    # ------------------------------------------------------------------ choosing units

    def single_units(self, units: int) -> Iterator[tuple[str, Plan]]:
        """Plans that remove one unit, each with its group."""
        for groups in self._sets():
            size = min(group.size for group in groups)
            for unit in np.unique(np.linspace(0, size - 1, min(units, size)).astype(int)):
                # Siblings keep equal numbers, not the same units.
                gone = {group: [(unit + k) % size] for k, group in enumerate(groups)}
                yield groups[0].id, self._plan(gone)

    def mixes(self) -> Iterator[Plan]:
        """Plans that remove half of everything."""
        sets = self._sets()
        for _ in range(_MIXES if sets else 0):
            gone: dict[Group, Sequence[int]] = {}
            for groups in sets:
                count = min(group.size for group in groups) // 2
                gone |= {g: self.rng.choice(g.size, count, replace=False).tolist() for g in groups}
            yield self._plan(gone)

    def _sets(self) -> list[list[Group]]:
        """Groups, those that must keep equal numbers together."""
        groups = {group.axis: group for group in self.analysis.groups}
        joined: dict[Axis, Axis] = {axis: axis for axis in groups}
        for axes, _ in self.analysis.same_counts():
            known = [axis for axis in axes if axis in groups]
            old = {joined[axis] for axis in known}
            joined = {axis: known[0] if root in old else root for axis, root in joined.items()}
        sets: dict[Axis, list[Group]] = {}
        for axis, root in joined.items():
            sets.setdefault(root, []).append(groups[axis])
        return list(sets.values())

    def _plan(self, gone: Mapping[Group, Sequence[int]]) -> Plan:
        return Plan(
            tuple(
                Entry(g.id, g.size, tuple(int(i) for i in np.delete(np.arange(g.size), list(units))))
                for g, units in gone.items()
            ),
            {},
        )

    # ------------------------------------------------------------------ running

    def judge(self, plan: Plan) -> Finding | None:
        """The first thing that is wrong with what the rules make of ``plan``."""
        try:
            selection = select(self.analysis, plan)
        except PlanError:
            return None  # it would leave nothing of an axis
        smaller = shrink(self.built, plan, self.analysis).proto
        kept = {name: self._kept(smaller, name) for name in (*self.inputs, *self.outputs)}
        removed = self._told(kept)
        masked = masked_original(self.analysis, selection)
        try:
            wanted = self.executor(self._bare(masked, self.values), self.values)
            others = self._elsewhere(kept)
            shaken = self.executor(self._bare(masked, others), others)
        except Exception as error:  # of an executor, which is anybody's
            return Finding(
                "fails", f"{removed}: the masked original does not run, a fact is misplaced: {_line(error)}"
            )
        for name in self.outputs:
            if wanted[name].shape != self.run_whole[name].shape:
                shapes = f"{wanted[name].shape} instead of {self.run_whole[name].shape}"
                told = f"{removed}: masked, '{name}' has the shape {shapes}, a fact is misplaced"
                return Finding("fails", told)
            old, new = (run[name].reshape(-1)[kept[name]] for run in (wanted, shaken))
            if not _close(new, old):
                return Finding("leak", f"{removed}: {self._leak(name, kept, old, new)}")
        given = {name: self.values[name].reshape(-1)[kept[name]] for name in self.inputs}
        try:
            got = self.executor(self._bare(smaller, given), given)
        except Exception as error:
            advice = "an axis that must shrink with them, or a size written in the node, is missing"
            return Finding("fails", f"{removed}: the operator no longer runs, {advice}: {_line(error)}")
        for name in self.outputs:
            expected = wanted[name].reshape(-1)[kept[name]]
            if got[name].shape != expected.shape:
                return Finding(
                    "shape",
                    f"{removed}: '{name}' should have the shape {expected.shape}, the operator makes"
                    f" {got[name].shape}",
                )
            if not _close(got[name], expected):
                return Finding("differs", f"{removed}: {self._difference(name, kept, got[name], expected)}")
        return None

    def _kept(self, smaller: onnx.ModelProto, name: str) -> NDArray[np.int64]:
        """Numbers of the kept positions of an input or output, in the shape that is left of it."""
        labels = next(t for t in smaller.graph.initializer if t.name == _labels_of(name))
        numbers: NDArray[np.int64] = numpy_helper.to_array(labels)[0].astype(np.int64)
        return numbers

    def _bare(self, proto: onnx.ModelProto, values: Mapping[str, Array]) -> onnx.ModelProto:
        """The model without the bench: its own inputs and outputs again."""
        bare = onnx.ModelProto()
        bare.CopyFrom(proto)
        graph = bare.graph
        nodes = [node for node in graph.node if node.domain != _DOMAIN]
        labels = {_labels_of(name) for name in (*self.inputs, *self.outputs)}
        weights = [tensor for tensor in graph.initializer if tensor.name not in labels]
        del graph.node[:], graph.initializer[:], graph.output[:], graph.value_info[:]
        graph.node.extend(nodes)
        graph.initializer.extend(weights)
        for name, info in self.inputs.items():
            kind = info.type.tensor_type.elem_type
            graph.input.append(helper.make_tensor_value_info(name, kind, values[name].shape))
        for output in self.proto.graph.output:
            kind = output.type.tensor_type.elem_type
            if kind:
                graph.output.append(helper.make_tensor_value_info(output.name, kind, None))
            else:
                graph.output.append(onnx.ValueInfoProto(name=output.name))
        del bare.opset_import[:]
        bare.opset_import.extend(o for o in proto.opset_import if o.domain != _DOMAIN)
        return bare

    def _elsewhere(self, kept: Mapping[str, NDArray[np.int64]]) -> dict[str, Array]:
        """The inputs with other values at the removed positions."""
        out = {}
        for name, value in self.values.items():
            other = value.copy() if name in self.fixed else self._fill(value.shape, value.dtype)
            other.reshape(-1)[kept[name]] = value.reshape(-1)[kept[name]]
            out[name] = other
        return out

    # ------------------------------------------------------------------ telling

    def _told(self, kept: Mapping[str, NDArray[np.int64]]) -> str:
        """Which positions of which axes go."""
        places = []
        for name in (*self.inputs, *self.outputs):
            shape = {**self.run_whole, **self.values}[name].shape
            for k, size in enumerate(shape):
                stays = np.unique(np.unravel_index(kept[name], shape)[k])
                if len(stays) < size:
                    gone = np.setdiff1d(np.arange(size), stays)
                    places.append(f"{name}:{k} {_numbers(gone)}")
        return f"without {', '.join(places) or 'units of weights'}"

    def _leak(self, name: str, kept: Mapping[str, NDArray[np.int64]], old: Array, new: Array) -> str:
        text = f"other values there change what stays of '{name}'"
        moved = ~np.isclose(new, old, rtol=TOLERANCE, atol=0, equal_nan=True)
        text += self._where(name, kept[name].reshape(-1)[moved.reshape(-1)])
        return text + "; it is tied to the wrong positions, or a contraction or normalisation is not declared"

    def _difference(
        self, name: str, kept: Mapping[str, NDArray[np.int64]], got: Array, expected: Array
    ) -> str:
        wrong = ~np.isclose(got, expected, rtol=TOLERANCE, atol=0, equal_nan=True)
        text = f"the smaller operator computes something else at '{name}'"
        return text + self._where(name, kept[name].reshape(-1)[wrong.reshape(-1)])

    def _where(self, name: str, numbers: NDArray[np.int64]) -> str:
        """The positions on axes along which some stay right."""
        shape = self.run_whole[name].shape
        told = []
        for k, positions in enumerate(np.unravel_index(numbers, shape)):
            hit = np.unique(positions)
            if len(hit) < shape[k]:
                told.append(f"axis {k} {_numbers(hit)}")
        return f", at {', '.join(told)}" if told else ""


def _labels_of(name: str) -> str:
    return f"{name}.labels"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _close(got: Array, expected: Array) -> bool:
    if got.dtype.kind not in "fc":
        return bool((got == expected).all())
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=0.0)
    return bool(np.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE * scale, equal_nan=True))


def _numbers(positions: NDArray[np.int64]) -> str:
    """Few positions as a list, many by their number."""
    return str(positions.tolist()) if len(positions) <= 8 else f"[{len(positions)} positions]"
