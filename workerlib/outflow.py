"""One stream on its way to the peer: items into frames, with credit; and the writer that fills it by hand."""

import asyncio
import traceback
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol

from workerlib.core.payload import NIL, encode, encode_result, error_to_wire
from workerlib.core.session import ClientSession, ServerSession
from workerlib.errors import ResultError, StreamOverflow, UsageError
from workerlib.kinds import DirectWriter
from workerlib.shell.transport import Wire

FIRST_BATCH, BATCH = 16, 512
"""Items that go into one frame at most: few at first, since nobody knows yet how large they are."""

BATCH_BYTES = 256 << 10
"""The size that a frame of several items should have at most; batches shrink and grow with it."""


def format_error(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Outflow:
    """Sends items and the end of one stream. Who uses it takes care that there is room; `over` is called at the end."""

    def __init__(
        self,
        wire: Wire,
        session: ServerSession | ClientSession,
        seq: int,
        where: str,
        over: Callable[[], object] = lambda: None,
    ) -> None:
        self._wire = wire
        self._session = session
        self._seq = seq
        self._where = where
        self._over = over
        self.batch = FIRST_BATCH

    def room(self) -> int:
        """Items that may be sent now, in one frame."""
        return 0 if self._wire.paused else min(self._session.credit(self._seq), self.batch)

    def full(self) -> "asyncio.Future[None] | None":
        """What to wait for when the socket takes no more; None when only the reader's credit is missing."""
        return self._wire.writable() if self._wire.paused else None

    def send(self, items: list[Any]) -> None:
        """Sends items for which there is credit, together if they fit.

        Raises ResultError for the first that has no encoding or is too long, after those before it.
        """
        most = self._session.settings.max_message_size
        try:
            payload = encode_result(self._where, items)
            fits = len(payload) <= most
        except ResultError:
            fits, payload = False, b""
        if not fits:
            self._send_singly(items, most)
            return
        count = len(items)
        self._wire.write(self._session.items(self._seq, payload, count))
        if len(payload) > BATCH_BYTES:
            self.batch = max(1, count * BATCH_BYTES // len(payload))
        elif count >= self.batch and 2 * len(payload) <= BATCH_BYTES:
            self.batch = min(2 * self.batch, BATCH)

    def _send_singly(self, items: list[Any], most: int) -> None:
        self.batch = 1
        for item in items:
            payload = encode_result(self._where, [item])
            if len(payload) > most:
                raise ResultError(f"an item of {self._where} has {len(payload)} bytes; a message may have {most}")
            self._wire.write(self._session.items(self._seq, payload, 1))

    def end(self, error: Exception | None) -> None:
        """Ends the stream, for the reader with `error` if there is one."""
        if self._session.closed is None:
            payload = NIL if error is None else self._describe(error)
            self._wire.write(self._session.end(self._seq, payload, failed=error is not None))
        self._over()

    def _describe(self, error: Exception) -> bytes:
        # Errors of workerlib itself tell nothing by where they were raised.
        text = "" if isinstance(error, (StreamOverflow, ResultError)) else format_error(error)
        payload = encode(error_to_wire(error, text, stock=False))
        if len(payload) > self._session.settings.max_message_size:
            short = RuntimeError(f"{type(error).__name__}, whose text has {len(payload)} bytes")
            payload = encode(error_to_wire(short, "", stock=False))
        return payload

    def abort(self, reason: str) -> None:
        """Gives the stream up, as the last word about it."""
        if self._session.closed is None:
            self._wire.write(self._session.abort(self._seq, reason))
        self._over()


class Sink(Protocol):
    """Where a writer's items go: an Outflow, or a Slot."""

    batch: int

    def room(self) -> int: ...
    def full(self) -> "asyncio.Future[None] | None": ...
    def send(self, items: list[Any]) -> None: ...
    def end(self, error: Exception | None) -> None: ...


class ItemWriter(DirectWriter[Any]):
    """A DirectWriter over a sink. Items that are written without a suspension in between travel in one frame."""

    def __init__(self, sink: Sink, where: str, limit: int) -> None:
        self._sink = sink
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
        except ResultError as error:
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
        if not self._awaits_socket and (full := sink.full()) is not None:
            self._awaits_socket = True
            full.add_done_callback(self._socket_has_room)

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

    def full(self) -> None:
        return None

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
