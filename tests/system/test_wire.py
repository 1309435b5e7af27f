"""Both ends of the wire over real sockets, on both event loops."""

import asyncio
import contextvars
import dataclasses
import functools
import gc
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from served import collect, serving, until
from support import run_async

from workerlib.connection import Connection, open_to
from workerlib.core.calling import Offer
from workerlib.core.uri import TcpLocation, UnixLocation, Uri
from workerlib.errors import (
    ArgumentError,
    ConnectionLost,
    HandshakeError,
    RemoteError,
    ResultError,
    UnknownFunction,
    UsageError,
)
from workerlib.servant import Session, current_session
from workerlib.server import DAEMON, Server
from workerlib.shell.listening import Listener, listen
from workerlib.spec import Function, RpcSettings, one_way, pipe, rpc

pytestmark = pytest.mark.usefixtures("language")

SETTINGS = RpcSettings()
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class OwnError(Exception):
    pass


class DeclaredError(Exception):
    pass


@dataclasses.dataclass
class Point:
    x: int
    y: int


class Everything:
    """A worker with one function for each thing that is tested."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.resumed = 0
        self.event = asyncio.Event()
        self.thread_event = threading.Event()
        self.sessions: list[Session] = []

    async def connected(self, session: Session, who: str = "nobody") -> str:
        self.sessions.append(session)
        if who == "refuse":
            raise ValueError("not you")
        if who == "slow":
            try:
                await asyncio.sleep(60)
            finally:
                self.log.append("connected cancelled")
        return who

    @rpc
    async def add(self, a: int, b: int = 1, *, c: int = 0) -> int:
        return a + b + c

    @rpc
    async def echo(self, x: Any) -> Any:
        return x

    @rpc
    async def move(self, point: Point, by: int) -> Point:
        return Point(point.x + by, point.y + by)

    @rpc
    async def later(self, x: int) -> int:
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)
        return x

    @rpc
    def thread_name(self) -> str:
        return threading.current_thread().name

    @rpc
    def stop_iteration(self) -> None:
        raise StopIteration(5)

    @rpc
    def who_in_thread(self) -> str:
        return current_session().state

    @rpc
    async def who(self) -> str:
        await asyncio.sleep(0)
        return current_session().state

    @rpc(errors=(DeclaredError,))
    async def fail(self, how: str) -> None:
        await asyncio.sleep(0)
        errors = {"value": ValueError("wrong", 5), "own": OwnError("mine"), "declared": DeclaredError("told", 1)}
        raise errors[how]

    @rpc
    async def wait(self) -> None:
        self.log.append("waiting")
        try:
            await self.event.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    @rpc
    async def opaque(self) -> Any:
        return object()

    @rpc
    async def blob(self, size: int) -> bytes:
        return bytes(size)

    @rpc
    async def wrong_result(self) -> int:
        return "text"  # type: ignore[return-value]

    @one_way
    async def note(self, text: str) -> None:
        self.log.append(text)

    @one_way
    async def note_later(self, text: str) -> None:
        await self.event.wait()
        self.log.append(text)

    @one_way
    async def fail_silently(self) -> None:
        raise ValueError("nobody hears")

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                self.resumed += 1
                yield n
        finally:
            self.log.append("closed")

    @pipe
    async def slow_numbers(self, below: int) -> AsyncIterator[int]:
        for n in range(below):
            yield n
            await asyncio.sleep(0)

    @pipe
    def thread_numbers(self, below: int) -> Iterator[int]:
        try:
            for n in range(below):
                self.resumed += 1
                yield n
        finally:
            self.log.append(f"closed in {threading.current_thread().name}")

    @pipe
    def thread_blocks(self) -> Iterator[int]:
        try:
            yield 1
            self.resumed += 1
            self.thread_event.wait(10)
            yield 2
        finally:
            self.log.append(f"closed in {threading.current_thread().name}")

    @pipe
    async def blobs(self, count: int, size: int) -> AsyncIterator[bytes]:
        for _ in range(count):
            self.resumed += 1
            yield bytes(size)

    @pipe
    async def fails_after(self, count: int) -> AsyncIterator[int]:
        for n in range(count):
            yield n
        raise OwnError("in the middle")

    @pipe
    def thread_fails_after(self, count: int) -> Iterator[int]:
        yield from range(count)
        raise ValueError("in the middle")

    @pipe
    async def opaque_after(self, count: int, pause: bool) -> AsyncIterator[Any]:
        for n in range(count):
            yield n
        yield object()
        if pause:
            await asyncio.sleep(60)

    @pipe
    async def never(self) -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            self.log.append("closed")

    @pipe
    async def no_generator(self) -> AsyncIterator[int]:  # type: ignore[misc]
        return 5  # type: ignore[return-value]


Main = Callable[[Everything, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.sock"


@pytest.fixture
def with_worker(engine: str, path: Path) -> Callable[..., None]:
    """Runs a test's body with a worker and a connection to it, in one loop over a real socket."""

    def run(main: Main, settings: RpcSettings = SETTINGS, theirs: RpcSettings | None = None, value: Any = None) -> None:
        async def whole() -> None:
            worker = Everything()
            async with (
                serving(worker, path, theirs or settings) as uri,
                await open_to(uri, value, settings=settings) as conn,
            ):
                await main(worker, conn)

        run_async(whole, engine)

    return run


