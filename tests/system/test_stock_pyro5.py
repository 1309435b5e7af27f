"""An unmodified Pyro5 client against our server: what worked with Pyro5's own daemon works the same here."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
import decimal
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import Pyro5.api
import Pyro5.client
import Pyro5.core
import Pyro5.errors
import Pyro5.protocol
import pytest
import serpent
import uvloop
from Pyro5.callcontext import current_context
from support import wait_until

from workerlib.core.uri import TcpLocation, UnixLocation, Uri
from workerlib.servant import Session, current_session
from workerlib.server import DAEMON, Server
from workerlib.spec import RpcSettings, one_way, pipe, rpc

SERIALIZERS = ("serpent", "json", "marshal", "msgpack")


class OwnError(ValueError):
    pass


class StrangeError(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


@dataclasses.dataclass
class Address:
    zip: int


@dataclasses.dataclass
class Person:
    name: str
    addresses: list[Address]


class Worker:
    """The worker that the stock client calls."""

    def __init__(self) -> None:
        self.log: list[str] = []

    async def connected(self, session: Session, who: str = "nobody") -> str:
        if who == "refuse":
            raise ValueError("not you")
        assert session.stock
        return who

    @rpc
    async def add(self, a: int, b: int = 1, *, c: int = 0) -> int:
        return a + b + c

    @rpc
    async def echo(self, x: Any) -> Any:
        return x

    @rpc
    def in_thread(self, x: int) -> str:
        return f"{threading.current_thread().name} {x}"

    @rpc
    async def street(self, who: Person, count: int = 0) -> list[int]:
        return [address.zip for address in who.addresses]

    @rpc
    async def typed(
        self, day: dt.date, at: dt.datetime, key: uuid.UUID, price: decimal.Decimal, raw: bytes
    ) -> list[str]:
        return [repr(value) for value in (day, at, key, price, raw)]

    @rpc
    async def give(self, what: str) -> Any:
        return {
            "set": {1, 2},
            "tuple": (1, (2, 3)),
            "person": Person("Ann", [Address(1)]),
            "persons": [Person("Ann", [])],
            "date": dt.date(2024, 2, 29),
            "aware": dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
            "uuid": uuid.UUID(int=5),
            "decimal": decimal.Decimal("1.20"),
            "int keys": {1: "a", 2: {3: "b"}},
            "bytes": b"\0\xff",
            "opaque": object(),
            "big": 2**70,
        }[what]

    @rpc
    async def fail(self, how: str) -> None:
        await asyncio.sleep(0)
        errors = {
            "value": ValueError("wrong", 5),
            "key": KeyError("k"),
            "zero": ZeroDivisionError("division by zero"),
            "file": FileNotFoundError(2, "No such file or directory", "/tmp/x"),
            "own": OwnError("mine", 7),
            "strange": StrangeError(5, reason="why"),
            "bytes": ValueError(b"\xff"),
            "group": ExceptionGroup("several", [ValueError(1)]),
            "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        }
        raise errors[how]

    @rpc
    async def who(self) -> str:
        return current_session().state

    @rpc
    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise

    @one_way
    async def note(self, text: str) -> None:
        await asyncio.sleep(0)
        self.log.append(text)

    @rpc
    async def seen(self) -> list[str]:
        return self.log

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                self.log.append(f"made {n}")
                yield n
        finally:
            await asyncio.sleep(0)
            self.log.append("closed")

    @pipe
    def thread_numbers(self, below: int) -> Iterator[int]:
        try:
            for n in range(below):
                self.log.append(f"made {n}")
                yield n
        finally:
            self.log.append("closed")

    @pipe
    async def fails_after(self, count: int) -> AsyncIterator[int]:
        for n in range(count):
            yield n
        raise ZeroDivisionError("in the middle")

    @pipe
    async def opaque_items(self) -> AsyncIterator[Any]:
        yield 1
        yield object()

    def _private(self) -> str:
        return "secret"

    def undecorated(self) -> str:
        return "secret"


@contextlib.contextmanager
def serving_in_thread(location: Any, worker: Worker, runner: Callable[..., None] = uvloop.run) -> Iterator[Uri]:
    """The worker's loop in a thread of its own, since a stock client blocks the test's."""
    started: list[Any] = []
    ready = threading.Event()

    async def serve() -> None:
        server = Server(RpcSettings())
        server.add("w", worker)
        end = asyncio.Event()
        started.extend([await server.listen(location), asyncio.get_running_loop(), end])
        ready.set()
        await end.wait()
        await server.close()

    thread = threading.Thread(target=lambda: runner(serve()))
    thread.start()
    assert ready.wait(10)
    where, loop, end = started
    try:
        yield Uri("w", where)
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join(10)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def uri(tmp_path: Path, worker: Worker, runner: Any) -> Iterator[str]:
    with serving_in_thread(UnixLocation(str(tmp_path / "w.sock")), worker, runner) as where:
        yield str(where)


@pytest.fixture(params=SERIALIZERS)
def serializer(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def proxy(uri: str, serializer: str) -> Iterator[Any]:
    with Pyro5.api.Proxy(uri) as made:
        made._pyroSerializer = serializer
        yield made


VALUES = [
    None, True, 5, -1, 2**40, 1.5, "", "Grüße \U0001f600", [], [1, [2, [3]]], {}, {"a": {"b": [1, None, "x"]}}, "x" * 100_000,
]  # fmt: skip


def test_values_of_all_kinds_go_there_and_back(proxy: Any) -> None:
    """Arguments and results by each serializer."""
    for value in VALUES:
        assert proxy.echo(value) == value


def test_bytes_go_there_and_back(proxy: Any, serializer: str) -> None:
    """As bytes with every serializer that has them; JSON has none, and says so on the client's side already."""
    if serializer == "json":
        with pytest.raises(Pyro5.errors.SerializeError):
            proxy.echo(b"\0\xff")
    else:
        answer = proxy.echo({"deep": [b"\0\xff"]})["deep"][0]
        assert (serpent.tobytes(answer) if serializer == "serpent" else answer) == b"\0\xff"


