"""The master: spawns workers, takes their registrations, hears of their failures, and leaves nothing behind."""

import asyncio
import contextlib
import fcntl
import os
import re
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from workerlib.connection import NO_FUNCTIONS, Connection, open_to
from workerlib.core import spawning
from workerlib.core.config import CONTROL, MARKER, MARKER_VALUE, WorkerConfig, encode_config
from workerlib.core.daemonizing import ExitCause
from workerlib.core.payload import error_from_wire
from workerlib.core.spawning import Effect
from workerlib.core.uri import Location, UnixLocation, Uri
from workerlib.errors import ConnectionLost, RemoteError, SpawnError, Stage, UsageError, WorkerlibError
from workerlib.launchers.local import Launched, LocalLauncher
from workerlib.redirects import Redirect, Target
from workerlib.servant import current_session
from workerlib.server import Server
from workerlib.shell.environment import effective_settings
from workerlib.shell.pidfd import end_process, wait_pidfd
from workerlib.shell.private_dir import process_dir, remove_sockets
from workerlib.shell.transport import remove_stale_socket
from workerlib.spec import Function, RpcSettings, ShutdownOn, one_way, rpc

MASTER = "workerlib.Master"
"""Id of the object with which workers register."""
CONNECTION_TIMEOUT_S = 10.0
LAST_WAIT_S = 1.0
"""How long a master that ends waits for workers that are ending, so that it can remove their sockets."""


class Launcher(Protocol):
    """Starts the process of a worker, here or elsewhere."""

    async def launch(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        on_stderr: Callable[[str], None],
        pass_fds: Sequence[int],
        cwd: str | None,
    ) -> Launched: ...


def new_worker_id(name: str) -> str:
    """An id that no other worker has, beginning with the name as far as URIs can express it."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', name)}-{secrets.token_hex(6)}"


_OPTIONS = re.compile(r"-(?=.)([^XWmc-]*)(?:([XWmc])(.*))?", re.DOTALL)
"""One argument with options of the interpreter: flags, and at its end perhaps an option with a value."""


def interpreter_command() -> list[str]:
    """This process's interpreter with its options: what `python -X dev -W error script.py` had before the script."""
    options: list[str] = []
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument == "--check-hash-based-pycs":
            options += [argument, next(arguments, "")]
        elif argument.startswith("--") and argument != "--":
            options.append(argument)
        elif (cluster := _OPTIONS.fullmatch(argument)) is not None:
            flags, last, value = cluster.groups(default="")
            if last in {"X", "W"}:  # what follows in the same argument is the value, else the next argument is
                options += [argument] if value else [argument, next(arguments, "")]
                continue
            if flags := flags.replace("i", ""):  # a worker has nobody to be interactive with
                options.append(f"-{flags}")
            if last:  # -m or -c: the program
                break
        else:
            break
    return [sys.executable, *options]


def absolute_sys_path() -> list[str]:
    """Where this process imports from, for a worker that works in another directory."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed: nothing can be imported from it
        return [entry for entry in sys.path if Path(entry).is_absolute()]
    return [str(here / entry) for entry in sys.path]


def program_command() -> list[str]:
    """How this process was started, up to and including its script or `-m module`, without the program's arguments."""
    own = len(sys.argv) - 1
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - own]]


def print_stderr(name: str, line: str) -> None:
    """What happens to a worker's stderr before it is released, unless `spawn` was told otherwise."""
    if sys.stderr is None:  # closed when this process started
        return
    with contextlib.suppress(OSError, ValueError):  # closed since; the line is kept for SpawnError
        sys.stderr.write(f"[WORKER {name} STDERR]: {line}\n")
        sys.stderr.flush()


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
    connect_arg: Any = None
    expected: Mapping[str, Function[..., Any]] = NO_FUNCTIONS
    """What the worker must offer to whoever spawns it and gets a connection."""
    connection_timeout_s: float = CONNECTION_TIMEOUT_S
    spawn_timeout_s: float | None = None
    lease_s: float = 0.0
    """How long the worker goes on without its master, for one that comes back; see `Master.expect`."""
    settings: RpcSettings | None = None
    on_failure: Callable[[Exception], object] | None = None
    on_stderr: Callable[[str, str], object] = print_stderr
    on_registered: Callable[["WorkerRecord"], object] | None = None
    """Called before the worker is released: by then its pid is known, and its process cannot have been reaped."""


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


