"""The certificate: the pruned model computes what the original computes with the removed units masked.

Let P be the pruned model. M is the whole-size original in which every operator that mixes positions along
an axis sees only the kept ones: the weights of a contraction are zero at the removed positions (where both
operands are computed, it is given the kept positions alone), and a normalisation or reduction runs over
the kept positions alone. The producers are left as they are, since zeroing them proves nothing: sigmoid(0)
is not 0, and a bias stays. P is right when P(x) = M(x).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ..analysis.axes import Axis, find
from ..analysis.dynamic import symbol_of
from ..analysis.errors import ModelError
from ..analysis.facts import Contraction, Normalisation, Place
from ..analysis.graph import WEIGHT_ELEMENTS, Node
from ..analysis.groups import Analysis, Exactness, analyze
from ..analysis.model import Model
from ..analysis.plan import Plan, select
from ..analysis.selection import Selection
from .blocks import DropBlocks, silenced
from .edit import Edit
from .execute import Arrays, execute, random_inputs
from .upcast import in_float32

# Pruned and masked sum the same numbers in another order: in floats they differ by rounding.
TOLERANCE = 1e-5
# A model that answers a change of its weights in the last bit with more than that is ill-conditioned; what
# rounding does to it is measured in a few draws, and never allowed beyond the ceiling.
_DRAWS = 3
_ROUNDINGS = 4
_CEILING = 1e-3


@dataclass(frozen=True)
class Verdict:
    """What the certificate found.

    Attributes:
        ok: every output agrees to ``TOLERANCE`` of its largest magnitude, or, for a model that amplifies
            rounding, to four times its own response to changes of its weights in the last bit.
        kind: "exact" when only zeroed weights tell original and masked apart; "renormalising" when a
            normalisation runs over pruned units.
        max_relative_error: the largest difference over max|y| of the output it is in.
        message: a sentence for people.
    """

    ok: bool
    kind: Exactness
    max_relative_error: float
    message: str


def certify(
    model: Model, pruned: Model, plan: Plan, seed: int = 0, analysis: Analysis | None = None
) -> Verdict:
    """Run ``pruned`` and the masked original on random inputs and compare them.

    Args:
        analysis: of ``model``, where there is one already.

    Raises:
        PlanError: the plan does not fit the model.
        ModelError: one of the two does not run.
    """
    analysis = analysis or analyze(model)
    if plan.blocks:
        shorter = DropBlocks(plan.blocks)(model)
        verdict = compare(model, silenced(analysis, plan.blocks), shorter, analysis, "exact", seed)
        if not verdict.ok:
            return verdict
        model, analysis = shorter, analyze(shorter)
    selection = select(analysis, plan)
    masked = masked_original(analysis, selection)
    used = {entry.group for entry in plan.entries}
    renormalising = any(g.exactness == "renormalising" for g in analysis.groups if g.id in used)
    kind: Exactness = "renormalising" if renormalising else "exact"
    return compare(model, masked, pruned, analysis, kind, seed)


def same(analysis: Analysis, other: Model, seed: int = 0) -> Verdict:
    """Whether ``other`` computes what the analysed model does, on random inputs.

    Raises:
        ModelError: one of the two does not run.
    """
    return compare(analysis.model, analysis.model.proto, other, analysis, "exact", seed)


def compare(
    model: Model, masked: onnx.ModelProto, pruned: Model, analysis: Analysis, kind: Exactness, seed: int
) -> Verdict:
    """Run ``pruned`` and what it should compute on random inputs.

    Args:
        model: whose inputs and outputs both must have.
        masked: what computes what ``pruned`` should.
        analysis: whose stand-ins for sizes known only at run time both take.
    """
    mismatch = _signature_mismatch(model.proto, pruned.proto)
    if mismatch:
        return Verdict(False, kind, float("inf"), mismatch)
    masked, smaller = in_float32(masked), in_float32(pruned.proto)
    inputs, wanted = first_run(masked, analysis.walk.sizes, seed)
    got = execute(smaller, inputs)
    worst, where = worst_error(wanted, got)
    tolerance = TOLERANCE
    if TOLERANCE < worst <= _CEILING:
        nudged = (execute(_nudged(masked, draw), inputs) for draw in range(_DRAWS))
        response = max(worst_error(wanted, outputs)[0] for outputs in nudged)
        tolerance = min(_CEILING, max(TOLERANCE, _ROUNDINGS * response))
    message = f"worst output '{where}' differs by {worst:.1e} of its largest magnitude"
    return Verdict(worst <= tolerance, kind, worst, f"{message}, {tolerance:.1e} is allowed")


def first_run(proto: onnx.ModelProto, sizes: Mapping[str, int], seed: int) -> tuple[Arrays, Arrays]:
    """Inputs and outputs of a run; of sizes known only at run time, the first that the model takes.

    The stand-ins of the analysis fit the model, but a batch of that many is slow.
    """
    leading = {symbol_of(info, 0) for info in proto.graph.input if info.type.tensor_type.shape.dim}
    small = {symbol: size for symbol, size in sizes.items() if symbol not in leading}
    for attempt in (small, {}):
        try:
            inputs = random_inputs(proto, seed, sizes=attempt)
            return inputs, execute(proto, inputs)
        except ModelError:
            if not sizes:
                raise
    inputs = random_inputs(proto, seed, sizes=sizes)
    return inputs, execute(proto, inputs)


def worst_error(wanted: Arrays, got: Arrays) -> tuple[float, str]:
    """The largest relative error over all outputs, and the output it is in."""
    return max(((_relative_error(y, got[name]), name) for name, y in wanted.items()), default=(0.0, ""))


def _nudged(proto: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The model with each element of its weights moved to one of its neighbours."""
    rng = np.random.default_rng(seed)
    nudged = onnx.ModelProto()
    nudged.CopyFrom(proto)
    for tensor in nudged.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype.kind == "f" and value.size > WEIGHT_ELEMENTS:
            towards = rng.choice(np.array([-np.inf, np.inf], value.dtype), value.shape)
            # A zero stays zero: it may be a mask.
            moved = np.where(value == 0, value, np.nextafter(value, towards))
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    return nudged


