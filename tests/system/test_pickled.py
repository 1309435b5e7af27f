"""Pickled[T]: any object between processes of one user, and not a byte unpickled from anybody else."""

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import Pyro5.api
import pytest
from served import collect, serving
from support import ENGINES, run_async

from workerlib import (
    ArgumentError,
    DirectWriter,
    FunctionsDiffer,
    NotTrusted,
    Pickled,
    ResultError,
    UsageError,
    Worker,
    blocking,
    connect,
    direct_pipe,
    pipe,
    reverse_direct_pipe,
    reverse_pipe,
    rpc,
    state,
)
from workerlib.connection import open_to
from workerlib.core.frames import CONNECT, END, INVOKE, RESULT
from workerlib.core.schema import describe
from workerlib.core.uri import TcpLocation, Uri
from workerlib.map_worker import list_decoder
from workerlib.servant import Servant
from workerlib.spec import RpcSettings, functions_of
from workerlib.testing import Ends, Expect, ScriptedPeer, Spawner, joined, scripted_server
from workerlib.testing.script import call, hello, message, welcome


class Point:
    """A class that MessagePack knows nothing of."""

    def __init__(self, x: complex, friend: "Point | None" = None) -> None:
        self.x = x
        self.friend = friend

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]


class Unloadable:
    def __reduce__(self) -> Any:
        return ZeroDivisionError.__class__, (5, 6)


class Exits:
    def __reduce__(self) -> Any:
        return sys.exit, (7,)