# Calls


def test_calls_and_their_arguments(with_worker) -> None:
    """Positional, by name, defaults, keyword-only, types of one's own; results of the declared type."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert await conn.run(Everything.add, 1) == 2
        assert await conn.run(Everything.add, 1, 2, c=3) == 6
        assert await conn.run(Everything.add, b=5, a=1) == 6
        assert await conn.run(Everything.move, Point(1, 2), 3) == Point(4, 5)
        assert await conn.run(Everything.later, 7) == 7
        assert await conn.call("add", 1, b=2) == 3
        assert await conn.call("registered", target=DAEMON) == [DAEMON, "w"]

    with_worker(main)


def test_many_calls_at_once(with_worker) -> None:
    """2000 calls under way on one connection, each gets its own answer."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert await asyncio.gather(*(conn.run(Everything.later, n) for n in range(2000))) == list(range(2000))

    with_worker(main)


def test_plain_functions_run_in_threads(with_worker) -> None:
    """The loop goes on; the thread sees the session; StopIteration does not hang the caller."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert (await conn.run(Everything.thread_name)).startswith("workerlib-call")
        assert await conn.run(Everything.who_in_thread) == "ann"
        with pytest.raises(RuntimeError, match="the function raised StopIteration"):
            await conn.run(Everything.stop_iteration)

    with_worker(main, value="ann")


def test_wrong_calls_are_refused_before_user_code(with_worker) -> None:
    """Wrong argument, unknown function, unknown object; the connection goes on."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(ArgumentError, match=r"Everything.add: argument a: Expected `int`, got `str`"):
            await conn.run(Everything.add, "1")  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=r"Everything.move: argument point.y: Expected `int`, got `str`"):
            await conn.run(Everything.move, Point(1, "x"), 1)  # type: ignore[arg-type]
        with pytest.raises(UnknownFunction, match=r"w has no function 'ad'; did you mean 'add'"):
            conn.call("ad", 1)
        with pytest.raises(UnknownFunction, match="no object 'x' is served here"):
            await conn.call("add", 1, target="x")
        with pytest.raises(ArgumentError, match="cannot travel"):
            conn.run(Everything.echo, object())
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main)


def test_errors_arrive_as_themselves_or_as_remote_error(with_worker) -> None:
    """Builtin and declared ones as themselves, all with the remote traceback."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(ValueError, match="wrong") as builtin:
            await conn.run(Everything.fail, "value")
        assert builtin.value.args == ("wrong", 5)
        assert "raise errors[how]" in builtin.value.remote_traceback
        with pytest.raises(DeclaredError) as declared:
            await conn.run(Everything.fail, "declared")
        assert declared.value.args == ("told", 1)
        with pytest.raises(RemoteError, match=r"OwnError: mine") as own:
            await conn.run(Everything.fail, "own")
        assert own.value.remote_type.endswith("OwnError")

    with_worker(main)


def test_results_that_cannot_travel_are_errors(with_worker) -> None:
    """No encoding, or not of the declared type; the connection goes on."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(ResultError, match=r"the result of Everything.opaque cannot be encoded"):
            await conn.run(Everything.opaque)
        with pytest.raises(ResultError, match=r"Everything.wrong_result returned something else than it declares"):
            await conn.run(Everything.wrong_result)
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main)


