"""Calls of the common kind, which go past most of workerlib: nobody can tell, whichever way and language they take."""

import asyncio
import contextvars
import datetime as dt
import gc
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
from served import serving, until
from support import run_async
from twins import needs_c

from workerlib.connection import Connection, open_to
from workerlib.core.session import MAX_SEQ
from workerlib.errors import ArgumentError, ConnectionLost, ResultError, StreamAborted, UnknownFunction
from workerlib.kinds import reverse_pipe
from workerlib.servant import Session, current_session
from workerlib.serving import ServerConnection
from workerlib.spec import RpcSettings, one_way, rpc

pytestmark = pytest.mark.usefixtures("language")

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


class Point(msgspec.Struct):
    x: int
    y: int


class Picky(msgspec.Struct):
    """What a caller of it finds out is wrong only when it is made."""

    x: int

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError("negative")


class Plain:
    """Functions with a fixed number of arguments, which is what the shortcuts are for."""

    def __init__(self) -> None:
        self.tasks: list[Any] = []
        self.told: list[Any] = []
        self.go = asyncio.Event()
        self.log: list[str] = []

    async def connected(self, session: Session, who: str = "nobody") -> str:
        return who

    @rpc
    async def add(self, n: int) -> int:
        return n + 1

    @rpc
    async def adding(self, n: int, more: int = 1) -> int:
        return n + more

    @rpc
    async def year(self, when: dt.datetime) -> int:
        return when.year

    @rpc
    async def nothing(self) -> None: ...

    @rpc
    async def move(self, point: Point, by: int) -> Point:
        return Point(point.x + by, point.y + by)

    @rpc
    async def picky(self, value: Picky) -> Picky:
        return value

    @rpc
    async def make(self, kind: str) -> Any:
        return {"int": 1, "text": "é" * 40, "none": None, "list": [1, [2]], "bytes": b"x" * 10, "much": b"x" * 100_000,
                "true": True, "float": 0.5, "map": {"a": 1}}[kind]  # fmt: skip

    @rpc
    async def wrong(self, what: str) -> int:
        return {"type": "text", "opaque": object(), "right": 7}[what]  # type: ignore[return-value]  # that is the case

    @rpc
    async def text(self, size: int) -> str:
        return "x" * size

    @rpc
    async def fail(self, text: str) -> None:
        raise ValueError(text)

    @rpc
    async def later(self, n: int) -> int:
        await self.go.wait()
        return n

    @rpc
    async def turn(self, n: int) -> int:
        await asyncio.sleep(0)
        return n

    @rpc
    async def cancelled(self, n: int) -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.log.append(f"cancelled {n}")
            raise
        return n

    @rpc
    async def who(self, value: str) -> str:
        before = VARIABLE.get()
        VARIABLE.set(value)
        return f"{current_session().state} {before}"

    @rpc
    async def with_task(self, what: str) -> str:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        if what == "watch":
            task.add_done_callback(self.told.append)
        elif what == "cancel":
            task.cancel()
        elif what == "fail":
            task.add_done_callback(self.told.append)
            raise ValueError("watched")
        async with asyncio.timeout(60):
            return str(task.get_coro().__name__)  # type: ignore[union-attr]  # it is a coroutine

    @reverse_pipe
    async def total(self, items: AsyncIterator[int]) -> int:
        try:
            return sum([n async for n in items])
        except (asyncio.CancelledError, StreamAborted):
            self.log.append("cancelled total")
            raise

    @one_way
    async def note(self, text: str) -> None:
        self.log.append(text)


