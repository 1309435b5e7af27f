"""Streams whose sender the reader's pace does not slow down: written by hand, and pipes without push-back."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import Pyro5.client
import pytest
from served import collect, serving, until
from support import run_async
from workers import Ticker

from workerlib import Redirect, ShutdownOn, blocking
from workerlib.connection import Connection, open_to
from workerlib.core.uri import Uri
from workerlib.errors import ResultError, StreamOverflow, UsageError
from workerlib.kinds import DirectWriter, direct_pipe
from workerlib.spec import RpcSettings, pipe, rpc


class OwnError(Exception):
    pass


class Streams:
    """Functions that write by hand, and one generator that is not slowed down."""

    def __init__(self) -> None:
        self.writers: list[DirectWriter[int]] = []
        self.results: list[bool] = []
        self.log: list[str] = []
        self.go_on = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    @direct_pipe
    async def count(self, out: DirectWriter[int], below: int) -> None:
        for n in range(below):
            out.write(n)
        out.close()

    @direct_pipe
    async def keep(self, out: DirectWriter[int], first: list[int]) -> None:
        self.writers.append(out)
        self.results += [out.write(n) for n in first]

    @direct_pipe
    async def keep_anything(self, out: DirectWriter[Any]) -> None:
        self.writers.append(out)

    @direct_pipe
    async def waits_first(self, out: DirectWriter[int]) -> None:
        self.writers.append(out)
        out.write(1)
        await self.go_on.wait()
        out.write(2)
        out.close()

    @direct_pipe(errors=(OwnError,))
    async def fails(self, out: DirectWriter[int]) -> None:
        self.writers.append(out)
        out.write(1)
        raise OwnError("before it returned")

    @direct_pipe
    async def deadlock(self, out: DirectWriter[int]) -> None:
        out.write(1)
        await out.flushed()

    @direct_pipe(name="polite")
    async def in_step(self, out: DirectWriter[int], below: int) -> None:
        async def write() -> None:
            for n in range(below):
                if not out.write(n):
                    break
                self.log.append(str(n))
                await out.flushed()
            out.close()

        self.tasks.add(asyncio.create_task(write()))

    @direct_pipe
    async def opaque(self, out: DirectWriter[Any], count: int) -> None:
        self.writers.append(out)
        for n in range(count):
            out.write(n)
        out.write(object())
        out.write("never sent")

    @direct_pipe
    async def wrong_item(self, out: DirectWriter[str]) -> None:
        self.writers.append(out)  # type: ignore[arg-type]
        out.write(5)  # type: ignore[arg-type]

    @pipe(client_pushes_back=False)
    async def unhindered(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                self.log.append(str(n))
                yield n
        finally:
            self.log.append("closed")

    @pipe(client_pushes_back=False)
    def unhindered_in_thread(self, below: int) -> Iterator[int]:
        yield from range(below)

    @pipe(client_pushes_back=False)
    async def unhindered_forever(self) -> AsyncIterator[int]:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.001)
            yield 1

    @rpc
    async def add(self, n: int) -> int:
        return n + 1


Main = Callable[[Streams, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def with_streams(engine: str, tmp_path: Path) -> Callable[..., None]:
    """Runs a test's body with a worker and a connection to it, in one loop over a real socket."""

    def run(main: Main, settings: RpcSettings | None = None) -> None:
        async def whole() -> None:
            worker = Streams()
            settings_ = settings or RpcSettings()
            async with (
                serving(worker, tmp_path / "w.sock", settings_) as uri,
                await open_to(uri, settings=settings_) as conn,
            ):
                await main(worker, conn)

        run_async(whole, engine)

    return run


@pytest.mark.parametrize("below", [0, 1, 5, 5000, 60_000])
@pytest.mark.parametrize("function", [Streams.count, Streams.unhindered, Streams.unhindered_in_thread], ids=repr)
def test_what_is_written_arrives_whole_and_in_order(with_streams, function: Any, below: int) -> None:
    """Also far more than the window, as long as the buffer has room."""

    async def main(worker: Streams, conn: Connection) -> None:
        assert [n async for n in conn.run(function, below)] == list(range(below))
        assert not conn._streams
        assert await conn.run(Streams.add, 1) == 2

    with_streams(main, RpcSettings(stream_window=100))


