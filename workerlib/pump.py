"""Moves the items of a generator to the caller: pushed with credit, or pulled one by one by a stock client."""

import asyncio
import contextlib
import contextvars
import inspect
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Executor, Future
from typing import Any

from workerlib.core.client_session import ClientSession
from workerlib.core.session import (
    ServerSession,
)
from workerlib.errors import ArgumentError, ProtocolError, ResultError
from workerlib.outflow import Outflow
from workerlib.shell import journal
from workerlib.shell.transport import Wire

Room = Callable[[], int]
"""How many items the reader has room for now."""


def one() -> int:
    """The room of a reader that pulls item by item."""
    return 1


class _Thread:
    """A plain iterator, which may block, taken in a thread: each item is handed to the loop as soon as it is there."""

    def __init__(self, items: Iterator[Any], threads: Executor) -> None:
        self._items = items
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._ready: deque[Any] = deque()
        self._arrived = asyncio.Event()
        self._told = False  # whether the loop knows that something is ready
        self._stopped = False
        self._running: Future[bool] | None = None

    async def iterate(self, room: Room) -> AsyncGenerator[Any, None]:
        ready, arrived = self._ready, self._arrived
        finished: asyncio.Future[bool] | None = None
        try:
            more = True
            while more:
                self._running = self._threads.submit(self._context.run, self._take, max(1, room()))
                finished = asyncio.wrap_future(self._running)
                finished.add_done_callback(lambda _: arrived.set())
                while ready or not finished.done():
                    if ready:
                        yield ready.popleft()
                        continue
                    self._told = False
                    if not ready:
                        await arrived.wait()
                        arrived.clear()
                more = finished.result()
        finally:
            self._stopped = True
            if finished is not None:
                finished.cancel()
            if isinstance(self._items, Generator):
                await self._close(self._items)

    def _take(self, most: int) -> bool:
        """Runs in a thread. Takes at most so many items; whether there may be more."""
        for _ in range(most):
            if self._stopped:
                return False
            try:
                item = next(self._items)
            except StopIteration:
                return False
            self._ready.append(item)
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    self._loop.call_soon_threadsafe(self._arrived.set)
        return True

    async def _close(self, items: Generator[Any, None, None]) -> None:
        """Closes a generator whose cleanup may block, as soon as no thread is inside it any more."""

        def close(_: object = None) -> None:
            try:
                self._context.run(items.close)
            except Exception as error:  # noqa: BLE001 - user code, and nobody is left to tell
                journal.fail("generator_cleanup_failed", error)

        def close_in_thread(_: object) -> None:
            try:
                self._threads.submit(close)
            except RuntimeError:  # the pool was shut down with the server
                close()

        running = self._running
        if running is not None and not running.done():
            running.add_done_callback(close_in_thread)  # a thread is inside it: it is closed when that comes out
        elif inspect.getgeneratorstate(items) == inspect.GEN_SUSPENDED:
            try:
                closing = self._threads.submit(close)
            except RuntimeError:  # the pool was shut down with the server
                close()
            else:
                await asyncio.shield(asyncio.wrap_future(closing))