class _Registry:
    """The object that workers call."""

    def __init__(self, master: "Master") -> None:
        self._master = master

    @rpc
    async def register(self, worker_id: str, token: str) -> None:
        """A worker's server is up, or is there again after its master was replaced.

        Refused for an id or token that this master neither gave out nor expects.
        """
        record = self._master.workers.get(worker_id)
        if record is None or not secrets.compare_digest(record.token, token) or record.registered is None:
            raise WorkerlibError(f"no worker {worker_id!r} with that token is expected here")
        if record.registered.done():
            raise WorkerlibError(f"worker {worker_id!r} has registered before")
        session = current_session()
        if session.peer.pid is not None:
            # The kernel's word, not the worker's: a pid in a message could name anybody.
            if record.pidfd >= 0 and record.pid != session.peer.pid:
                raise WorkerlibError(f"worker {worker_id!r} is process {record.pid}, not {session.peer.pid}")
            if record.pidfd < 0:
                record.pid = session.peer.pid
                record.pidfd = os.pidfd_open(record.pid)
        record.lost = session.closed
        session.closed.add_done_callback(lambda _: self._master.forget(record))
        record.registered.set_result(None)
        if record.on_registered is not None:
            record.on_registered(record)

    @one_way
    async def report_failure(self, worker_id: str, token: str, error: dict[str, Any]) -> None:
        """A worker had an error that no caller will see, and is shutting down."""
        record = self._master.workers.get(worker_id)
        if record is not None and secrets.compare_digest(record.token, token) and record.on_failure is not None:
            record.on_failure(error_from_wire(error))


