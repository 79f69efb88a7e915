"""A tracker of TVM's RPC: lends devices that have said which kind they are, to one session at a time."""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

from ..analysis.errors import BackendError, UsageError
from ..passes.execute import first_line

_ANSWER = 5.0  # seconds that a tracker may take to answer
_TURN = 2.0  # seconds after which it is asked again whether there is still such a device
_PAUSE = 0.5


class NoDevice(BackendError):
    """No device can be had from the tracker."""


@dataclass(frozen=True)
class Tracker:
    """Devices of one kind.

    Attributes:
        host, port: where the tracker listens.
        key: the kind, as its servers call themselves.
    """

    host: str
    port: int
    key: str

    @staticmethod
    def of(address: str, key: str) -> Tracker:
        """From an address such as ``192.168.1.2:9190``.

        Raises:
            UsageError: it is none, or the key is empty.
        """
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(f"'{address}' is no address of a tracker: write HOST:PORT")
        if not key:
            raise UsageError("the key of a tracker's devices is empty")
        return Tracker(host.removeprefix("[").removesuffix("]"), int(port), key)

    def devices(self) -> int:
        """How many devices of the kind there are, lent or not.

        Raises:
            NoDevice: none, or the tracker does not answer within seconds.
        """
        from tvm.rpc.base import TrackerCode

        try:
            with self._connected() as connection:
                summary = self._asked(connection, [TrackerCode.SUMMARY])
            servers = [server["key"] for server in summary["server_info"]]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise self._mute(error) from error
        count = servers.count(f"server:{self.key}")
        if not count:
            kinds = sorted({key.removeprefix("server:") for key in servers})
            others = f"; it has {', '.join(kinds)}" if kinds else ""
            raise NoDevice(f"the tracker {self.host}:{self.port} has no device '{self.key}'{others}")
        return count

    def session(self, seconds: float, patience: float) -> Any:
        """A session on one of the devices, a ``tvm.rpc.RPCSession``, which the device ends after ``seconds``.

        Args:
            patience: seconds to wait while all devices are lent, or have gone and may come back.

        Raises:
            NoDevice: none came in that time.
        """
        from tvm import rpc
        from tvm.rpc.base import TrackerCode

        end, why = time.monotonic() + patience, ""
        while time.monotonic() < end:
            try:
                self.devices()
                why = f"all devices '{self.key}' of {self.host}:{self.port} are lent"
                with self._connected() as connection:
                    connection.settimeout(_TURN)
                    host, port, match = self._asked(connection, [TrackerCode.REQUEST, self.key, "", 1])
                return rpc.connect(host, port, match, session_timeout=seconds)
            except TimeoutError:
                continue
            except NoDevice as error:
                why = str(error)
                time.sleep(_PAUSE)
            except (OSError, ValueError, TypeError, RuntimeError):
                time.sleep(_PAUSE)  # the device has gone between the tracker's answer and ours
        raise NoDevice(f"{why}; waited {patience:.0f} s")

    def _connected(self) -> socket.socket:
        from tvm.rpc import base

        connection = socket.create_connection((self.host, self.port), timeout=_ANSWER)
        try:
            connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
            if struct.unpack("<i", base.recvall(connection, 4)) != (base.RPC_TRACKER_MAGIC,):
                raise ValueError("it is no tracker")
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _asked(connection: socket.socket, message: list[Any]) -> Any:
        from tvm.rpc import base

        base.sendjson(connection, message)
        code, answer = base.recvjson(connection)
        if code != base.TrackerCode.SUCCESS:
            raise ValueError("it refuses")
        return answer

    def _mute(self, error: Exception) -> NoDevice:
        return NoDevice(f"no tracker answers at {self.host}:{self.port}: {first_line(error)}")
