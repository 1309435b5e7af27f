"""What every worker offers besides its own functions: who it is, its log, and the end of its listening."""

import os
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from workerlib.core.schema import describe
from workerlib.kinds import DirectWriter, direct_pipe
from workerlib.servant import Servant
from workerlib.shell import process
from workerlib.shell.recent_log import LogRecord, RecentLog
from workerlib.spec import RpcSettings, rpc


class WorkerInfo(msgspec.Struct, frozen=True):
    """A worker, as it sees itself."""

    pid: int
    started_at: float
    """Unix time in seconds."""
    uptime_s: float
    rss: int
    """Bytes of memory that are resident."""
    connections: int
    """Clients that are connected, the one that asks included."""
    functions: dict[str, str]
    """Its functions by name, each with its kind and types: `rpc (n: int) -> int`."""
    calls: int = 0
    """How many calls of its functions have come."""


class HasConnections(Protocol):
    """A server."""

    settings: RpcSettings
    servants: dict[str, Servant]
    connections: set[Any]

    def stop_listening(self) -> None: ...


class Common:
    """The functions that all workers have. Belongs to the event loop that it is made in."""

    def __init__(self, server: HasConnections, servant: Servant, recent: RecentLog) -> None:
        self._server = server
        self._servant = servant
        self._recent = recent
        self._started_at, self._began = time.time(), time.monotonic()

    @rpc
    async def info(self) -> WorkerInfo:
        return WorkerInfo(
            os.getpid(),
            self._started_at,
            time.monotonic() - self._began,
            process.own_rss(),
            len(self._server.connections),
            {name: describe(callee.function) for name, callee in self._servant.callees.items()},
            sum(callee.calls for callee in self._servant.callees.values()),
        )

    @rpc
    async def settings(self) -> RpcSettings:
        return self._server.settings

    @rpc
    async def close_server(self) -> None:
        self._server.stop_listening()

    @direct_pipe
    async def log(self, out: DirectWriter[LogRecord], last: int = 0) -> None:
        for record in list(self._recent.kept)[-last:] if last > 0 else ():
            out.write(record)
        # No await in between: what comes next is neither missed nor sent twice.
        self._recent.listeners.add(_listener(out, self._recent))


def _listener(out: DirectWriter[LogRecord], recent: RecentLog) -> Callable[[LogRecord], object]:
    def listen(record: LogRecord) -> None:
        if not out.write(record):  # its reader has gone, or was too slow and has been told so
            recent.listeners.discard(listen)

    return listen
