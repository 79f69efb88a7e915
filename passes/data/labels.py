"""Labelled data: classes of calibration inputs, and the accuracy of a model on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnxruntime
from numpy.typing import ArrayLike, NDArray

from ...analysis.errors import ModelError, UsageError
from ...analysis.graph import Array
from ...analysis.model import Model
from ..execute import Arrays, first_line, open_session
from .calibrate import Calibration
from .readers import load_function

Labels: TypeAlias = str | Path | ArrayLike | None


def classes_of(labels: Labels, inputs: Calibration) -> NDArray[np.int64] | None:
    """One class a sample: those given, or else those the data holds.

    Raises:
        UsageError: they cannot be read, or are no classes of these samples.
    """
    if labels is None:
        return inputs.labels
    where = "the labels given"
    value: object = labels
    if isinstance(labels, str | Path):
        where = f"the labels '{labels}'"
        value = _read(labels, where)
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UsageError(f"{where} are {array.dtype} of shape {array.shape}: give one integer a sample")
    if len(array) < inputs.samples:
        raise UsageError(f"{where} are {len(array)}, for {inputs.samples} samples of calibration inputs")
    return array[: inputs.samples].astype(np.int64)


def _read(labels: str | Path, where: str) -> object:
    if re.fullmatch(r"[\w.]+:\w+", str(labels)) and not Path(labels).exists():
        return load_function(str(labels))()
    try:
        return np.load(labels, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read {where}: {first_line(error)}; give an .npy file") from None


def run_batches(model: Model, batches: Iterable[Arrays]) -> Iterator[Arrays]:
    """The model's outputs for each batch, computed by one thread.

    Raises:
        ModelError: ONNX Runtime cannot run the model on them.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = open_session(model.proto, options)
        names = [output.name for output in session.get_outputs()]
        for arrays in batches:
            yield dict(zip(names, session.run(names, arrays), strict=True))
    except Exception as error:  # the runtime raises its own classes, one for each failure
        raise ModelError(f"ONNX Runtime cannot run the model: {first_line(error)}") from None


def accuracy(outputs: Sequence[Arrays], labels: NDArray[np.int64]) -> float:
    """The fraction of samples for which the first output is largest at their class.

    Raises:
        UsageError: that output is no row of numbers for each sample.
    """
    logits: list[Array] = [next(iter(arrays.values())) for arrays in outputs]
    if any(value.ndim != 2 for value in logits) or sum(map(len, logits)) != len(labels):
        raise UsageError(
            f"accuracy needs a first output of shape (samples, classes), not {logits[0].shape}: measure"
            " without labels"
        )
    return float((np.concatenate(logits).argmax(axis=1) == labels).mean())