Main = Callable[[Plain, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def with_worker(engine: str, tmp_path: Path) -> Callable[..., None]:
    def run(main: Main, settings: RpcSettings | None = None, theirs: RpcSettings | None = None) -> None:
        mine = settings or RpcSettings()

        async def whole() -> None:
            worker = Plain()
            path = tmp_path / "s"
            async with serving(worker, path, theirs or mine) as uri, await open_to(uri, "me", settings=mine) as conn:
                await main(worker, conn)

        run_async(whole, engine, within_s=10)

    return run


def long_ways(wire: Any) -> list[bytes]:
    """What a connection receives past its shortcut from now on."""
    seen: list[bytes] = []
    receive = wire.receive
    wire.receive = lambda data: (seen.append(data), receive(data))[1]
    return seen


def serving_end() -> ServerConnection:
    """Of the only connection in this loop."""
    loop = asyncio.get_running_loop()
    (end,) = [end for end in gc.get_objects() if type(end) is ServerConnection and end.loop is loop]
    return end


def test_the_shortcuts_are_taken(with_worker) -> None:
    """From the second call of a function on; what is written above would not be tested otherwise."""

    async def main(worker: Plain, conn: Connection) -> None:
        assert await conn.run(Plain.add, 0) == 1
        here, there = long_ways(conn._wire), long_ways(serving_end().wire)
        assert [await conn.run(Plain.add, n) for n in range(100)] == list(range(1, 101))
        assert (here, there) == ([], [])
        assert await conn.run(Plain.move, Point(1, 2), 3) == Point(4, 5)
        assert len(there) == 1, "another function is not the hot one"
        assert not here

    with_worker(main)


@pytest.mark.parametrize("kind", ["int", "text", "none", "list", "bytes", "much", "true", "float", "map"])
def test_results_of_all_kinds(with_worker, kind: str) -> None:
    """Also those that may be too long to copy."""

    async def main(worker: Plain, conn: Connection) -> None:
        expected = await worker.make(kind)
        for _ in range(3):
            assert await conn.run(Plain.make, kind) == expected

    with_worker(main)


def test_arguments_and_results_of_ones_own_types(with_worker) -> None:
    """Made anew at each end."""

    async def main(worker: Plain, conn: Connection) -> None:
        for n in range(3):
            assert await conn.run(Plain.move, Point(n, 2), 3) == Point(n + 3, 5)
            assert await conn.run(Plain.nothing) is None
        for _ in range(3):
            assert await conn.run(Plain.nothing) is None

    with_worker(main)


def test_what_does_not_fit_is_told_as_always(with_worker) -> None:
    """Wrong types, checks of the types' own, values without encoding, too few arguments; the next call is as before."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(2):
            assert await conn.run(Plain.move, Point(1, 2), 3) == Point(4, 5)
            with pytest.raises(ArgumentError, match="argument by: Expected `int`, got `str`"):
                await conn.run(Plain.move, Point(1, 2), "3")
            with pytest.raises(ArgumentError, match=r"argument point\.x: Expected `int`, got `str`"):
                await conn.run(Plain.move, Point("a", 2), 3)  # type: ignore[arg-type]  # that is the case
            with pytest.raises(ArgumentError, match="takes 2 arguments, 1 were given"):
                await conn.run(Plain.move, Point(1, 2))
            with pytest.raises(ArgumentError, match="cannot travel between processes"):
                await conn.run(Plain.move, object(), 3)
            assert await conn.run(Plain.picky, Picky(1)) == Picky(1)
            bad = Picky(1)
            bad.x = -1
            with pytest.raises(ArgumentError, match="negative"):
                await conn.run(Plain.picky, bad)
            assert await conn.run(Plain.picky, Picky(2)) == Picky(2)
        assert worker.told == []

    with_worker(main)


def test_arguments_by_keyword(with_worker) -> None:
    """Go the long way, to the same function."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(3):
            assert await conn.run(Plain.move, Point(1, 2), 3) == await conn.run(Plain.move, by=3, point=Point(1, 2))

    with_worker(main)


def test_results_that_are_not_what_was_declared(with_worker) -> None:
    """The caller refuses one of another type, the worker one without an encoding."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(3):
            assert await conn.run(Plain.wrong, "right") == 7
            with pytest.raises(
                ResultError, match=r"Plain\.wrong returned something else than it declares: Expected `int`"
            ):
                await conn.run(Plain.wrong, "type")
            with pytest.raises(ResultError, match=r"the result of Plain\.wrong cannot be encoded"):
                await conn.run(Plain.wrong, "opaque")

    with_worker(main)


def test_what_is_too_long_is_refused_and_what_just_fits_is_not(with_worker) -> None:
    """To the byte, in both directions: the limit is that of the payload."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(2):
            assert len(await conn.run(Plain.text, 4096 - 3)) == 4096 - 3
            with pytest.raises(ResultError, match=r"has 4097 bytes; a message may have 4096"):
                await conn.run(Plain.text, 4096 - 2)
            with pytest.raises(ValueError, match=r"^x{500}"):
                await conn.run(Plain.fail, "x" * 500)
            with pytest.raises(ArgumentError, match=r"a message may have 4096"):
                await conn.run(Plain.fail, "x" * 4096)

    with_worker(main, RpcSettings(max_message_size=4096))


def test_errors_arrive_as_always(with_worker) -> None:
    """With the traceback of the function, and without the error of an earlier call as their context."""

    async def main(worker: Plain, conn: Connection) -> None:
        for n in range(3):
            with pytest.raises(ValueError, match=f"wrong {n}") as caught:
                await conn.run(Plain.fail, f"wrong {n}")
            assert caught.value.__context__ is None
            traceback = caught.value.remote_traceback  # type: ignore[attr-defined]  # given on the way
            assert "in fail\n" in traceback
            assert f"ValueError: wrong {n}" in traceback
            assert "During handling" not in traceback

    with_worker(main)


def test_calls_that_suspend(with_worker) -> None:
    """They may be many, be answered in any order, and others are answered meanwhile."""

    async def main(worker: Plain, conn: Connection) -> None:
        waiting = [conn.run(Plain.later, n) for n in range(5)]
        assert [await conn.run(Plain.turn, n) for n in range(20)] == list(range(20))
        assert await asyncio.gather(*(conn.run(Plain.add, n) for n in range(300))) == list(range(1, 301))
        worker.go.set()
        assert await asyncio.gather(*waiting) == list(range(5))

    with_worker(main)


def test_each_call_has_its_own_context_and_session(with_worker) -> None:
    """What one sets, the next does not see."""

    async def main(worker: Plain, conn: Connection) -> None:
        assert [await conn.run(Plain.who, str(n)) for n in range(5)] == ["me unset"] * 5
        assert VARIABLE.get() == "unset"

    with_worker(main)


def test_a_function_can_do_with_its_task_what_it_can_elsewhere(with_worker) -> None:
    """A task that somebody watches or has cancelled is not used again; one that was let alone is."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(3):
            assert await conn.run(Plain.with_task, "nothing") == "with_task"
        assert worker.tasks[1] is worker.tasks[2]
        for what in ("watch", "cancel", "nothing", "fail", "nothing"):
            if what == "fail":
                with pytest.raises(ValueError, match="watched"):
                    await conn.run(Plain.with_task, what)
            else:
                assert await conn.run(Plain.with_task, what) == "with_task"
        watched, cancelled, alone, failed, last = worker.tasks[3:]
        assert len({*map(id, worker.tasks[3:])} | {id(worker.tasks[2])}) == 4
        assert watched is worker.tasks[2]
        assert [cancelled is watched, alone is cancelled, failed is alone, last is failed] == [
            False,
            False,
            True,
            False,
        ]
        await until(lambda: len(worker.told) == 2)
        assert worker.told == [watched, failed]
        assert asyncio.current_task() not in worker.tasks

    with_worker(main)


def test_all_calls_are_counted(with_worker) -> None:
    """However they came."""

    async def main(worker: Plain, conn: Connection) -> None:
        for n in range(10):
            await conn.run(Plain.add, n)
        await asyncio.gather(*(conn.run(Plain.add, n) for n in range(10)))
        assert serving_end().server.find("w").callees["add"].calls == 20

    with_worker(main)


def test_cancelling_an_await_cancels_the_call(with_worker) -> None:
    """Soon after; the late answer harms nobody."""

    async def main(worker: Plain, conn: Connection) -> None:
        for n in range(3):
            call = asyncio.ensure_future(conn.run(Plain.cancelled, n))
            other = asyncio.ensure_future(conn.run(Plain.add, n))
            call.cancel()
            assert await other == n + 1
            await until(lambda n=n: f"cancelled {n}" in worker.log)
        young = asyncio.ensure_future(conn.run(Plain.add, 1))
        young.cancel()
        assert await conn.run(Plain.add, 5) == 6
        await until(lambda: not conn._replies)

    with_worker(main)


def test_cancelling_a_call_before_one_that_sends_items(with_worker) -> None:
    """Each is noticed, in whatever order they were made."""

    async def main(worker: Plain, conn: Connection) -> None:
        async def items() -> AsyncIterator[int]:
            await asyncio.Event().wait()
            yield 1

        calls = [
            asyncio.ensure_future(call)
            for call in (conn.run(Plain.cancelled, 1), conn.run(Plain.total, items()), conn.run(Plain.cancelled, 2))
        ]
        assert await conn.run(Plain.add, 1) == 2
        await until(lambda: conn._will_look is None)
        for call in calls:
            call.cancel()
        await until(lambda: {"cancelled 1", "cancelled 2", "cancelled total"} <= {*worker.log})
        await until(lambda: not conn._replies)

    with_worker(main)


def test_numbers_of_calls_that_are_under_way_are_not_given_again(with_worker) -> None:
    """After 65,535 calls they begin again at 1, and pass over those that are not free."""

    async def main(worker: Plain, conn: Connection) -> None:
        first = conn.run(Plain.later, 77)
        session = conn._session
        taken = session._seq
        session._seq = MAX_SEQ - 1
        assert await conn.run(Plain.add, 1) == 2
        assert session._seq == MAX_SEQ
        session._seq = taken - 1
        assert await conn.run(Plain.add, 2) == 3
        assert session._seq == taken + 1
        session._seq = MAX_SEQ
        assert await conn.run(Plain.add, 3) == 4
        assert session._seq in {1, 2}
        worker.go.set()
        assert await first == 77

    with_worker(main)


def test_adapted_functions(with_worker) -> None:
    """What the caller makes of a result is made once, and what that raises goes to who awaits it."""

    async def main(worker: Plain, conn: Connection) -> None:
        made: list[int] = []

        def double(n: int) -> int:
            made.append(n)
            return 2 * n

        def refuse(n: int) -> int:
            made.append(n)
            raise KeyError(n)

        doubled, refused = Plain.add.map(double), Plain.add.map(refuse)
        text = Plain.add.contra_map(int)
        for _ in range(2):
            assert await conn.run(doubled, 1) == 4
            with pytest.raises(KeyError):
                await conn.run(refused, 2)
            assert await conn.run(text, "5") == 6
        assert made == [2, 3] * 2
        cancelled = asyncio.ensure_future(conn.run(refused, 9))
        cancelled.cancel()
        await conn.run(Plain.add, 1)
        assert made == [2, 3] * 2, "nobody waits for the third"

    with_worker(main)


@pytest.mark.parametrize("how", ["abort", "cancel"])
@pytest.mark.parametrize("raises", [False, True])
def test_an_adaption_that_ends_its_own_call(engine: str, tmp_path: Path, how: str, raises: bool) -> None:
    """By the connection, or alone: whoever waits is told that, and nothing else happens."""

    async def main() -> None:
        async with serving(Plain(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as conn:

            def end(n: int) -> int:
                conn.abort() if how == "abort" else call.cancel()
                if raises:
                    raise ValueError(n)
                return n

            for function in (Plain.add.map(end), Plain.adding.map(end)):
                if conn.closed is None:
                    await conn.run(Plain.add, 1)
                    call = asyncio.ensure_future(conn.run(function, 1))
                    with pytest.raises((ConnectionLost, asyncio.CancelledError)):
                        await call
            assert (conn.closed is None) == (how == "cancel")
            assert not conn._replies

    run_async(main, engine)


def test_encoding_that_ends_the_connection(with_worker) -> None:
    """The call that it was for is refused as any later one."""

    async def main(worker: Plain, conn: Connection) -> None:
        class Zone(dt.tzinfo):
            def utcoffset(self, _: Any) -> dt.timedelta:
                conn.abort()
                return dt.timedelta()

        assert await conn.run(Plain.year, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) == 2026
        with pytest.raises(ConnectionLost):
            await conn.run(Plain.year, dt.datetime(2026, 1, 1, tzinfo=Zone()))

    with_worker(main)


@pytest.mark.parametrize("most", [2**70, float("inf"), 1e6])
def test_any_limit_that_python_can_compare_with(with_worker, most: Any) -> None:
    """Also one that C cannot count to."""

    async def main(worker: Plain, conn: Connection) -> None:
        assert [await conn.run(Plain.add, n) for n in range(3)] == [1, 2, 3]

    with_worker(main, RpcSettings(max_message_size=most))


def test_a_subclass_keeps_its_own_run(engine: str, tmp_path: Path) -> None:
    """As any method that is overridden."""

    class Counting(Connection):
        count = 0

        def run(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
            self.count += 1
            return super().run(*args, **kwargs)

    async def main() -> None:
        async with serving(Plain(), tmp_path / "s") as uri:
            conn = Counting(uri, RpcSettings())
            await conn.open(None, tls=None)
            async with conn:
                assert [await conn.run(Plain.add, n) for n in range(3)] == [1, 2, 3]
                assert conn.count == 3

    run_async(main, engine)


def test_calls_after_the_end(with_worker) -> None:
    """Raise what the first one did, at once."""

    async def main(worker: Plain, conn: Connection) -> None:
        assert await conn.run(Plain.add, 1) == 2
        waiting = conn.run(Plain.later, 1)
        await conn.close()
        with pytest.raises(ConnectionLost):
            await waiting
        for function in (Plain.add, Plain.turn):
            with pytest.raises(ConnectionLost):
                conn.run(function, 1)

    with_worker(main)


def test_other_kinds_between_calls(with_worker) -> None:
    """They share the connection, and functions that the worker does not have are told."""

    class Other:
        @rpc
        async def missing(self, n: int) -> int:
            return n

    async def main(worker: Plain, conn: Connection) -> None:
        for n in range(3):
            assert await conn.run(Plain.add, n) == n + 1
            await conn.run(Plain.note, f"note {n}")
            assert await conn.call("add", n) == n + 1
            with pytest.raises(UnknownFunction, match="missing"):
                await conn.run(Other.missing, 1)
            assert await conn.ping() > 0
        assert worker.log == ["note 0", "note 1", "note 2"]

    with_worker(main)


def test_answers_are_signs_of_life(with_worker) -> None:
    """At both ends: who calls or answers all the time need not be asked whether it lives."""

    async def main(worker: Plain, conn: Connection) -> None:
        await conn.run(Plain.add, 1)
        here, there = conn._session, serving_end().session
        here._heard = there._heard = False
        await conn.run(Plain.add, 1)
        assert here._heard
        assert there._heard

    with_worker(main)


def test_a_bug_in_a_shortcut_ends_its_connection(engine: str, tmp_path: Path, monkeypatch) -> None:
    """With what it was, and others do not notice."""

    async def main() -> None:
        async with serving(Plain(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as good:
            async with await open_to(uri, settings=RpcSettings()) as bad:
                assert await bad.run(Plain.wrong, "right") == 7

                def broken(_error: Exception) -> Exception:
                    raise KeyError("bug")

                monkeypatch.setattr(bad._outgoing[Plain.wrong].results, "error", broken)
                with pytest.raises(ConnectionLost, match="bug"):
                    await bad.run(Plain.wrong, "type")
            assert await good.run(Plain.add, 1) == 2

    run_async(main, engine)


def test_a_bug_in_the_servers_shortcut_ends_its_connection(engine: str, tmp_path: Path) -> None:
    """The caller is told that the worker has closed it."""

    async def main() -> None:
        async with serving(Plain(), tmp_path / "s") as uri, await open_to(uri, settings=RpcSettings()) as bad:
            assert await bad.run(Plain.add, 1) == 2
            end = serving_end()
            hot = end._hot

            def broken(*_: object) -> None:
                raise KeyError("bug")

            end._hot = hot._replace(method=broken)
            with pytest.raises(ConnectionLost):
                await bad.run(Plain.add, 1)

    run_async(main, engine)


@needs_c
@pytest.mark.parametrize(
    ("function", "args"),
    [(Plain.add, (1000,)), (Plain.move, (Point(1, 2), 3)), (Plain.turn, (1000,)), (Plain.text, (300,))],
    ids=["add", "move", "turn", "text"],
)
def test_nothing_of_a_call_stays(with_worker, function: Any, args: tuple[Any, ...]) -> None:
    """After a thousand calls there are as many objects as after one."""

    async def main(worker: Plain, conn: Connection) -> None:
        for _ in range(10):
            await conn.run(function, *args)
        gc.collect()
        before, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        for _ in range(1000):
            await conn.run(function, *args)
        gc.collect()
        assert len(gc.get_objects()) < before + 100
        assert sys.getallocatedblocks() < blocks + 500

    with_worker(main)


def test_nothing_of_a_failing_call_stays(with_worker) -> None:
    """Of none of the kinds of failure."""

    async def main(worker: Plain, conn: Connection) -> None:
        async def all_kinds() -> None:
            for function, argument in (
                (Plain.fail, "x"), (Plain.wrong, "type"), (Plain.wrong, "opaque"), (Plain.add, "x"), (Plain.add, object())
            ):  # fmt: skip
                with pytest.raises((ValueError, ResultError, ArgumentError)):
                    await conn.run(function, argument)

        for _ in range(10):
            await all_kinds()
        gc.collect()
        before, blocks = len(gc.get_objects()), sys.getallocatedblocks()
        for _ in range(200):
            await all_kinds()
        gc.collect()
        assert len(gc.get_objects()) < before + 100
        assert sys.getallocatedblocks() < blocks + 500

    with_worker(main)
