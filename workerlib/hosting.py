"""The life of a spawned worker process that has detached: registration, release, initialisation, lease, end."""

import asyncio
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from workerlib.common import Common
from workerlib.connection import Connection, open_to
from workerlib.core.config import CONTROL
from workerlib.core.payload import Origin, error_to_wire
from workerlib.core.uri import UnixLocation, parse_uri
from workerlib.detaching import Detached, detach_worker, passed_fds
from workerlib.errors import ConnectionLost, HandshakeError, UsageError, WorkerlibError
from workerlib.redirects import Redirect
from workerlib.references import load_named
from workerlib.role import become_worker
from workerlib.servant import Servant, current_session
from workerlib.server import Server
from workerlib.shell import journal
from workerlib.shell.pickling import why_not_trusted
from workerlib.shell.recent_log import RecentLog
from workerlib.shell.watchdog import Watchdog
from workerlib.spec import ShutdownOn, rpc
from workerlib.worker import Worker, initialise

LOST = 254
"""Exit status of a worker that has lost what its life hung on, or that nobody initialised (as in Rpc_parallel)."""

FIRST_RETRY_S, LAST_RETRY_S = 0.02, 1.0
"""Between two attempts of a worker to reach the master that replaces its own: each pause is twice the one before."""


class WorkerEnv(Detached, frozen=True):
    """What `worker_init_before_async` found out; give it to `start_worker_server`."""

    recent_log: RecentLog
    """What the process logs, for `Connection.log`. Not attached yet: `logging.basicConfig` does nothing after that."""


def worker_init_before_async() -> WorkerEnv:
    """Makes this process the worker that its master wants: reads its configuration, changes directory, detaches.

    Must be called before an event loop or a thread exists, and before anything reads stdin. Returns in the daemon only;
    the process that was launched waits in the foreground until `start_worker_server` releases it. One that was spawned
    to stay in the foreground does not detach. Raises UsageError in a process that was not spawned, when stdin holds no
    configuration, and DaemonizeError; see `daemonize_wait`.
    """
    return _ready_to_load(detach_worker())


def _ready_to_load(detached: Detached) -> WorkerEnv:
    """From now on modules are looked for where the master has its own. Not before: what is there may have the name of a
    module that workerlib needs.
    """
    if detached.config.sys_path is not None:
        sys.path[:] = detached.config.sys_path
    return WorkerEnv(detached.config, detached.release, RecentLog())


def load_worker(reference: str) -> type:
    """The class that `module:Class` or `/path/script.py:Class` names. Raises UsageError, or what the import raises."""
    value = load_named(reference, "worker class")
    if not (isinstance(value, type) and issubclass(value, Worker)):
        raise UsageError(f"{reference!r} is a {type(value).__name__}, not a subclass of workerlib.Worker")
    return value


class _Control(Common):
    """The object through which a worker's master initialises it and ends its life."""

    def __init__(self, hosted: "Hosted", server: Server, servant: Servant, recent: RecentLog) -> None:
        super().__init__(server, servant, recent)
        self._hosted = hosted

    @rpc
    async def initialise(self, token: str, args: list[Any], kwargs: dict[str, Any]) -> None:
        await self._hosted.initialise(token, args, kwargs)

    @rpc
    async def lease(self, token: str) -> None:
        """The worker shuts down when the connection that calls this ends."""
        self._hosted.take_lease(token)

    @rpc
    async def shutdown(self, worker_id: str) -> None:
        self._hosted.shutdown(worker_id)


