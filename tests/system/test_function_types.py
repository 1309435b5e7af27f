"""Functions as values: adapted by callers, shared by worker types, compared by both ends."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from served import collect, serving, until
from support import run_async
from workers import Sum, Ticker

from workerlib import Redirect, ShutdownOn, blocking, connect
from workerlib.connection import Connection, open_to
from workerlib.errors import ArgumentError, FunctionsDiffer, HandshakeError, ResultError
from workerlib.spec import RpcSettings, functions_of, one_way, pipe, rpc


@dataclasses.dataclass
class Point:
    x: int
    y: int


@rpc
async def name_of(self: Any) -> str:
    """Belongs to no class: any worker type may offer it."""
    return type(self).__name__


class Greeter:
    who = name_of

    @rpc(name="hello")
    async def greet(self, name: str) -> str:
        return f"hello {name}"


class Geometer(Greeter):
    def __init__(self) -> None:
        self.log: list[str] = []

    @rpc
    async def mirror(self, point: Point) -> Point:
        return Point(point.y, point.x)

    @rpc
    async def wrong(self) -> int:
        return "text"  # type: ignore[return-value]

    @one_way
    async def note(self, text: str) -> None:
        self.log.append(text)

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                yield n
        finally:
            self.log.append("closed")


class Other:
    who = name_of


Main = Callable[[Geometer, Connection], Coroutine[Any, Any, None]]


@pytest.fixture
def with_geometer(engine: str, tmp_path: Path) -> Callable[[Main], None]:
    """Runs a test's body with a worker and a connection to it."""

    def run(main: Main) -> None:
        async def whole() -> None:
            worker = Geometer()
            async with (
                serving(worker, tmp_path / "w.sock") as uri,
                await open_to(uri, settings=RpcSettings()) as conn,
            ):
                await main(worker, conn)
                await until(lambda: not conn._session._pending)
                assert await conn.run(Geometer.greet, "you") == "hello you"

        run_async(whole, engine)

    return run


def _sum(point: Point) -> int:
    return point.x - point.y


def _fail(*_: Any) -> Any:
    raise ZeroDivisionError("in the adaption")


def test_results_and_arguments_are_adapted_at_the_caller(with_geometer) -> None:
    """By one function or several, for one result and for each item; the declared function stays as it is."""

    async def main(worker: Geometer, conn: Connection) -> None:
        assert await conn.run(Geometer.mirror.map(_sum), Point(1, 3)) == 2
        assert await conn.run(Geometer.mirror.map(_sum).map(str), Point(1, 3)) == "2"
        from_parts = Geometer.mirror.contra_map(Point)
        assert await conn.run(from_parts, 1, y=2) == Point(2, 1)
        from_text = from_parts.map(_sum).contra_map(len)
        with pytest.raises(TypeError, match="missing 1 required positional argument"):
            conn.run(from_text, "abc")
        assert await conn.run(Geometer.greet.contra_map(str.upper).map(len), "you") == 9
        assert [n async for n in conn.run(Geometer.numbers.map(str).contra_map(len), "abc")] == ["0", "1", "2"]
        await conn.run(Geometer.note.contra_map(str), 5)
        assert await conn.run(Geometer.mirror, Point(1, 2)) == Point(2, 1)
        assert worker.log[-1] == "5"

    with_geometer(main)


def test_an_adapted_function_leaves_nothing_behind(with_geometer) -> None:
    """One that is made for each call does not fill the connection's memory."""

    async def main(worker: Geometer, conn: Connection) -> None:
        for n in range(100):
            assert await conn.run(Geometer.greet.map(len), "x" * n) == n + 6
        assert set(conn._outgoing) == {Geometer.greet}

    with_geometer(main)