def test_one_way_calls_need_no_answer(with_worker, caplog: pytest.LogCaptureFixture) -> None:
    """They arrive in order; an error in one is logged by the worker."""

    async def main(worker: Everything, conn: Connection) -> None:
        for n in range(3):
            await conn.run(Everything.note, str(n))
        await conn.run(Everything.fail_silently)
        assert await conn.run(Everything.add, 1) == 2
        assert worker.log == ["0", "1", "2"]

    with_worker(main)
    assert "one_way_failed" in caplog.text


def test_one_way_calls_hold_no_sequence_number(with_worker) -> None:
    """One that runs for long may meet a later call with its number; an abort of that call leaves it alone."""

    async def main(worker: Everything, conn: Connection) -> None:
        await conn.run(Everything.note_later, "done")
        conn._session._seq = 0  # as after 65,535 calls
        waiting = asyncio.ensure_future(conn.run(Everything.wait))
        await until(lambda: worker.log == ["waiting"])
        waiting.cancel()
        await until(lambda: worker.log == ["waiting", "cancelled"])
        worker.event.set()
        await until(lambda: worker.log[-1] == "done")
        assert conn.closed is None

    with_worker(main)


def test_cancelling_the_caller_cancels_the_function(with_worker) -> None:
    """By `cancel`, by timeout, and the number is free again after the worker's answer."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(conn.run(Everything.wait), 0.05)
        await until(lambda: worker.log == ["waiting", "cancelled"])
        await until(lambda: not conn._session._pending)
        assert not conn._replies
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main)


def test_ping_measures_the_way(with_worker) -> None:
    """In seconds, without the worker's functions."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert 0 < await conn.ping() < 10
        assert not conn._pings

    with_worker(main)