class Gadget:
    """What an attacker sends: unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class Board(Worker):
    async def init(self, start: Pickled[Point] = Point(0), *, others: Pickled[list[Point]] = []) -> None:  # noqa: B008, B006
        self.points = [start, *others]

    @rpc
    async def put(self, point: Pickled[Point], note: str = "") -> Pickled[Point]:
        self.points.append(point)
        return point

    @rpc
    async def put_named(self, *, point: Pickled[Point]) -> int:
        self.points.append(point)
        return len(self.points)

    @rpc
    def in_thread(self, point: Pickled[Point]) -> Pickled[Point]:
        return point

    @rpc
    async def last(self) -> Pickled[Point]:
        return self.points[-1]

    @rpc
    async def count(self) -> int:
        return len(self.points)

    @rpc
    async def anything(self, value: Pickled[Any]) -> Pickled[Any]:
        return value

    @rpc
    async def number(self, value: Pickled[float]) -> Pickled[int | None]:
        return None

    @rpc
    async def bad_result(self, kind: str) -> Pickled[Point]:
        return {"unpicklable": Point(threading.Lock()), "wrong": 5}[kind]  # type: ignore[return-value, arg-type]

    @pipe
    async def all(self) -> AsyncIterator[Pickled[Point]]:
        for point in self.points:
            yield point

    @pipe
    def all_in_thread(self) -> Iterator[Pickled[Point]]:
        yield from self.points

    @pipe(client_pushes_back=False)
    async def all_at_once(self) -> AsyncIterator[Pickled[Point]]:
        for point in self.points:
            yield point

    @direct_pipe
    async def by_hand(self, out: DirectWriter[Pickled[Point]]) -> None:
        for point in self.points:
            out.write(point)
        out.close()

    @pipe
    async def bad_item(self) -> AsyncIterator[Pickled[Point]]:
        yield Point(1)
        yield Point(threading.Lock())  # type: ignore[arg-type]

    @reverse_pipe
    async def take(self, points: AsyncIterator[Pickled[Point]]) -> Pickled[Point]:
        self.points = [point async for point in points]
        return self.points[-1]

    @reverse_direct_pipe
    async def take_by_hand(self, points: AsyncIterator[Pickled[Point]]) -> int:
        self.points = [point async for point in points]
        return len(self.points)

    @state
    async def watch(self) -> tuple[Pickled[list[Point]], AsyncIterator[Pickled[Point]]]:
        async def changes() -> AsyncIterator[Point]:
            yield Point(100)

        return self.points, changes()


@pytest.mark.parametrize("engine", ENGINES)
def test_every_place_takes_and_gives_pickled_values(engine: str) -> None:
    """Arguments by position and name, defaults, results of both kinds of function, items in all kinds of stream."""

    async def main() -> None:
        async with joined(Board, Point(1), init={"others": [Point(2)]}) as c:
            assert await c.run(Board.count) == 2
            cyclic = Point(3)
            cyclic.friend = cyclic
            back = await c.run(Board.put, cyclic, "note")
            assert type(back) is Point
            assert back.friend is back
            assert back is not cyclic
            assert await c.run(Board.put_named, point=Point(4)) == 4
            assert await c.run(Board.in_thread, Point(5)) == Point(5)
            assert await c.run(Board.last) == Point(4)
            assert await c.run(Board.anything, {1, 2j, Point}) == {1, 2j, Point}
            assert await c.run(Board.number, 5) is None
            points = [Point(1), Point(2), Point(3), Point(4)]
            for function in (Board.all, Board.all_in_thread, Board.all_at_once, Board.by_hand):
                assert [p async for p in c.run(function)] == points
            many = [Point(n) for n in range(1000)]
            assert await c.run(Board.take, many) == many[-1]
            writer = c.run(Board.take_by_hand)
            for point in many:
                writer.write(point)
            writer.close()
            assert await writer == 1000
            snapshot, changes = await c.run(Board.watch)
            assert snapshot == many
            assert [p async for p in changes] == [Point(100)]

    run_async(main, engine)


def test_a_spawned_worker_and_the_blocking_client(spawned: Spawner) -> None:
    """Init arguments are pickled on their way to another process, too."""
    board = spawned(Board, Point(1), init={"others": [Point(2)]})
    assert list(board.run(Board.all)) == [Point(1), Point(2)]
    assert board.run(Board.put, Point(3)) == Point(3)
    assert board.run(Board.take, [Point(n) for n in range(10)]) == Point(9)
    assert board.run(Board.watch)[0][0] == Point(0)
    with pytest.raises(ArgumentError, match=r"Board.init: argument start: it cannot travel as Pickled: .*got `int`"):
        spawned(Board, 5)


def test_what_does_not_pickle_or_unpickle_is_told_and_the_connection_goes_on() -> None:
    """At the end that has the trouble, with function and argument; the worker's code does not run."""

    async def main() -> None:
        async with joined(Board) as c:
            with pytest.raises(
                ArgumentError, match=r"Board.anything: argument value: .*Pickled: cannot pickle '_thread.lock'"
            ):
                await c.run(Board.anything, threading.Lock())
            with pytest.raises(ArgumentError, match=r"argument point: .*Expected `Point`, got `int`"):
                await c.run(Board.put, 5)  # type: ignore[arg-type]
            with pytest.raises(
                ArgumentError, match=r"Board.anything: argument value: it was sent as Pickled and cannot be read: "
            ):
                await c.run(Board.anything, Unloadable())
            with pytest.raises(
                ArgumentError, match=r"cannot be read: RuntimeError: unpickling it raised SystemExit: 7"
            ):
                await c.run(Board.anything, Exits())
            with pytest.raises(ArgumentError, match=r"Expected `float`, got `str`"):
                await c.run(Board.number, "5")  # type: ignore[arg-type]
            with pytest.raises(ArgumentError, match=r"argument point: .*Pickled"):
                await c.run(Board.put_named, point=5)  # type: ignore[arg-type]
            with pytest.raises(ResultError, match=r"Board.bad_result.*cannot pickle '_thread.lock'"):
                await c.run(Board.bad_result, "unpicklable")
            with pytest.raises(ResultError, match=r"Board.bad_result.*Expected `Point`, got `int`"):
                await c.run(Board.bad_result, "wrong")
            seen: list[Point] = []
            with pytest.raises(ResultError, match=r"an item of Board.bad_item cannot be encoded"):
                await collect(c.run(Board.bad_item), seen)
            assert seen == [Point(1)]
            with pytest.raises(ArgumentError, match=r"an item for Board.take cannot be encoded"):
                await c.run(Board.take, [Point(1), 5])  # type: ignore[list-item]
            with pytest.raises(ArgumentError, match="Expected a value sent as Pickled, got `dict`"):
                await c.call("put", {"x": 5})
            with pytest.raises(ArgumentError, match="takes at most 1 arguments, 2 were given"):
                await c.run(Board.anything, 1, 2)  # type: ignore[call-arg]
            assert await c.run(Board.count) == 1

    run_async(main)


