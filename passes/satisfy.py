"""Change a model as little as it takes to satisfy the profiles of runtimes.

Numbers of channels become multiples by structured pruning, with its certificate. Then weights get zeros: the
smallest go, or, with calibration inputs, those that a fit of what stays makes up for best
(`passes.sparse_obs`). Weights that satisfy their rules stay as they are, and zeros stay zeros.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from ..analysis.graph import tensor_of, walk_graphs
from ..analysis.groups import analyze
from ..analysis.model import Model
from ..analysis.patterns.grid import Energy, Mask
from ..analysis.patterns.profile import Profile, profile_named
from ..analysis.patterns.requirement import AtLeast, Multiple, Runs, Sparse, Zeros
from ..analysis.patterns.validate import Finding, Validation, validate
from ..analysis.patterns.weights import Weight, survey
from ..analysis.selection import Selection
from ..analysis.storage import Storage
from .align import align
from .data.calibrate import SAMPLES, Calibration, Spec, open_calibration
from .measure.gram import Fit, Matrix
from .measure.places import Place
from .prune import PruneResult
from .recover import Refit, recover
from .sparsify import solve_sparse

_STORAGE = Storage()
_ROUNDS = 4


@dataclass(frozen=True)
class Satisfied:
    """What `satisfy` made.

    Attributes:
        before, after: what the profiles say of the model as it was, and as it is.
        aligned: what pruning did, once and again; none where no number of channels had to change.
        zeroed: how many elements of each stored weight became zero.
        refits: what fitting did to each layer, with calibration inputs.
    """

    model: Model
    before: Validation
    after: Validation
    aligned: tuple[PruneResult, ...]
    zeroed: Mapping[str, int]
    refits: tuple[Refit, ...]


def satisfy(
    model: Model,
    profiles: Iterable[str | Profile],
    *,
    calibration: Calibration | Spec = None,
    samples: int = SAMPLES,
    seed: int = 0,
    progress: Callable[[str], None] = lambda step: None,
) -> Satisfied:
    """The nearest model whose weights satisfy all rules they can, hard and advisory ones.

    Rules on least sizes are left as they are, and so are channels that cannot go.

    Args:
        profiles: names of profiles, files of them, or themselves.
        calibration: inputs to fit layers on that get zeros; without them the smallest weights go, and all
            others keep their values.
        samples: how many inputs are used at most.
        progress: called with the name of each step as it begins.

    Example:
        ``save(satisfy(model, ["nvidia-2:4"], calibration="images.npz").model, "sparse.onnx")``

    Raises:
        UsageError: there is no such profile.
        ModelError: the model cannot be read, or not be run on the inputs.
        CheckError: the certificate of what pruning did does not hold.
    """
    chosen = [profile_named(one) if isinstance(one, str) else one for one in profiles]
    before = validate(model, chosen, progress=progress)
    inputs = None if calibration is None else open_calibration(calibration, model, samples=samples)
    result, found, aligned = align(model, chosen, before, inputs, progress)
    refits: tuple[Refit, ...] = ()
    start = _nonzeros(result)
    if inputs is not None:
        result, refits = _fitted(result, _wanted(found), inputs, seed, progress)
        found = validate(result, chosen)
    result = _smallest_gone(result, _wanted(found))
    left = _nonzeros(result)
    zeroed = {name: count - left[name] for name, count in start.items() if left[name] < count}
    return Satisfied(result, before, validate(result, chosen), aligned, zeroed, refits)


# ---------------------------------------------------------------------- zeros


@dataclass(frozen=True)
class _All:
    """All that is wanted of one weight, as a pattern of matrices (groups, outputs, K)."""

    wants: tuple[Sparse, ...]

    def choose(self, energy: Energy, run: int | None = None) -> Mask:
        """The mask (true: kept) that keeps most of an energy."""
        groups, outputs, columns = energy.shape
        run = run or columns
        return self.keep(energy.reshape(groups, outputs, columns // run, run)).reshape(energy.shape)

    def keep(self, energy: Energy) -> Mask:
        """The same of an energy (groups, outputs, positions, inputs).

        More zeros leave every requirement satisfied but one on rows of zeros, which comes last.
        """
        kept = np.ones(energy.shape, bool)
        for want in sorted(self.wants, key=lambda want: isinstance(want, Runs)):
            kept &= want.choose(np.where(kept, energy, 0))
        return kept


def _wanted(validation: Validation) -> list[tuple[Weight, _All]]:
    """For each weight that misses a rule on zeros, all such rules that are about it."""
    shares = _shares(validation)
    wants: dict[int, list[Sparse]] = {}
    weights: dict[int, Weight] = {}
    for finding in validation.findings:
        want = finding.rule.require
        if not finding.eligible or isinstance(want, Multiple | AtLeast):
            continue
        weights[id(finding.weight)] = finding.weight
        share = shares.get((finding.rule.id, id(finding.weight)))
        wants.setdefault(id(finding.weight), []).append(want if share is None else share)
    missed = {id(f.weight) for f in validation.findings if f.shortfall is not None}
    return [(weights[key], _All(tuple(found))) for key, found in wants.items() if key in missed]


def _shares(validation: Validation) -> dict[tuple[str, int], Zeros]:
    """What a rule about a cluster that is missed asks of each of its weights.

    Of all weights, each relative to the mean square of its layer, the smallest go.
    """
    clusters: dict[tuple[str, object], list[Finding]] = {}
    for finding in validation.findings:
        if finding.rule.cluster is not None and finding.shortfall is not None:
            clusters.setdefault((finding.rule.id, finding.cluster), []).append(finding)
    found: dict[tuple[str, int], Zeros] = {}
    for (rule, _), findings in clusters.items():
        energies = [_relative(_energy(finding.weight)) for finding in findings]
        want = findings[0].rule.require
        assert isinstance(want, Zeros)
        together = np.concatenate([energy.reshape(-1) for energy in energies])
        gone = want.least(together.size)
        smallest = np.zeros(together.size, bool)
        smallest[np.argsort(together, kind="stable")[:gone]] = True
        ends = np.cumsum([energy.size for energy in energies])
        for finding, part in zip(findings, np.split(smallest, ends[:-1]), strict=True):
            if part.any():
                found[rule, id(finding.weight)] = Zeros(min(float(part.mean()), 1 - 1 / part.size))
    return found


def _energy(weight: Weight) -> Energy:
    assert weight.origin is not None
    return weight.origin.values(_STORAGE).astype(np.float64) ** 2


def _relative(energy: Energy) -> Energy:
    return np.asarray(energy / (energy.mean() or 1.0))


def _fitted(
    model: Model,
    wanted: Sequence[tuple[Weight, _All]],
    inputs: Calibration,
    seed: int,
    progress: Callable[[str], None],
) -> tuple[Model, tuple[Refit, ...]]:
    """The layers that have to get zeros, fitted to what the model computed before."""
    patterns = {weight.name: pattern for weight, pattern in wanted if weight.readers == 1}

    def solve(place: Place, fit: Fit, start: Matrix) -> Matrix | None:
        pattern = patterns.get(place.weight)
        return None if pattern is None else solve_sparse(place, fit, start, pattern)

    with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
        return recover(
            analyze(model),
            model,
            Selection({}),
            inputs.batches,
            Path(folder),
            seed,
            progress=lambda name: progress(f"fit {name}"),
            solver=solve,
        )


def _smallest_gone(model: Model, wanted: Sequence[tuple[Weight, _All]]) -> Model:
    """The model with the smallest weights zero that have to be."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    stored = _stored(copy)
    for weight, pattern in wanted:
        tensor = stored.get(weight.name)
        if tensor is None or weight.origin is None:
            continue
        origin = weight.origin.of(tensor)
        values = origin.values(_STORAGE)
        keep = pattern.keep(values.astype(np.float64) ** 2)
        tensor.CopyFrom(tensor_of(origin.without(keep, _STORAGE), tensor.name))
    return Model(copy, model.path)


def _stored(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Initializers and values of Constant nodes, by the name they are read by."""
    found: dict[str, onnx.TensorProto] = {}
    for graph in walk_graphs(proto.graph):
        found |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            value = next((a.t for a in node.attribute if a.name == "value"), None)
            if node.op_type == "Constant" and value is not None:
                found[node.output[0]] = value
    return found


def _nonzeros(model: Model) -> dict[str, int]:
    """How many elements of each stored weight are not zero."""
    weights = survey(model, _STORAGE).weights
    return {w.name: int(np.count_nonzero(w.mask(_STORAGE))) for w in weights if w.origin is not None}