def test_a_writer_is_kept_and_written_to_after_the_function_returned(with_streams) -> None:
    """Until it is closed; what was written before comes first; after the end `write` says that it writes nothing."""

    async def main(worker: Streams, conn: Connection) -> None:
        items = aiter(conn.run(Streams.keep, [1, 2]))
        assert [await anext(items), await anext(items)] == [1, 2]
        (out,) = worker.writers
        assert worker.results == [True, True]
        assert out.write(3)
        assert await anext(items) == 3
        assert out.closed is None
        out.write(4)
        out.close()
        out.close(ValueError("too late"))
        assert not out.write(5)
        assert (out.closed, await out.wait_closed()) == ("closed by the writer", "closed by the writer")
        assert [n async for n in items] == [4]

    with_streams(main)


def test_nothing_is_delivered_before_the_function_returns(with_streams) -> None:
    """Then what it has written comes, in order."""

    async def main(worker: Streams, conn: Connection) -> None:
        stream = conn.run(Streams.waits_first)
        first = asyncio.ensure_future(anext(aiter(stream)))
        await until(lambda: worker.writers)
        await conn.ping()
        assert not first.done()
        worker.go_on.set()
        assert await first == 1

    with_streams(main)


def test_a_function_that_raises_gives_its_error_and_no_item(with_streams) -> None:
    """What it had written is thrown away, its writer is closed."""

    async def main(worker: Streams, conn: Connection) -> None:
        found: list[int] = []
        with pytest.raises(OwnError, match="before it returned"):
            await collect(conn.run(Streams.fails), found)
        assert found == []
        assert worker.writers[0].closed == "OwnError: before it returned"
        assert not worker.writers[0].write(1)

    with_streams(main)


def test_a_writer_can_end_with_an_error(with_streams) -> None:
    """The reader gets it after the items before it."""

    async def main(worker: Streams, conn: Connection) -> None:
        found: list[int] = []
        reading = asyncio.ensure_future(collect(conn.run(Streams.keep, [1, 2]), found))
        await until(lambda: worker.writers)
        worker.writers[0].close(ValueError("in the middle"))
        with pytest.raises(ValueError, match="in the middle"):
            await reading
        assert found == [1, 2]
        assert worker.writers[0].closed == "ValueError: in the middle"

    with_streams(main)


def test_giving_a_stream_up_closes_its_writer_with_the_reason(with_streams) -> None:
    """Who waits for the end is told; writing says no; the call's number is free again."""

    async def main(worker: Streams, conn: Connection) -> None:
        stream = conn.run(Streams.keep, [1])
        items = aiter(stream)
        await anext(items)
        stream.abort("seen enough")
        assert await worker.writers[0].wait_closed() == "given up by the caller: seen enough"
        assert not worker.writers[0].write(2)
        await worker.writers[0].flushed()
        await until(lambda: not conn._session._pending)

    with_streams(main)


def test_giving_up_while_the_function_runs_cancels_it(with_streams) -> None:
    """As a call of any kind; the writer knows why."""

    async def main(worker: Streams, conn: Connection) -> None:
        stream = conn.run(Streams.waits_first)
        await until(lambda: worker.writers)
        stream.abort("too slow")
        assert await worker.writers[0].wait_closed() == "given up by the caller: too slow"
        await until(lambda: not conn._session._pending)
        assert await conn.run(Streams.add, 1) == 2

    with_streams(main)


def test_the_end_of_the_connection_closes_the_writer(with_streams) -> None:
    """With its reason."""

    async def main(worker: Streams, conn: Connection) -> None:
        conn.run(Streams.keep, [1])
        await until(lambda: worker.writers)
        await conn.ping()  # what was sent has been read: closing over unread bytes is a reset
        await conn.close()
        assert await worker.writers[0].wait_closed() == "closed by the peer"
        assert not worker.writers[0].write(2)

    with_streams(main)


def test_waiting_for_the_own_return_is_refused(with_streams) -> None:
    """`flushed` inside of the function would wait for ever: its items go when it has returned."""

    async def main(worker: Streams, conn: Connection) -> None:
        with pytest.raises(UsageError, match=r"Streams.deadlock: its items are sent after it has returned"):
            await collect(conn.run(Streams.deadlock), [])

    with_streams(main)