@pytest.mark.parametrize("size", [0, 1 << 20, 60 << 20], ids=["0", "1 MiB", "60 MiB"])
def test_large_payloads(with_worker, size: int) -> None:
    """Both ways, up to nearly the longest message."""

    async def main(worker: Everything, conn: Connection) -> None:
        data = os.urandom(1024) * (size // 1024)
        assert await conn.run(Everything.echo, data) == data
        assert len(await conn.run(Everything.blob, size)) == size

    with_worker(main)


def test_messages_that_are_too_long_are_refused_where_they_are_made(with_worker) -> None:
    """Arguments at the caller, results and items at the worker; the connection goes on."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(ArgumentError, match="arguments of echo: 100015 bytes; a message may have 65536"):
            conn.call("echo", bytes(100_000))
        with pytest.raises(
            ResultError, match=r"the result of Everything.blob has 100005 bytes; a message may have 65536"
        ):
            await conn.run(Everything.blob, 100_000)
        with pytest.raises(ResultError, match=r"an item of Everything.blobs has 100006 bytes"):
            async for _ in conn.run(Everything.blobs, 1, 100_000):
                pass
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main, RpcSettings(max_message_size=1 << 16))


def test_items_that_fit_singly_are_sent_although_their_batch_would_not(with_worker) -> None:
    """A batch is never longer than a message may be."""

    async def main(worker: Everything, conn: Connection) -> None:
        sizes = [len(item) async for item in conn.run(Everything.blobs, 50, 30_000)]
        assert sizes == [30_000] * 50

    with_worker(main, RpcSettings(max_message_size=1 << 16))


def test_a_message_longer_than_the_other_ends_limit_ends_the_connection(with_worker) -> None:
    """Each end has its own limit; the caller is told."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(ConnectionLost):
            await conn.run(Everything.echo, bytes(100_000))
        assert conn.closed is not None

    with_worker(main, SETTINGS, RpcSettings(max_message_size=1 << 16))


# Streams


@pytest.mark.parametrize("function", [Everything.numbers, Everything.slow_numbers, Everything.thread_numbers], ids=repr)
@pytest.mark.parametrize("window", [1, 3, 4096])
def test_a_stream_arrives_whole_and_in_order(with_worker, function: Function, window: int) -> None:
    """Whatever the window, with and without pauses, from the loop and from a thread."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert [n async for n in conn.run(function, 1500)] == list(range(1500))
        assert not conn._streams
        assert [n async for n in conn.run(function, 0)] == []

    with_worker(main, RpcSettings(stream_window=window))


def test_many_streams_at_once(with_worker) -> None:
    """They share the connection, each with its own credit."""

    async def main(worker: Everything, conn: Connection) -> None:
        async def total(below: int) -> int:
            return sum([n async for n in conn.run(Everything.numbers, below)])

        assert await asyncio.gather(*(total(n * 10) for n in range(100))) == [sum(range(n * 10)) for n in range(100)]

    with_worker(main, RpcSettings(stream_window=16))


@pytest.mark.parametrize("function", [Everything.numbers, Everything.thread_numbers], ids=repr)
def test_a_generator_is_not_resumed_without_credit(with_worker, function: Function) -> None:
    """The reader's pace reaches the generator: it is never more than the window ahead."""

    async def main(worker: Everything, conn: Connection) -> None:
        stream = aiter(conn.run(function, 1000))
        for taken in range(1, 101):
            assert await anext(stream) == taken - 1
            for _ in range(5):
                await conn.ping()
            # The window of 8, and as many again as were taken since the last grant.
            assert worker.resumed <= taken + 8
        await stream.aclose()

    with_worker(main, RpcSettings(stream_window=8))


def test_a_stream_that_nobody_reads_stops_at_the_window(with_worker) -> None:
    """And goes on when it is read."""

    async def main(worker: Everything, conn: Connection) -> None:
        stream = conn.run(Everything.numbers, 1000)
        for _ in range(20):
            await conn.ping()
        assert worker.resumed == 8
        assert len([n async for n in stream]) == 1000

    with_worker(main, RpcSettings(stream_window=8))


def test_large_items_wait_for_room_in_the_socket(with_worker) -> None:
    """A wide window of large items does not fill the worker's memory: it waits for the socket as well."""

    async def main(worker: Everything, conn: Connection) -> None:
        conn._wire._transport.pause_reading()
        stream = conn.run(Everything.blobs, 1000, 1 << 20)
        await asyncio.sleep(0.3)
        assert worker.resumed < 30
        conn._wire._transport.resume_reading()
        items = aiter(stream)
        for _ in range(50):
            assert len(await anext(items)) == 1 << 20
        await items.aclose()

    with_worker(main)


@pytest.mark.parametrize("function", [Everything.numbers, Everything.thread_numbers], ids=repr)
def test_leaving_a_stream_early_closes_the_generator(with_worker, function: Function) -> None:
    """Its `finally` runs; a plain generator's in a thread, since it may block."""

    async def main(worker: Everything, conn: Connection) -> None:
        async for n in conn.run(function, 1_000_000):
            if n == 100:
                break
        await until(lambda: worker.log)
        assert worker.log[0].startswith("closed")
        if function is Everything.thread_numbers:
            assert "workerlib-call" in worker.log[0]
        await until(lambda: not conn._session._pending)
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main, RpcSettings(stream_window=32))


def test_a_thread_inside_a_generator_closes_it_when_it_comes_out(with_worker) -> None:
    """A stream that is left while its generator blocks in a thread is closed as soon as that ends."""

    async def main(worker: Everything, conn: Connection) -> None:
        stream = conn.run(Everything.thread_blocks)
        items = aiter(stream)
        assert await asyncio.wait_for(anext(items), 5) == 1
        await until(lambda: worker.resumed)
        stream.abort()
        await until(lambda: not conn._session._pending)
        assert worker.log == []
        worker.thread_event.set()
        await until(lambda: worker.log)
        assert "workerlib-call" in worker.log[0]

    with_worker(main)