class Master:
    """A master server in the running event loop. Programs get one without asking when they first spawn."""

    def __init__(
        self,
        server: Server,
        uri: Uri,
        folder: Path,
        *,
        launcher: Launcher | None = None,
        worker_command: Sequence[str] | None = None,
    ) -> None:
        self.server = server
        self.uri = uri
        self.folder = folder
        self.workers: dict[str, WorkerRecord] = {}
        self._dying: dict[WorkerRecord, asyncio.Task[None]] = {}
        self._launcher = launcher or LocalLauncher()
        self._worker_command = worker_command
        server.add(uri.target, _Registry(self))

    async def spawn(self, options: SpawnOptions) -> tuple[WorkerRecord, Connection | None]:
        """Brings one worker up; returns when it is initialised, and connected to if its life hangs on a connection.

        Raises SpawnError, and UsageError for options that cannot work. When it raises, or is cancelled, no process and
        no socket of the worker is left.
        """
        return await _Spawning(self, options).run()

    def new_record(self, options: SpawnOptions) -> WorkerRecord:
        worker_id = new_worker_id(options.name)
        location = UnixLocation(str(self.folder / f"{worker_id[-12:]}.sock"))
        record = WorkerRecord(
            worker_id, options.name, secrets.token_hex(16), location, options.on_failure, options.on_registered
        )
        record.registered = asyncio.get_running_loop().create_future()
        self.workers[worker_id] = record
        return record

    def expect(self, worker_id: str, name: str, token: str, location: Location, pid: int) -> WorkerRecord:
        """Takes over a worker that an earlier master spawned with a `lease_s`: it will register again by itself.

        The record's `registered` is done when it has. Raises ProcessLookupError when the process has gone.
        """
        pidfd = os.pidfd_open(pid)
        record = WorkerRecord(worker_id, name, token, location, None, None, pid, pidfd)
        record.registered = asyncio.get_running_loop().create_future()
        self.workers[worker_id] = record
        return record

    def forget(self, record: WorkerRecord) -> None:
        """Ends what is kept for a worker that has gone. Idempotent."""
        if self.workers.pop(record.worker_id, None) is not None and record.pidfd >= 0:
            self._dying[record] = asyncio.get_running_loop().create_task(self._bury(record))

    async def _bury(self, record: WorkerRecord) -> None:
        """Waits for the end of a process whose connection is gone, and removes the socket file that a kill leaves."""
        await wait_pidfd(record.pidfd)
        self._dying.pop(record, None)
        self._close_record(record)

    def _close_record(self, record: WorkerRecord) -> None:
        if record.pidfd >= 0:
            os.close(record.pidfd)
            record.pidfd = -1
        if isinstance(record.location, UnixLocation):
            remove_stale_socket(record.location.path)

    async def close(self) -> None:
        """Ends the service and the connections that `spawn` returned; workers whose life hangs on either will end.

        Waits a moment for workers that are ending. Idempotent. Called by itself when the event loop ends.
        """
        for record in self.workers.values():
            if record.lease is not None:
                record.lease.abort()
        await self.server.close()
        await asyncio.sleep(0)  # the futures of the sessions tell of their end in the next turn of the loop
        buried = dict(self._dying)
        if buried:
            await asyncio.wait(buried.values(), timeout=LAST_WAIT_S)
        for task in buried.values():
            task.cancel()
        await asyncio.gather(*buried.values(), return_exceptions=True)
        for record in (*self._dying, *self.workers.values()):
            self._close_record(record)
        self._dying.clear()
        self.workers.clear()
        remove_sockets(self.folder)

    def command(self, options: SpawnOptions, record: WorkerRecord) -> list[str]:
        """The worker's command line, with who started whom at its end, for `ps`."""
        if self._worker_command is not None:
            program = list(self._worker_command)
        else:
            interpreter = [options.python] if options.python else interpreter_command()
            program = [*interpreter, "-m", "workerlib", options.reference]
        return [*program, f"child-of-{os.getpid()}@{socket.gethostname()}", record.name]

    async def launch(self, options: SpawnOptions, record: WorkerRecord, on_stderr: Callable[[str], None]) -> Launched:
        """Starts the worker's process. Raises UsageError, and OSError when it cannot be started."""
        if MARKER in options.env:
            raise UsageError(f"env cannot set {MARKER}: workerlib marks its workers with it")
        passed: list[int] = []
        try:
            return await self._launch(options, record, on_stderr, passed)
        finally:
            for fd in passed:
                os.close(fd)

    async def _launch(
        self, options: SpawnOptions, record: WorkerRecord, on_stderr: Callable[[str], None], passed: list[int]
    ) -> Launched:
        """Notes in `passed` the descriptors that it makes for the worker."""
        config = WorkerConfig(
            worker=options.reference,
            worker_id=record.worker_id,
            name=record.name,
            token=record.token,
            master=str(self.uri),
            location=str(record.location),
            shutdown_on=options.shutdown_on,
            cd=options.cd,
            umask=options.umask,
            stdout=_passable(options.stdout, passed),
            stderr=_passable(options.stderr, passed),
            connection_timeout_s=options.connection_timeout_s,
            lease_s=options.lease_s,
            settings=effective_settings(options.settings),
            sys_path=None if options.sys_path is None else list(options.sys_path),
            parent_pid=os.getpid(),
        )
        return await self._launcher.launch(
            self.command(options, record),
            env={**os.environ, **options.env, MARKER: MARKER_VALUE},
            stdin=encode_config(config),
            on_stderr=on_stderr,
            pass_fds=passed,
            cwd=options.cd if options.sys_path is None else None,
        )


LOWEST_PASSED = 64
"""Descriptors that a worker inherits get numbers from here on, out of the way of its standard streams."""


def _passable(redirect: Redirect, passed: list[int]) -> Redirect:
    """The redirect with a descriptor of its own, that a worker can inherit under the same number; added to `passed`."""
    if redirect.target is not Target.DESCRIPTOR:
        return redirect
    passed.append(fcntl.fcntl(redirect.fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_PASSED))
    return Redirect.descriptor(passed[-1])


