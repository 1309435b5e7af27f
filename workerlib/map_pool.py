"""The worker processes of a map or an executor: how they are configured, brought up and ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import (
    Callable,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any

import msgspec

from workerlib.connection import Connection
from workerlib.core.daemonizing import ExitCause
from workerlib.core.mapping import (
    Rules,
)
from workerlib.errors import UsageError
from workerlib.redirects import Redirect
from workerlib.references import reference_of
from workerlib.runtime import current_master
from workerlib.shell import process
from workerlib.shell.pidfd import wait_pidfd
from workerlib.shell.program import absolute_sys_path
from workerlib.spawn_options import CONNECTION_TIMEOUT_S, SpawnOptions, WorkerRecord, print_stderr
from workerlib.spawner import describe_exit
from workerlib.spec import RpcSettings, ShutdownOn

END_WITHIN_S = 2.0
"""How long a worker that has lost its connection may take to end before it is killed."""


def usable_cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def own_output(fd: int) -> Redirect:
    """This process's own stdout or stderr, as a worker's: nowhere when it is closed."""
    try:
        os.fstat(fd)
    except OSError:
        return Redirect.dev_null()
    return Redirect.descriptor(fd)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """On which workers a map runs, and how. Raises UsageError for values that cannot work."""

    local: int | None = None
    """Workers on this host; None: one for each processor that this process may use."""
    in_flight: int = 2
    """Messages that a worker has at a time, so that it need not wait for the next one. For `async def` functions that
    wait a lot, more: a worker works on all of them at once."""
    batch: int | None = None
    """Items in one message at most; None: one when they are slow, more when they are quick."""
    read_ahead: int | None = None
    """Items that may be read before their results have been taken; None: twice what keeps all workers busy."""
    retries: int = 2
    """How often an item is given to another worker after the one that had it was lost."""
    item_timeout_s: float | None = None
    """How long an item may take; the worker that has one for longer is killed and the item is an ItemError."""
    spawn_one_by_one: bool = False
    """Bring up workers one after the other, not all at once."""
    redirect_stdout: Redirect | None = None
    """Where the workers' stdout goes; None: to that of this process."""
    redirect_stderr: Redirect | None = None
    """The same for stderr."""
    cd: str | None = None
    """The workers' working directory; None: that of this process."""
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    """Variables for the workers, over those of this process."""
    connection_timeout_s: float = CONNECTION_TIMEOUT_S
    spawn_timeout_s: float | None = None
    """See `Worker.spawn` for both."""
    settings: RpcSettings | None = None
    """Of the connections. A worker that gives no sign of life for `heartbeat_timeout_s` is lost: an `async def` that
    blocks the loop for so long, or code that holds the interpreter's lock. A plain `def` may take as long as it likes.
    """
    on_stderr: Callable[[str, str], object] = print_stderr
    """Gets name and line of what a worker writes to stderr before it serves."""

    def __post_init__(self) -> None:
        for name, least in {"local": 1, "in_flight": 1, "batch": 1, "read_ahead": 1, "retries": 0}.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise UsageError(f"Config.{name} must be a whole number of at least {least}, not {value!r}")
        if self.item_timeout_s is not None:
            if not self.item_timeout_s > 0:
                raise UsageError(f"Config.item_timeout_s must be a positive number, not {self.item_timeout_s!r}")
            if self.batch not in {None, 1}:
                raise UsageError(f"Config.item_timeout_s needs one item in each message: leave out batch={self.batch}")

    def rules(self, *, one_at_a_time: bool) -> Rules:
        return Rules(
            workers=self.local or usable_cpus(),
            in_flight=self.in_flight,
            batch=self.batch if self.item_timeout_s is None else 1,
            read_ahead=self.read_ahead,
            retries=self.retries,
            item_timeout_s=self.item_timeout_s,
            one_at_a_time=one_at_a_time,
            spawn_one_by_one=self.spawn_one_by_one,
        )

    def spawn_options(
        self, worker: type, name: str, args: Sequence[Any], on_registered: Callable[[WorkerRecord], object]
    ) -> SpawnOptions:
        """How a worker of this configuration is spawned."""
        return SpawnOptions(
            reference=reference_of(worker),
            name=name,
            args=args,
            shutdown_on=ShutdownOn.CONNECTION_CLOSED,
            stdout=self.redirect_stdout or own_output(1),
            stderr=self.redirect_stderr or own_output(2),
            cd=self.cd or str(Path.cwd()),
            env=self.env,
            sys_path=absolute_sys_path(),
            connection_timeout_s=self.connection_timeout_s,
            spawn_timeout_s=self.spawn_timeout_s,
            settings=self.settings,
            on_stderr=self.on_stderr,
            on_registered=on_registered,
        )


class Member:
    """One worker process of a group that spawns and ends them: brought up by `spawn`, gone when `end` returns."""

    def __init__(self) -> None:
        self._pidfd = -1
        self._pid = self._started = 0
        self._connection: Connection | None = None

    async def spawn(self, config: Config, worker: type, name: str, args: Sequence[Any]) -> Connection:
        """Raises SpawnError and UsageError. When it raises nothing is left, and `end` has nothing to do."""
        master = await current_master()
        _, self._connection = await master.spawn(config.spawn_options(worker, name, args, self._note))
        assert self._connection is not None
        return self._connection

    def _note(self, record: WorkerRecord) -> None:
        self._pidfd = os.dup(record.pidfd)  # the master closes its own when the worker's connection to it ends
        self._pid, self._started = record.pid, process.start_time(record.pid)

    def kill(self) -> None:
        """SIGKILL; does not wait."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait_lost(self) -> str:
        """Waits until the worker has gone, or cannot be reached any more; returns why."""
        assert self._connection is not None, "after `spawn`"
        reason = await self._connection.wait_closed()
        cause = await self._end()
        return reason if cause is None else f"{describe_exit(cause).removeprefix('was ')} ({reason})"

    async def end(self) -> None:
        """Closes the connection, on which the worker's life hangs, and waits for its end; kills it when it is late.

        Idempotent.
        """
        await self._end()

    async def _end(self) -> ExitCause | None:
        """How it ended, where the system tells that of a process that is not a child."""
        if self._connection is not None:
            self._connection.abort()
        if self._pidfd < 0:
            return None
        try:
            async with asyncio.timeout(END_WITHIN_S):
                await wait_pidfd(self._pidfd)
            return process.strangers_exit_cause(self._pid, self._started, self._pidfd)
        except TimeoutError:
            self.kill()
            await wait_pidfd(self._pidfd)
            return None  # that it was killed is not what it was lost for
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            os.close(self._pidfd)
            self._pidfd = -1
