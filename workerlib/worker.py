"""`Worker`, the class that users subclass, and `Handle`, which names one running worker."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

import msgspec

from workerlib.common import Common, WorkerInfo
from workerlib.connection import NO_FUNCTIONS, Connection, open_to
from workerlib.core.config import CONTROL
from workerlib.core.packing import Packer
from workerlib.core.payload import Origin, Signature
from workerlib.core.uri import Location, UnixLocation, Uri, parse_uri
from workerlib.errors import ConnectionLost, UsageError
from workerlib.redirects import Redirect
from workerlib.references import reference_of
from workerlib.server import Server, new_worker_id
from workerlib.shell.environment import effective_settings
from workerlib.shell.program import absolute_sys_path
from workerlib.shell.recent_log import LogRecord, RecentLog
from workerlib.spawn_options import CONNECTION_TIMEOUT_S, SpawnOptions, print_stderr, print_stdout
from workerlib.spec import RpcSettings, ShutdownOn, functions_of, read_parameters

if TYPE_CHECKING:
    from workerlib.launchers.local import Launched
    from workerlib.runtime import Master

W = TypeVar("W")


class Handle(msgspec.Struct, Generic[W], frozen=True):
    """Identifies a worker; can travel in arguments and results. Holding one keeps nothing alive."""

    worker_id: str
    uri: str
    name: str

    async def connect(
        self,
        arg: Any = None,
        *,
        settings: RpcSettings | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
        worker: type | None = None,
    ) -> Connection:
        """A new connection to the worker; `arg` is given to its `connected`. See `connect` for the rest."""
        return await connect(self.uri, arg, settings=settings, tls=tls, insecure=insecure, worker=worker)

    async def info(self) -> WorkerInfo:
        """What the worker is, over a connection of its own. Raises what `connect` does."""
        async with await self._control() as connection:
            return await connection.info()

    async def close_server(self) -> None:
        """Makes the worker accept no more connections; those that exist stay. Idempotent as long as one exists."""
        async with await self._control() as connection:
            await connection.close_server()

    async def log(self, last: int = 0) -> AsyncIterator[LogRecord]:
        """The worker's log, over a connection of its own; see `Connection.log`."""
        async with await self._control() as connection:
            async for record in connection.log(last):
                yield record

    def _control(self) -> Awaitable[Connection]:
        return connect(f"PYRO:{CONTROL}@{parse_uri(self.uri).location}")

    async def shutdown(self) -> None:
        """Ends the worker, and returns when its connections have ended. Idempotent: a worker that has gone is fine."""
        try:
            async with await self._control() as connection:
                await connection.call("shutdown", self.worker_id, target=CONTROL)
                await connection.wait_closed()
        except (ConnectionLost, FileNotFoundError, ConnectionRefusedError):
            pass


async def connect(
    uri: str,
    arg: Any = None,
    *,
    settings: RpcSettings | None = None,
    tls: ssl.SSLContext | None = None,
    insecure: bool = False,
    within_s: float | None = None,
    worker: type | None = None,
) -> Connection:
    """Connects to a worker by its URI, as a handle or a name server gives it. `arg` goes to the worker's `connected`.

    `worker` is the class that is expected there: a worker without its functions, or with other types of them (because
    one side runs older code), is refused with FunctionsDiffer. Without it, each function is compared when it is run for
    the first time.

    Raises OSError when nobody listens, HandshakeError when the worker refuses (its id is not the URI's, `connected`
    raised), UsageError for a malformed URI and for TCP without `tls` or `insecure`, TimeoutError after `within_s`.
    """
    return await open_to(
        parse_uri(uri),
        arg,
        settings=effective_settings(settings),
        tls=tls,
        insecure=insecure,
        within_s=within_s,
        expected=functions_of(worker) if worker is not None else NO_FUNCTIONS,
    )


class Process:
    """The process of a worker that was spawned in the foreground: a child of this process, which reaps it by itself."""

    def __init__(self, launched: "Launched") -> None:
        self._launched = launched
        self.pid = launched.pid

    async def wait(self) -> int:
        """Waits for its end and returns its exit status, 128+signal when one ended it. Its output has been passed on.

        Nobody has to call this: neither a zombie nor a descriptor stays.
        """
        cause = await self._launched.wait()
        return cause.status

    def send_signal(self, signum: int) -> None:
        """Sends it a signal, never to another process that has got its pid; does nothing once it has ended."""
        self._launched.send_signal(signum)


