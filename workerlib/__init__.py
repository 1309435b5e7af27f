"""workerlib: Python worker processes, spawned, called like typed functions, and never leaked.

Subclass `Worker`, decorate its functions with `rpc`, `one_way`, `pipe`, `direct_pipe`, `reverse_pipe`,
`reverse_direct_pipe` or `state`, then `await MyWorker.spawn(...)`, and `await connection.run(MyWorker.function,
argument)`. Each name below is documented where it is defined.

Names are loaded when they are first used: a tool that needs only the blocking client does not pay for asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from workerlib.version import __version__

if TYPE_CHECKING:
    from workerlib.app import start_app
    from workerlib.common import WorkerInfo
    from workerlib.connection import Connection
    from workerlib.core.daemonizing import DaemonizeError
    from workerlib.core.mapping import Progress
    from workerlib.errors import (
        ArgumentError,
        ConnectionLost,
        FunctionsDiffer,
        HandshakeError,
        ItemError,
        MapError,
        NotTrusted,
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
    from workerlib.futures import BrokenWorkers, Executor
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
    from workerlib.managed import Group, Managed, WhenLost, find_units
    from workerlib.map_pool import Config
    from workerlib.map_worker import MapWorker, ReduceWorker
    from workerlib.mapreduce import (
        Results,
        find_map,
        map,  # noqa: A004 - what it is named after is what it does
        map_reduce,
        map_reduce_commutative,
        map_unordered,
    )
    from workerlib.redirects import Redirect
    from workerlib.role import State
    from workerlib.runtime import Master
    from workerlib.servant import Session, current_session
    from workerlib.shell.journal import get_logger
    from workerlib.shell.pickling import Pickled
    from workerlib.shell.progress_bar import ProgressBar
    from workerlib.shell.recent_log import LogRecord
    from workerlib.spec import Function, Kind, OneWay, Pipe, Rpc, RpcSettings, ShutdownOn, one_way, pipe, rpc
    from workerlib.streams import Stream
    from workerlib.worker import Handle, Process, Served, Worker, connect

_HOMES = {
    "workerlib.app": ("start_app",),
    "workerlib.role": ("State",),
    "workerlib.common": ("WorkerInfo",),
    "workerlib.shell.recent_log": ("LogRecord",),
    "workerlib.connection": ("Connection",),
    "workerlib.streams": ("Stream",),
    "workerlib.core.daemonizing": ("DaemonizeError",),
    "workerlib.core.mapping": ("Progress",),
    "workerlib.errors": (
        "ArgumentError", "ConnectionLost", "FunctionsDiffer", "HandshakeError", "ItemError", "MapError",
        "NotTrusted", "ProtocolError", "RemoteError", "ResultError", "SpawnError", "Stage", "StreamAborted",
        "StreamOverflow", "UnknownFunction", "UsageError", "WorkerlibError",
    ),
    "workerlib.kinds": (
        "StatePipe", "state", "DirectCall", "DirectPipe", "DirectWriter", "ReverseDirectPipe", "ReversePipe",
        "direct_pipe", "reverse_direct_pipe", "reverse_pipe",
    ),
    "workerlib.futures": ("BrokenWorkers", "Executor"),
    "workerlib.managed": ("Group", "Managed", "WhenLost", "find_units"),
    "workerlib.map_pool": ("Config",),
    "workerlib.map_worker": ("MapWorker", "ReduceWorker"),
    "workerlib.mapreduce": ("Results", "find_map", "map", "map_reduce", "map_reduce_commutative", "map_unordered"),
    "workerlib.redirects": ("Redirect",),
    "workerlib.runtime": ("Master",),
    "workerlib.servant": ("Session", "current_session"),
    "workerlib.shell.journal": ("get_logger",),
    "workerlib.shell.pickling": ("Pickled",),
    "workerlib.shell.progress_bar": ("ProgressBar",),
    "workerlib.spec": (
        "Function", "Kind", "OneWay", "Pipe", "Rpc", "RpcSettings", "ShutdownOn", "one_way", "pipe", "rpc",
    ),
    "workerlib.worker": ("Handle", "Process", "Served", "Worker", "connect"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ArgumentError", "BrokenWorkers", "Config", "Connection", "ConnectionLost", "DaemonizeError", "DirectCall",
    "DirectPipe", "DirectWriter", "Executor", "Function", "FunctionsDiffer", "Group", "Handle",
    "HandshakeError", "ItemError", "Kind", "LogRecord", "Managed", "MapError", "MapWorker", "Master",
    "NotTrusted", "OneWay", "Pickled", "Pipe", "Process", "Progress", "ProgressBar", "ProtocolError",
    "Redirect", "ReduceWorker", "RemoteError", "ResultError", "Results", "ReverseDirectPipe", "ReversePipe",
    "Rpc", "RpcSettings", "Served", "Session", "ShutdownOn", "SpawnError", "Stage", "State", "StatePipe",
    "Stream", "StreamAborted", "StreamOverflow", "UnknownFunction", "UsageError", "WhenLost", "Worker",
    "WorkerInfo", "WorkerlibError", "__version__", "connect", "current_session", "direct_pipe", "find_map",
    "find_units", "get_logger", "map", "map_reduce", "map_reduce_commutative", "map_unordered", "one_way",
    "pipe", "reverse_direct_pipe", "reverse_pipe", "rpc", "start_app", "state",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'workerlib' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