def test_arguments_in_every_form(proxy: Any) -> None:
    """By position, by name, defaults, keyword-only; a plain function runs in a thread."""
    assert proxy.add(1) == 2
    assert proxy.add(1, 2, c=3) == 6
    assert proxy.add(b=5, a=1) == 6
    assert proxy.in_thread(5).startswith("workerlib-call")


def test_typed_arguments_are_made_of_plain_data(proxy: Any, serializer: str) -> None:
    """Objects from dictionaries, dates and the like from their text, as each serializer sends them."""
    assert proxy.street({"name": "Ann", "addresses": [{"zip": 5}, {"zip": 6}]}) == [5, 6]
    day, at, key, price = (
        dt.date(2024, 2, 29),
        dt.datetime(2024, 2, 29, 12, 30),  # noqa: DTZ001 - a naive one, as many clients send
        uuid.UUID(int=5),
        decimal.Decimal("1.2"),
    )
    raw: Any = "AP8=" if serializer == "json" else b"\0\xff"
    sent = (day, at, key, price, raw)
    if serializer == "marshal":
        sent = (str(day), at.isoformat(), key, str(price), raw)
    assert proxy.typed(*sent) == [repr(value) for value in (day, at, key, price, b"\0\xff")]


def test_a_wrong_argument_is_a_type_error_with_its_path(proxy: Any) -> None:
    """Before any user code runs."""
    with pytest.raises(TypeError, match=r"Worker.street: argument who.addresses\[1\].zip: Expected `int`, got `str`"):
        proxy.street({"name": "Ann", "addresses": [{"zip": 5}, {"zip": "6"}]})
    with pytest.raises(TypeError, match=r"Worker.add: argument a: Expected `int`, got `str`"):
        proxy.add("1")
    with pytest.raises(TypeError, match=r"Worker.add has no argument 'd'"):
        proxy.add(1, d=2)
    with pytest.raises(TypeError, match=r"Worker.add takes at most 2 arguments, 3 were given"):
        proxy.add(1, 2, 3)
    assert proxy.add(1) == 2