def test_what_an_adaption_raises_is_raised_to_the_caller(with_geometer) -> None:
    """As itself: of an argument before anything is sent, of an item after those before it, which ends the stream."""

    async def main(worker: Geometer, conn: Connection) -> None:
        with pytest.raises(ZeroDivisionError, match="in the adaption"):
            await conn.run(Geometer.mirror.map(_fail), Point(1, 2))
        with pytest.raises(ZeroDivisionError, match="in the adaption"):
            conn.run(Geometer.mirror.contra_map(_fail), 1)
        with pytest.raises(RuntimeError, match="the adaption raised StopIteration"):
            await conn.run(Geometer.mirror.map(lambda _: next(iter([]))), Point(1, 2))
        with pytest.raises(ResultError, match="something else than it declares"):
            await conn.run(Geometer.wrong.map(_fail))
        with pytest.raises(ZeroDivisionError):
            await collect(conn.run(Geometer.numbers.map(lambda n: 1 // (10_000 - n)), 1_000_000), [])
        await until(lambda: worker.log == ["closed"])

    with_geometer(main)


def test_worker_types_may_share_functions(engine: str, tmp_path: Path) -> None:
    """By inheritance and by assignment; either class's name for it serves for both."""

    async def main() -> None:
        async with (
            serving(Geometer(), tmp_path / "a.sock") as a,
            serving(Other(), tmp_path / "b.sock") as b,
            await open_to(a, settings=RpcSettings()) as first,
            await open_to(b, settings=RpcSettings()) as second,
        ):
            assert await first.run(Other.who) == await first.run(name_of) == "Geometer"
            assert await second.run(Geometer.who) == await second.run(name_of) == "Other"
            assert first.functions["hello"].value == "rpc"
            assert "greet" not in first.functions

    run_async(main, engine)


def older() -> type:
    """The same worker in an older version of the program: one type differs, one function is not there yet."""

    class Geometer(Greeter):
        @dataclasses.dataclass
        class Point:
            x: int
            y: int
            z: int

        @rpc
        async def mirror(self, point: Point) -> Point: ...
        @rpc
        async def brand_new(self) -> None: ...

    return Geometer


def test_ends_that_disagree_about_types_are_refused_when_connecting(engine: str, tmp_path: Path) -> None:
    """With the names that differ, when the class is given; what only the worker has does not matter."""

    async def main() -> None:
        async with serving(Geometer(), tmp_path / "w.sock") as uri:
            with pytest.raises(FunctionsDiffer) as refused:
                await connect(str(uri), worker=older())
            text = str(refused.value)
            assert "disagree about brand_new (the worker has none); mirror (here: rpc (point: Geometer.Point{" in text
            assert "z: int" in text
            assert "hello" not in text
            assert isinstance(refused.value, HandshakeError)
            for worker in (Geometer, Greeter, Other):
                async with await connect(str(uri), worker=worker) as conn:
                    assert await conn.run(Other.who) == "Geometer"

            def call() -> None:
                with pytest.raises(FunctionsDiffer, match="brand_new"):
                    blocking.connect(str(uri), within_s=10, worker=older())
                with blocking.connect(str(uri), within_s=10, timeout_s=10, worker=Geometer) as found:
                    assert found.run(Geometer.mirror.contra_map(Point).map(_sum), 1, 3) == 2
                    assert list(found.run(Geometer.numbers.map(str), 2)) == ["0", "1"]
                    stream = found.run(Geometer.numbers.map(_fail), 1_000_000)
                    with pytest.raises(ZeroDivisionError):
                        next(stream)
                    with pytest.raises(FunctionsDiffer, match=r"mirror \(here"):
                        found.run(older().mirror, None)
                    assert found.run(Geometer.who) == "Geometer"

            await asyncio.get_running_loop().run_in_executor(None, call)

    run_async(main, engine)


def test_a_function_of_other_types_is_refused_at_its_first_use(with_geometer) -> None:
    """Before anything is sent, also through an adaption; the connection goes on."""

    async def main(worker: Geometer, conn: Connection) -> None:
        for function in (older().mirror, older().mirror.map(str)):
            with pytest.raises(FunctionsDiffer, match=r"disagree about mirror \(here: rpc"):
                conn.run(function, Point(1, 2))
        with pytest.raises(ArgumentError, match="argument point: Expected"):
            await conn.call("mirror", 5)

    with_geometer(main)


def test_a_spawner_with_older_code_gets_no_connection(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker that was spawned runs other code than the class here says: refused, and no process is left."""

    async def main() -> None:
        null = Redirect.dev_null()
        monkeypatch.setattr(Ticker, "subscribers", Sum.squares)
        monkeypatch.setattr(Ticker, "renamed", Sum.who, raising=False)
        assert {"squares", "who"} <= set(functions_of(Ticker))
        with pytest.raises(Exception, match=r"disagree about squares \(the worker has none\); who") as refused:
            await Ticker.spawn(shutdown_on=ShutdownOn.CONNECTION_CLOSED, redirect_stdout=null, redirect_stderr=null)
        assert "Ticker" in str(refused.value) or isinstance(refused.value, FunctionsDiffer)

    run_async(main, engine)
