"""A tracker of TVM's RPC and devices of it, each a process of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

KEY = "mine"
_TRACKER = """
from tvm.rpc.tracker import PopenTrackerServerState
state = PopenTrackerServerState("127.0.0.1", 9290, 9390)
print(state.port, flush=True)
state.thread.join()
"""
# As TVM's own server does it, but not in a process of its own.
_SERVER = """
import sys
from tvm.rpc.server import PopenRPCServerState
tracker, key = ("127.0.0.1", int(sys.argv[1])), sys.argv[2]
state = PopenRPCServerState("127.0.0.1", 9390, 9490, tracker_addr=tracker, key=key)
print(state.port, flush=True)
state.thread.join()
"""


@dataclass
class Server:
    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """With the session it is in, which is a process of its own."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def sessions(self) -> int:
        return self.log.read_text().count("connected from")


@dataclass
class Farm:
    """Attributes: address: of the tracker."""

    folder: Path
    address: str = ""
    servers: list[Server] = field(default_factory=list)

    def add(self, code: str, *arguments: str) -> str:
        log = self.folder / f"{len(self.servers)}.log"
        with log.open("w") as errors:
            command = [sys.executable, "-c", code, *arguments]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            )
        self.servers.append(Server(process, log))
        assert process.stdout is not None
        return process.stdout.readline().strip()


@contextmanager
def farm(folder: Path, devices: int) -> Iterator[Farm]:
    """So many devices and a tracker; the devices are its ``servers``."""
    made, everything = Farm(folder), list[Server]()
    try:
        port = made.add(_TRACKER)
        everything, made.servers = made.servers, []
        made.address = f"127.0.0.1:{port}"
        made.folder = folder / "devices"
        made.folder.mkdir()
        for _ in range(devices):
            made.add(_SERVER, port, KEY)
        yield made
    finally:
        for server in [*everything, *made.servers]:
            if server.process.poll() is None:
                server.kill()
