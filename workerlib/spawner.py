"""One spawn, carried out: what was asked for, what is known of the worker, and its way from launch to readiness."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from workerlib.connection import Connection, open_to
from workerlib.core import spawning
from workerlib.core.config import CONTROL, ID_VARIABLE
from workerlib.core.daemonizing import ExitCause
from workerlib.core.spawning import Effect
from workerlib.core.uri import UnixLocation, Uri
from workerlib.errors import ConnectionLost, RemoteError, SpawnError, Stage, WorkerlibError
from workerlib.launchers.local import Launched
from workerlib.shell import process
from workerlib.shell.environment import effective_settings
from workerlib.shell.pidfd import end_process
from workerlib.spawn_options import SpawnOptions, WorkerRecord
from workerlib.spec import ShutdownOn

EXIT_WITHIN_S = 1.0
"""How long the exit of a worker in the foreground is waited for when its connection was lost."""


class Home(Protocol):
    """What a spawn needs of its master."""

    def new_record(self, options: SpawnOptions) -> WorkerRecord: ...
    async def launch(
        self, options: SpawnOptions, record: WorkerRecord, on_stderr: Callable[[str], object]
    ) -> Launched: ...
    def forget(self, record: WorkerRecord) -> None: ...


class Spawning:
    """Carries out one spawn: feeds the machine of `workerlib.core.spawning` and does what it says."""

    def __init__(self, master: Home, options: SpawnOptions) -> None:
        self._master = master
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._record = master.new_record(options)
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._launched: Launched | None = None
        self._state: spawning.Spawn | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> tuple[WorkerRecord, Connection | None, Launched]:
        """What came up; whoever gets the launched process closes it."""
        options = self._options
        early: list[str] = []

        def on_stderr(line: str) -> None:
            options.on_stderr(options.name, line)
            if self._state is None:
                early.append(line)
            else:
                self._feed(spawning.Wrote(line))

        try:
            self._launched = await self._master.launch(options, self._record, on_stderr)
            self._state = spawning.start(
                self._loop.time(),
                connection_timeout_s=options.connection_timeout_s,
                spawn_timeout_s=options.spawn_timeout_s or 2 * options.connection_timeout_s,
                wants_connection=options.shutdown_on is ShutdownOn.CONNECTION_CLOSED,
                released=options.foreground,  # there is nobody to be released
            )
            for line in early:
                self._feed(spawning.Wrote(line))
            self._go(self._follow_registration())
            self._go(self._follow_foreground(self._launched))
            self._arm()
            await self._over
        except OSError as error:
            await self._end_all()
            raise SpawnError(options.name, Stage.LAUNCHED, f"could not be started: {error}") from None
        except BaseException:
            await self._end_all()
            raise
        self._stop_following()
        if self._state.failure is not None:
            await self._end_all()
            raise SpawnError(options.name, self._state.stage, self._state.failure, self._state.lines)
        return self._record, self._connection, self._launched

    # The machine

    def _feed(self, event: spawning.Event) -> None:
        assert self._state is not None
        self._state, effects = spawning.step(self._state, event)
        self._do(effects)

    def _tick(self) -> None:
        assert self._state is not None
        self._state, effects = spawning.tick(self._state, self._loop.time())
        self._do(effects)

    def _do(self, effects: tuple[Effect, ...]) -> None:
        for effect in effects:
            match effect:
                case Effect.INITIALISE:
                    self._go(self._initialise())
                case Effect.CONNECT:
                    self._go(self._connect())
                case Effect.KILL:
                    self._kill()
                case Effect.SUCCEED | Effect.FAIL:
                    if not self._over.done():  # cancelled in the same turn of the loop
                        self._over.set_result(None)
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state is not None and (by := spawning.next_deadline(self._state)) is not None:
            self._timer = self._loop.call_at(by, self._tick)

    def _go(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _stop_following(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    # What happens

    async def _follow_registration(self) -> None:
        assert self._record.registered is not None
        await asyncio.shield(self._record.registered)  # this task is cancelled when the spawn is over; others wait too
        self._feed(spawning.Registered())
        assert self._record.lost is not None
        await asyncio.shield(self._record.lost)
        # While the launched process lives its exit status is to come, and tells more than a lost connection.
        if not self._options.foreground and self._state is not None and self._state.released:
            self._feed(spawning.Broken("ended before it was ready"))

    async def _follow_foreground(self, launched: Launched) -> None:
        cause = await launched.wait()
        released = cause.status == 0 and not self._options.foreground
        self._feed(spawning.ForegroundExited(released, describe_exit(cause)))

    async def _initialise(self) -> None:
        options, record = self._options, self._record
        try:
            connection = await open_to(Uri(CONTROL, record.location), settings=effective_settings(options.settings))
            async with connection:
                args = [list(options.args), dict(options.kwargs)]
                await connection.call("initialise", record.token, *args, target=CONTROL)
        except (WorkerlibError, OSError) as error:
            await self._refused(error)
        except Exception as error:  # noqa: BLE001 - init's own error, rebuilt
            self._feed(spawning.Broken(f"raised {type(error).__name__} in init: {error}"))
        else:
            self._feed(spawning.Initialised())

    async def _connect(self) -> None:
        options = self._options
        try:
            self._connection = await open_to(
                self._record.uri,
                options.connect_arg,
                settings=effective_settings(options.settings),
                expected=options.expected,
            )
            self._record.lease = self._connection
            await self._connection.call("lease", self._record.token, target=CONTROL)
        except (WorkerlibError, OSError) as error:
            await self._refused(error)
        else:
            self._feed(spawning.Connected())

    async def _refused(self, error: Exception) -> None:
        if self._options.foreground and isinstance(error, ConnectionLost) and self._launched is not None:
            ended = asyncio.ensure_future(self._launched.wait())
            await asyncio.wait({ended}, timeout=EXIT_WITHIN_S)
            if ended.done():
                return  # its exit tells more, and is fed by who follows it
            ended.cancel()
        self._feed(spawning.Broken(_describe_refusal(error)))

    # The end

    def _kill(self) -> None:
        if self._launched is not None:
            self._launched.kill()

    async def _end_all(self) -> None:
        """Ends every process of a failed spawn, and waits for that."""
        self._stop_following()
        if self._connection is not None:
            self._connection.abort()
        launched, record = self._launched, self._record
        if launched is not None:
            launched.kill()
            await launched.wait()
            launched.close()
        if record.pidfd >= 0:
            await end_process(record.pidfd)  # not released: it was killed with the foreground process
        if launched is not None:
            await self._sweep()
        self._master.forget(record)
        if isinstance(record.location, UnixLocation):
            Path(record.location.path).unlink(missing_ok=True)

    async def _sweep(self) -> None:
        """Kills what the worker has started and left, wherever it may be by now: it carries the worker's id."""
        for _ in range(SWEEPS):
            left = process.with_variable(ID_VARIABLE, self._record.worker_id) - {os.getpid()}
            left = frozenset(pid for pid in left if process.is_running(pid))
            if not left:
                return
            for pid in left:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(SWEEP_PAUSE_S)


SWEEPS = 10
"""How often a failed spawn looks for what is left of it: something may be forked while it looks."""
SWEEP_PAUSE_S = 0.01


def describe_exit(cause: ExitCause) -> str:
    """How a worker ended, from the exit of its foreground process, which hands on its daemon's status as 128+signal."""
    status = cause.status
    if status > 128:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(status - 128).name}"
    return f"exited with {status}"


def _describe_refusal(error: Exception) -> str:
    if isinstance(error, ConnectionLost):
        return f"ended during its initialisation ({error})"
    if isinstance(error, RemoteError):
        return f"raised {error} in init"
    return f"refused its initialisation: {error}"