def test_sizes_are_bounded_as_those_of_all_messages() -> None:
    """In both directions, and an item that is too long ends only its stream."""

    async def main() -> None:
        async with joined(Board, settings=RpcSettings(max_message_size=10_000)) as c:
            with pytest.raises(ArgumentError, match="a message may have 10000"):
                await c.run(Board.anything, bytes(10_001))
            await c.run(Board.put, Point(bytes(6000)))  # type: ignore[arg-type]
            await c.run(Board.put, Point(bytes(6000)))  # type: ignore[arg-type]
            with pytest.raises(ResultError, match="a message may have 10000"):
                await c.run(Board.watch)
            assert len([p async for p in c.run(Board.all)]) == 3

    run_async(main)


def test_the_schema_knows_what_is_pickled() -> None:
    """Ends that disagree are told before anything is sent."""
    assert describe(Board.put) == "rpc (point: Pickled[Point], note: str = ...) -> Pickled[Point]"

    class Other:
        @rpc
        async def put(self, point: Point, note: str = "") -> Point:
            return point

    async def main() -> None:
        async with joined(Board) as c:
            with pytest.raises(FunctionsDiffer, match="put"):
                await c.run(Other.put, Point(1))

    run_async(main)


@dataclass
class Holder:
    point: Pickled[Point]


def test_it_stands_for_whole_values_of_workers_functions_only(tmp_path: Path) -> None:
    """Inside of other types, in `connected`, and in maps it is refused when the function is looked at."""

    class Lists:
        @rpc
        async def f(self, points: list[Pickled[Point]]) -> None: ...

    class Fields:
        @rpc
        async def f(self) -> Holder | None: ...

    class Connected:
        async def connected(self, session: Any, point: Pickled[Point]) -> None: ...

    class Twice:
        @pipe
        async def f(self) -> AsyncIterator[dict[str, Pickled[int]]]:
            yield {}

    for worker in (Lists, Fields, Connected, Twice):
        with pytest.raises(UsageError, match="Pickled is for a whole argument, result or stream item"):
            Servant(worker())
    with pytest.raises(UsageError, match="nor be used by maps, executors"):
        list_decoder(Pickled[int], "f, item")


# Others than this user


def extension(value: object) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(0x70, pickle.dumps(value, 5))


@contextlib.contextmanager
def hosting(start: Any) -> Iterator[str]:
    """A Board in a thread of its own; its URI. `start` is an async context that gives it."""
    ready, found = threading.Event(), []

    def run() -> None:
        async def main() -> None:
            async with start() as uri:
                found.extend([str(uri), asyncio.get_running_loop(), end := asyncio.Event()])
                ready.set()
                await end.wait()

        asyncio.run(main())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    try:
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(found[2].set)
        thread.join(10)


def board() -> Board:
    made = Board()
    made.points = [Point(1)]
    return made


@pytest.fixture
def over_tcp() -> Iterator[str]:
    with hosting(lambda: serving(board(), location=TcpLocation("127.0.0.1", 0))) as uri:
        yield uri


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may write to; those of pytest are closed."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


@pytest.fixture
def over_unix(open_folder: Path) -> Iterator[str]:
    with hosting(lambda: serving(board(), open_folder / "w.sock", authorize=lambda _: None)) as uri:
        (open_folder / "w.sock").chmod(0o777)
        yield uri


def refusal(peer: ScriptedPeer, name: str, *args: Any, seq: int = 1, flags: int = 0, **kwargs: Any) -> str:
    """The text of the error that answers a call, and nothing else."""
    texts: list[str] = []

    def read(frame: Any) -> None:
        error = msgspec.msgpack.decode(frame.payload)
        texts.append(f"{error['__class__']}: {error['args'][0]}")

    peer.play([call("w", name, *args, seq=seq, flags=flags, **kwargs), Expect(RESULT, seq=seq, check=read)])
    return texts[0]


def test_over_tcp_nothing_is_unpickled(over_tcp: str, tmp_path: Path) -> None:
    """Not even when the other end is this very process: the kernel does not vouch for it."""
    gadget = extension(Gadget(tmp_path / "touched"))
    with ScriptedPeer.connect(over_tcp) as peer:
        peer.play([hello("w"), Expect(2)])
        for seq, told in enumerate(
            [
                refusal(peer, "anything", gadget),
                refusal(peer, "put_named", point=gadget),
                refusal(peer, "in_thread", gadget),
                refusal(peer, "last"),
                refusal(peer, "all"),
                refusal(peer, "watch"),
                refusal(peer, "take", flags=1 << 4, seq=7),
            ]
        ):
            assert told.startswith("workerlib.errors.NotTrusted: Board."), seq
            assert "is no Unix socket" in told
        peer.play([Expect(END, seq=7), message(END, seq=7), call("w", "count", seq=9), Expect(RESULT, value=1)])
    assert not (tmp_path / "touched").exists()


