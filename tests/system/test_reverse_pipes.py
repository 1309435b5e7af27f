"""Streams from the caller into the worker: from a source and by hand, and how each end hears of the other's."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import Pyro5.client
import pytest
from served import serving, until
from support import run_async
from workers import Sum

from workerlib import Redirect, ShutdownOn
from workerlib.connection import Connection, open_to
from workerlib.core.calling import Offer
from workerlib.core.uri import Uri
from workerlib.errors import ArgumentError, ConnectionLost, StreamAborted, StreamOverflow, UsageError
from workerlib.kinds import reverse_direct_pipe, reverse_pipe
from workerlib.spec import RpcSettings, pipe, rpc


class OwnError(Exception):
    pass


class Totals:
    """Functions that take items from their caller."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.taken: list[Any] = []
        self.go_on = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()

    @reverse_pipe
    async def total(self, updates: AsyncIterator[int], start: int = 0, *, times: int = 1) -> int:
        async for n in updates:
            start += n * times
        return start

    @reverse_pipe
    async def first(self, updates: AsyncIterator[int], count: int) -> list[int]:
        return [await anext(updates) for _ in range(count)]

    @reverse_pipe
    async def ignores(self, updates: AsyncIterator[int]) -> str:
        return "no interest"

    @reverse_pipe
    async def breaks(self, updates: AsyncIterator[int]) -> int:
        async for n in updates:
            if n == 5:
                break
        return n

    @reverse_pipe
    async def reads_on(self, updates: AsyncIterator[int]) -> str:
        async def read() -> None:
            try:
                async for n in updates:
                    self.taken.append(n)
            except Exception as error:
                self.log.append(f"{type(error).__name__}: {error}")
                raise
            finally:
                self.log.append("read")

        task = asyncio.create_task(read())
        self.tasks.add(task)
        task.add_done_callback(lambda task: task.exception())
        return "answered before"

    @reverse_pipe
    async def slowly(self, updates: AsyncIterator[int]) -> int:
        async for n in updates:
            self.taken.append(n)
            await self.go_on.wait()
        return len(self.taken)

    @reverse_pipe(errors=(OwnError,))
    async def fails_at(self, updates: AsyncIterator[int], at: int) -> int:
        async for n in updates:
            if n == at:
                raise OwnError(f"not {n}")
        return 0

    @reverse_pipe
    async def tells_errors(self, updates: AsyncIterator[int]) -> str:
        count = 0
        try:
            async for _ in updates:
                count += 1
        except Exception as error:
            return f"{type(error).__name__} after {count}: {error}"
        return "no error"

    @reverse_pipe
    async def wait(self, updates: AsyncIterator[int]) -> None:
        self.log.append("waiting")
        try:
            async for n in updates:
                self.taken.append(n)
        finally:
            self.log.append("over")

    @reverse_direct_pipe(name="gathered")
    async def gather(self, updates: AsyncIterator[int], at_most: int) -> list[int]:
        found = []
        async for n in updates:
            found.append(n)
            if len(found) == at_most:
                break
        return found

    @reverse_direct_pipe
    async def slow_gather(self, updates: AsyncIterator[int]) -> int:
        await self.go_on.wait()
        return len([n async for n in updates])

    @rpc
    async def add(self, n: int) -> int:
        return n + 1

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        for n in range(below):
            yield n


class Source:
    """An async generator that knows how far it got, and whether it was closed."""

    def __init__(self, below: int, *, fails_at: int = -1, pause: bool = False) -> None:
        self.below, self.fails_at, self.pause = below, fails_at, pause
        self.made = 0
        self.closed = False

    async def items(self) -> AsyncIterator[int]:
        try:
            for n in range(self.below):
                if n == self.fails_at:
                    raise OwnError("the source is dry")
                self.made += 1
                yield n
                if self.pause:
                    await asyncio.sleep(0)
        finally:
            self.closed = True