class Hosted:
    """A worker served in the process that was spawned for it."""

    def __init__(self, env: WorkerEnv, worker: object) -> None:
        self._config = env.config
        self._servant = Servant(worker)  # now: types that cannot travel shall fail the spawn, not the first call
        self._loop = asyncio.get_running_loop()
        self._server = Server(env.config.settings)
        env.recent_log.follow(self._loop)
        env.recent_log.attach()
        self._server.add(CONTROL, _Control(self, self._server, self._servant, env.recent_log))
        self._master: Connection | None = None
        self._watching: asyncio.Task[None] | None = None
        self._initialising = False
        self._leased = False
        self._patience: asyncio.TimerHandle | None = None
        self._exit: asyncio.Future[int] = self._loop.create_future()
        self._watchdog: Watchdog | None = None

    async def start(self, release: Callable[[Redirect, Redirect], None]) -> None:
        """Listens, registers, and releases the caller. Raises what keeps it from that."""
        config = self._config
        await self._server.listen(parse_uri(f"PYRO:{config.worker_id}@{config.location}").location)
        self._loop.set_exception_handler(self._on_uncaught)
        # Before the registration: a master that need not wait for a release may initialise before it is answered.
        self._be_patient("nobody initialised it")
        self._master = await self._register()
        self._watching = self._loop.create_task(self._watch_master(self._master))
        release(config.stdout, config.stderr)
        self._watchdog = Watchdog(os.environ)
        for fd in passed_fds(config):
            os.close(fd)

    async def wait(self) -> int:
        """Waits for the end of the worker's life; returns the exit status. Closes everything before it returns."""
        try:
            status = await self._exit
        finally:
            if self._patience is not None:
                self._patience.cancel()
            if self._watching is not None:
                self._watching.cancel()
            if self._watchdog is not None:
                self._watchdog.close()
            await self._server.close()
            orphaned = self._master is None or self._master.closed is not None
            if self._master is not None:
                await self._master.close()
        location = parse_uri(f"PYRO:{self._config.worker_id}@{self._config.location}").location
        if orphaned and isinstance(location, UnixLocation):
            from workerlib.shell.private_dir import is_of_one_process  # noqa: PLC0415 - starts do not pay for it

            # The last one of a dead master's workers removes the directory; that of parsupd is the next one's, too.
            folder = os.path.dirname(location.path)
            if is_of_one_process(folder):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return status

    def exit(self, status: int, why: str) -> None:
        """Ends the worker's life; the first call decides."""
        if not self._exit.done():
            if status:
                journal.warn("worker_ends", reason=why, status=status)
            self._exit.set_result(status)

    def _be_patient(self, what: str) -> None:
        """Gives the master so long for its next step: a worker that was forgotten must not stay."""
        if self._patience is not None:
            self._patience.cancel()
        within = self._config.connection_timeout_s
        self._patience = self._loop.call_later(within, self.exit, LOST, f"{what} within {within:g} s")

    def _stop_being_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    async def _register(self) -> Connection:
        """A new connection to the master, which has accepted this worker. Raises what keeps it from that."""
        config = self._config
        master = await open_to(parse_uri(config.master), settings=config.settings)
        try:
            await master.call("register", config.worker_id, config.token)
        except BaseException:
            master.abort()
            raise
        return master

    async def _watch_master(self, master: Connection) -> None:
        """Sees to what the end of the connection to the master means, as long as this worker lives."""
        while True:
            reason = await master.wait_closed()
            life = self._config.shutdown_on
            if self._initialising and (life is ShutdownOn.CALLED_SHUTDOWN_FUNCTION or self._leased):
                return
            if not self._initialising or self._config.lease_s <= 0:
                self.exit(LOST, f"the connection to the master has ended: {reason}")
                return
            try:
                async with asyncio.timeout(self._config.lease_s):
                    master = self._master = await self._reach_master_again()
            except TimeoutError:
                self.exit(LOST, f"no master within {self._config.lease_s:g} s after its connection ended: {reason}")
                return
            except (WorkerlibError, OSError) as error:
                self.exit(LOST, f"the new master does not know this worker: {error}")
                return

    async def _reach_master_again(self) -> Connection:
        """Tries until a master is there. Raises WorkerlibError when that refuses this worker."""
        delay_s = FIRST_RETRY_S
        while True:
            try:
                return await self._register()
            except (OSError, ConnectionLost, HandshakeError):
                # A master that is being replaced: its socket is missing, refuses, or is closed again unanswered.
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, LAST_RETRY_S)

    # What the master asks for

    def _check(self, token: str) -> None:
        if token != self._config.token:
            raise WorkerlibError("only the master that spawned this worker may do that")

    async def initialise(self, token: str, args: list[Any], kwargs: Mapping[str, Any]) -> None:
        self._check(token)
        if self._initialising:
            raise WorkerlibError("this worker is initialised already")
        self._stop_being_patient()
        peer = current_session().peer
        trusted = why_not_trusted(peer.uid, peer.address) is None
        await initialise(self._servant.worker, args, kwargs, Origin.SAME_USER if trusted else Origin.ANYBODY)
        self._initialising = True
        self._server.servants[self._config.worker_id] = self._servant
        if self._config.shutdown_on is ShutdownOn.CONNECTION_CLOSED:
            self._be_patient("nobody connected to it")

    def take_lease(self, token: str) -> None:
        self._check(token)
        self._stop_being_patient()
        self._leased = True
        current_session().closed.add_done_callback(
            lambda closed: self.exit(0, f"the connection to the spawner has ended: {closed.result()}")
        )

    def shutdown(self, worker_id: str) -> None:
        if worker_id != self._config.worker_id:
            raise WorkerlibError(f"this is worker {self._config.worker_id!r}, not {worker_id!r}")
        self._loop.call_soon(self.exit, 0, "it was asked to")

    # What goes wrong outside of calls

    def _on_uncaught(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is None:
            journal.warn("asyncio", text=context.get("message"))
            return
        journal.fail("uncaught", error, text=context.get("message"))
        config, master = self._config, self._master
        if master is not None and master.closed is None:
            text = "".join(traceback.format_exception(error))
            wire = error_to_wire(error, text, stock=False)
            master.call("report_failure", config.worker_id, config.token, wire)
        self.exit(LOST, f"{type(error).__name__} outside of any call")


async def start_worker_server(env: WorkerEnv, worker: type) -> Hosted:
    """Serves the worker class in this process: listens, registers with the master, releases the caller.

    Initialisation follows when the master asks for it. Await `wait()` of the result and exit with the status that it
    gives. Raises UsageError in a process that has a master server.
    """
    become_worker()
    hosted = Hosted(env, worker())
    await hosted.start(env.release)
    return hosted


async def _host(env: WorkerEnv, worker: type) -> int:
    hosted = await start_worker_server(env, worker)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, hosted.exit, 0, signal.Signals(signum).name)
    return await hosted.wait()


def run_worker(detached: Detached) -> int:
    """The rest of the life of a spawned worker that has detached; returns its exit status. For entry points."""
    from workerlib.shell.loop import run  # noqa: PLC0415 - after the fork: uvloop must not be set up before

    env = _ready_to_load(detached)
    journal.configure_worker(env.config.name, env.config.worker_id)
    env.recent_log.attach()  # now: what loading the worker's module logs counts as well
    try:
        return run(_host(env, load_worker(env.config.worker)))
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