def test_clients_do_not_unpickle_what_comes_over_tcp(over_tcp: str) -> None:
    """Nothing is sent either: `run` raises at once, in both clients; other functions can be called."""
    uri = Uri("w", TcpLocation("127.0.0.1", int(over_tcp.rpartition(":")[2])))

    async def main() -> None:
        async with await open_to(uri, settings=RpcSettings(), insecure=True) as c:
            with pytest.raises(NotTrusted, match=r"Board.last takes or gives Pickled values: .* is no Unix socket"):
                c.run(Board.last)
            with pytest.raises(NotTrusted):
                c.run(Board.all)
            with pytest.raises(NotTrusted):
                c.run(Board.last.map(repr))
            assert await c.run(Board.count) == 1

    run_async(main)
    with blocking.connect(over_tcp, insecure=True) as c:
        with pytest.raises(NotTrusted, match="is no Unix socket"):
            c.run(Board.last)
        with pytest.raises(NotTrusted):
            c.run(Board.take, [Point(1)])
        assert c.run(Board.count) == 1


AS_OTHER = """
import os, pickle, sys
import msgspec
from workerlib.core.frames import RESULT
from workerlib.testing.script import *

os.seteuid(int(sys.argv[1]))  # after the imports: whoever it is may not read where they are

class Gadget:
    def __reduce__(self):
        return os.system, ("touch " + sys.argv[3],)

gadget = msgspec.msgpack.Ext(0x70, pickle.dumps(Gadget(), 5))
with ScriptedPeer.connect(sys.argv[2]) as peer:
    peer.play([hello("w"), Expect(2)])
    for seq, name in enumerate(["anything", "last"], 1):
        peer.play([call("w", name, *([gadget] if name == "anything" else []), seq=seq)])
        print(msgspec.msgpack.decode(peer.expect(Expect(RESULT, seq=seq)).payload)["args"][0])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_who_may_connect_may_not_send_pickles(over_unix: str, open_folder: Path) -> None:
    """The worker lets the other user in; his pickles are not looked at, and he gets none."""
    touched = open_folder / "touched"
    command = [sys.executable, "-c", AS_OTHER, "12345", over_unix, str(touched)]
    out = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.stdout.count("is of user 12345, this process of user 0") == 2, out
    assert not touched.exists()


@contextlib.contextmanager
def answering_as(uid: int, path: Path) -> Iterator[str]:
    """A worker of another user, as far as the kernel knows: it notes who calls `listen`."""
    server = scripted_server([Expect(CONNECT), welcome(last="rpc", all="pipe", count="rpc"), Ends()], path)
    os.seteuid(uid)
    try:
        uri = server.__enter__()
    finally:
        os.seteuid(0)
    path.chmod(0o777)
    yield uri
    server.__exit__(None, None, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_root_does_not_unpickle_what_another_user_answers(open_folder: Path) -> None:
    """A worker of another user is not believed either, by neither client: nothing is even asked."""
    told = r"Board.last takes or gives Pickled values: .* is of user 12345, this process of user 0"

    async def main(uri: str) -> None:
        async with await connect(uri) as c:
            with pytest.raises(NotTrusted, match=told):
                c.run(Board.last)
            with pytest.raises(NotTrusted):
                c.run(Board.all)

    with answering_as(12345, open_folder / "one") as uri:
        run_async(lambda: main(uri))
    with (
        answering_as(12345, open_folder / "other") as uri,
        blocking.connect(uri, within_s=10) as c,
        pytest.raises(NotTrusted, match=told),
    ):
        c.run(Board.last)


def test_a_stock_client_can_send_none(over_unix: str, tmp_path: Path) -> None:
    """Not by Pyro5's own proxy with any serializer, not in a batch, and not by hand; its other calls work."""
    gadget = Gadget(tmp_path / "touched")
    for serializer in ("serpent", "json", "msgpack", "marshal"):
        Pyro5.api.config.SERIALIZER = serializer
        with Pyro5.api.Proxy(over_unix) as proxy:
            for values in (["text"], [{"x": 1}]):
                with pytest.raises(Exception, match="takes or gives Pickled values: a stock Pyro5 client"):
                    proxy.anything(*values)
            with pytest.raises(Exception, match="Pickled"):
                proxy.last()
            assert proxy.count() == 1
            if serializer == "marshal":
                continue  # Pyro5's own cannot send a batch
            batch = Pyro5.api.BatchProxy(proxy)
            batch.count()
            batch.anything("x")
            results = batch()
            assert next(results) == 1
            with pytest.raises(Exception, match="Pickled"):
                next(results)
    Pyro5.api.config.SERIALIZER = "serpent"
    with ScriptedPeer.connect(over_unix) as peer:
        peer.send(message(CONNECT, {"handshake": "hello", "object": "w"}, seq=0))
        peer.expect(Expect(2))
        for seq in (1, 2):
            assert "a stock Pyro5 client" in refusal(peer, "anything", extension(gadget), seq=seq)
    assert not (tmp_path / "touched").exists()