Main = Callable[[Totals, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def with_totals(engine: str, tmp_path: Path) -> Callable[..., None]:
    """Runs a test's body with a worker and a connection to it; afterwards no call may be under way at either end."""

    def run(main: Main, settings: RpcSettings | None = None) -> None:
        async def whole() -> None:
            worker = Totals()
            settings_ = settings or RpcSettings()
            async with (
                serving(worker, tmp_path / "w.sock", settings_) as uri,
                await open_to(uri, settings=settings_) as conn,
            ):
                await main(worker, conn)
                if conn.closed is None:
                    await until(lambda: not (conn._session._pending or conn._session._sending or conn._feeds))
                    assert await conn.run(Totals.add, 1) == 2

        run_async(whole, engine)

    return run


@pytest.mark.parametrize(("count", "window"), [(0, 1), (7, 1), (100, 1), (1000, 16), (1, 4096), (5000, 4096)])
def test_all_items_reach_the_function(with_totals, count: int, window: int) -> None:
    """From generators of both sorts and from a list, whatever the window; other arguments follow the source."""

    async def main(worker: Totals, conn: Connection) -> None:
        expected = sum(range(count))
        assert await conn.run(Totals.total, range(count)) == expected
        assert await conn.run(Totals.total, Source(count).items(), 5) == expected + 5
        assert await conn.run(Totals.total, Source(count, pause=True).items(), times=2) == expected * 2
        assert await conn.run(Totals.total, iter(range(count)), start=1) == expected + 1
        assert await conn.run(Totals.total, conn.run(Totals.numbers, count)) == expected
        assert await conn.call("total", range(count), 7) == expected + 7

    with_totals(main, RpcSettings(stream_window=window))


def test_many_such_calls_at_once(with_totals) -> None:
    """Each with its own credit."""

    async def main(worker: Totals, conn: Connection) -> None:
        calls = [conn.run(Totals.total, Source(n * 10, pause=bool(n % 2)).items()) for n in range(30)]
        assert await asyncio.gather(*calls) == [sum(range(n * 10)) for n in range(30)]

    with_totals(main, RpcSettings(stream_window=16))


def test_the_functions_pace_reaches_the_source(with_totals) -> None:
    """The source is never more than the window, and what a grant gives, ahead of a function that waits."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(1000)
        call = conn.run(Totals.slowly, source.items())
        await until(lambda: worker.taken)
        for _ in range(20):
            await conn.ping()
        assert source.made <= 8 + 1
        worker.go_on.set()
        assert await call == 1000

    with_totals(main, RpcSettings(stream_window=8))


@pytest.mark.parametrize("endless", [True, False])
def test_the_answer_may_come_before_the_end(with_totals, endless: bool) -> None:
    """A function that takes only the first items ends the source when it returns; nobody waits for the rest."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(10_000_000 if endless else 3)
        assert await conn.run(Totals.first, source.items(), 3) == [0, 1, 2]
        await until(lambda: source.closed)
        other = Source(10_000_000)
        assert await conn.run(Totals.breaks, other.items()) == 5
        await until(lambda: other.closed)
        third = Source(10_000_000)
        assert await conn.run(Totals.ignores, third.items()) == "no interest"
        await until(lambda: third.closed)

    with_totals(main, RpcSettings(stream_window=8))


def test_somebody_else_may_read_on_after_the_answer(with_totals) -> None:
    """As long as the iterator is held, its items come; also when garbage is collected meanwhile."""

    async def main(worker: Totals, conn: Connection) -> None:
        go_on = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 1
            await go_on.wait()
            for n in range(2, 101):
                yield n

        assert await conn.run(Totals.reads_on, source()) == "answered before"
        gc.collect()
        go_on.set()
        await until(lambda: worker.log == ["read"])
        assert worker.taken == list(range(1, 101))

    with_totals(main, RpcSettings(stream_window=8))


def test_an_error_of_the_function_closes_the_source(with_totals) -> None:
    """And is the call's, as itself when it was declared."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(10_000_000)
        with pytest.raises(OwnError, match="not 100"):
            await conn.run(Totals.fails_at, source.items(), 100)
        await until(lambda: source.closed)

    with_totals(main)


def test_an_error_of_the_source_reaches_function_and_caller(with_totals) -> None:
    """The function gets it after the items before it and may deal with it; the caller gets the very object."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(100, fails_at=10)
        with pytest.raises(OwnError, match="the source is dry") as failed:
            await conn.run(Totals.reads_on, Source(100, fails_at=0, pause=True).items())
        assert not hasattr(failed.value, "remote_traceback")
        await until(lambda: worker.log)
        worker.log.clear()
        with pytest.raises(OwnError, match="the source is dry"):
            await conn.run(Totals.tells_errors, source.items())
        with pytest.raises(OwnError, match="the source is dry"):
            await conn.run(Totals.fails_at, Source(100, fails_at=10).items(), 50)

    with_totals(main)


def test_the_function_may_deal_with_an_error_of_the_writer(with_totals) -> None:
    """Closing a writer with an error raises that in the function; its answer is still the call's."""

    async def main(worker: Totals, conn: Connection) -> None:
        call = conn.run(Totals.gather, 10)
        call.write(1)
        call.close(ValueError("no more of this"))
        with pytest.raises(ValueError, match="no more of this"):
            await call
        assert call.closed == "ValueError: no more of this"

    with_totals(main)


@pytest.mark.parametrize("bad", ["x", None, 2.5])
def test_an_item_that_does_not_fit_is_refused_with_its_place(with_totals, bad: Any) -> None:
    """By the worker, in the function, after the items before it; the source is closed."""

    async def main(worker: Totals, conn: Connection) -> None:
        with pytest.raises(ArgumentError, match=r"Totals.total: item 700: Expected `int`, got"):
            await conn.run(Totals.total, [*range(700), bad])
        closed = False

        async def source() -> AsyncIterator[Any]:
            nonlocal closed
            try:
                yield bad
                while True:
                    yield 1
            finally:
                closed = True

        assert "ArgumentError after 0: Totals.tells_errors: item 0" in await conn.run(Totals.tells_errors, source())
        await until(lambda: closed)

    with_totals(main)


def test_an_item_that_cannot_travel_ends_the_call(with_totals) -> None:
    """The caller is told without the worker, also while the source is suspended; the function gets the error, too."""

    async def main(worker: Totals, conn: Connection) -> None:
        with pytest.raises(ArgumentError, match=r"an item for Totals.total cannot be encoded"):
            await conn.run(Totals.total, [1, object()])  # type: ignore[list-item]

        async def source() -> AsyncIterator[Any]:
            yield object()
            await asyncio.sleep(60)

        with pytest.raises(ArgumentError, match=r"an item for Totals.total cannot be encoded"):
            await conn.run(Totals.total, source())
        with pytest.raises(ArgumentError, match=r"an item of Totals.total has 100006 bytes; a message may have 65536"):
            await conn.run(Totals.total, [bytes(100_000)])  # type: ignore[list-item]

    with_totals(main, RpcSettings(max_message_size=1 << 16))


def test_cancelling_the_caller_cancels_the_function_and_closes_the_source(with_totals) -> None:
    """Whoever reads the items elsewhere is told that the caller gave up."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(10_000_000, pause=True)
        call = asyncio.ensure_future(conn.run(Totals.wait, source.items()))
        await until(lambda: len(worker.taken) > 10)
        call.cancel()
        await until(lambda: worker.log == ["waiting", "over"])
        await until(lambda: source.closed)
        writer = conn.run(Totals.gather, 5)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(writer, 0.02)
        assert await writer.wait_closed() == "the call was cancelled"

    with_totals(main)


def test_the_end_of_the_connection_ends_both(with_totals) -> None:
    """The caller's source is closed, its call and the worker's reader get ConnectionLost."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(10_000_000, pause=True)
        await conn.run(Totals.reads_on, source.items())
        call = conn.run(Totals.gather, 5)
        waiting = conn.run(Totals.wait, Source(10_000_000, pause=True).items())
        await until(lambda: worker.taken and worker.log)
        await conn.close("that is all")
        for ending in (call, waiting):
            with pytest.raises(ConnectionLost, match="that is all"):
                await ending
        assert call.closed == "closed here: that is all"
        assert not call.write(1)
        await until(lambda: source.closed and "read" in worker.log)
        assert "ConnectionLost: closed by the peer" in worker.log

    with_totals(main)


def test_items_written_by_hand(with_totals) -> None:
    """The answer is awaited; the worker that wants no more closes the writer with its reason."""

    async def main(worker: Totals, conn: Connection) -> None:
        call = conn.run(Totals.gather, 3)
        assert call.write(1)
        assert call.write(2)
        await call.flushed()
        call.close()
        assert await call == [1, 2]
        call = conn.run(Totals.gather, 3)
        for n in range(3):
            call.write(n)
        assert await call == [0, 1, 2]
        assert await call.wait_closed() == "the worker wants no more: Totals.gather reads no more"
        assert not call.write(3)
        by_name = conn.call("gathered", 1)
        by_name.write(9)
        assert await by_name == [9]

    with_totals(main)


def test_who_writes_faster_than_the_function_reads_is_told(with_totals) -> None:
    """The buffer is bounded: one item too many ends the items, for both ends, with the number that is lost."""

    async def main(worker: Totals, conn: Connection) -> None:
        call = conn.run(Totals.slow_gather)
        assert sum(call.write(n) for n in range(100)) == 8 + 50
        worker.go_on.set()
        with pytest.raises(StreamOverflow, match=r"Totals.slow_gather: the reader did not keep up, 51 items are lost"):
            await call
        second = conn.run(Totals.slow_gather)
        for n in range(1000):
            second.write(n)
            await second.flushed()
        second.close()
        assert await second == 1000

    with_totals(main, RpcSettings(stream_window=8, stream_buffer=50))


def test_ends_that_disagree_about_the_kind_are_told(with_totals) -> None:
    """A stream to a function that takes none, and none to one that does; nothing is left under way."""

    class Other:
        @reverse_pipe
        async def add(self, updates: AsyncIterator[int]) -> int: ...

        @reverse_pipe
        async def numbers(self, updates: AsyncIterator[int]) -> int: ...

        @reverse_pipe
        async def unknown(self, updates: AsyncIterator[int]) -> int: ...

        @rpc
        async def total(self, start: int) -> int: ...

    async def main(worker: Totals, conn: Connection) -> None:
        conn._offer = Offer()  # as of a worker that tells no fingerprints
        for function, kind in ((Other.add, "rpc"), (Other.numbers, "pipe")):
            source = Source(10_000_000)
            with pytest.raises(UsageError, match=f"takes no stream of items in this worker: there it is .* {kind}"):
                await conn.run(function, source.items())
            await until(lambda source=source: source.closed)
        with pytest.raises(
            UsageError, match="takes a stream of items in this worker: there it is of the kind reverse_pipe"
        ):
            await conn.run(Other.total, 5)
        with pytest.raises(AttributeError, match="Totals has no function 'unknown'"):
            await conn.run(Other.unknown, [1, 2])

    with_totals(main)


def test_wrong_arguments_are_refused_before_the_function_runs(with_totals) -> None:
    """With the source closed; a source that is none is refused at the caller."""

    async def main(worker: Totals, conn: Connection) -> None:
        source = Source(10_000_000)
        with pytest.raises(ArgumentError, match="argument start: Expected `int`, got `str`"):
            await conn.run(Totals.total, source.items(), "x")  # type: ignore[arg-type]
        await until(lambda: source.closed)
        with pytest.raises(UsageError, match="a int is no source of items: it cannot be iterated"):
            await conn.run(Totals.total, 5)  # type: ignore[call-overload]
        with pytest.raises(ArgumentError, match="the source of its items is missing"):
            await conn.call("total")

    with_totals(main)


def test_a_function_that_takes_items_must_be_async() -> None:
    """Refused where it is decorated, or when its types are read."""
    with pytest.raises(UsageError, match="must be an `async def` that returns"):

        @reverse_pipe  # type: ignore[arg-type]
        def plain(self: Any, updates: Iterator[int]) -> int: ...

    @reverse_direct_pipe  # type: ignore[arg-type]
    async def without(self: Any, *, updates: AsyncIterator[int]) -> int: ...

    with pytest.raises(UsageError, match="its first parameter must be the AsyncIterator"):
        _ = without.types


def test_a_stock_client_is_told_that_it_cannot_send_items(tmp_path: Path) -> None:
    """Clearly, and its connection goes on."""

    async def main() -> None:
        async with serving(Totals(), tmp_path / "w.sock") as uri:

            def call() -> int:
                with Pyro5.client.Proxy(str(Uri("w", uri.location))) as proxy:
                    for name in ("total", "gathered"):
                        with pytest.raises(Exception, match="takes a stream from its caller, which only workerlib"):
                            getattr(proxy, name)(1)
                    return proxy.add(1)

            assert await asyncio.get_running_loop().run_in_executor(None, call) == 2

    run_async(main)


def test_processes_stream_into_each_other(engine: str) -> None:
    """A spawned worker takes items; killing the caller's connection in the middle leaves it serving others."""

    async def main() -> None:
        null = Redirect.dev_null()
        async with await Sum.spawn(
            shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null
        ) as conn:
            assert await conn.run(Sum.add_all, range(100_000)) == sum(range(100_000))
            other = await open_to(conn.uri, settings=RpcSettings())
            cut = other.run(Sum.add_all, Source(10_000_000, pause=True).items())
            await other.ping()
            other.abort()
            with pytest.raises(ConnectionLost):
                await cut
            with contextlib.suppress(StreamAborted):
                assert await conn.run(Sum.add_all, [1]) > sum(range(100_000))

    run_async(main, engine)
