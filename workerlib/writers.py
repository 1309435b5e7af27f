"""Writers of streams by hand, over whatever takes their items."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from workerlib.errors import ArgumentError, ResultError, StreamOverflow, UsageError
from workerlib.kinds import DirectWriter
from workerlib.shell.transport import Wire


class Sink(Protocol):
    """Where a writer's items go: an Outflow, or a Slot."""

    batch: int

    def room(self) -> int: ...
    def send(self, items: list[Any]) -> None: ...
    def end(self, error: Exception | None) -> None: ...


class ItemWriter(DirectWriter[Any]):
    """A DirectWriter over a sink. Items that are written without a suspension in between travel in one frame."""

    def __init__(self, sink: Sink, where: str, limit: int, wire: Wire | None = None) -> None:
        """`wire`: what may be full besides the reader."""
        self._sink = sink
        self._wire = wire
        self._where = where
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        self._flush_at = limit
        self._flush_soon = False
        self._awaits_socket = False
        self._holder: asyncio.Task[Any] | None = asyncio.current_task()  # whose end `start` waits for
        self._started = False
        self._taking = True  # as long as `_closed` is not done; asking that would cost a tenth of a write
        self._closing = False  # the end goes after the items that wait
        self._error: Exception | None = None
        self.dropped = False
        """Whether nothing more may be sent, not even the end."""
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._empty: asyncio.Future[None] | None = None

    def write(self, item: Any) -> bool:
        if not self._taking:
            return False
        waiting = self._waiting
        waiting.append(item)
        if len(waiting) >= self._flush_at:
            self._flush()
            if len(waiting) > self._limit:
                return self._overflow()
        elif not self._flush_soon:
            self._flush_soon = True
            self._loop.call_soon(self._flush_later)
        return True

    def _overflow(self) -> bool:
        text = f"{self._where}: the reader did not keep up, {len(self._waiting)} items are lost"
        self._waiting.clear()
        self._finish(text, StreamOverflow(text))
        return False

    def start(self) -> None:
        """Lets the items go: the reader knows of the stream now."""
        self._started, self._holder = True, None
        self._flush()

    def wake(self) -> None:
        """There may be room again."""
        self._flush()

    def _flush_later(self) -> None:
        self._flush_soon = False
        self._flush()

    def _flush(self) -> None:
        if not self._started:
            self._flush_at = self._limit + 1
            return
        waiting, sink = self._waiting, self._sink
        at = 0
        try:
            while at < len(waiting) and (room := sink.room()):
                some = waiting[at : at + room]
                at += len(some)
                sink.send(some)
        except (ResultError, ArgumentError) as error:
            self.drop(str(error))
            sink.end(error)
            return
        del waiting[:at]
        if not waiting:
            self._flush_at = sink.batch
            self._tell_empty()
            if self._closing:
                self._closing = False
                sink.end(self._error)
            return
        self._flush_at = self._limit + 1
        if self._wire is not None and self._wire.paused and not self._awaits_socket:
            self._awaits_socket = True
            self._wire.writable().add_done_callback(self._socket_has_room)

    def _socket_has_room(self, _: object) -> None:
        self._awaits_socket = False
        self._flush()

    def _tell_empty(self) -> None:
        if self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    def _finish(self, reason: str, error: Exception | None) -> None:
        """Takes no more; the end goes to the reader after what waits."""
        if self._taking:
            self._taking = False
            self._closed.set_result(reason)
            self._closing, self._error = True, error
            self._flush()

    async def flushed(self) -> None:
        if self._holder is not None and asyncio.current_task() is self._holder:
            raise UsageError(f"{self._where}: its items are sent after it has returned; write more from a task")
        self._flush()
        while self._waiting:
            if self._empty is None or self._empty.done():
                self._empty = self._loop.create_future()
            await asyncio.shield(self._empty)

    def close(self, error: Exception | None = None) -> None:
        self._finish("closed by the writer" if error is None else f"{type(error).__name__}: {error}", error)

    def drop(self, reason: str) -> None:
        """Nothing more is sent, not even the end: the reader or the connection has gone. Idempotent."""
        self._closing, self.dropped = False, True
        self._waiting.clear()
        if self._taking:
            self._taking = False
            self._closed.set_result(reason)
        self._tell_empty()

    @property
    def closed(self) -> str | None:
        return self._closed.result() if self._closed.done() else None

    async def wait_closed(self) -> str:
        return await asyncio.shield(self._closed)


class Slot:
    """A sink for a reader that pulls item by item, as stock clients do."""

    batch = 1

    def __init__(self) -> None:
        self._wanted: asyncio.Future[Any] | None = None
        self._ended: tuple[Exception | None] | None = None

    def room(self) -> int:
        return int(self._wanted is not None and not self._wanted.done())

    def send(self, items: list[Any]) -> None:
        assert self._wanted is not None, "there was room"
        self._wanted.set_result(items)

    def end(self, error: Exception | None) -> None:
        self._ended = (error,)
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    async def items(self, writer: ItemWriter) -> AsyncGenerator[Any, None]:
        """What the writer writes, as it is asked for."""
        try:
            while self._ended is None:
                self._wanted = asyncio.get_running_loop().create_future()
                writer.wake()
                if (some := await self._wanted) is not None:
                    yield some[0]
            if self._ended[0] is not None:
                raise self._ended[0]
        finally:
            writer.drop("given up by the reader")
