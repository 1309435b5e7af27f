"""workerlib: Python worker processes, spawned, called like typed functions, and never leaked.

Subclass `Worker`, decorate its functions with `rpc`, `one_way` or `pipe`, then `await MyWorker.spawn(...)`, and
`await connection.run(MyWorker.function, argument)`. Each name below is documented where it is defined.

Names are loaded when they are first used: a tool that needs only the blocking client does not pay for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workerlib.version import __version__

if TYPE_CHECKING:
    from workerlib.connection import Connection
    from workerlib.core.daemonizing import DaemonizeError
    from workerlib.errors import (
        ArgumentError,
        ConnectionLost,
        HandshakeError,
        ProtocolError,
        RemoteError,
        ResultError,
        SpawnError,
        Stage,
        StreamAborted,
        StreamOverflow,
        UnknownFunction,
        UsageError,
        WorkerlibError,
    )
    from workerlib.kinds import (
        DirectCall,
        DirectPipe,
        DirectWriter,
        ReverseDirectPipe,
        ReversePipe,
        StatePipe,
        direct_pipe,
        reverse_direct_pipe,
        reverse_pipe,
        state,
    )
    from workerlib.redirects import Redirect
    from workerlib.runtime import Master
    from workerlib.servant import Session, current_session
    from workerlib.shell.journal import get_logger
    from workerlib.spec import Function, Kind, OneWay, Pipe, Rpc, RpcSettings, ShutdownOn, one_way, pipe, rpc
    from workerlib.streams import Stream
    from workerlib.worker import Handle, Served, Worker, connect

_HOMES = {
    "workerlib.connection": ("Connection",),
    "workerlib.streams": ("Stream",),
    "workerlib.core.daemonizing": ("DaemonizeError",),
    "workerlib.errors": (
        "ArgumentError", "ConnectionLost", "HandshakeError", "ProtocolError", "RemoteError", "ResultError",
        "SpawnError", "Stage", "StreamAborted", "StreamOverflow", "UnknownFunction", "UsageError",
        "WorkerlibError",
    ),
    "workerlib.kinds": (
        "StatePipe", "state", "DirectCall", "DirectPipe", "DirectWriter", "ReverseDirectPipe", "ReversePipe",
        "direct_pipe", "reverse_direct_pipe", "reverse_pipe",
    ),
    "workerlib.redirects": ("Redirect",),
    "workerlib.runtime": ("Master",),
    "workerlib.servant": ("Session", "current_session"),
    "workerlib.shell.journal": ("get_logger",),
    "workerlib.spec": (
        "Function", "Kind", "OneWay", "Pipe", "Rpc", "RpcSettings", "ShutdownOn", "one_way", "pipe", "rpc",
    ),
    "workerlib.worker": ("Handle", "Served", "Worker", "connect"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArgumentError", "Connection", "ConnectionLost", "DaemonizeError", "DirectCall", "DirectPipe", "DirectWriter",
    "Function", "Handle", "HandshakeError", "Kind", "Master", "OneWay", "Pipe", "ProtocolError", "Redirect",
    "RemoteError", "ResultError", "ReverseDirectPipe", "ReversePipe", "Rpc", "RpcSettings", "Served", "Session",
    "ShutdownOn", "SpawnError", "Stage", "StatePipe", "Stream", "StreamAborted", "StreamOverflow",
    "UnknownFunction", "UsageError", "Worker", "WorkerlibError", "__version__", "connect", "current_session",
    "direct_pipe", "get_logger", "one_way", "pipe", "reverse_direct_pipe", "reverse_pipe", "rpc", "state",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'workerlib' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
