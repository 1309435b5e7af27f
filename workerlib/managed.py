"""Connections that are made anew when they are lost, with a stated policy for the calls that this hits.

Nothing is hidden: what happens to a call is chosen where the connection is made, and a call is repeated only when its
function says that this does no harm (`@rpc(idempotent=True)`). A plain `Connection` stays the right thing wherever the
loss of a worker's state must be noticed.
"""

import asyncio
import enum
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ParamSpec, Self, TypeVar, overload

from workerlib.connection import Connection
from workerlib.errors import ConnectionLost, UsageError, WorkerlibError
from workerlib.spec import Function, OneWay, Rpc, RpcSettings
from workerlib.worker import Handle, connect

P = ParamSpec("P")
R = TypeVar("R")

FIRST_PAUSE_S, LAST_PAUSE_S = 0.02, 1.0
"""Between two attempts to connect while nothing is connected: each pause is twice the one before."""

REFRESH_S = 2.0
"""How often a Group looks for workers that have come, besides each time that it misses one."""

SUPERVISOR_SOCKET = "PARSUP_SOCKET"
"""The variable in which a unit of parsupd finds its supervisor's socket."""


class WhenLost(enum.Enum):
    """What becomes of calls while there is no connection, and of those that were under way when one was lost."""

    FAIL = "fail"
    """Both fail at once with ConnectionLost. A new connection is made in the background."""
    WAIT = "wait"
    """New calls wait for the next connection; those under way fail, since nobody knows whether they were done."""
    RETRY = "retry"
    """As WAIT, and calls under way are made again when their function is declared idempotent."""


Find = Callable[[], Awaitable[Mapping[str, str]]]
"""Gives names and URIs of the workers that there are now. It may raise LookupError or OSError while there is none."""


async def find_units(unit: str, supervisor: str | None = None) -> dict[str, str]:
    """The ready instances of a parsupd unit and their URIs, by name; of `unit@N`, that one alone.

    `supervisor` is the path of parsupd's socket, by default $PARSUP_SOCKET, which units find set. Raises UsageError
    when there is neither, and what `connect` raises.
    """
    path = supervisor or os.environ.get(SUPERVISOR_SOCKET)
    if not path:
        raise UsageError(f"which parsupd? give supervisor=, the path of its socket, or set {SUPERVISOR_SOCKET}")
    async with await connect(f"PYRO:Pyro.NameServer@./u:{path}") as names:
        found = await names.call("list", unit)
    return {name: uri for name, uri in found.items() if unit in {name, name.rpartition("@")[0]}}


class _Member:
    """One worker that is connected."""

    def __init__(self, uri: str, connection: Connection) -> None:
        self.uri = uri
        self.connection = connection
        self.outstanding = 0
        self.lost: asyncio.Task[str] = asyncio.ensure_future(connection.wait_closed())