def test_a_stream_can_be_left_before_its_first_item(with_worker) -> None:
    """The generator that waits is cancelled."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(collect(conn.run(Everything.never), []), 0.05)
        await until(lambda: worker.log == ["closed"])

    with_worker(main)


@pytest.mark.parametrize("count", [0, 5, 3000])
def test_an_error_comes_after_the_items_before_it(with_worker, count: int) -> None:
    """From the loop and from a thread; none of the items is lost."""

    async def main(worker: Everything, conn: Connection) -> None:
        for function, kind in ((Everything.fails_after, RemoteError), (Everything.thread_fails_after, ValueError)):
            found: list[int] = []
            with pytest.raises(kind, match="in the middle"):
                await collect(conn.run(function, count), found)
            assert found == list(range(count))

    with_worker(main, RpcSettings(stream_window=64))


@pytest.mark.parametrize("pause", [False, True])
@pytest.mark.parametrize("count", [0, 5, 100])
def test_an_item_that_cannot_be_encoded_ends_the_stream_with_an_error(with_worker, count: int, pause: bool) -> None:
    """After the items before it, also while the generator is suspended; the connection goes on."""

    async def main(worker: Everything, conn: Connection) -> None:
        found: list[int] = []
        with pytest.raises(ResultError, match=r"the result of Everything.opaque_after cannot be encoded"):
            await collect(conn.run(Everything.opaque_after, count, pause), found)
        assert found == list(range(count))
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main)


def test_an_item_of_the_wrong_type_ends_the_stream_with_an_error(with_worker) -> None:
    """The reader is told, the generator is closed."""

    class Other:
        @pipe
        async def numbers(self, below: int) -> AsyncIterator[str]:
            yield ""

    async def main(worker: Everything, conn: Connection) -> None:
        conn._offer = Offer()  # as of a worker that tells no fingerprints
        with pytest.raises(ResultError, match="yielded something else than it declares"):
            async for _ in conn.run(Other.numbers, 1000):
                pass
        await until(lambda: worker.log == ["closed"])
        assert conn.closed is None

    with_worker(main)


def test_a_pipe_that_is_no_generator_is_an_error(with_worker) -> None:
    """And says what it is."""

    async def main(worker: Everything, conn: Connection) -> None:
        with pytest.raises(TypeError, match="must be a generator, this one returned a coroutine"):
            async for _ in conn.run(Everything.no_generator):
                pass

    with_worker(main)


def test_ends_that_disagree_about_the_kind_of_a_function_are_told(with_worker) -> None:
    """A stream where one result is expected, and one result where a stream is expected."""

    class Other:
        @rpc
        async def numbers(self, below: int) -> int: ...

        @pipe
        async def add(self, a: int) -> AsyncIterator[int]:
            yield a

    async def main(worker: Everything, conn: Connection) -> None:
        conn._offer = Offer()  # as of a worker that tells no fingerprints
        with pytest.raises(UsageError, match="numbers is a pipe in this worker"):
            await conn.run(Other.numbers, 5)
        with pytest.raises(UsageError, match="is no pipe in this worker"):
            async for _ in conn.run(Other.add, 5):
                pass
        await until(lambda: not conn._session._pending)
        assert conn.closed is None

    with_worker(main)


def test_a_stream_is_read_once(with_worker) -> None:
    """Two readers would share its items by chance."""

    async def main(worker: Everything, conn: Connection) -> None:
        stream = conn.run(Everything.numbers, 5)
        assert [n async for n in stream] == [0, 1, 2, 3, 4]
        with pytest.raises(UsageError, match="is being read already"):
            aiter(stream)

    with_worker(main)


# Handshake


def test_the_connection_argument_makes_the_connection_state(with_worker) -> None:
    """`connected` gets it typed; calls see what it returned."""

    async def main(worker: Everything, conn: Connection) -> None:
        assert await conn.run(Everything.who) == "ann"
        (session,) = worker.sessions
        assert (session.stock, session.peer.uid, session.peer.pid) == (False, os.getuid(), os.getpid())
        await conn.close()
        assert await asyncio.wait_for(session.closed, 5) == "closed by the peer"

    with_worker(main, value="ann")


@pytest.mark.parametrize(
    ("target", "value", "text"),
    [
        ("w", "refuse", "ValueError: not you"),
        ("w", 5, "Everything.connected: argument who: Expected `str`, got `int`"),
        ("x", None, "no object 'x' is served here: the worker that had this address has gone"),
    ],
)
def test_a_refused_connection_says_why(engine: str, path: Path, target: str, value: Any, text: str) -> None:
    """`connected` raised, the argument does not fit, or another worker lives here now."""

    async def main() -> None:
        async with serving(Everything(), path) as uri:
            with pytest.raises(HandshakeError) as refused:
                await open_to(Uri(target, uri.location), value, settings=SETTINGS)
            assert text in str(refused.value)

    run_async(main, engine)


def test_a_client_that_leaves_while_connected_runs_cancels_it(engine: str, path: Path) -> None:
    """Nothing is left of it at the server."""

    async def main() -> None:
        worker = Everything()
        server = Server(SETTINGS)
        server.add("w", worker)
        uri = Uri("w", await server.listen(UnixLocation(str(path))))
        with pytest.raises(TimeoutError):
            await open_to(uri, "slow", settings=SETTINGS, within_s=0.1)
        await until(lambda: worker.log == ["connected cancelled"])
        assert not server.connections
        assert worker.sessions[0].closed.done()
        await server.close()

    run_async(main, engine)


def test_a_worker_without_connected_takes_any_client(engine: str, path: Path) -> None:
    """And `def connected` works as `async def` does."""

    class Bare:
        @rpc
        async def hello(self) -> str:
            return "hello"

    class Plain(Bare):
        def connected(self, session: Session, n: int) -> int:
            return n

        @rpc
        async def state(self) -> int:
            return current_session().state

    async def main() -> None:
        async with serving(Bare(), path) as uri, await open_to(uri, settings=SETTINGS) as conn:
            assert await conn.run(Bare.hello) == "hello"
        async with serving(Plain(), path) as uri, await open_to(uri, 7, settings=SETTINGS) as conn:
            assert await conn.run(Plain.state) == 7

    run_async(main, engine)


# Ends


def test_closing_a_connection_is_clean_and_idempotent(engine: str, path: Path) -> None:
    """What was written arrives, the other end sees the end, calls under way end, further calls are refused."""

    async def main() -> None:
        worker = Everything()
        async with serving(worker, path) as uri:
            conn = await open_to(uri, settings=SETTINGS)
            waiting = conn.run(Everything.wait)
            stream = conn.run(Everything.never)
            await conn.ping()
            for n in range(100):
                conn.run(Everything.note, str(n))
            await conn.close("that is all")
            await conn.close()
            conn.abort()
            assert conn.closed == await conn.wait_closed() == "closed here: that is all"
            with pytest.raises(ConnectionLost, match="closed here: that is all"):
                await waiting
            with pytest.raises(ConnectionLost, match="closed here: that is all"):
                [_ async for _ in stream]
            for attempt in (conn.run, conn.call):
                with pytest.raises(ConnectionLost, match="closed here"):
                    attempt(Everything.add if attempt == conn.run else "add", 1)
            with pytest.raises(ConnectionLost):
                await conn.ping()
            await until(lambda: len(worker.log) == 103)
            assert {"cancelled", "closed", "99"} <= set(worker.log)

    run_async(main, engine)


def test_closing_a_server_ends_its_calls(engine: str, path: Path) -> None:
    """Functions are cancelled, callers told, the socket file is gone; idempotent."""

    async def main() -> None:
        worker = Everything()
        server = Server(SETTINGS)
        server.add("w", worker)
        uri = Uri("w", await server.listen(UnixLocation(str(path))))
        conn = await open_to(uri, settings=SETTINGS)
        waiting, stream = conn.run(Everything.wait), conn.run(Everything.never)
        await conn.ping()
        await server.close()
        await server.close()
        assert sorted(worker.log) == ["cancelled", "closed", "waiting"]
        assert not path.exists()
        with pytest.raises(ConnectionLost, match="closed by the peer"):
            await waiting
        with pytest.raises(ConnectionLost):
            [_ async for _ in stream]
        assert conn.closed.startswith("closed by the peer")
        await conn.close()

    run_async(main, engine)


def test_a_function_may_close_its_own_server(engine: str, path: Path) -> None:
    """It is not cancelled by that."""

    class Closing:
        server: Server
        went_on = False

        @rpc
        async def stop(self, suspend: bool) -> None:
            if suspend:
                await asyncio.sleep(0)
            await self.server.close()
            self.went_on = True

    async def main() -> None:
        for suspend in (False, True):
            worker = Closing()
            worker.server = server = Server(SETTINGS)
            server.add("w", worker)
            uri = Uri("w", await server.listen(UnixLocation(str(path))))
            async with await open_to(uri, settings=SETTINGS) as conn:
                with pytest.raises(ConnectionLost):
                    await conn.run(Closing.stop, suspend)
                await until(functools.partial(getattr, worker, "went_on"))

    run_async(main, engine)


def _serve_in_child(path: Path) -> int:
    """A worker in a process of its own; returns its pid once it listens."""
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:

            async def main() -> None:
                async with serving(Everything(), path):
                    os.write(told, b"x")
                    await asyncio.Event().wait()

            asyncio.run(main())
        finally:
            os._exit(1)
    os.close(told)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    return pid


def test_the_death_of_the_server_ends_everything(engine: str, path: Path) -> None:
    """Killed with -9: calls, streams and pings end with ConnectionLost that says so."""
    pid = _serve_in_child(path)

    async def main() -> None:
        conn = await open_to(Uri("w", UnixLocation(str(path))), settings=SETTINGS)
        waiting, stream = conn.run(Everything.wait), conn.run(Everything.never)
        await conn.ping()
        os.kill(pid, signal.SIGKILL)
        for ending in (waiting, anext(aiter(stream)), conn.wait_closed()):
            try:
                reason = await ending
            except ConnectionLost as lost:
                reason = lost.reason
            assert reason.startswith("closed by the peer")
        with pytest.raises(ConnectionLost, match="closed by the peer"):
            conn.run(Everything.add, 1)

    try:
        run_async(main, engine)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_stopped_server_is_lost_by_heartbeat(engine: str, path: Path) -> None:
    """SIGSTOP leaves the socket open; silence ends the connection."""
    pid = _serve_in_child(path)

    async def main() -> None:
        settings = RpcSettings(heartbeat_interval_s=0.1, heartbeat_timeout_s=0.3)
        conn = await open_to(Uri("w", UnixLocation(str(path))), settings=settings)
        waiting = conn.run(Everything.wait)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(ConnectionLost, match=r"no sign of life: for \d+ s"):
            await waiting

    try:
        run_async(main, engine)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_heartbeats_keep_an_idle_connection(with_worker) -> None:
    """Both ends ask and answer, many timeouts long."""

    async def main(worker: Everything, conn: Connection) -> None:
        await asyncio.sleep(0.6)
        assert await conn.run(Everything.add, 1) == 2

    with_worker(main, RpcSettings(heartbeat_interval_s=0.02, heartbeat_timeout_s=0.1))


def test_nobody_there(engine: str, path: Path) -> None:
    """OSError with the location in it."""

    async def main() -> None:
        with pytest.raises(FileNotFoundError) as absent:
            await open_to(Uri("w", UnixLocation(str(path))), settings=SETTINGS)
        assert absent.value.filename == f"./u:{path}"
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            with pytest.raises(ConnectionRefusedError):
                await open_to(Uri("w", TcpLocation("127.0.0.1", port)), settings=SETTINGS, insecure=True)

    run_async(main, engine)


# Sockets


def test_tcp_works_when_asked_for_by_name(engine: str) -> None:
    """The port that the system chose is in the location; without `insecure` or TLS the client refuses."""

    async def main() -> None:
        async with serving(Everything(), location=TcpLocation("127.0.0.1", 0)) as uri:
            assert uri.location.port > 0
            async with await open_to(uri, settings=SETTINGS, insecure=True) as conn:
                assert await conn.run(Everything.add, 1) == 2
                assert len(await conn.run(Everything.echo, bytes(5 << 20))) == 5 << 20
            with pytest.raises(UsageError, match="TCP without TLS shows every byte to the network"):
                await open_to(uri, settings=SETTINGS)

    run_async(main, engine)


def test_a_socket_is_private(engine: str, path: Path) -> None:
    """Mode 0600 whatever the umask; the file goes with the server."""

    async def main() -> None:
        old = os.umask(0)
        try:
            async with serving(Everything(), path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
        finally:
            os.umask(old)
        assert not path.exists()

    run_async(main, engine)


def test_a_stale_socket_is_replaced_a_live_one_is_not(engine: str, path: Path) -> None:
    """Nor is a file that is no socket."""

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(str(path))
        async with serving(Everything(), path) as uri, await open_to(uri, settings=SETTINGS) as conn:
            with pytest.raises(OSError, match="another server listens here") as refused:
                async with serving(Everything(), path):
                    pass
            assert refused.value.filename == str(path)
            assert await conn.run(Everything.add, 1) == 2
        path.write_text("precious")
        with pytest.raises(OSError, match="or it is no socket"):
            async with serving(Everything(), path):
                pass
        assert path.read_text() == "precious"

    run_async(main, engine)


def test_a_server_leaves_the_socket_of_its_successor(engine: str, path: Path) -> None:
    """It removes only its own file."""

    async def main() -> None:
        first: Listener = await listen(UnixLocation(str(path)), lambda: None)  # type: ignore[arg-type, return-value]
        path.unlink()
        second = await listen(UnixLocation(str(path)), lambda: None)  # type: ignore[arg-type, return-value]
        first.close()
        assert path.exists()
        second.close()
        second.close()
        assert not path.exists()

    run_async(main, engine)


def test_a_listen_that_is_cancelled_leaves_no_socket(engine: str, path: Path) -> None:
    """Neither its file nor its descriptor, which the loop would go on to watch under a number that others get."""

    async def main() -> None:
        for turns in range(4):
            server = Server(SETTINGS)
            listening = asyncio.ensure_future(server.listen(UnixLocation(str(path))))
            for _ in range(turns):
                await asyncio.sleep(0)
            listening.cancel()
            await asyncio.wait({listening})
            assert path.exists() is not listening.cancelled()
            await server.close()

    run_async(main, engine)


def test_a_socket_path_that_is_too_long_is_refused(engine: str, tmp_path: Path) -> None:
    """By both ends, with its length."""

    async def main() -> None:
        path = tmp_path / ("x" * 120)
        with pytest.raises(UsageError, match="Linux accepts 107: choose a shorter directory"):
            async with serving(Everything(), path):
                pass
        with pytest.raises(UsageError, match="Linux accepts 107"):
            await open_to(Uri("w", UnixLocation(str(path))), settings=SETTINGS)

    run_async(main, engine)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(tmp_path: Path) -> None:
    """Even one that the file's mode would let in."""
    path = Path(f"/tmp/wire-{os.getpid()}.sock")

    async def main() -> None:
        async with serving(Everything(), path) as uri:
            path.chmod(0o666)
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    os.setgid(65534)
                    os.setuid(65534)

                    async def other() -> None:
                        with pytest.raises(HandshakeError, match="user 65534 may not connect to a worker of user 0"):
                            await open_to(uri, settings=SETTINGS)
                        os.write(told, b"y")

                    asyncio.set_event_loop_policy(None)
                    asyncio._set_running_loop(None)
                    asyncio.run(other())
                finally:
                    os._exit(0)
            os.close(told)
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, os.read, ready, 1) == b"y"
            os.close(ready)
            os.waitpid(pid, 0)

    run_async(main, "uvloop")


