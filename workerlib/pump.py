"""Moves the items of a generator to the caller: pushed with credit, or pulled one by one by a stock client."""

import asyncio
import contextvars
import inspect
import time
import uuid
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from workerlib.core.payload import NIL, encode_result
from workerlib.core.session import ServerSession
from workerlib.errors import ProtocolError
from workerlib.shell.transport import Wire

BATCH = 512
"""Items that go into one frame at most."""

HOP_S = 0.002
"""How long a thread collects items before it hands them over."""


async def _from_thread(items: Generator[Any, None, None], threads: ThreadPoolExecutor) -> AsyncGenerator[Any, None]:
    """The items of a plain generator, which may block: taken in a thread, as many as come within HOP_S at a time."""
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()

    def take() -> list[Any]:
        until = time.monotonic() + HOP_S
        taken = []
        for item in items:
            taken.append(item)
            if len(taken) >= BATCH or time.monotonic() > until:
                break
        return taken

    try:
        while taken := await loop.run_in_executor(threads, lambda: context.run(take)):
            for item in taken:
                yield item
    finally:
        # A thread may still be inside the generator when this one is cancelled; a running generator cannot be closed.
        if inspect.getgeneratorstate(items) != inspect.GEN_RUNNING:
            items.close()


def as_async(items: Any, threads: ThreadPoolExecutor | None) -> AsyncGenerator[Any, None]:
    """Whatever a pipe function gave, as an async generator. Raises TypeError when it is none."""
    if isinstance(items, AsyncGenerator):
        return items
    if threads is not None and isinstance(items, Generator):
        return _from_thread(items, threads)
    raise TypeError(f"a pipe function must be a generator, this one returned a {type(items).__qualname__}")


class Pump:
    """Pushes one stream to a peer that speaks the dialect.

    Items that come without a suspension between them travel in one frame; the first after a pause is sent before the
    loop turns, so that batching never delays one. Without credit the generator is not resumed.
    """

    def __init__(self, wire: Wire, session: ServerSession, seq: int, where: str) -> None:
        self._wire = wire
        self._session = session
        self._seq = seq
        self._where = where
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Any] = []
        self._flush_soon = False
        self._credit_came: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """Credit has come."""
        if self._credit_came is not None and not self._credit_came.done():
            self._credit_came.set_result(None)

    async def run(self, items: AsyncGenerator[Any, None]) -> None:
        """Sends all items and the end. Raises what the generator raises, after the items before it were sent."""
        waiting, session, seq = self._waiting, self._session, self._seq
        room = min(session.credit(seq), BATCH)
        try:
            async for item in items:
                waiting.append(item)
                if len(waiting) >= room:
                    self._flush()
                    await self._wait_for_room()
                    room = min(session.credit(seq), BATCH)
                elif not self._flush_soon:
                    self._flush_soon = True
                    self._loop.call_soon(self._flush_later)
            self._flush()
        except BaseException:
            if self._session.closed is None:
                self._flush()
            raise
        finally:
            await items.aclose()
        if session.closed is None:
            self._wire.write(session.end(seq, NIL))

    def _flush_later(self) -> None:
        self._flush_soon = False
        if self._session.credit(self._seq) >= len(self._waiting):
            self._flush()

    def _flush(self) -> None:
        waiting = self._waiting
        if waiting and self._session.closed is None:
            count = len(waiting)
            payload = encode_result(self._where, waiting)
            waiting.clear()
            self._wire.write(self._session.items(self._seq, payload, count))

    async def _wait_for_room(self) -> None:
        await self._wire.writable()
        while self._session.credit(self._seq) == 0 and self._session.closed is None:
            self._credit_came = self._loop.create_future()
            await self._credit_came


class StockStreams:
    """The streams that stock clients have opened: they pull each item with a call to the daemon object.

    A stream ends with the connection that opened it; its id cannot be guessed, since Pyro5's clients may close it over
    another connection.
    """

    def __init__(self) -> None:
        self._streams: dict[str, tuple[object, AsyncGenerator[Any, None]]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def open(self, owner: object, items: AsyncGenerator[Any, None]) -> str:
        stream_id = str(uuid.uuid4())
        self._streams[stream_id] = owner, items
        return stream_id

    async def next(self, stream_id: str, owner: object) -> Any:
        """The next item. Raises StreamEnd at the end (no coroutine can raise StopIteration), or what the function raises."""
        found = self._streams.get(stream_id)
        if found is None or found[0] is not owner:
            raise ProtocolError("item stream terminated")
        try:
            return await anext(found[1])
        except StopAsyncIteration:
            del self._streams[stream_id]
            raise StreamEnd from None
        except BaseException:
            self.drop(stream_id)
            raise

    def drop(self, stream_id: str) -> None:
        """Closes a stream; an unknown one is already closed."""
        found = self._streams.pop(stream_id, None)
        if found is not None:
            task = asyncio.get_running_loop().create_task(_close(found[1]))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def close_owned_by(self, owner: object) -> None:
        for stream_id in [key for key, stream in self._streams.items() if stream[0] is owner]:
            self.drop(stream_id)

    def close(self) -> None:
        for stream_id in list(self._streams):
            self.drop(stream_id)


async def _close(items: AsyncGenerator[Any, None]) -> None:
    await items.aclose()


class StreamEnd(Exception):  # noqa: N818 - the end is no error; it travels as StopIteration
    """The end of a stock stream."""