def test_a_pickle_where_none_is_expected_is_data(over_unix: str, tmp_path: Path) -> None:
    """An extension for another argument, or of another code, is refused by its type; nothing looks into it."""
    gadget = extension(Gadget(tmp_path / "touched"))
    with ScriptedPeer.connect(over_unix) as peer:
        peer.play([hello("w"), Expect(2)])
        assert "argument note" in refusal(peer, "put", extension(Point(1)), gadget)
        assert "argument kind" in refusal(peer, "bad_result", gadget)
        other = msgspec.msgpack.Ext(0x71, gadget.data)
        assert "Expected a value sent as Pickled" in refusal(peer, "anything", other, seq=2)
        assert "at most 1 arguments" in refusal(peer, "anything", gadget, gadget, seq=3)
        assert "no argument 'x'" in refusal(peer, "anything", x=gadget, seq=4)
    assert not (tmp_path / "touched").exists()


def test_a_trusted_client_does_unpickle(over_unix: str, tmp_path: Path) -> None:
    """The same bytes from this user are run: without this, the tests above would prove nothing."""
    with ScriptedPeer.connect(over_unix) as peer:
        peer.play(
            [hello("w"), Expect(2), call("w", "anything", extension(Gadget(tmp_path / "touched"))), Expect(RESULT)]
        )
    assert (tmp_path / "touched").exists()


def test_a_worker_that_answers_with_something_else_is_told(tmp_path: Path) -> None:
    """A result that is not in the form, or garbage in it, is the worker's mistake, not a crash of the client."""
    broken = msgspec.msgpack.Ext(0x70, b"\x80\x05garbage")
    answers = [{"x": 1}, broken, msgspec.msgpack.Ext(1, b"")]
    script: list[Any] = [Expect(1), welcome(last="rpc")]
    for value in answers:
        script += [Expect(INVOKE), lambda frame, value=value: message(RESULT, value, seq=frame.seq)]
    with scripted_server(script, tmp_path / "s") as uri, blocking.connect(uri, within_s=10) as c:
        for text in (
            "Expected a value sent as Pickled, got `dict`",
            "cannot be read: UnpicklingError",
            "Expected a value sent as Pickled",
        ):
            with pytest.raises(ResultError, match=text):
                c.run(Board.last)


SCRIPT = """
from workerlib import Pickled, Worker, rpc
from workerlib.testing import Spawner

class Point:
    x = 1

class Board(Worker):
    @rpc
    async def put(self, point: Pickled[Point]) -> Pickled[Point]:
        return point

if __name__ == "__main__":
    with Spawner() as spawner:
        point = Point()
        point.x = 5
        back = spawner(Board).run(Board.put, point)
        print(type(back) is Point, back.x)
"""


def test_classes_of_the_script_that_was_started_are_found_at_both_ends(tmp_path: Path) -> None:
    """In the worker the script has another name than `__main__`."""
    (tmp_path / "job.py").write_text(SCRIPT)
    out = subprocess.run([sys.executable, tmp_path / "job.py"], capture_output=True, text=True, check=False)
    assert out.stdout == "True 5\n", out.stderr


def test_nothing_of_pickle_is_loaded_until_it_is_used() -> None:
    """A worker without such functions does not even import it for that."""
    code = "import sys, workerlib, workerlib.blocking; workerlib.Pickled; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pickle" not in loaded


def test_functions_of_workers_without_such_values_are_as_fast_as_before() -> None:
    """They keep the exact signature, which is what the short way of the call path asks for."""

    class Plain:
        @rpc
        async def add(self, n: int) -> int:
            return n

    callee = Servant(Plain()).callees["add"]
    assert callee.signature.exact
    assert not callee.same_user_only
    assert callee.method.__func__ is functions_of(Plain)["add"].call
