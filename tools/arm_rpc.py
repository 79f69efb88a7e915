"""Models on a device of a tracker, where the device is a server of TVM's RPC for 64-bit ARM under QEMU.

Usage: python tools/arm_rpc.py        (Debian: it fetches an arm64 Python with apt-get, without installing it)

Models are sent, run and compared with ONNX Runtime, and kernels are tuned, all through the tracker, as with a
board. What takes how long there is not told: it says nothing of a processor.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from onnx_prune import bench_remote, load, tune
from onnx_prune.backends.command import run_command
from onnx_prune.backends.emulator.tools import find
from onnx_prune.backends.tracker import NoDevice, Tracker
from onnx_prune.models.digits import FOLDER

TARGET, KEY = "arm:cortex-a76", "emulated"
TOLERANCE = 1e-5  # of max|y|
PATIENCE = 300.0  # seconds until the server is up: importing TVM takes a minute there
DEBIAN = """libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 liblzma5 libpython3.11-minimal
libpython3.11-stdlib libsqlite3-0 libssl3 libstdc++6 libuuid1 python3.11-minimal zlib1g""".split()
WHEELS = [f"{name}=={metadata.version(name)}" for name in ("apache-tvm", "apache-tvm-ffi")]
PLATFORMS = ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"]
# TVM's own command starts the server in another process, by a name that means nothing outside of QEMU.
SERVER = """
import sys
from tvm.rpc.server import PopenRPCServerState
tracker = ("127.0.0.1", int(sys.argv[1]))
PopenRPCServerState("127.0.0.1", 9290, 9390, False, tracker, sys.argv[2]).thread.join()
"""


def fetched() -> Path:
    """The folder with an arm64 Python (root) and what it imports (site)."""
    folder = find().folder / "python"
    root, site = folder / "root", folder / "site"
    if not root.exists():
        with tempfile.TemporaryDirectory() as packages:
            lists = Path(packages) / "lists"
            (lists / "partial").mkdir(parents=True)
            settings = ["APT::Architecture=arm64", "APT::Architectures=arm64", f"Dir::State::Lists={lists}"]
            settings += ["Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache="]
            apt = ["apt-get", "--quiet", *(part for each in settings for part in ("-o", each))]
            run_command([*apt, "update"])
            subprocess.run([*apt, "download", *DEBIAN], cwd=packages, check=True, capture_output=True)
            root.mkdir(parents=True)
            for package in Path(packages).glob("*.deb"):
                run_command(["dpkg", "-x", package, root])
    if not site.exists():
        with tempfile.TemporaryDirectory() as wheels:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            pip += ["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
            pip += [part for each in PLATFORMS for part in ("--platform", each)]
            run_command([*pip, "--dest", wheels, *WHEELS])
            for wheel in Path(wheels).glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(site)
    return folder


@contextmanager
def tracked() -> Iterator[str]:
    """The address of a tracker that has an emulated device."""
    folder, qemu = fetched(), find().qemu
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = [str(qemu), "-L", str(folder / "root"), str(folder / "root/usr/bin/python3.11")]
    tracker = [sys.executable, "-m", "tvm.exec.rpc_tracker", "--host", "127.0.0.1"]
    tracker += ["--port", str(port), "--port-end", str(port + 1)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = [subprocess.Popen(tracker, **quiet)]
    try:
        environment = {"PYTHONPATH": str(folder / "site")}
        running.append(subprocess.Popen([*python, "-c", SERVER, str(port), KEY], env=environment, **quiet))
        end = time.monotonic() + PATIENCE
        while True:
            try:
                Tracker.of(f"127.0.0.1:{port}", KEY).devices()
                break
            except Exception as error:  # the tracker or the device is not there yet
                if time.monotonic() > end or running[-1].poll() is not None:
                    raise NoDevice("the server under QEMU does not come up") from error
                time.sleep(2)
        yield f"127.0.0.1:{port}"
    finally:
        for process in running:
            process.kill()
            process.wait()


def main() -> None:
    models = [(name, load(FOLDER / f"{name}.onnx")) for name in ("digits_resnet", "digits_vit")]
    with tracked() as address, tempfile.TemporaryDirectory() as database:
        for found in bench_remote(models, address, KEY, TARGET):
            print(f"{found.model}: error {found.error:.1e}", flush=True)
            assert found.error < TOLERANCE
        done = tune(models[0][1], database, 60, TARGET, tracker=address, key=KEY)
        assert done.done > 0
        print(f"{done.done} of {done.total} kernels tuned")
        (found,) = bench_remote(models[:1], address, KEY, TARGET, database=database)
        print(f"{found.model}, tuned: error {found.error:.1e}")
        assert found.error < TOLERANCE


if __name__ == "__main__":
    main()
