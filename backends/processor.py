"""Processors other than this machine's to compile for, and how their libraries are linked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..analysis.errors import BackendError, UsageError

ANDROID_LINKER = "TVM_NDK_CC"  # TVM's own name for the clang++ of an NDK
_GCC = "aarch64-linux-gnu-g++"
SYSTEMS = {"arm": "aarch64-linux-gnu", "android": "aarch64-linux-android"}
_FEATURE = re.compile(r"[+-][A-Za-z0-9.-]+")


@dataclass(frozen=True)
class Processor:
    """A processor of 64-bit ARM.

    Attributes:
        system: what runs on it, as LLVM's triple.
        cpu: its name in LLVM.
        features: that it has besides, such as ``+dotprod``, or lacks, such as ``-sve``.
    """

    system: str
    cpu: str
    features: tuple[str, ...] = ()

    @staticmethod
    def of(target: str, mcpu: str | None = None, mattr: str | None = None) -> Processor | None:
        """From a target such as ``arm:cortex-a72``, ``arm:cortex-a76+dotprod`` or ``arm`` with ``mcpu``.

        Args:
            mattr: features separated by commas, such as ``+dotprod,-sve``.

        Returns:
            None where the target is of another kind.

        Raises:
            UsageError: it names no processor, or two, or a feature has no sign.
        """
        kind, _, name = target.partition(":")
        if kind not in SYSTEMS:
            return None
        name, *added = name.split("+")
        if bool(name) == bool(mcpu):
            raise UsageError(
                f"name the processor of '{target}' once: {kind}:cortex-a72, or --mcpu cortex-a72"
            )
        features = [f"+{feature}" for feature in added]
        features += [feature.strip() for feature in (mattr or "").split(",") if feature.strip()]
        for feature in features:
            if not _FEATURE.fullmatch(feature):
                raise UsageError(f"'{feature}' is no feature of a processor: write +dotprod or -dotprod")
        return Processor(SYSTEMS[kind], name or mcpu or "", tuple(features))

    @property
    def name(self) -> str:
        return self.cpu + "".join(self.features)


def linker(system: str) -> Linker:
    """What links libraries of a system: for Android the NDK's compiler, for Linux g++ or zig.

    Raises:
        BackendError: there is none; says which can be installed.
    """
    if system == SYSTEMS["android"]:
        command = os.environ.get(ANDROID_LINKER)
        if not command:
            raise BackendError(
                f"no linker for Android: set {ANDROID_LINKER} to the NDK's aarch64-linux-android*-clang++"
            )
        return Linker((command,))
    found = shutil.which(_GCC)
    if found:
        return Linker((found,))
    if find_spec("ziglang") is not None:
        return Linker((sys.executable, "-m", "ziglang", "c++", "-target", system))
    raise BackendError(
        "no linker for 64-bit ARM: install g++-aarch64-linux-gnu (Debian), or pip install ziglang"
    )


@dataclass(frozen=True)
class Linker:
    """Makes a shared library of object files, as TVM's ``export_library`` calls it.

    Attributes:
        command: the compiler and its first arguments.
    """

    command: tuple[str, ...]
    output_format: str = "so"

    def __call__(self, output: str, objects: Sequence[str], options: Any = None, **_: Any) -> None:
        """Link ``objects``; ``options`` are arguments of the compiler.

        Raises:
            RuntimeError: it cannot, as TVM's own linkers raise it.
        """
        command = [*self.command, "-shared", "-fPIC", "-o", output, *(options or []), *objects]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{self.command[0]} fails: {done.stderr.strip()[-500:]}")
