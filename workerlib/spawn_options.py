"""What is asked for by a spawn and known of its worker. How it is carried out, only who spawns has to load."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from workerlib.connection import NO_FUNCTIONS, Connection
from workerlib.core.config import ID_VARIABLE, MARKER
from workerlib.core.uri import Location, Uri
from workerlib.errors import UsageError
from workerlib.redirects import Redirect
from workerlib.spec import Function, RpcSettings, ShutdownOn

if TYPE_CHECKING:
    from workerlib.launchers.local import Launched

CONNECTION_TIMEOUT_S = 10.0


def print_stderr(name: str, line: str) -> None:
    """What happens to a worker's stderr before it is released, unless `spawn` was told otherwise."""
    if sys.stderr is None:  # closed when this process started
        return
    with contextlib.suppress(OSError, ValueError):  # closed since; the line is kept for SpawnError
        sys.stderr.write(f"[WORKER {name} STDERR]: {line}\n")
        sys.stderr.flush()


def print_stdout(name: str, line: str) -> None:
    """What happens to the stdout of a worker in the foreground, unless `spawn_in_foreground` was told otherwise."""
    if sys.stdout is None:
        return
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"[WORKER {name} STDOUT]: {line}\n")
        sys.stdout.flush()


class Launcher(Protocol):
    """Starts the process of a worker, here or elsewhere."""

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], object],
        on_stdout: Callable[[str], object] | None,
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> "Launched": ...


class WorkerRecord(msgspec.Struct, eq=False):
    """What the master knows of one worker that it spawned."""

    worker_id: str
    name: str
    token: str
    location: Location
    on_failure: Callable[[Exception], object] | None
    on_registered: Callable[["WorkerRecord"], object] | None
    pid: int = 0
    pidfd: int = -1
    registered: asyncio.Future[None] | None = None
    lost: asyncio.Future[str] | None = None
    """Done when the worker's connection to the master has ended, with the reason."""
    lease: Connection | None = None
    """The connection that the worker's life hangs on, if it does."""

    @property
    def uri(self) -> Uri:
        return Uri(self.worker_id, self.location)


class SpawnOptions(msgspec.Struct, frozen=True, kw_only=True):
    """All that can be said about one spawn; see `Worker.spawn` for the meaning of each."""

    reference: str
    name: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = msgspec.field(default_factory=dict)
    shutdown_on: ShutdownOn
    stdout: Redirect = msgspec.field(default_factory=Redirect.dev_null)
    stderr: Redirect = msgspec.field(default_factory=Redirect.dev_null)
    cd: str = "/"
    umask: int | None = None
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    python: str | None = None
    sys_path: Sequence[str] | None = None
    """Where the worker imports from; None: what its interpreter has by itself when it is started in `cd`."""
    foreground: bool = False
    """The launched process shall be the worker itself; see `Worker.spawn_in_foreground`."""
    connect_arg: Any = None
    expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS
    """What the worker must offer to whoever spawns it and gets a connection."""
    connection_timeout_s: float = CONNECTION_TIMEOUT_S
    spawn_timeout_s: float | None = None
    lease_s: float = 0.0
    """How long the worker goes on without its master, for one that comes back; see `Master.expect`."""
    settings: RpcSettings | None = None
    launcher: Launcher | None = None
    """Who starts the process; None: the master's."""
    on_failure: Callable[[Exception], object] | None = None
    on_stderr: Callable[[str, str], object] = print_stderr
    on_stdout: Callable[[str, str], object] = print_stdout
    """For a worker in the foreground; that of a daemon is thrown away until its release."""
    on_registered: Callable[[WorkerRecord], object] | None = None
    """Called before the worker is released: by then its pid is known, and its process cannot have been reaped."""

    def __post_init__(self) -> None:
        """Raises UsageError for what no process can be given, or no deadline can be."""
        check_text("the name of a worker", self.name)
        check_text("the working directory of a worker", self.cd)
        for key, value in self.env.items():
            check_text("the name of a variable for a worker", key, os.fsencode)
            if not key or "=" in key:
                raise UsageError(f"a variable for a worker cannot be named {key!r}")
            check_text(f"${key} for a worker", value, os.fsencode)
        for ours in {MARKER, ID_VARIABLE} & self.env.keys():
            raise UsageError(f"env cannot set {ours}: workerlib marks its workers with it")
        if not isinstance(self.shutdown_on, ShutdownOn):
            raise UsageError(f"shutdown_on must be a ShutdownOn, not {self.shutdown_on!r}")
        for what in ("connection_timeout_s", "spawn_timeout_s"):
            seconds = getattr(self, what)
            is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
            if seconds is not None and not (is_number and seconds > 0):
                raise UsageError(f"{what} must be a positive number of seconds, not {seconds!r}")
        umask = self.umask
        if umask is not None and not (isinstance(umask, int) and 0 <= umask <= 0o777):
            raise UsageError(f"umask must be a number from 0 to 0o777, not {umask!r}")


def check_text(what: str, value: object, encode: Callable[[str], bytes] = str.encode) -> None:
    """Raises UsageError for what cannot be an argument, a variable or a path of a process."""
    if not isinstance(value, str):
        raise UsageError(f"{what} must be text, not {value!r}")
    if "\0" in value:
        raise UsageError(f"{what} cannot hold a NUL character: {value!r}")
    try:
        encode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{what} cannot be encoded: {value!r}") from None