def test_results_of_all_kinds(proxy: Any, serializer: str) -> None:
    """Sets and tuples where the serializer has them; objects as dictionaries, dates and the like as text."""
    sets, tuples = serializer in {"serpent", "marshal"}, serializer in {"serpent", "marshal"}
    assert proxy.give("set") == ({1, 2} if sets else [1, 2])
    assert proxy.give("tuple") == ((1, (2, 3)) if tuples else [1, [2, 3]])
    assert proxy.give("person") == {"name": "Ann", "addresses": [{"zip": 1}]}
    assert proxy.give("persons") == [{"name": "Ann", "addresses": []}]
    assert proxy.give("date") == "2024-02-29"
    assert proxy.give("aware") == "2024-02-29T00:00:00Z"
    assert proxy.give("uuid") == str(uuid.UUID(int=5))
    assert proxy.give("decimal") == "1.20"
    if serializer != "msgpack":  # the msgpack package at the client's end refuses keys that are no text
        keys = {"1": "a", "2": {"3": "b"}} if serializer == "json" else {1: "a", 2: {3: "b"}}
        assert proxy.give("int keys") == keys


def test_a_result_that_cannot_be_encoded_is_an_error(proxy: Any) -> None:
    """And the connection goes on."""
    with pytest.raises(TypeError, match=r"the result of .*give cannot be encoded"):
        proxy.give("opaque")
    assert proxy.add(1) == 2


@pytest.mark.parametrize(
    ("how", "kind", "args"),
    [
        ("value", ValueError, ("wrong", 5)),
        ("key", KeyError, ("k",)),
        ("zero", ZeroDivisionError, ("division by zero",)),
        ("file", FileNotFoundError, (2, "No such file or directory")),
        ("own", ValueError, ("mine", 7)),
        ("strange", Exception, ("test_stock_pyro5.StrangeError: 5: why",)),
        ("bytes", ValueError, ("b'\\xff'",)),
        ("group", RuntimeError, None),
        ("unicode", RuntimeError, None),
    ],
)
def test_errors_arrive_as_the_nearest_builtin(proxy: Any, how: str, kind: type, args: tuple | None) -> None:
    """With the remote traceback where Pyro5 shows it."""
    with pytest.raises(Exception) as caught:
        proxy.fail(how)
    assert type(caught.value) is kind
    if args is not None:
        assert caught.value.args == args
    text = "".join(Pyro5.errors.get_pyro_traceback(type(caught.value), caught.value, caught.value.__traceback__))
    assert "This exception occurred remotely (Pyro)" in text
    assert "raise errors[how]" in text


def test_metadata(proxy: Any) -> None:
    """Functions, one-way functions, no attributes; `dir` shows them; unknown and private names do not exist."""
    proxy._pyroBind()
    assert {"add", "numbers", "note"} <= proxy._pyroMethods
    assert proxy._pyroOneway == {"note"}
    assert proxy._pyroAttrs == set()
    assert {"add", "fail"} <= set(dir(proxy))
    for name in ("_private", "undecorated", "log", "connected"):
        with pytest.raises(AttributeError, match="has no exposed attribute or method"):
            getattr(proxy, name)


@pytest.mark.parametrize(
    "name", ["_private", "undecorated", "connected", "__init__", "__class__", "ad", "log", "add.__call__"]
)
def test_what_is_not_offered_cannot_be_called(proxy: Any, name: str) -> None:
    """Also by a client that does not look at the metadata."""
    with pytest.raises(AttributeError, match="Worker has no function"):
        proxy._pyroInvoke(name, (), {})
    with pytest.raises(AttributeError):
        proxy._pyroInvoke("__getattr__", (name,), {})
    assert proxy.add(1) == 2


def test_one_way(proxy: Any, worker: Worker) -> None:
    """Returns at once, with None; the work is done."""
    assert proxy.note("a") is None
    assert proxy.note(5) is None  # refused, with nobody to tell
    wait_until(lambda: worker.log == ["a"])