def test_tls_with_both_sides_authenticated(engine: str) -> None:
    """A client without the right certificate does not get in."""
    trustme = pytest.importorskip("trustme")
    import ssl  # noqa: PLC0415

    ours, stranger = trustme.CA(), trustme.CA()
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.issue_cert("localhost").configure_cert(theirs)
    ours.configure_trust(theirs)
    theirs.verify_mode = ssl.CERT_REQUIRED

    def client(ca: Any) -> ssl.SSLContext:
        context = ssl.create_default_context()
        ours.configure_trust(context)
        ca.issue_cert("client@example.org").configure_cert(context)
        return context

    async def main() -> None:
        server = Server(SETTINGS)
        server.add("w", Everything())
        location = await server.listen(TcpLocation("localhost", 0), tls=theirs)
        uri = Uri("w", TcpLocation("localhost", location.port))
        async with await open_to(uri, settings=SETTINGS, tls=client(ours)) as conn:
            assert await conn.run(Everything.add, 1) == 2
            assert len(await conn.run(Everything.echo, bytes(3 << 20))) == 3 << 20
            assert [n async for n in conn.run(Everything.numbers, 10_000)] == list(range(10_000))
        with pytest.raises((OSError, ConnectionLost)):
            await open_to(uri, settings=SETTINGS, tls=client(stranger))
        await server.close()

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        run_async(main, engine)
        gc.collect()
    finally:
        logging.getLogger("asyncio").setLevel(logging.NOTSET)


def test_an_event_that_cannot_be_handled_ends_only_its_connection(engine: str, path: Path, monkeypatch) -> None:
    """A bug of ours in one connection is logged and leaves the others alone."""

    async def main() -> None:
        async with serving(Everything(), path) as uri, await open_to(uri, settings=SETTINGS) as good:
            bad = await open_to(uri, settings=SETTINGS)

            def broken(event: Any) -> None:
                if isinstance(event, str):
                    return
                bad._on_closed(event) if not hasattr(event, "type") else (_ for _ in ()).throw(KeyError("bug"))

            bad._wire._on_event = broken
            with pytest.raises(ConnectionLost, match="transport error: 'bug'"):
                await bad.run(Everything.fail, "value")
            assert await good.run(Everything.add, 1) == 2

    run_async(main, engine)
