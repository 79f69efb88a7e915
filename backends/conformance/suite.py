"""A conformance suite on disk: one folder a case, in the layout of ONNX's own backend tests.

``CASE/model.onnx``, ``CASE/test_data_set_0/input_0.pb`` and ``output_0.pb``, and ``suite.json`` with what
each case is about. Expected outputs are those of ONNX's reference implementation; weights and inputs are
small integers, so that they are the same in any order of sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from ...analysis.errors import OutputError, UsageError
from ...analysis.patterns.profile import Profile, profile_named
from ...passes.save import save_text
from .cases import Case, cases_of

FORMAT = "onnx-prune conformance suite"
_LIST = "suite.json"
_DATA = "test_data_set_0"


@dataclass(frozen=True)
class Entry:
    """A case of a suite.

    Attributes:
        name: of its folder.
        rule: of the profile.
        about: what is particular about it.
        operator: that reads the weight.
        sparse: whether a runtime may take the weight as sparse: the rule is about it, and it satisfies it.
    """

    name: str
    rule: str
    about: str
    sparse: bool


@dataclass(frozen=True)
class Suite:
    """Cases on disk."""

    folder: Path
    profile: str
    entries: tuple[Entry, ...]

    def model(self, entry: Entry) -> Path:
        return self.folder / entry.name / "model.onnx"

    def inputs(self, entry: Entry) -> Path:
        return self.folder / entry.name / _DATA

    def expected(self, entry: Entry) -> NDArray[Any]:
        return read_tensor(self.inputs(entry) / "output_0.pb")


def write_suite(
    profile: str | Profile, folder: str | Path, progress: Callable[[str], None] = lambda name: None
) -> Suite:
    """Write the conformance suite of a profile.

    Args:
        profile: its name, its file, or itself.
        folder: new, or empty.
        progress: called with the name of each case.

    Example:
        ``write_suite("nvidia-2:4", "suite")``

    Raises:
        UsageError: there is no such profile, or no cases for its rules.
        OutputError: the folder is not empty, or cannot be written.
    """
    folder = Path(folder)
    profile = profile_named(profile) if isinstance(profile, str) else profile
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"'{folder}' is there already: name a new folder")
    entries = []
    for case in cases_of(profile):
        progress(case.name)
        _write(case, folder / case.name)
        entries.append(Entry(case.name, case.rule, case.about, bool(case.holds)))
    if not entries:
        raise UsageError(f"no rule of '{profile.name}' is about an operator that cases are known for")
    suite = Suite(folder, profile.name, tuple(entries))
    data = {"format": FORMAT, "profile": suite.profile, "cases": [asdict(entry) for entry in suite.entries]}
    save_text(json.dumps(data, indent=2) + "\n", folder / _LIST)
    return suite


def _write(case: Case, folder: Path) -> None:
    found: Any = ReferenceEvaluator(case.model).run(None, {"x": case.data})
    try:
        (folder / _DATA).mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        write_tensor(case.data, "x", folder / _DATA / "input_0.pb")
        write_tensor(np.asarray(found[0]), "y", folder / _DATA / "output_0.pb")
    except OSError as error:
        raise OutputError(f"cannot write '{folder}': {error.strerror}") from None


def read_suite(folder: str | Path) -> Suite:
    """A suite that `write_suite` wrote.

    Raises:
        UsageError: there is none.
    """
    folder = Path(folder)
    try:
        data = json.loads((folder / _LIST).read_text("utf-8"))
        if data["format"] != FORMAT:
            raise ValueError(data["format"])
        entries = tuple(
            Entry(str(e["name"]), str(e["rule"]), str(e["about"]), bool(e["sparse"])) for e in data["cases"]
        )
        return Suite(folder, str(data["profile"]), entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"'{folder}' holds no conformance suite: {error}") from None


def write_tensor(value: NDArray[Any], name: str, path: Path) -> None:
    """A tensor as a file of its message."""
    path.write_bytes(numpy_helper.from_array(np.ascontiguousarray(value), name).SerializeToString())


def read_tensor(path: Path) -> NDArray[Any]:
    """A tensor from a file of its message.

    Raises:
        OSError, DecodeError: the file cannot be read, or holds none.
    """
    tensor = onnx.TensorProto()
    tensor.ParseFromString(path.read_bytes())
    return numpy_helper.to_array(tensor)
