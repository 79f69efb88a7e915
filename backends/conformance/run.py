"""Run a conformance suite through a runtime: one of ours, or any command.

The command is run once a case, with the case put in for these words:

- ``{model}``: the model's file;
- ``{inputs}``: a folder with ``input_0.pb``, a tensor message of ONNX;
- ``{outputs}``: an empty folder, for the command to write ``output_0.pb`` into. It may also write
  ``sparse.txt`` there, with the names of the weights that it took as sparse, one a line.

Status 0 says it ran, 77 that it does not support the model; any other is a failure.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from ...analysis.errors import BackendError, UsageError
from ..base import Backend
from ..cpu import CpuBackend
from ..onnxruntime import OnnxRuntimeBackend
from .suite import Entry, Suite, read_suite, read_tensor

_UNSUPPORTED = 77
_SECONDS = 300

Outcome = Literal["passed", "failed", "unsupported"]


@dataclass(frozen=True)
class Result:
    """What became of a case.

    Attributes:
        outcome: "unsupported" where the runtime refused the model, which is no failure.
        text: why it failed, or was refused.
        took: weights that the runtime says it took as sparse; None where it says nothing.
    """

    entry: Entry
    outcome: Outcome
    text: str = ""
    took: tuple[str, ...] | None = None


class Unsupported(Exception):
    """The runtime does not take the model."""


class Runner(Protocol):
    """Computes the output of a case.

    Raises:
        Unsupported: the runtime does not take the model.
        BackendError: it fails.
    """

    def __call__(self, suite: Suite, entry: Entry) -> tuple[NDArray[Any], tuple[str, ...] | None]: ...


def run_suite(
    folder: str | Path, runtime: str | Runner, progress: Callable[[str], None] = lambda name: None
) -> Iterator[Result]:
    """Run a suite through a runtime; the result of each case as it comes.

    Args:
        folder: of the suite.
        runtime: "onnxruntime", "tvm", a command with ``{model}``, ``{inputs}`` and ``{outputs}`` in it, or a
            function.
        progress: called with the name of each case.

    Example:
        ``all(result.outcome != "failed" for result in run_suite("suite", "onnxruntime"))``

    Raises:
        UsageError: there is no suite, or the command cannot be run.
    """
    suite = read_suite(folder)
    runner = _runner(runtime) if isinstance(runtime, str) else runtime
    for entry in suite.entries:
        progress(entry.name)
        try:
            got, took = runner(suite, entry)
        except Unsupported as error:
            yield Result(entry, "unsupported", str(error))
        except BackendError as error:
            yield Result(entry, "failed", str(error))
        else:
            yield _judged(entry, suite.expected(entry), got, took)


def _runner(runtime: str) -> Runner:
    if runtime == "onnxruntime":
        return through(OnnxRuntimeBackend())
    if runtime == "tvm":
        return through(CpuBackend())
    return command(runtime)


def _judged(entry: Entry, expected: NDArray[Any], got: NDArray[Any], took: tuple[str, ...] | None) -> Result:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        text = f"the output is {got.dtype}{list(got.shape)}, not {expected.dtype}{list(expected.shape)}"
        return Result(entry, "failed", text, took)
    wrong = got != expected
    if wrong.any():
        first = tuple(int(i) for i in np.argwhere(wrong)[0])
        text = (
            f"{int(wrong.sum())} of {wrong.size} elements of the output are wrong, the first at"
            f" {list(first)}: {got[first]}, not {expected[first]}"
        )
        return Result(entry, "failed", text, took)
    if took and not entry.sparse:
        return Result(entry, "failed", f"'{took[0]}' was taken as sparse, which it is not", took)
    return Result(entry, "passed", "", took)


def through(backend: Backend) -> Runner:
    """A runner of one of our backends.

    None of them relies on a pattern: our kernels are made from the zeros that are there, wherever they are.
    """

    def run(suite: Suite, entry: Entry) -> tuple[NDArray[Any], tuple[str, ...] | None]:
        model = onnx.load(suite.model(entry))
        try:
            artifact = backend.compile(model)
        except BackendError as error:
            raise Unsupported(str(error)) from None
        outputs = artifact.run({"x": read_tensor(suite.inputs(entry) / "input_0.pb")})
        return np.asarray(outputs["y"]), None

    return run


def command(line: str) -> Runner:
    """A runner that runs a command for each case.

    Raises:
        UsageError: it does not name where the case is to be put in.
    """
    words = shlex.split(line)
    for word in ("{model}", "{inputs}", "{outputs}"):
        if not any(word in part for part in words):
            raise UsageError(f"the command has no {word}: write COMMAND {{model}} {{inputs}} {{outputs}}")

    def run(suite: Suite, entry: Entry) -> tuple[NDArray[Any], tuple[str, ...] | None]:
        with tempfile.TemporaryDirectory(prefix="onnx-prune-") as folder:
            places = {
                "{model}": str(suite.model(entry).resolve()),
                "{inputs}": str(suite.inputs(entry).resolve()),
                "{outputs}": folder,
            }
            _call([_put(word, places) for word in words])
            try:
                got = read_tensor(Path(folder) / "output_0.pb")
            except (OSError, DecodeError):
                raise BackendError("the command wrote no output_0.pb with a tensor") from None
            listed = Path(folder) / "sparse.txt"
            took = tuple(listed.read_text("utf-8").split("\n")) if listed.exists() else None
            return got, None if took is None else tuple(name for name in took if name)

    return run


def _put(word: str, places: dict[str, str]) -> str:
    for place, value in places.items():
        word = word.replace(place, value)
    return word


def _call(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, timeout=_SECONDS, check=False)
    except OSError as error:
        raise UsageError(f"cannot run '{words[0]}': {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise BackendError(f"the command did not end within {_SECONDS} seconds") from None
    last = done.stderr.decode(errors="replace").strip().split("\n")[-1]
    if done.returncode == _UNSUPPORTED:
        raise Unsupported(last)
    if done.returncode:
        raise BackendError(f"the command ended with status {done.returncode}: {last}")