class _Spawning:
    """Carries out one spawn: feeds the machine of `workerlib.core.spawning` and does what it says."""

    def __init__(self, master: Master, options: SpawnOptions) -> None:
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

    async def run(self) -> tuple[WorkerRecord, Connection | None]:
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
        self._launched.close()
        return self._record, self._connection

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
        if self._launched_is_gone():
            self._feed(spawning.Broken("ended before it was ready"))

    def _launched_is_gone(self) -> bool:
        # While the foreground process lives its exit status is to come, and tells more than a lost connection.
        return self._state is not None and self._state.released

    async def _follow_foreground(self, launched: Launched) -> None:
        cause = await launched.wait()
        self._feed(spawning.ForegroundExited(cause.status == 0, describe_exit(cause)))

    async def _initialise(self) -> None:
        options, record = self._options, self._record
        try:
            connection = await open_to(Uri(CONTROL, record.location), settings=effective_settings(options.settings))
            async with connection:
                args = [list(options.args), dict(options.kwargs)]
                await connection.call("initialise", record.token, *args, target=CONTROL)
        except (WorkerlibError, OSError) as error:
            self._feed(spawning.Broken(_describe_refusal(error)))
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
            self._feed(spawning.Broken(_describe_refusal(error)))
        else:
            self._feed(spawning.Connected())

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
        self._master.forget(record)
        if isinstance(record.location, UnixLocation):
            Path(record.location.path).unlink(missing_ok=True)


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


# The master of the running event loop

_is_worker = False


def become_worker() -> None:
    """Notes that this process serves as a spawned worker. Raises UsageError when it has a master server."""
    global _is_worker  # noqa: PLW0603 - a fact about the process, told once
    if _masters:
        raise UsageError("this process has called start_master_server: it cannot be a worker of another master too")
    _is_worker = True


_masters: dict[asyncio.AbstractEventLoop, tuple[Master, AsyncGenerator[None, None]]] = {}
_starting: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
"""Held while a loop's master starts: many spawns at once may be the first."""


async def start_master(
    *,
    settings: RpcSettings | None = None,
    launcher: Launcher | None = None,
    worker_command: Sequence[str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Master:
    """Starts the master server of the running event loop. Raises UsageError when it has one already.

    It ends with the loop: asyncio closes async generators when `asyncio.run` returns, which is the one hook it offers.
    """
    loop = asyncio.get_running_loop()
    if worker_command is not None and _is_worker:
        raise UsageError("this process is a spawned worker: it cannot call start_master_server (it can spawn, though)")
    async with _starting.setdefault(loop, asyncio.Lock()):
        if loop in _masters:
            raise UsageError("this event loop has a master server already; start it once, before the first spawn")
        return await _start(loop, settings, launcher, worker_command, tls)


async def _start(
    loop: asyncio.AbstractEventLoop,
    settings: RpcSettings | None = None,
    launcher: Launcher | None = None,
    worker_command: Sequence[str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Master:
    folder = process_dir()
    server = Server(effective_settings(settings))
    location = await server.listen(UnixLocation(str(folder / f"master-{secrets.token_hex(3)}.sock")), tls=tls)
    master = Master(server, Uri(MASTER, location), folder, launcher=launcher, worker_command=worker_command)
    life = _life_of(loop, master)
    _masters[loop] = master, life
    await anext(life)
    return master


async def _life_of(loop: asyncio.AbstractEventLoop, master: Master) -> AsyncGenerator[None, None]:
    owner = os.getpid()
    try:
        yield
    finally:
        del _masters[loop]
        _starting.pop(loop, None)
        if os.getpid() == owner:  # a child that was forked off must not end what its parent uses
            await master.close()


async def current_master() -> Master:
    """The master server of the running event loop, started when there is none."""
    loop = asyncio.get_running_loop()
    if (found := _masters.get(loop)) is not None:
        return found[0]
    async with _starting.setdefault(loop, asyncio.Lock()):
        found = _masters.get(loop)
        return found[0] if found is not None else await _start(loop)