def test_batch(proxy: Any, worker: Worker) -> None:
    """Results in order, up to an error in the middle; the calls after it are not made."""
    if proxy._pyroSerializer == "marshal":
        pytest.skip("Pyro5's own client cannot write a batch with marshal: it sends no keyword arguments there")
    batch = Pyro5.api.BatchProxy(proxy)
    batch.add(1)
    batch.add(1, c=5)
    batch.echo([1, "x"])
    batch.in_thread(3)
    assert [str(result)[:8] for result in batch()] == ["2", "7", "[1, 'x']", "workerli"]
    batch.add(1)
    batch.fail("zero")
    batch.echo("never")
    results = batch()
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        next(results)
    batch.numbers(3)
    with pytest.raises(Exception, match="is a stream; a batch cannot hold one"):
        next(batch())
    batch.add("1")
    with pytest.raises(TypeError, match="argument a: Expected `int`"):
        next(batch())
    batch.note("b")
    batch.fail("zero")
    assert batch(oneway=True) is None
    wait_until(lambda: worker.log == ["b"])
    assert proxy.add(1) == 2


def test_ping(proxy: Any) -> None:
    """The protocol's own, which no function serves."""
    assert proxy._pyroBind()
    Pyro5.protocol.SendingMessage.ping(proxy._pyroConnection)
    assert proxy.add(1) == 2


def test_the_daemon_object(uri: str, serializer: str) -> None:
    """Answers what Pyro5's tools ask."""
    with Pyro5.api.Proxy(uri.replace("PYRO:w@", f"PYRO:{DAEMON}@")) as daemon:
        daemon._pyroSerializer = serializer
        assert daemon.ping() is None
        assert set(daemon.registered()) == {DAEMON, "w"}
        assert "workerlib" in daemon.info()
        assert "add" in daemon.get_metadata("w")["methods"]
        with pytest.raises(AttributeError, match="no object 'x'"):
            daemon.get_metadata("x")


def test_the_handshake_is_the_connection_argument(uri: str, serializer: str) -> None:
    """Pyro5's own default means none."""
    for handshake, expected in (("hello", "nobody"), ("ann", "ann")):
        with Pyro5.api.Proxy(uri) as proxy:
            proxy._pyroSerializer, proxy._pyroHandshake = serializer, handshake
            assert proxy.who() == expected


@pytest.mark.parametrize(
    ("target", "handshake", "text"),
    [
        ("w", "refuse", "ValueError: not you"),
        ("w", 5, "Expected `str`, got `int`"),
        ("x", "hello", "no object 'x' is served here"),
    ],
)
def test_a_refused_handshake_says_why(uri: str, serializer: str, target: str, handshake: Any, text: str) -> None:
    """As a communication error, with the reason in its text."""
    with Pyro5.api.Proxy(uri.replace("PYRO:w@", f"PYRO:{target}@")) as proxy:
        proxy._pyroSerializer, proxy._pyroHandshake = serializer, handshake
        with pytest.raises(Pyro5.errors.CommunicationError, match="rejected") as refused:
            proxy._pyroBind()
        assert text in str(refused.value)


@pytest.mark.parametrize("function", ["numbers", "thread_numbers"])
def test_a_stream_is_pulled_item_by_item(proxy: Any, worker: Worker, function: str) -> None:
    """To its end; the generator is resumed once for each pull."""
    stream = iter(getattr(proxy, function)(3))
    for n in range(3):
        assert next(stream) == n
        assert worker.log == [f"made {k}" for k in range(n + 1)]
    with pytest.raises(StopIteration):
        next(stream)
    assert worker.log[-1] == "closed"
    assert list(getattr(proxy, function)(200)) == list(range(200))
    assert list(getattr(proxy, function)(0)) == []


