"""Profiles: what a runtime wants of the weights of a model, as data.

A profile is a TOML file; docs/profiles.md has its form. Those of this package are in ``profiles/``. Packages
bring others by the entry point ``onnx_prune.profiles``, which names a folder of such files, or a profile.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Literal

import msgspec

from .. import plugins
from ..errors import PluginError, UsageError
from .cluster import Cluster
from .grid import INPUTS
from .requirement import Requirement, Zeros
from .weights import Weight

GROUP = "onnx_prune.profiles"

Level = Literal["hard", "advisory"]
Kind = Literal["depthwise", "grouped", "shared", "stacked", "first-of-one"]

_KINDS: dict[Kind, tuple[Callable[[Weight], bool], str]] = {
    "depthwise": (lambda weight: weight.depthwise, "of a depthwise convolution"),
    "grouped": (lambda weight: int(weight.node.attrs.get("group", 1)) > 1, "of a grouped convolution"),
    "shared": (lambda weight: weight.readers > 1, "read by several nodes"),
    "stacked": (lambda weight: weight.stacked, "a stack of matrices"),
    "first-of-one": (
        lambda weight: weight.first and weight.channels[0] == 1,
        "of a first layer of one channel",
    ),
}


class Where(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Which weights a rule is about.

    Attributes:
        operators: that read them, ``Op`` or ``domain::Op``.
        dtypes: by numpy's names; where weights are quantised, of the quantised ones. Any when empty.
        kernels, strides: of convolutions. Any when empty, and for products of matrices, which have none.
        data: types of what they are multiplied by, likewise.
        without: kinds that are left out: "depthwise" and "grouped" convolutions, what several nodes
            share, "stacked" matrices, a first layer of one channel ("first-of-one").
        min_inputs, min_outputs: channels there are at least.
        multiple_inputs, multiple_outputs: of these are the inputs that an output sums over, and the output
            channels, multiples.
        min_elements: of the weight.
    """

    operators: tuple[str, ...]
    dtypes: tuple[str, ...] = ()
    kernels: tuple[tuple[int, ...], ...] = ()
    strides: tuple[tuple[int, ...], ...] = ()
    data: tuple[str, ...] = ()
    without: tuple[Kind, ...] = ()
    min_inputs: int = 1
    min_outputs: int = 1
    multiple_inputs: int = 1
    multiple_outputs: int = 1
    min_elements: int = 1

    def refusal(self, weight: Weight) -> str | None:
        """Why a rule is not about a weight; None where it is."""
        node = weight.node
        if node.op not in self.operators:
            return f"the rule is about {', '.join(self.operators)}"
        if weight.origin is None:
            return weight.reason
        if self.dtypes and weight.origin.precision.name not in self.dtypes:
            return f"it is {weight.origin.precision.name}, not {' or '.join(self.dtypes)}"
        data = weight.data.name if weight.data is not None else "of no known type"
        if self.data and data not in self.data:
            return f"its data is {data}, not {' or '.join(self.data)}"
        for kind, (holds, told) in _KINDS.items():
            if kind in self.without and holds(weight):
                return f"it is {told}"
        if self.kernels and weight.kernel and weight.kernel not in self.kernels:
            return f"its kernel is {_times(weight.kernel)}, not {' or '.join(map(_times, self.kernels))}"
        if self.strides and weight.kernel and weight.strides not in self.strides:
            wanted = " or ".join(map(_times, self.strides))
            return f"its strides are {_times(weight.strides)}, not {wanted}"
        return self._refusal_of_sizes(weight)

    def _refusal_of_sizes(self, weight: Weight) -> str | None:
        inputs, outputs = weight.channels
        if inputs < self.min_inputs or outputs < self.min_outputs:
            wanted = f"{self.min_inputs} and {self.min_outputs} at least"
            return f"it has {inputs} input and {outputs} output channels, and the rule is about {wanted}"
        if weight.elements < self.min_elements:
            return f"it has {weight.elements} elements, and the rule is about {self.min_elements} at least"
        for what, size, multiple in (
            ("inputs", weight.sizes[INPUTS], self.multiple_inputs),
            ("outputs", outputs, self.multiple_outputs),
        ):
            if size % multiple:
                return f"its {size} {what} are no multiple of {multiple}"
        return None


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One thing a runtime wants.

    Attributes:
        id: its name in the profile.
        level: "hard" where the runtime does not handle other weights (as sparse ones), or "advisory".
        text: the rule in a sentence.
        source: addresses where it is written, with a version or a date.
        where: which weights it is about.
        require: what it wants of each.
        cluster: what it wants, it wants of the weights of each such part of the graph together.
    """

    id: str
    level: Level
    text: str
    source: tuple[str, ...]
    where: Where
    require: Requirement
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError(f"rule '{self.id}' has no source")
        if self.cluster is not None and not isinstance(self.require, Zeros):
            raise ValueError(f"rule '{self.id}' is about clusters, of which only zeros can be counted")


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The rules of a runtime.

    Attributes:
        name: by which it is asked for.
        title: of the runtime.
        note: what a reader should know besides.
    """

    name: str
    title: str
    rule: tuple[Rule, ...]
    note: str = ""

    def __post_init__(self) -> None:
        ids = [rule.id for rule in self.rule]
        twice = next((id for id in ids if ids.count(id) > 1), None)
        if twice is not None or not ids:
            raise ValueError(f"two rules have the id '{twice}'" if ids else "there is no rule")


def read_profile(path: str | Path) -> Profile:
    """A profile from its file.

    Raises:
        UsageError: there is no such file, or it is no profile; the message names the entry.
    """
    try:
        return _parsed(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read the profile '{path}': {error.strerror}") from None


def _parsed(data: bytes, where: str) -> Profile:
    try:
        return msgspec.convert(tomllib.loads(data.decode()), Profile)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"'{where}' is no TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"'{where}' is no profile: {error}") from None


@cache
def all_profiles() -> Mapping[str, Profile]:
    """The profiles of this package and of installed plug-ins, by name.

    Warns:
        PluginWarning: a plug-in cannot be loaded.

    Raises:
        PluginError: two have the same name.
    """
    found = _in_folder(resources.files(__package__) / "profiles")
    brought = plugins.bring(plugins.installed(GROUP), found, _checked)
    for name, owners in brought.clashes.items():
        raise PluginError(f"two profiles are named '{name}', one of {' and one of '.join(owners)}")
    return found | {name: profile for name, (profile, _) in brought.things.items()}


def profile_named(name: str) -> Profile:
    """A profile by its name, or from its file where it ends in ``.toml``.

    Raises:
        UsageError: there is none.
    """
    if name.endswith(".toml"):
        return read_profile(name)
    profiles = all_profiles()
    if name not in profiles:
        near = get_close_matches(name, profiles, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(profiles))}"
        raise UsageError(f"there is no profile '{name}'; {hint}")
    return profiles[name]


def _in_folder(folder: Traversable) -> dict[str, Profile]:
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            profile = _parsed(file.read_bytes(), file.name)
            found[profile.name] = profile
    return found


def _checked(brought: object) -> dict[str, Profile]:
    """What an entry point stands for: a profile, several, or a folder of their files."""
    if isinstance(brought, Profile):
        return {brought.name: brought}
    if isinstance(brought, str | Path):
        return _in_folder(Path(brought))
    if isinstance(brought, Iterable) and all(isinstance(one, Profile) for one in brought):
        return {one.name: one for one in brought}
    raise TypeError(f"it is a {type(brought).__name__}, neither a profile nor a folder of profiles")


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
