"""What running a library of another processor takes: QEMU, TVM's runtime for it, a runner, a counter.

    python -m onnx_prune.backends.emulator.tools

fetches the runtime from PyPI and compiles the other two; QEMU and the compilers are the system's.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ...analysis.errors import BackendError, OnnxPruneError
from ..command import run_command
from ..processor import SYSTEMS, linker

FOLDER = "ONNX_PRUNE_ARM"  # the variable that says where they are kept
_QEMU = "qemu-aarch64"
_PACKAGES = "apache-tvm", "apache-tvm-ffi"
_LIBRARIES = "tvm/lib/libtvm_runtime.so", "tvm_ffi/lib/libtvm_ffi.so"
_PLATFORM = "manylinux_2_28_aarch64"
_SYSROOT = Path("/usr/aarch64-linux-gnu")  # of Debian's cross compiler
_HINT = "run 'make arm-setup', or 'python -m onnx_prune.backends.emulator.tools' (docs/arm.md)"


@dataclass(frozen=True)
class Tools:
    """Where everything is.

    Attributes:
        qemu: runs programs of 64-bit ARM.
        folder: what was fetched and compiled.
    """

    qemu: Path
    folder: Path

    @property
    def runner(self) -> Path:
        return self.folder / "runner"

    @property
    def counter(self) -> Path:
        return self.folder / "counter.so"

    def command(self, cpu: str, *plugin: str) -> list[str]:
        """What runs `runner` on a processor by QEMU's name."""
        options = [part for each in plugin for part in ("-plugin", each)]
        return [str(self.qemu), "-L", str(_SYSROOT), "-cpu", cpu, *options, str(self.runner)]


def find() -> Tools:
    """The tools of this machine.

    Raises:
        BackendError: some are missing; says which, and how to get them.
    """
    if find_spec("elftools") is None:
        raise BackendError("pyelftools is not installed: pip install 'onnx-prune[arm]'")
    qemu = shutil.which(_QEMU)
    if qemu is None:
        raise BackendError(f"there is no {_QEMU}: install Debian's qemu-user, then {_HINT}")
    tools = Tools(Path(qemu), _folder())
    for path in (tools.runner, tools.counter):
        if not path.exists():
            raise BackendError(f"there is no '{path}': {_HINT}")
    return tools


def make() -> Path:
    """Fetch and compile what is not there yet; the folder.

    Raises:
        BackendError: a compiler is missing or fails, or the runtime cannot be fetched.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    here = Path(__file__).parent
    if not all((folder / Path(name).name).exists() for name in _LIBRARIES):
        _fetch(folder)
    import tvm_ffi

    includes = [
        f"-I{path}"
        for path in {tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path()}
    ]
    libraries = [str(folder / Path(name).name) for name in reversed(_LIBRARIES)]
    loaded = ["-Wl,--no-as-needed", *libraries, "-Wl,-rpath,$ORIGIN"]
    compiler = list(linker(SYSTEMS["arm"]).command)
    source, runner = here / "runner.cc", folder / "runner"
    run_command([*compiler, "-std=c++17", "-O2", *includes, str(source), *loaded, "-o", str(runner)])
    run_command(["cc", "-O2", "-shared", "-fPIC", str(here / "counter.c"), "-o", str(folder / "counter.so")])
    return folder


def _folder() -> Path:
    given = os.environ.get(FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "onnx-prune" / f"arm-{metadata.version('apache-tvm')}"


def _fetch(folder: Path) -> None:
    """TVM's runtime for 64-bit ARM, of the versions that are installed here."""
    wanted = [f"{name}=={metadata.version(name)}" for name in _PACKAGES]
    with tempfile.TemporaryDirectory() as wheels:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        where = ["--no-deps", "--only-binary=:all:", "--platform", _PLATFORM, "--dest", wheels]
        run_command([*pip, *where, *wanted])
        for wheel in Path(wheels).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                for name in set(_LIBRARIES) & set(archive.namelist()):
                    (folder / Path(name).name).write_bytes(archive.read(name))


if __name__ == "__main__":
    try:
        print(f"tools for 64-bit ARM are in {make()}")
    except OnnxPruneError as error:
        sys.exit(f"error: {error}")