def test_a_writer_that_waits_until_all_is_flushed_follows_its_reader(with_streams) -> None:
    """It is never further ahead than the window, and one item."""

    async def main(worker: Streams, conn: Connection) -> None:
        items = aiter(conn.run(Streams.in_step, 200))
        for taken in range(1, 101):
            assert await anext(items) == taken - 1
            for _ in range(3):
                await conn.ping()
            assert len(worker.log) <= taken + 9
        assert [n async for n in items] == list(range(100, 200))
        await asyncio.wait(worker.tasks)

    with_streams(main, RpcSettings(stream_window=8))


@pytest.mark.parametrize("function", [Streams.count, Streams.unhindered], ids=repr)
def test_a_reader_that_is_too_slow_is_told_how_many_items_it_lost(with_streams, function: Any) -> None:
    """The stream ends with an error after the items that had room; the connection goes on."""

    async def main(worker: Streams, conn: Connection) -> None:
        found: list[int] = []
        with pytest.raises(StreamOverflow, match=rf"{function.qualified_name}: the reader did not keep up, \d+ items"):
            await collect(conn.run(function, 1000), found)
        assert found == list(range(len(found)))
        assert len(found) <= 8 + 50
        assert await conn.run(Streams.add, 1) == 2
        await until(lambda: not conn._session._pending)

    with_streams(main, RpcSettings(stream_window=8, stream_buffer=50))


def test_an_overflow_is_exactly_one_item_more_than_the_buffer(with_streams) -> None:
    """The window is sent, the buffer waits, the next item ends it; what waited is lost and counted."""

    async def main(worker: Streams, conn: Connection) -> None:
        stream = conn.run(Streams.keep, [])
        await until(lambda: worker.writers)
        (out,) = worker.writers
        await conn.ping()
        assert all(out.write(n) for n in range(8 + 50))
        await out_of_turn()
        assert not out.write(58)
        assert out.closed == "Streams.keep: the reader did not keep up, 51 items are lost"
        found: list[int] = []
        with pytest.raises(StreamOverflow, match="51 items are lost"):
            await collect(stream, found)
        assert found == list(range(8))

    async def out_of_turn() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with_streams(main, RpcSettings(stream_window=8, stream_buffer=50))


def test_a_socket_that_is_full_counts_as_a_slow_reader(with_streams) -> None:
    """Items wait for the socket as for credit, and go on when it has room."""

    async def main(worker: Streams, conn: Connection) -> None:
        stream = conn.run(Streams.keep_anything)
        await until(lambda: worker.writers)
        out: Any = worker.writers[0]
        conn._wire._transport.pause_reading()
        for _ in range(40):
            out.write("x" * (1 << 19))
            await asyncio.sleep(0)
        assert out._waiting
        conn._wire._transport.resume_reading()
        await out.flushed()
        assert out.closed is None
        stream.abort()
        await out.wait_closed()

    with_streams(main)


@pytest.mark.parametrize("count", [0, 5, 3000])
def test_an_item_that_cannot_be_encoded_ends_the_stream(with_streams, count: int) -> None:
    """After the items before it; the writer is closed, the connection goes on."""

    async def main(worker: Streams, conn: Connection) -> None:
        found: list[int] = []
        with pytest.raises(ResultError, match=r"the result of Streams.opaque cannot be encoded"):
            await collect(conn.run(Streams.opaque, count), found)
        assert found == list(range(count))
        assert "cannot be encoded" in (worker.writers[0].closed or "")
        assert await conn.run(Streams.add, 1) == 2

    with_streams(main)


def test_an_item_of_the_wrong_type_ends_the_stream(with_streams) -> None:
    """The reader checks, and its refusal closes the writer."""

    async def main(worker: Streams, conn: Connection) -> None:
        with pytest.raises(ResultError, match="yielded something else than it declares"):
            await collect(conn.run(Streams.wrong_item), [])
        assert await worker.writers[0].wait_closed() == "given up by the caller: an item could not be taken"

    with_streams(main)


