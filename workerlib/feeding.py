"""The calling end of a call that sends items: from a source, or by hand."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from typing import Any, Protocol

from workerlib.core.client_session import ClientSession
from workerlib.errors import UsageError
from workerlib.kinds import DirectCall
from workerlib.outflow import Updates
from workerlib.pump import Pump, as_async
from workerlib.shell.transport import Wire
from workerlib.writers import ItemWriter


class Feed(Protocol):
    """What sends the items of one call."""

    def wake(self) -> None:
        """The worker has room for more."""

    def cut(self, reason: str) -> None:
        """Nothing more is sent, not even the end."""


async def _each(items: Iterable[Any]) -> AsyncGenerator[Any, None]:
    for item in items:
        yield item


def as_source(source: Any, where: str) -> AsyncGenerator[Any, None]:
    """The source of a call's items as an async generator. Raises UsageError for what cannot be iterated."""
    if isinstance(source, AsyncIterable):
        return as_async(aiter(source), None)
    if isinstance(source, Iterable):
        return _each(source)
    raise UsageError(f"{where}: a {type(source).__qualname__} is no source of items: it cannot be iterated")


class SourceFeed:
    """Sends what a source gives, at the pace of the worker. An error of the source is the call's as well."""

    def __init__(
        self,
        wire: Wire,
        session: ClientSession,
        seq: int,
        updates: Updates,
        source: AsyncGenerator[Any, None],
        reply: "asyncio.Future[Any]",
    ) -> None:
        self._reply = reply
        self._pump = Pump(wire, session, seq, updates, self._give_up)
        self._task = asyncio.get_running_loop().create_task(self._run(source))

    async def _run(self, source: AsyncGenerator[Any, None]) -> None:
        try:
            await self._pump.run(source)
        except asyncio.CancelledError:
            if self._pump.failure is None:
                raise
            self._fail(self._pump.failure)
        except Exception as error:  # noqa: BLE001 - user code
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        self._pump.out.end(error)
        if not self._reply.done():
            self._reply.set_exception(error)

    def _give_up(self) -> None:
        self._task.cancel()

    def wake(self) -> None:
        self._pump.wake()

    def cut(self, reason: str) -> None:  # noqa: ARG002 - the source is closed; it has no use for words
        self._task.cancel()


class CallWriter(ItemWriter, DirectCall[Any, Any]):
    """Sends what is written by hand; awaiting it gives the result of the call."""

    def __init__(self, updates: Updates, where: str, limit: int, wire: Wire, reply: "asyncio.Future[Any]") -> None:
        super().__init__(updates, where, limit, wire)
        self._reply = reply
        self.start()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._reply.__await__()

    def cut(self, reason: str) -> None:
        self.drop(reason)