class Group:
    """Several workers that are as good as one another: each call goes to the one with the fewest calls under way.

    An async context manager; belongs to the event loop that entered it.
    """

    refresh_s: float | None = REFRESH_S

    def __init__(
        self, find: Find, *, when_lost: WhenLost, connect_arg: Any = None, settings: RpcSettings | None = None
    ) -> None:
        self._find = find
        self._when_lost = when_lost
        self._connect_arg = connect_arg
        self._settings = settings
        self._members: dict[str, _Member] = {}
        self._missed = asyncio.Event()
        self._came: asyncio.Future[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._last_error: Exception | None = None

    @classmethod
    def unit(cls, unit: str, *, supervisor: str | None = None, when_lost: WhenLost, connect_arg: Any = None) -> Self:
        """All ready instances of a unit of parsupd; see `find_units`. They are looked up again when one is missed."""

        async def find() -> Mapping[str, str]:
            return await find_units(unit, supervisor)

        return cls(find, when_lost=when_lost, connect_arg=connect_arg)

    @property
    def connected(self) -> list[str]:
        """Names of the workers that there is a connection to now."""
        return [name for name, member in self._members.items() if member.connection.closed is None]

    # Calls

    async def connection(self) -> Connection:
        """A connection of now, for streams and pings; waits for one unless `when_lost` is FAIL.

        Raises ConnectionLost with FAIL, and UsageError when this is not entered or was closed.
        """
        return (await self._least_busy()).connection

    @overload
    async def run(self, function: Rpc[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    async def run(self, function: OneWay[P], *args: P.args, **kwargs: P.kwargs) -> None: ...
    async def run(self, function: Function[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a function as `Connection.run` does, with the policy for what is lost. For streams: `connection`."""
        while True:
            member = await self._least_busy()
            member.outstanding += 1
            try:
                call: Any = member.connection.run  # any of its overloads: those of this function are fewer
                return await call(function, *args, **kwargs)
            except ConnectionLost:
                if self._when_lost is not WhenLost.RETRY or not getattr(function, "idempotent", False):
                    raise
            finally:
                member.outstanding -= 1

    async def _least_busy(self) -> _Member:
        while True:
            if self._keeper is None:
                raise UsageError("this is used inside `async with`, and not after its end")
            alive = [member for member in self._members.values() if member.connection.closed is None]
            if alive:
                return min(alive, key=lambda member: member.outstanding)
            self._missed.set()
            if self._when_lost is WhenLost.FAIL:
                why = f": {self._last_error}" if self._last_error is not None else ""
                raise ConnectionLost(f"there is no connection now{why}")
            await self._next()

    async def _next(self) -> None:
        """Waits until another worker is connected, or this is closed."""
        if self._came is None:
            self._came = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._came)

    # Connections

    async def _keep(self) -> None:
        """Connects to what there is, again and again, until it is cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            self._missed.clear()
            await self._connect_all()
            pause_s = FIRST_PAUSE_S if self._members else min(2 * pause_s, LAST_PAUSE_S)
            if not self._members:
                await asyncio.sleep(pause_s)
                continue
            waiting = asyncio.ensure_future(self._missed.wait())
            try:
                lost = [member.lost for member in self._members.values()]
                await asyncio.wait({waiting, *lost}, timeout=self.refresh_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()

    async def _connect_all(self) -> None:
        for name, member in list(self._members.items()):
            if member.lost.done():
                self._last_error = ConnectionLost(member.lost.result())
                del self._members[name]
        try:
            found = await self._find()
        except (OSError, LookupError, WorkerlibError) as error:
            self._last_error = error
            return
        for name, uri in found.items():
            known = self._members.get(name)
            if known is not None and known.uri == uri:
                continue
            try:
                connection = await connect(uri, self._connect_arg, settings=self._settings)
            except (OSError, WorkerlibError) as error:  # gone since, or it refuses: others may not
                self._last_error = error
                continue
            if known is not None:
                known.connection.abort()
            self._members[name] = _Member(uri, connection)
            self._tell()

    def _tell(self) -> None:
        came, self._came = self._came, None
        if came is not None and not came.done():
            came.set_result(None)

    async def __aenter__(self) -> Self:
        """Returns after the first attempt to connect. With FAIL, raises what kept it from success."""
        await self._connect_all()
        if not self._members and self._when_lost is WhenLost.FAIL:
            raise self._last_error or ConnectionLost("there is no worker to connect to")
        self._keeper = asyncio.ensure_future(self._keep())
        return self

    async def close(self) -> None:
        """Closes all connections and makes no more; calls that wait end with UsageError. Idempotent."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        self._tell()
        members, self._members = self._members, {}
        for member in members.values():
            await member.connection.close()
            await member.lost

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class Managed(Group):
    """One worker, over one connection after another."""

    refresh_s = None

    def __init__(
        self,
        worker: "str | Handle[Any] | Find",
        *,
        when_lost: WhenLost,
        connect_arg: Any = None,
        settings: RpcSettings | None = None,
    ) -> None:
        """`worker` is a URI, a handle, or what gives one name and URI before each attempt to connect."""
        find = worker if callable(worker) else _constantly(worker if isinstance(worker, str) else worker.uri)
        super().__init__(find, when_lost=when_lost, connect_arg=connect_arg, settings=settings)


def _constantly(uri: str) -> Find:
    async def find() -> Mapping[str, str]:
        return {"": uri}

    return find