def test_an_error_in_a_stream(proxy: Any) -> None:
    """Comes after the items before it; so does an item that cannot be encoded."""
    stream = proxy.fails_after(2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        next(stream)
    stream = proxy.opaque_items()
    assert next(stream) == 1
    with pytest.raises(TypeError, match="cannot be encoded"):
        next(stream)
    with pytest.raises(TypeError):
        proxy.numbers("x")


@pytest.mark.parametrize("function", ["numbers", "thread_numbers"])
def test_closing_a_stream_early_closes_the_generator(proxy: Any, worker: Worker, function: str) -> None:
    """By `close`, and by the end of the connection."""
    stream = getattr(proxy, function)(100)
    assert next(stream) == 0
    stream.close()
    wait_until(lambda: worker.log == ["made 0", "closed"])
    other = getattr(proxy, function)(100)
    assert next(other) == 0
    proxy._pyroRelease()
    wait_until(lambda: worker.log == ["made 0", "closed"] * 2)
    with pytest.raises(Pyro5.errors.ConnectionClosedError):
        next(other)


def test_a_stream_may_be_closed_while_other_calls_are_made(proxy: Any, worker: Worker) -> None:
    """Pyro5's client then closes it over a second connection."""
    stream = proxy.numbers(100)
    assert next(stream) == 0
    assert proxy.add(1) == 2
    stream.close()
    wait_until(lambda: worker.log[-1] == "closed")


def test_two_streams_interleaved(proxy: Any) -> None:
    """Each has its own place."""
    first, second = proxy.numbers(5), proxy.thread_numbers(5)
    assert [(next(first), next(second), proxy.add(n)) for n in range(5)] == [(n, n, n + 1) for n in range(5)]


def test_a_stream_belongs_to_its_connection(uri: str, proxy: Any) -> None:
    """Another connection that knows the id gets nothing."""
    stream = proxy.numbers(5)
    assert next(stream) == 0
    with Pyro5.api.Proxy(uri) as other:
        other._pyroBind()
        with pytest.raises(Exception, match="item stream terminated"):
            other._pyroInvoke("get_next_stream_item", [stream.streamId], {}, objectId=DAEMON)
    assert next(stream) == 1


def test_annotations_and_correlation_id_are_tolerated(proxy: Any) -> None:
    """They are for those who want them."""
    current_context.annotations = {"XYZZ": b"some", "ABCD": b""}
    current_context.correlation_id = uuid.uuid4()
    try:
        assert proxy.add(1) == 2
        assert list(proxy.numbers(3)) == [0, 1, 2]
        assert proxy.note("x") is None
        with pytest.raises(ValueError, match="wrong"):
            proxy.fail("value")
    finally:
        current_context.annotations = {}
        current_context.correlation_id = None


def test_compressed_messages(proxy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a client with COMPRESSION on are read; the answers need not be compressed."""
    monkeypatch.setattr(Pyro5.config, "COMPRESSION", True)
    assert proxy.echo("x" * 100_000) == "x" * 100_000


def test_serialized_blobs_are_refused(proxy: Any) -> None:
    """The worker checks every argument, so it cannot pass one on unread."""
    with pytest.raises(Exception, match="SerializedBlob is not supported"):
        proxy.echo(Pyro5.client.SerializedBlob("info", [1]))
    current_context.annotations = {}
    assert proxy.add(1) == 2


def test_numbers_wrap(uri: str) -> None:
    """A client's sequence numbers go round through 0."""
    with Pyro5.api.Proxy(uri) as proxy:
        proxy._pyroBind()
        proxy._pyroSeq = 0xFFFD
        assert [proxy.add(n) for n in range(6)] == [1, 2, 3, 4, 5, 6]


def test_two_clients_do_not_wait_for_each_other(uri: str) -> None:
    """Many threads with a proxy each."""
    answers: dict[int, list[int]] = {}

    def client(number: int) -> None:
        with Pyro5.api.Proxy(uri) as proxy:
            answers[number] = [proxy.add(number, n) for n in range(50)] + list(proxy.numbers(10))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == {n: [n + k for k in range(50)] + list(range(10)) for n in range(10)}


def test_a_timeout_at_the_client(uri: str, worker: Worker) -> None:
    """It gives up and leaves: the function is cancelled, and the proxy connects anew."""
    with Pyro5.api.Proxy(uri) as proxy:
        proxy._pyroTimeout = 0.1
        with pytest.raises(Pyro5.errors.TimeoutError):
            proxy.wait()
        wait_until(lambda: worker.log == ["cancelled"])
        proxy._pyroTimeout = None
        assert proxy.add(1) == 2


def test_marshal_is_for_local_peers(runner: Any, worker: Worker) -> None:
    """Crafted marshal data can crash an interpreter; over TCP it is refused, with an answer that can be read."""
    with serving_in_thread(TcpLocation("127.0.0.1", 0), worker, runner) as where:
        for serializer in SERIALIZERS:
            with Pyro5.api.Proxy(str(where)) as proxy:
                proxy._pyroSerializer = serializer
                if serializer == "marshal":
                    with pytest.raises(Pyro5.errors.CommunicationError, match="accepted from local peers only"):
                        proxy._pyroBind()
                else:
                    assert proxy.add(1) == 2