def test_leaving_a_pipe_without_push_back_closes_its_generator(with_streams) -> None:
    """Also one that catches its cancellation; the number is free again."""

    async def main(worker: Streams, conn: Connection) -> None:
        for function in (functools.partial(conn.run, Streams.unhindered, 1000), None):
            stream: Any = function() if function else conn.run(Streams.unhindered_forever)
            items = aiter(stream)
            await anext(items)
            await items.aclose()
            await until(lambda: not conn._session._pending)
        assert worker.log[-1] == "closed"

    with_streams(main)


def test_a_direct_pipe_must_be_async_and_take_its_writer() -> None:
    """Refused where it is decorated, or when its types are read."""
    with pytest.raises(UsageError, match="must be an `async def` that returns"):

        @direct_pipe  # type: ignore[arg-type]
        def plain(self: Any, out: DirectWriter[int]) -> None: ...

    @direct_pipe  # type: ignore[arg-type]
    async def without(self: Any) -> None: ...

    with pytest.raises(UsageError, match="its first parameter must be the DirectWriter"):
        _ = without.types


def test_the_blocking_client_reads_direct_pipes(tmp_path: Path) -> None:
    """As any other stream, and a name given explicitly is the one that is called."""

    async def main() -> None:
        async with serving(Streams(), tmp_path / "w.sock") as uri:

            def read() -> list[list[int]]:
                with blocking.connect(str(uri), within_s=10, timeout_s=10) as conn:
                    assert conn.functions["polite"].value == "direct_pipe"
                    return [list(conn.run(Streams.count, 5000)), list(conn.call("polite", 10))]

            found = await asyncio.get_running_loop().run_in_executor(None, read)
            assert found == [list(range(5000)), list(range(10))]

    run_async(main)


def _with_stock_client(tmp_path: Path, read: Callable[[Any], Any], worker: Streams, settings: RpcSettings) -> Any:
    async def main() -> Any:
        async with serving(worker, tmp_path / "w.sock", settings) as uri:

            def call() -> Any:
                with Pyro5.client.Proxy(str(Uri("w", uri.location))) as proxy:
                    return read(proxy)

            return await asyncio.get_running_loop().run_in_executor(None, call)

    return run_async(main)


def test_a_stock_client_pulls_what_was_written(tmp_path: Path) -> None:
    """An item stream of Pyro5, for direct pipes and for pipes without push-back, errors of the function included."""

    def read(proxy: Any) -> None:
        assert list(proxy.count(100)) == list(range(100))
        assert list(proxy.unhindered(100)) == list(range(100))
        with pytest.raises(Exception, match="before it returned"):
            proxy.fails()

    _with_stock_client(tmp_path, read, Streams(), RpcSettings())


def test_a_stock_client_that_leaves_closes_the_writer(tmp_path: Path) -> None:
    """By closing the stream, and by being slower than the buffer."""
    worker = Streams()

    def read(proxy: Any) -> None:
        stream = proxy.keep([1, 2])
        assert next(stream) == 1
        stream.close()
        with pytest.raises(Exception, match="the reader did not keep up, 51 items are lost"):
            list(proxy.count(1000))

    _with_stock_client(tmp_path, read, worker, RpcSettings(stream_buffer=50))
    assert worker.writers[0].closed == "given up by the reader"


def test_a_spawned_worker_writes_by_hand(engine: str) -> None:
    """Both ends in processes of their own: a ticker that many connections subscribe to, one of which is killed."""

    async def main() -> None:
        null = Redirect.dev_null()
        async with await Ticker.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
        ) as conn:
            other = await open_to(conn.uri, settings=RpcSettings())
            first, second = aiter(conn.run(Ticker.ticks)), aiter(other.run(Ticker.ticks))
            await until_subscribed(conn, 2)
            await conn.run(Ticker.tick, 3)
            assert [await anext(first) for _ in range(3)] == [await anext(second) for _ in range(3)] == [1, 2, 3]
            other.abort()
            await until_subscribed(conn, 1)
            await conn.run(Ticker.tick, 2)
            assert [await anext(first), await anext(first)] == [4, 5]

    async def until_subscribed(conn: Connection, count: int) -> None:
        while await conn.run(Ticker.subscribers) != count:
            await asyncio.sleep(0.001)

    run_async(main, engine)