class Served(Generic[W]):
    """A worker that is served in this process. An async context manager: leaving it ends the service."""

    def __init__(self, server: Server, handle: Handle[W], worker: W, recent: RecentLog) -> None:
        self._server = server
        self._recent = recent
        self.handle = handle
        self.worker = worker

    async def close(self) -> None:
        """Stops listening and ends the connections. Idempotent."""
        self._recent.detach()
        await self._server.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def offer(worker: object, name: str, server: Server) -> tuple[str, RecentLog]:
    """Adds a worker and what all workers have to a server: its id, and the log that it keeps once that is attached."""
    worker_id = new_worker_id(name)
    recent = RecentLog()
    recent.follow(asyncio.get_running_loop())
    server.add(CONTROL, Common(server, server.add(worker_id, worker), recent))
    return worker_id, recent


def packed_init(
    worker: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of a worker's `init` as they travel to its process. Raises ArgumentError."""
    init = getattr(worker, "init", None)
    if init is None:
        return args, kwargs
    packer = Packer(f"{worker.__qualname__}.init", read_parameters(init, skip=1)[0])
    return packer.pack_as_data(args, kwargs)


async def initialise(worker: object, args: list[Any], kwargs: Mapping[str, Any], origin: Origin = Origin.HERE) -> None:
    """Calls a worker's `init` with arguments checked against its types.

    Raises ArgumentError, NotTrusted for Pickled ones whose `origin` is not the same user, or what `init` raises.
    """
    init = getattr(worker, "init", None)
    what = f"{type(worker).__qualname__}.init"
    if init is None:
        if args or kwargs:
            raise UsageError(f"{what} is not defined, so the worker takes no init argument")
        return
    parameters, _ = read_parameters(init, skip=0)
    positional, named = Signature(what, parameters, takes_forms=True).bind_plain(args, kwargs, origin)
    await init(*positional, **named)


def _master() -> Awaitable["Master"]:
    from workerlib.runtime import current_master  # noqa: PLC0415 - most workers never spawn one, and all pay for imports

    return current_master()


def _name_of(cls: type, name: str | None) -> str:
    return cls.__name__ if name is None else name


class Worker:
    """Base class of workers: subclass it, and decorate the methods that clients may call.

    Two methods are found by name, with any typed parameters: `async def init(self, ...)` is called once, before any
    client can connect, with the arguments of `spawn` or `serve` (worker state); `async def connected(self, session,
    arg)` is called for each connection with what the client gave to `connect`, may refuse it by raising, and what it
    returns becomes `session.state` (connection state).
    """

    @overload
    @classmethod
    async def spawn(
        cls,
        *args: Any,
        shutdown_on: Literal[ShutdownOn.CONNECTION_CLOSED],
        redirect_stdout: Redirect,
        redirect_stderr: Redirect,
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        connect_arg: Any = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> Connection: ...
    @overload
    @classmethod
    async def spawn(
        cls,
        *args: Any,
        shutdown_on: Literal[ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, ShutdownOn.CALLED_SHUTDOWN_FUNCTION],
        redirect_stdout: Redirect,
        redirect_stderr: Redirect,
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> Handle[Self]: ...
    @classmethod
    async def spawn(
        cls,
        *args: Any,
        shutdown_on: ShutdownOn,
        redirect_stdout: Redirect,
        redirect_stderr: Redirect,
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        connect_arg: Any = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> Any:
        """Starts a worker process of this class and returns when it is initialised.

        `args`, and `init` by name, are the arguments of the worker's `init`. What is returned, and who may end the
        worker when, is chosen by `shutdown_on`; see ShutdownOn.

        Until the worker is released, each line of its stderr goes to `on_stderr(name, line)`, by default to this
        process's stderr as `[WORKER name STDERR]: line`, and its stdout is thrown away; afterwards both go to the
        redirects. There is no default for these, so that nobody loses a worker's stderr without having said so.

        `on_failure` is called with an error that occurred in the worker outside of any call; the worker shuts down
        after it. `env` is added to this process's environment. `cd` and `umask` are the worker's (None: the umask of
        this process). `connection_timeout_s` bounds each of: its registration, its wait to be initialised, its wait for
        the first connection; `spawn_timeout_s` (default: twice that) the whole.

        Raises SpawnError when the worker does not come up; then no process of it is left. Raises UsageError for a
        class that another process cannot find.
        """
        args, init = packed_init(cls, args, init or {})
        master = await _master()
        record, connection = await master.spawn(
            SpawnOptions(
                reference=reference_of(cls),
                name=_name_of(cls, name),
                args=args,
                kwargs=init,
                shutdown_on=shutdown_on,
                stdout=redirect_stdout,
                stderr=redirect_stderr,
                cd=cd,
                umask=umask,
                env=env or {},
                sys_path=absolute_sys_path(),
                connect_arg=connect_arg,
                expected=functions_of(cls),
                connection_timeout_s=connection_timeout_s,
                spawn_timeout_s=spawn_timeout_s,
                settings=settings,
                on_failure=on_failure,
                on_stderr=on_stderr,
            )
        )
        return connection or Handle(record.worker_id, str(record.uri), record.name)

    @overload
    @classmethod
    async def spawn_in_foreground(
        cls,
        *args: Any,
        shutdown_on: Literal[ShutdownOn.CONNECTION_CLOSED],
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        connect_arg: Any = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stdout: Callable[[str, str], object] = print_stdout,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> tuple[Connection, Process]: ...
    @overload
    @classmethod
    async def spawn_in_foreground(
        cls,
        *args: Any,
        shutdown_on: Literal[ShutdownOn.HEARTBEATER_CONNECTION_TIMEOUT, ShutdownOn.CALLED_SHUTDOWN_FUNCTION],
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stdout: Callable[[str, str], object] = print_stdout,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> tuple[Handle[Self], Process]: ...
    @classmethod
    async def spawn_in_foreground(
        cls,
        *args: Any,
        shutdown_on: ShutdownOn,
        name: str | None = None,
        init: Mapping[str, Any] | None = None,
        connect_arg: Any = None,
        on_failure: Callable[[Exception], object] | None = None,
        env: Mapping[str, str] | None = None,
        cd: str = "/",
        umask: int | None = None,
        connection_timeout_s: float = CONNECTION_TIMEOUT_S,
        spawn_timeout_s: float | None = None,
        settings: RpcSettings | None = None,
        on_stdout: Callable[[str, str], object] = print_stdout,
        on_stderr: Callable[[str, str], object] = print_stderr,
    ) -> Any:
        """As `spawn`, but the worker does not detach: it stays a child of this process, which is returned as well.

        It keeps this process's session and process group, so that a Ctrl-C reaches it. Each line that it writes, as
        long as it lives, goes to `on_stdout(name, line)` and `on_stderr(name, line)`, by default to this process's
        stdout and stderr as `[WORKER name STDOUT]: line`; its stdin is the null device. When it ends, it is reaped and
        its pipes are closed, whether or not anybody waits for it. `shutdown_on` decides about its life as for `spawn`;
        a worker that outlives this process has nowhere to write to then.
        """
        args, init = packed_init(cls, args, init or {})
        master = await _master()
        record, connection, launched = await master.spawn_in_foreground(
            SpawnOptions(
                reference=reference_of(cls),
                name=_name_of(cls, name),
                args=args,
                kwargs=init,
                shutdown_on=shutdown_on,
                foreground=True,
                cd=cd,
                umask=umask,
                env=env or {},
                sys_path=absolute_sys_path(),
                connect_arg=connect_arg,
                expected=functions_of(cls),
                connection_timeout_s=connection_timeout_s,
                spawn_timeout_s=spawn_timeout_s,
                settings=settings,
                on_failure=on_failure,
                on_stdout=on_stdout,
                on_stderr=on_stderr,
            )
        )
        return connection or Handle(record.worker_id, str(record.uri), record.name), Process(launched)

    @classmethod
    async def serve(
        cls,
        *args: Any,
        init: Mapping[str, Any] | None = None,
        name: str | None = None,
        location: Location | None = None,
        settings: RpcSettings | None = None,
        tls: ssl.SSLContext | None = None,
        insecure: bool = False,
    ) -> Served[Self]:
        """Offers a worker of this class in *this* process: clients connect by its handle as to any other worker.

        `location` is where to listen, by default a Unix socket in this user's private directory. Raises what `init`
        raises, UsageError for TCP without `tls` or `insecure`, OSError when the location cannot be bound.
        """
        worker = cls()
        await initialise(worker, list(args), init or {})
        server = Server(effective_settings(settings))
        worker_id, recent = offer(worker, name or cls.__name__, server)
        if location is None:
            from workerlib.shell.private_dir import process_dir  # noqa: PLC0415 - spawned workers have another place

            location = UnixLocation(str(process_dir() / f"{worker_id[-12:]}.sock"))
        elif not isinstance(location, UnixLocation) and tls is None and not insecure:
            raise UsageError(
                f"{location}: TCP without TLS shows every byte to the network; give tls=, or insecure=True"
            )
        where = await server.listen(location, tls=tls)
        recent.attach()
        return Served(server, Handle(worker_id, str(Uri(worker_id, where)), name or cls.__name__), worker, recent)