async def _adopt(items: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
    async for item in items:
        yield item


def as_async(items: Any, threads: Executor | None, room: Room = one) -> AsyncGenerator[Any, None]:
    """Whatever a pipe function gave, as an async generator. Raises TypeError when it gave no iterator."""
    if isinstance(items, AsyncGenerator):
        return items
    if isinstance(items, AsyncIterator):
        return _adopt(items)
    if threads is not None and isinstance(items, Iterator):
        return _Thread(items, threads).iterate(room)
    if inspect.iscoroutine(items):
        items.close()
    raise TypeError(f"a pipe function must be a generator, this one returned a {type(items).__qualname__}")


class Pump:
    """Pushes one stream to a peer that speaks the dialect.

    Items that come without a suspension between them travel in one frame; the first after a pause is sent when the
    loop turns, so that batching never delays one. Without credit the generator is not resumed.
    """

    def __init__(
        self,
        wire: Wire,
        session: ServerSession | ClientSession,
        seq: int,
        out: Outflow,
        give_up: Callable[[], object],
    ) -> None:
        self._wire = wire
        self._session = session
        self._seq = seq
        self.out = out
        self._give_up = give_up
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        self._room = 0
        self._flush_soon = False
        self._credit_came: asyncio.Future[None] | None = None
        self.failure: ResultError | ArgumentError | None = None
        """An item that could not be sent while the generator was suspended; `give_up` was called for it."""

    def wake(self) -> None:
        """Credit has come."""
        if self._credit_came is not None and not self._credit_came.done():
            self._credit_came.set_result(None)

    def room(self) -> int:
        """Items that may be taken from the generator before the next flush."""
        return self._room - len(self._waiting)

    async def run(self, items: AsyncGenerator[Any, None]) -> None:
        """Sends all items and the end. Raises what the generator raises, after the items before it were sent.

        An item that has no encoding, or is too long for a message, raises ResultError, also after those before it.
        """
        waiting, session = self._waiting, self._session
        self._measure()
        try:
            async for item in items:
                waiting.append(item)
                if len(waiting) >= self._room:
                    self._flush()
                    await self._wait_for_room()
                    if session.closed is not None:
                        return
                elif not self._flush_soon:
                    self._flush_soon = True
                    self._loop.call_soon(self._flush_later)
        finally:
            try:
                self._flush()
            finally:
                await items.aclose()
        self.out.end(None)

    def _measure(self) -> None:
        self._room = self.out.room()

    def _flush_later(self) -> None:
        self._flush_soon = False
        try:
            self._flush()
        except (ResultError, ArgumentError) as error:
            self.failure = error
            self._give_up()

    def _flush(self) -> None:
        """Sends what waits: never more than there is credit for, since `run` takes no more from the generator."""
        waiting = self._waiting
        if not waiting:
            return
        if self._session.credit(self._seq) < len(waiting):  # the stream was aborted, or the connection has ended
            waiting.clear()
            return
        try:
            self.out.send(waiting)
        finally:
            waiting.clear()
            self._measure()

    async def _wait_for_room(self) -> None:
        await self._wire.writable()
        while self._session.credit(self._seq) == 0 and self._session.closed is None:
            self._credit_came = self._loop.create_future()
            await self._credit_came
            await self._wire.writable()
        self._measure()


class _StockStream:
    """One stream of a stock client. `dropped` while an item is being made: it is closed right after that."""

    def __init__(self, owner: object, items: AsyncGenerator[Any, None]) -> None:
        self.owner = owner
        self.items = items
        self.busy = False
        self.dropped = False


class StockStreams:
    """The streams that stock clients have opened: they pull each item with a call to the daemon object.

    A stream ends with the connection that opened it; its id cannot be guessed, since Pyro5's clients may close it over
    another connection.
    """

    def __init__(self) -> None:
        self._streams: dict[str, _StockStream] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, owner: object, items: AsyncGenerator[Any, None]) -> str:
        stream_id = str(uuid.uuid4())
        self._streams[stream_id] = _StockStream(owner, items)
        return stream_id

    async def next(self, stream_id: str, owner: object) -> Any:
        """The next item.

        Raises StreamEnd at the end (no coroutine can raise StopIteration), or what the function raises.
        """
        stream = self._streams.get(stream_id)
        if stream is None or stream.owner is not owner:
            raise ProtocolError("item stream terminated")
        if stream.busy:
            raise ProtocolError("the item before this one is still being made")
        stream.busy = True
        try:
            return await anext(stream.items)
        except StopAsyncIteration:
            self._streams.pop(stream_id, None)
            raise StreamEnd from None
        except BaseException:
            self._streams.pop(stream_id, None)
            raise  # a generator that has raised is closed
        finally:
            stream.busy = False
            if stream.dropped:
                self._close(stream)

    def drop(self, stream_id: str) -> None:
        """Closes a stream; an unknown one is already closed."""
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            stream.dropped = True
            if not stream.busy:
                self._close(stream)

    def _close(self, stream: _StockStream) -> None:
        task = asyncio.get_running_loop().create_task(_close(stream.items))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def close_owned_by(self, owner: object) -> None:
        for stream_id in [key for key, stream in self._streams.items() if stream.owner is owner]:
            self.drop(stream_id)

    async def close(self, within_s: float) -> None:
        """Closes all streams and gives their generators so long for their own cleanup."""
        for stream_id in list(self._streams):
            self.drop(stream_id)
        if self._closing:
            await asyncio.wait(self._closing, timeout=within_s)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await items.aclose()
        except Exception as error:  # noqa: BLE001 - user code, and nobody is left to tell
            journal.fail("generator_cleanup_failed", error)


class StreamEnd(Exception):  # noqa: N818 - the end is no error; it travels as StopIteration
    """The end of a stock stream."""
