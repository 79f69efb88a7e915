"""What each group costs by itself, measured: curves of the error of a model's outputs over units removed."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import scipy  # a part of it loads where it is used first

from .axes import Axis
from .errors import PlanError
from .groups import Analysis
from .scores import Ranking, Scores

FORMAT = "onnx-prune sensitivity"
VERSION = 1


@dataclass(frozen=True)
class Curve:
    """One group, or several that shrink together, cut further and further with all others whole.

    Attributes:
        groups: their ids.
        size: how many units they have together.
        removed: how many of them are gone at each of `Sensitivity.ratios`; rounding makes neighbours equal.
        predicted: the error by the ranking that chose them.
        measured: the squared error of the model's outputs, relative to half the squared distance of two
            samples there.
        accuracy: None without labels.
    """

    groups: tuple[str, ...]
    size: int
    removed: tuple[int, ...]
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    accuracy: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Sensitivity:
    """Curves of all groups of one model.

    Attributes:
        model: digest of the model they were measured on; see `model_digest`.
        criterion: by which units were chosen.
        recover: how the layers that read them were fitted again.
        calibration: "source" and "digest" of the inputs.
        ratios: of the units of a group that go, rising from 0, where nothing does.
        curves: in the order of the model's groups.
        accuracy: of the whole model; None without labels.
    """

    model: str
    criterion: str
    recover: str
    calibration: Mapping[str, str]
    ratios: tuple[float, ...]
    curves: tuple[Curve, ...]
    accuracy: float | None = None

    @property
    def digest(self) -> str:
        """SHA-256 of the JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        head = {"format": FORMAT, "version": VERSION, **_plain(self)}
        lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
        curves = ",\n    ".join(json.dumps(_plain(curve), allow_nan=False) for curve in self.curves)
        return "{\n" + ",\n".join(lines) + f',\n  "curves": [\n    {curves}\n  ]\n}}\n'

    @staticmethod
    def from_json(text: str) -> Sensitivity:
        """Read curves.

        Raises:
            PlanError: the text holds none, or none of this version.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise PlanError(f"the sensitivity file is not JSON: {error}") from None
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PlanError(
                f'the sensitivity file has no "format": "{FORMAT}"; make one with'
                " 'onnx-prune sensitivity --json'"
            )
        if data.get("version") != VERSION:
            raise PlanError(
                f"the sensitivity file has version {data.get('version')}; this program reads {VERSION}"
            )
        try:
            ratios = _numbers(data["ratios"])
            curves = tuple(_curve(each, len(ratios)) for each in data["curves"])
            accuracy = None if data["accuracy"] is None else float(data["accuracy"])
            calibration = {str(k): str(v) for k, v in data["calibration"].items()}
            model, criterion, recover = (str(data[name]) for name in ("model", "criterion", "recover"))
            return Sensitivity(model, criterion, recover, calibration, ratios, curves, accuracy)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlanError(f"the sensitivity file is malformed: {error!r}") from None

    def check(self, analysis: Analysis, criterion: str) -> None:
        """Refuse to be used for anything but what was measured.

        Raises:
            PlanError: another model or another criterion.
        """
        if self.model != model_digest(analysis):
            raise PlanError("the sensitivity was measured on another model than this one: measure it again")
        if self.criterion != criterion:
            raise PlanError(
                f"the sensitivity was measured with --criterion {self.criterion}, not {criterion}: give that,"
                " or measure it again"
            )

    def ranking(self, analysis: Analysis, ranking: Ranking) -> Ranking:
        """``ranking`` with the measured errors in place of its own.

        Raises:
            PlanError: a group of the model was not measured.
        """
        curve_of = {group: curve for curve in self.curves for group in curve.groups}
        errors: dict[Axis, Scores] = {}
        for group in analysis.groups:
            curve = curve_of.get(group.id)
            if curve is None:
                raise PlanError(f"the sensitivity of group '{group.id}' was not measured: measure it again")
            errors[group.axis] = _errors(curve, group.size) / len(curve.groups)
        return Ranking(ranking.scores, errors)


def model_digest(analysis: Analysis) -> str:
    """SHA-256 of the analysed model, wherever it lies."""
    return hashlib.sha256(analysis.model.proto.SerializeToString(deterministic=True)).hexdigest()


def _errors(curve: Curve, size: int) -> Scores:
    """The measured errors at every count of ``size`` units, shape (size + 1,): never falling, and smooth, so
    that what was measured by chance is no better a choice than what lies between."""
    removed = np.array(curve.removed)
    measured = np.maximum.accumulate(np.array(curve.measured))
    known = np.flatnonzero(np.diff(removed, prepend=-1) > 0)
    ratios, errors = removed[known] / curve.size, measured[known]
    if ratios[-1] < 1:  # a group that goes whole costs as much again as an output that knows nothing
        ratios, errors = np.append(ratios, 1.0), np.append(errors, errors[-1] + 1.0)
    return np.asarray(scipy.interpolate.PchipInterpolator(ratios, errors)(np.arange(size + 1) / size))


def _plain(record: Sensitivity | Curve) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name != "curves"}


def _numbers(values: Any) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    if not all(math.isfinite(number) for number in numbers):
        raise ValueError("a number is not finite")
    return numbers


def _curve(data: Mapping[str, Any], count: int) -> Curve:
    accuracy = data["accuracy"]
    curve = Curve(
        tuple(str(group) for group in data["groups"]),
        int(data["size"]),
        tuple(int(n) for n in data["removed"]),
        _numbers(data["predicted"]),
        _numbers(data["measured"]),
        None if accuracy is None else _numbers(accuracy),
    )
    columns = [curve.removed, curve.predicted, curve.measured, curve.accuracy]
    if any(column is not None and len(column) != count for column in columns):
        raise ValueError(f"group '{', '.join(curve.groups)}' has not {count} points")
    rising = all(a <= b for a, b in pairwise((*curve.removed, curve.size)))
    if not curve.groups or curve.removed[0] != 0 or not rising:
        raise ValueError(f"what is removed of group '{', '.join(curve.groups)}' does not rise from 0")
    return curve