def _signature_mismatch(a: onnx.ModelProto, b: onnx.ModelProto) -> str:
    for what, left, right in (
        ("input", a.graph.input, b.graph.input),
        ("output", a.graph.output, b.graph.output),
    ):
        weights = {t.name for t in a.graph.initializer} | {t.name for t in b.graph.initializer}
        before = [(i.name, i.type) for i in left if i.name not in weights]
        after = [(i.name, i.type) for i in right if i.name not in weights]
        if before != after:
            return f"the {what}s of the pruned model have other names, types or shapes than the original's"
    return ""


def _relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    if expected.shape != got.shape:
        return float("inf")
    if not expected.size or expected.dtype.kind not in "fc":
        return 0.0 if np.array_equal(expected, got) else float("inf")
    finite = np.isfinite(expected)
    if (finite != np.isfinite(got)).any():
        return float("inf")
    if not finite.all() and not np.array_equal(expected[~finite], got[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(expected[finite]).max())
    difference = float(np.abs(expected[finite].astype(np.float64) - got[finite]).max())
    return difference / scale if scale else difference


def masked_original(analysis: Analysis, selection: Selection) -> onnx.ModelProto:
    """The whole-size original in which removed positions have no influence on kept ones."""
    return _Masker(analysis, selection).run()


class _Masker:
    def __init__(self, analysis: Analysis, selection: Selection) -> None:
        self.walk = analysis.walk
        self.selection = selection
        self.edit = Edit(analysis.model.proto)
        self.masked: dict[tuple[int, int], NDArray[Any]] = {}  # weights with zeros, by node and input

    def run(self) -> onnx.ModelProto:
        for contraction in self.walk.contractions:
            self._zero(contraction)
        for node in self.walk.nodes:
            for i, name in enumerate(node.inputs):
                if (node.index, i) in self.masked:
                    weight = self.edit.constant(self.masked[node.index, i], f"{name}.masked")
                    self.edit.set_input(self.edit.nodes[node.key], i, weight)
        by_node: dict[str, list[Normalisation]] = {}
        for normalisation in self.walk.normalisations:
            by_node.setdefault(normalisation.node.key, []).append(normalisation)
        for facts in by_node.values():
            self._restrict(facts)
        return self.edit.finish()

    def _zero(self, fact: Contraction) -> None:
        node = fact.node
        axes = [self.walk.axes(node, i)[k] for i, k in fact.places]
        if not any(self.selection.shrinks(axis) for axis in axes):
            return
        weights = [(i, k) for i, k in fact.places if self._is_float_constant(node, i)]
        if weights:
            i, k = weights[0]
            constant = self.walk.constants[node.inputs[i]]
            mask = self._mask(self.walk.axes(node, i), k, constant.dtype)
            before = self.masked.get((node.index, i), constant.value)
            self.masked[node.index, i] = (before * mask).astype(constant.dtype)
        elif fact.in_place:
            for i, k in fact.places:
                self._see_zeros(node, i, k)
        else:
            self._see_kept(node, fact.places)

    def _is_float_constant(self, node: Node, i: int) -> bool:
        """Whether zeros can be written into input ``i``: the zero of a quantised weight is elsewhere."""
        return self.walk.is_constant(node, i) and self.walk.constants[node.inputs[i]].is_float

    def _see_zeros(self, node: Node, i: int, k: int) -> None:
        """Let a node read zeros at the removed positions of axis ``k`` of input ``i``."""
        axes = self.walk.axes(node, i)
        if self.selection.shrinks(axes[k]):
            key = node.key
            proto = self.edit.nodes[key]
            keep = self.edit.constant(self._mask(axes, k, np.dtype(bool)), f"{key}.keep")
            zero = self.edit.constant(np.zeros((), self.walk.dtype(node, i)), f"{key}.zero")
            seen = self.edit.insert_before(key, "Where", [keep, proto.input[i], zero], f"{key}.seen")
            self.edit.set_input(proto, i, seen)

    def _see_kept(self, node: Node, places: Sequence[Place]) -> None:
        """Let a node read only the kept positions of an axis that it has at several places.

        One place tells them for all: were each asked for its own, a tie that a rule forgot would go unseen.
        """
        first = self._axis(node, places[0])
        for i, k in places:
            axis = self._axis(node, (i, k))
            kept = self.selection.positions(first if axis.size == first.size else axis)
            if kept is not None:
                proto = self.edit.nodes[node.key]
                index = self.edit.constant(kept, f"{node.key}.kept")
                inputs = [proto.input[i], index]
                seen = self.edit.insert_before(node.key, "Gather", inputs, f"{node.key}.seen", axis=k)
                self.edit.set_input(proto, i, seen)

    def _axis(self, node: Node, place: Place) -> Axis:
        return self.walk.axes(node, place[0])[place[1]]

    def _mask(self, axes: list[Axis], k: int, dtype: np.dtype) -> np.ndarray:
        """Ones at kept and zeros at removed positions of axis ``k``, ready to broadcast."""
        axis = find(axes[k])
        if axis.kind == "ragged":  # axis 0 runs through the blocks
            rows = axes[0].size // len(axis.parts)
            grid = np.concatenate([np.tile(self._ones(part), (rows, 1)) for part in axis.parts])
            shape = [axes[0].size, *(axis.size if j == k else 1 for j in range(1, len(axes)))]
            return grid.reshape(shape).astype(dtype)
        return self._ones(axis).reshape([axis.size if j == k else 1 for j in range(len(axes))]).astype(dtype)

    def _ones(self, axis: Axis) -> np.ndarray:
        kept = self.selection.positions(axis)
        ones = np.zeros(axis.size) if kept is not None else np.ones(axis.size)
        if kept is not None:
            ones[kept] = 1
        return ones

    def _restrict(self, facts: list[Normalisation]) -> None:
        """Gather the kept positions before the node, and lay its results out at full size after it."""
        node, spread = facts[0].node, []
        for fact in facts:
            axis = self._axis(node, fact.inputs[0])
            kept = self.selection.positions(axis)
            self._see_kept(node, fact.inputs)
            if kept is not None:
                where = np.zeros(axis.size, np.int64)  # removed positions repeat the first: nothing sees them
                where[kept] = np.arange(len(kept))
                spread += [(o, k, where) for o, k in fact.outputs]
        proto = self.edit.nodes[node.key]
        for o in dict.fromkeys(o for o, _, _ in spread):
            steps = [(k, where) for output, k, where in spread if output == o]
            final = proto.output[o]
            small = self.edit.rename_output(proto, o, f"{final}.small")
            for n, (k, where) in enumerate(steps):
                index = self.edit.constant(where, f"{node.key}.spread")
                target = final if n == len(steps) - 1 else self.edit.fresh(f"{final}.part")
                self.edit.insert_after(node.key, "Gather", [small, index], target, axis=k)
                small = target
