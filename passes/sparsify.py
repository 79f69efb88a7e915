"""Zeros in the weights of a model, by a sparsity pattern: where each layer can have them, and where best.

Layers go in the order of the graph. Each gets the sparse weight whose outputs, on what the sparse model gives
it, are nearest to those of the dense model (`passes.sparse_obs`), and a bias to suit it; biases and scales in
between are fitted along, as after a cut (`passes.recover`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..analysis.errors import CheckError, PlanError, UsageError
from ..analysis.facts import Linear
from ..analysis.graph import array_of, tensor_of
from ..analysis.groups import Analysis, analyze
from ..analysis.model import Model
from ..analysis.patterns.pattern import NM, Blocks, Pattern, parse_pattern
from ..analysis.plan import Plan
from ..analysis.selection import Selection
from ..analysis.threads import threads_for
from .clocks import Time, check_skips_zeros, clock_for, layer_clock_for
from .data.calibrate import SAMPLES, Calibration, Spec, open_calibration
from .density import RATIOS, ErrorCurve, allocate
from .latency import Latency
from .measure.gram import Fit, Matrix
from .measure.influence import root_influences
from .measure.layers import Layer, can_be_read
from .measure.places import MATRICES, Place, find_places
from .measure.statistics import gather, has_bias
from .measure.stream import Stream
from .pipeline import difference, shrunk
from .recover import Refit, least_squares, recover
from .sparse_latency import PATTERNS, fitting, options
from .sparse_obs import Chooses, error_curve, sparsify_matrix
from .verify import Verdict, certify

AUTO = "auto"
_ANY = Blocks(1, 1, 0.0)
_SHARED = "several nodes read it"
_DAMPING = 1e-2
# Operations that the search for the mask of a layer may take, and its stages at least and at most.
_EFFORT = 4e11
_STAGES = 4, 20
_SWEEPS = 10  # products with the Gram matrix in a stage


@dataclass(frozen=True)
class SparseLayer:
    """What became of one weight.

    Attributes:
        weight: name of the initializer.
        node: that reads it.
        shape: of the weight.
        pattern: it satisfies now, None where it stays dense.
        reason: why it stays dense; empty where it does not.
        density: the share of its elements that are not zero.
    """

    weight: str
    node: str
    shape: tuple[int, ...]
    pattern: Pattern | None
    reason: str
    density: float


@dataclass(frozen=True)
class Sparsified:
    """What `sparsify` made.

    Attributes:
        layers: what became of each weight that is a matrix.
        refits: what fitting did to each layer.
        verdict: of the certificate that the model before its weights changed equals the original.
        calibration: where the inputs came from that it was fitted on.
        time: of a run with zeros of these patterns, where there was a budget of it.
    """

    model: Model
    layers: tuple[SparseLayer, ...]
    refits: tuple[Refit, ...]
    verdict: Verdict
    calibration: str
    time: Time | None = None

    @property
    def ratio(self) -> float:
        """The share of the weights of sparse layers that is zero now."""
        sizes = [int(np.prod(layer.shape)) for layer in self.layers if layer.pattern is not None]
        left = [layer.density for layer in self.layers if layer.pattern is not None]
        return 1 - float(np.dot(sizes, left)) / sum(sizes) if sizes else 0.0


def sparsify(
    model: Model,
    pattern: Pattern | str,
    *,
    calibration: Calibration | Spec = None,
    samples: int = SAMPLES,
    ignore: Collection[str] = (),
    latency: float | str | None = None,
    target: str = "cpu",
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Sparsified:
    """A model whose weights satisfy a sparsity pattern wherever they can.

    A ratio holds for all sparse layers together and is shared out by error; N:M holds in each. Layers whose
    weights the pattern does not fit stay dense, and so does what `Sparsified.layers` gives a reason for.

    Args:
        pattern: "2:4" keeps two of four consecutive inputs, "4x1@75%" removes three quarters in blocks of
            four outputs by one input, "80%" four fifths of single weights; see `parse_pattern`. "auto" gives
            each layer the pattern and the ratio that meet ``latency`` for the least error, or none.
        calibration: inputs to measure on, as `open_calibration` takes them; synthetic ones when None.
        samples: how many of them are used at most.
        ignore: names of nodes or weights that stay dense.
        latency: what a run may take on ``target``: a share of the dense model's time, "60%" or "4ms".
        target: that skips zeros.
        progress: called with the name of each step as it begins.

    Example:
        ``save(sparsify(model, "2:4", calibration="images.npz").model, "sparse.onnx")``

    Raises:
        UsageError: there is no such pattern or target, a name in ``ignore`` is unknown, or there is a latency
            without "auto" or the other way round.
        PlanError: no layer can be sparse, or not as sparse as asked, or no zeros make it fast enough.
        BackendError: the target's runtime is missing, or cannot take the model.
        ModelError: ONNX Runtime cannot run the model on these inputs.
        CheckError: the certificate does not hold.
    """
    budget = None if latency is None else Latency.of(latency)
    if (budget is None) != (pattern != AUTO):
        raise UsageError(f"the pattern {AUTO} and a latency belong together: give both, or another pattern")
    wanted = None if pattern == AUTO else parse_pattern(pattern) if isinstance(pattern, str) else pattern
    if budget is not None:
        check_skips_zeros(target)
    clock = None if budget is None else clock_for(target, model)
    inputs = open_calibration(calibration, model, samples=samples)
    nothing = Plan((), {})
    folded = shrunk(model, nothing)  # a transposed weight becomes a weight, a BatchNormalization a bias
    verdict = certify(model, folded, nothing)
    model, analysis = folded, analyze(folded)
    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        stream = Stream(model.proto, iter(()), Path(folder) / "empty")
        places = find_places(analysis.walk, model, stream, stream)
        dense = dense_reasons(analysis, places, stream, wanted or _ANY, ignore)
        layers = sparse_layers(analysis, places, stream, wanted or _ANY, dense)
        chosen = [place for place in places if place.weight in layers]
        if not layers:
            reasons = "; ".join(dict.fromkeys(dense.values())) or "the model has no matrix or convolution"
            raise PlanError(f"no weight can take the pattern {wanted or AUTO}: {reasons}")
        patterns: Mapping[str, Pattern]
        time = None
        start = model
        if isinstance(wanted, NM):
            shared = dict.fromkeys(layers.keys() & dense.keys(), wanted)
            start = by_magnitude(model, layers, shared)
            dense = {name: reason for name, reason in dense.items() if name not in shared}
            patterns = dict.fromkeys(layers, wanted)
        else:
            kinds = PATTERNS if wanted is None else (wanted,)
            curves = _curves(analysis, chosen, kinds, inputs, Path(folder), seed, progress)
            if wanted is not None:
                ratios = allocate([each[wanted] for each in curves.values()], wanted.ratio)
                patterns = {
                    name: wanted.at(ratio) for name, ratio in zip(curves, ratios, strict=True) if ratio > 0
                }
            elif budget is not None and clock is not None:
                with layer_clock_for(target, model, progress) as layer_clock:
                    ways = {name: options(name, each, layer_clock) for name, each in curves.items()}

                def timed(patterns: Mapping[str, Blocks]) -> Time:
                    return clock(by_magnitude(model, layers, patterns))

                patterns, time = fitting(ways, budget, clock(model), timed, progress)

        def solve(place: Place, fit: Fit, start: Matrix) -> Matrix | None:
            pattern = patterns.get(place.weight)
            if pattern is None:
                return least_squares(place, fit, start)
            return solve_sparse(place, fit, start, pattern)

        sparse, refits = recover(
            analysis,
            start,
            Selection({}),
            inputs.batches,
            Path(folder) / "fit",
            seed,
            progress=lambda name: progress(f"fit {name}"),
            solver=solve,
        )
    found = _layers(analysis, sparse, patterns, dense)
    _certify(model, sparse, layers, patterns)
    return Sparsified(sparse, found, refits, verdict, inputs.source, time)


def by_magnitude(
    model: Model, layers: Mapping[str, Sequence[Layer]], patterns: Mapping[str, Pattern]
) -> Model:
    """A model whose smallest weights are zero, by patterns; ``layers`` are those that read each weight."""
    proto = onnx.ModelProto.FromString(model.proto.SerializeToString())
    for tensor in proto.graph.initializer:
        if tensor.name not in patterns:
            continue
        value = array_of(tensor)
        for layer in layers[tensor.name]:
            energy = layer.columns(value) ** 2
            kept = np.empty(energy.shape, bool)
            kept[..., layer.order] = patterns[tensor.name].choose(energy, layer.run)
            sparse = layer.weight(layer.matrix(value) * kept.transpose(0, 2, 1))
            value = np.ascontiguousarray(sparse, value.dtype)
        tensor.CopyFrom(tensor_of(value, tensor.name))
    return Model(proto, model.path)


def sparse_layers(
    analysis: Analysis,
    places: Collection[Place],
    stream: Stream,
    pattern: Pattern,
    dense: Mapping[str, str],
) -> dict[str, list[Layer]]:
    """Layers that get zeros, by their weight: all but the dense ones, and of N:M those that share theirs."""
    found = {p.weight: [p.layer] for p in places if p.fact.form in MATRICES and p.weight not in dense}
    if isinstance(pattern, NM):
        shared = _shared_layers(analysis, stream, pattern)
        found |= {name: layers for name, layers in shared.items() if dense.get(name) == _SHARED}
    return found


def _shared_layers(analysis: Analysis, stream: Stream, pattern: Pattern) -> dict[str, list[Layer]]:
    """Weights that several layers read, and nothing else, all of which could have the pattern."""
    reads = Counter(name for node in stream.nodes for name in node.input)
    found: dict[str, list[Layer]] = {}
    for fact in analysis.walk.linears:
        name = fact.node.inputs[fact.weight]
        if fact.form in MATRICES and name in stream.weights and reads[name] > 1 and can_be_read(fact):
            layer = Layer(fact, fact.node, tuple(stream.weights[name].dims))
            if len(layer.shape) > 1 and pattern.misfit(layer.outputs, layer.run) is None:
                found.setdefault(name, []).append(layer)
    return {name: layers for name, layers in found.items() if len(layers) == reads[name]}


def dense_reasons(
    analysis: Analysis, places: Collection[Place], stream: Stream, pattern: Pattern, ignore: Collection[str]
) -> dict[str, str]:
    """Weights of linear layers that stay dense, and why."""
    at = {place.weight: place for place in places}
    names = {name for fact in analysis.walk.linears for name in _names(fact)}
    for name in ignore:
        if name not in names:
            raise UsageError(f"cannot ignore '{name}': no layer or weight has that name")
    found: dict[str, str] = {}
    for fact in analysis.walk.linears:
        weight = fact.node.inputs[fact.weight]
        if fact.form not in MATRICES or weight not in stream.weights:
            continue
        if not _names(fact).isdisjoint(ignore):
            found[weight] = "it is to be ignored"
        elif weight not in at:
            found[weight] = _obstacle(fact, stream)
        else:
            layer = at[weight].layer
            misfit = pattern.misfit(layer.outputs, layer.run)
            if misfit is not None:
                found[weight] = misfit
    return found


def _names(fact: Linear) -> set[str]:
    return {fact.node.name, fact.node.key, fact.node.inputs[fact.weight]}


def _obstacle(fact: Linear, stream: Stream) -> str:
    weight = fact.node.inputs[fact.weight]
    if sum(weight in node.input for node in stream.nodes) > 1:
        return _SHARED
    if not can_be_read(fact):
        return f"a {fact.node.op} with these attributes is not known as a matrix"
    return "it is no matrix over data that depends on the inputs"


def _curves(
    analysis: Analysis,
    places: Collection[Place],
    patterns: Collection[Blocks],
    calibration: Calibration,
    folder: Path,
    seed: int,
    progress: Callable[[str], None],
) -> dict[str, dict[Blocks, ErrorCurve]]:
    """What each weight loses by each pattern, weighed by influence."""
    progress("measure what errors do")
    keys = [place.node.key for place in places]
    influence = root_influences(analysis, keys, calibration, folder / "few")
    stream = Stream(analysis.model.proto, calibration.batches(), folder / "dense")
    curves: dict[str, dict[Blocks, ErrorCurve]] = {}
    for place in places:
        progress(f"measure {place.node.name}")
        moments = gather(analysis, place.fact, place.layer, stream, seed)
        centred = has_bias(place.fact)
        grams = np.stack([moments.gram(g, centred) for g in range(place.layer.groups)])
        order, run = place.layer.order, place.layer.run
        weight = place.layer.columns(array_of(stream.weights[place.weight]))
        ordered = grams[:, order[:, None], order]
        factor = influence.get(place.node.key, 1.0)
        found = curves.setdefault(place.weight, {})
        for pattern in patterns:
            with threads_for(place.layer.inputs):
                errors = error_curve(weight, ordered, pattern, RATIOS, run=run, damping=_DAMPING)
            found[pattern] = ErrorCurve(weight.size, RATIOS, tuple(factor * error for error in errors))
    return curves


def solve_sparse(place: Place, fit: Fit, start: Matrix, pattern: Chooses) -> Matrix:
    """The coefficients of a layer with the zeros of a pattern; a bias, the last row, has none."""
    gram, inputs = fit.all, place.layer.inputs
    features, cross = gram.features[:, :inputs, :inputs], gram.cross[:, :inputs]
    free = start.shape[1] > inputs
    if free:  # a bias takes up the means
        count = max(1.0, float(gram.rows))
        sums, totals = gram.features[:, :inputs, -1:], gram.cross[:, -1:]
        features = features - sums @ sums.transpose(0, 2, 1) / count
        cross = cross - sums @ totals / count
    order, run = place.layer.order, place.layer.run
    work = _SWEEPS * 2.0 * start.size * inputs
    found = sparsify_matrix(
        start[:, :inputs].transpose(0, 2, 1)[..., order],
        features[:, order[:, None], order],
        pattern,
        run=run,
        cross=cross[:, order],
        damping=_DAMPING,
        stages=int(np.clip(_EFFORT / work, *_STAGES)),
    )
    matrix = np.empty_like(start)
    matrix[:, order] = found.weight.transpose(0, 2, 1)
    if free:
        matrix[:, inputs:] = (totals - sums.transpose(0, 2, 1) @ matrix[:, :inputs]) / count
    return matrix


def _layers(
    analysis: Analysis, sparse: Model, wanted: Mapping[str, Pattern], dense: Mapping[str, str]
) -> tuple[SparseLayer, ...]:
    values = {tensor.name: tensor for tensor in sparse.proto.graph.initializer}
    found: dict[str, SparseLayer] = {}
    for fact in analysis.walk.linears:
        name = fact.node.inputs[fact.weight]
        if fact.form not in MATRICES or name not in values or name in found:
            continue
        value = array_of(values[name])
        pattern = wanted.get(name)
        reason = dense.get(name, "" if pattern else "its zeros would cost more than those of other layers")
        density = float(np.count_nonzero(value)) / max(1, value.size)
        found[name] = SparseLayer(name, fact.node.name, value.shape, pattern, reason, density)
    return tuple(found.values())


def _certify(
    model: Model, sparse: Model, layers: Mapping[str, Sequence[Layer]], wanted: Mapping[str, Pattern]
) -> None:
    """Nothing but values of weights changed, and they satisfy their patterns."""
    other = difference(model.proto, sparse.proto)
    if other:
        raise CheckError(f"apart from its weights the sparse model is another one: {other}")
    values = {tensor.name: tensor for tensor in sparse.proto.graph.initializer}
    for name, pattern in wanted.items():
        for layer in layers[name]:
            violation = pattern.check(layer.columns(array_of(values[name])), layer.run)
            if violation is not None:
                raise CheckError(f"'{name}' does not satisfy {pattern}: {violation.text}")
