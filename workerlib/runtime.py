"""The master: spawns workers, takes their registrations, hears of their failures, and leaves nothing behind."""

import asyncio
import fcntl
import os
import socket
import ssl
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from workerlib import role
from workerlib.connection import Connection
from workerlib.core.config import ID_VARIABLE, MARKER, MARKER_VALUE, WorkerCommand, WorkerConfig, encode_config
from workerlib.core.payload import error_from_wire
from workerlib.core.uri import Location, UnixLocation, Uri
from workerlib.errors import UsageError, WorkerlibError
from workerlib.launchers.local import Launched, LocalLauncher
from workerlib.redirects import Redirect, Target
from workerlib.servant import current_session
from workerlib.server import Server, new_worker_id
from workerlib.shell.environment import effective_settings
from workerlib.shell.listening import remove_stale_socket
from workerlib.shell.pidfd import wait_pidfd
from workerlib.shell.private_dir import process_dir, remove_sockets
from workerlib.shell.program import interpreter_command
from workerlib.spawn_options import Launcher, SpawnOptions, WorkerRecord
from workerlib.spawner import Spawning
from workerlib.spec import RpcSettings, one_way, rpc

MASTER = "workerlib.Master"
"""Id of the object with which workers register."""
LAST_WAIT_S = 1.0
"""How long a master that ends waits for workers that are ending, so that it can remove their sockets."""


def _same(token: str, given: str) -> bool:
    """Compares in a time that tells nothing of the token."""
    import hmac  # noqa: PLC0415 - it loads OpenSSL's hashes, which no worker needs before its first call

    return hmac.compare_digest(token.encode(), given.encode())


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
        if record is None or not _same(record.token, token) or record.registered is None:
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
        if record is not None and _same(record.token, token) and record.on_failure is not None:
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
        worker_command: WorkerCommand | None = None,
    ) -> None:
        self.server = server
        self.uri = uri
        self.folder = folder
        self.workers: dict[str, WorkerRecord] = {}
        self._dying: dict[WorkerRecord, asyncio.Task[None]] = {}
        self._attached: set[Launched] = set()
        self._following: set[asyncio.Task[None]] = set()
        self._launcher = launcher or LocalLauncher()
        self._worker_command = worker_command
        server.add(uri.target, _Registry(self))

    async def spawn(self, options: SpawnOptions) -> tuple[WorkerRecord, Connection | None]:
        """Brings one worker up; returns when it is initialised, and connected to if its life hangs on a connection.

        Raises SpawnError, and UsageError for options that cannot work. When it raises, or is cancelled, no process and
        no socket of the worker is left.
        """
        record, connection, launched = await Spawning(self, options).run()
        launched.close()
        return record, connection

    async def spawn_in_foreground(self, options: SpawnOptions) -> tuple[WorkerRecord, Connection | None, Launched]:
        """The same with `options.foreground`: the launched process, a child of this one, is the worker.

        It is reaped and its pipes are closed when it ends.
        """
        record, connection, launched = await Spawning(self, options).run()
        self._attached.add(launched)
        watching = asyncio.get_running_loop().create_task(self._follow(launched))
        self._following.add(watching)
        watching.add_done_callback(self._following.discard)
        return record, connection, launched

    async def _follow(self, launched: Launched) -> None:
        await launched.wait()
        self._attached.discard(launched)
        launched.close()

    def new_record(self, options: SpawnOptions) -> WorkerRecord:
        worker_id = new_worker_id(options.name)
        location = UnixLocation(str(self.folder / f"{worker_id[-12:]}.sock"))
        record = WorkerRecord(
            worker_id, options.name, os.urandom(16).hex(), location, options.on_failure, options.on_registered
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
        await asyncio.gather(*(launched.outlast_loop(LAST_WAIT_S) for launched in self._attached))
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
        lineage = f"child-of-{os.getpid()}@{socket.gethostname()}"
        if self._worker_command is not None:
            name = [record.name] if self._worker_command.pass_name else []
            return [*self._worker_command.argv, lineage, *name]
        interpreter = [options.python] if options.python else interpreter_command()
        return [*interpreter, "-m", "workerlib", options.reference, lineage, record.name]

    def _launch_dir(self, options: SpawnOptions) -> str | None:
        """Where the worker's interpreter starts; it goes to `cd` by itself. None: here."""
        if self._worker_command is not None:
            return self._worker_command.cwd
        return options.cd if options.sys_path is None else None

    async def launch(self, options: SpawnOptions, record: WorkerRecord, on_stderr: Callable[[str], object]) -> Launched:
        """Starts the worker's process. Raises UsageError, and OSError when it cannot be started."""
        passed: list[int] = []
        try:
            return await self._launch(options, record, on_stderr, passed)
        finally:
            for fd in passed:
                os.close(fd)

    async def _launch(
        self, options: SpawnOptions, record: WorkerRecord, on_stderr: Callable[[str], object], passed: list[int]
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
            daemonize=not options.foreground,
            worker_command=self._worker_command,
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
        return await (options.launcher or self._launcher).launch(
            self.command(options, record),
            env={**os.environ, **options.env, MARKER: MARKER_VALUE, ID_VARIABLE: record.worker_id},
            stdin=encode_config(config),
            on_stderr=on_stderr,
            on_stdout=(lambda line: options.on_stdout(options.name, line)) if options.foreground else None,
            pass_fds=passed,
            cwd=self._launch_dir(options),
        )


LOWEST_PASSED = 64
"""Descriptors that a worker inherits get numbers from here on, out of the way of its standard streams."""


def _passable(redirect: Redirect, passed: list[int]) -> Redirect:
    """The redirect with a descriptor of its own, that a worker can inherit under the same number; added to `passed`."""
    if redirect.target is not Target.DESCRIPTOR:
        return redirect
    passed.append(fcntl.fcntl(redirect.fd, fcntl.F_DUPFD_CLOEXEC, LOWEST_PASSED))
    return Redirect.descriptor(passed[-1])


# The master of the running event loop


_masters: dict[asyncio.AbstractEventLoop, tuple[Master, AsyncGenerator[None, None]]] = {}
_starting: dict[asyncio.AbstractEventLoop, asyncio.Lock] = {}
"""Held while a loop's master starts: many spawns at once may be the first."""


async def start_master(
    *,
    settings: RpcSettings | None = None,
    launcher: Launcher | None = None,
    worker_command: WorkerCommand | None = None,
    tls: ssl.SSLContext | None = None,
) -> Master:
    """Starts the master server of the running event loop. Raises UsageError when it has one already.

    It ends with the loop: asyncio closes async generators when `asyncio.run` returns, which is the one hook it offers.
    """
    loop = asyncio.get_running_loop()
    if worker_command is not None and role.State.get() is role.State.WORKER:
        raise UsageError("this process is a spawned worker: it cannot call start_master_server (it can spawn, though)")
    if worker_command is not None and role.worker_command() is not None:
        raise UsageError("this program calls start_app: its workers are started as that says, not with other arguments")
    async with _starting.setdefault(loop, asyncio.Lock()):
        if loop in _masters:
            raise UsageError("this event loop has a master server already; start it once, before the first spawn")
        return await _start(loop, settings, launcher, worker_command, tls)


async def _start(
    loop: asyncio.AbstractEventLoop,
    settings: RpcSettings | None = None,
    launcher: Launcher | None = None,
    worker_command: WorkerCommand | None = None,
    tls: ssl.SSLContext | None = None,
) -> Master:
    role.become_master(1)
    folder = process_dir()
    server = Server(effective_settings(settings))
    location = await server.listen(UnixLocation(str(folder / f"master-{os.urandom(3).hex()}.sock")), tls=tls)
    master = Master(
        server, Uri(MASTER, location), folder, launcher=launcher, worker_command=worker_command or role.worker_command()
    )
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
        role.become_master(-1)
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
