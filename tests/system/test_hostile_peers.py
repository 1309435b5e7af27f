"""Peers that break the rules are cut off by deadline with the right reason, and nobody else notices."""

import asyncio
import contextlib
import resource
import statistics
import struct
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from support import open_fds, wait_until
from wire import frame

from workerlib.connection import open_to
from workerlib.core import frames
from workerlib.core.payload import encode
from workerlib.core.uri import UnixLocation, Uri
from workerlib.server import Server
from workerlib.serving import ServerConnection
from workerlib.spec import RpcSettings, pipe, rpc
from workerlib.testing import Expect, ScriptedPeer, ScriptError
from workerlib.testing.script import hello

MOST = 1 << 20
SETTINGS = RpcSettings(
    max_message_size=MOST,
    handshake_timeout_s=0.4,
    frame_timeout_s=0.2,
    heartbeat_interval_s=0.15,
    heartbeat_timeout_s=0.3,
    buffer_age_limit_s=0.3,
    stream_window=8,
)


class Worker:
    def __init__(self) -> None:
        self.resumed = 0
        self.closed = 0

    @rpc
    async def add(self, a: int, b: int = 1) -> int:
        return a + b

    @rpc
    async def wait(self) -> None:
        await asyncio.Event().wait()

    @rpc
    async def blob(self, size: int) -> bytes:
        return bytes(size)

    @pipe
    async def numbers(self, below: int) -> AsyncIterator[int]:
        try:
            for n in range(below):
                self.resumed += 1
                yield n
        finally:
            self.closed += 1


class Host:
    """A worker in a thread of its own, and the reasons for which its connections ended."""

    def __init__(self, path: Path, runner: Callable[[Any], None], settings: RpcSettings) -> None:
        self.path = path
        self.settings = settings
        self.worker = Worker()
        self.reasons: list[str] = []
        self.ready = threading.Event()
        self.thread = threading.Thread(target=lambda: runner(self._serve()))

    async def _serve(self) -> None:
        self.loop, self.end = asyncio.get_running_loop(), asyncio.Event()
        self.server = Server(self.settings)
        self.server.add("w", self.worker)
        await self.server.listen(UnixLocation(str(self.path)))
        self.ready.set()
        await self.end.wait()
        await self.server.close()

    def connect(self) -> "Peer":
        return Peer.connect(f"PYRO:w@./u:{self.path}", within_s=20)


class Peer(ScriptedPeer):
    """A client that does as it likes, with or without greeting first."""

    def greet(self, *, dialect: bool = True) -> None:
        stock = frame(frames.CONNECT, encode({"object": "w", "handshake": "hello"}), seq=0)
        self.play([hello("w", window=8) if dialect else stock, Expect(frames.CONNECT_OK)])


@contextlib.contextmanager
def hosting(path: Path, runner: Any, settings: RpcSettings = SETTINGS) -> Iterator[Host]:
    host = Host(path, runner, settings)
    original = ServerConnection._on_closed

    def record(self: ServerConnection, reason: str) -> None:
        host.reasons.append(reason)
        original(self, reason)

    ServerConnection._on_closed = record  # type: ignore[method-assign]
    host.thread.start()
    try:
        assert host.ready.wait(10)
        yield host
        wait_until(lambda: not host.server.connections, what="all connections to end")
    finally:
        host.loop.call_soon_threadsafe(host.end.set)
        host.thread.join(10)
        ServerConnection._on_closed = original  # type: ignore[method-assign]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def runner(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def host(tmp_path: Path, runner: Any) -> Iterator[Host]:
    with hosting(tmp_path / "w.sock", runner) as made:
        yield made


def call(function: str, *args: Any, seq: int = 1, flags: int = 0, serializer: int = 4) -> bytes:
    return frame(frames.INVOKE, encode(["w", function, args, {}]), seq=seq, flags=flags, serializer=serializer)


def annotated(annotations: bytes, payload: bytes = b"") -> bytes:
    head = frames.HEADER.pack(
        b"PYRO", 502, frames.INVOKE, 4, 0, 1, len(payload), len(annotations), bytes(16), 0, frames.MAGIC
    )
    return head + annotations + payload


CALL = call("add", 1)
LONG = frames.HEADER.pack(b"PYRO", 502, frames.INVOKE, 4, 0, 1, MOST + 1, 0, bytes(16), 0, frames.MAGIC)
HUGE = frames.HEADER.pack(b"PYRO", 502, frames.INVOKE, 4, 0, 1, 0xFFFFFFFF, 0xFFFFFFFF, bytes(16), 0, frames.MAGIC)
BOMB = zlib.compress(bytes(200 << 20), 9)

# What is sent at once, and the reason for which the worker ends the connection.
AT_ONCE: dict[str, tuple[bool | None, bytes, str]] = {
    "garbage": (None, b"\xde\xad\xbe\xef" * 100, "protocol error: the peer does not speak the Pyro protocol"),
    "http": (None, b"GET / HTTP/1.0\r\n\r\n", "protocol error: the peer does not speak the Pyro protocol"),
    "wrong magic": (None, CALL[:38] + b"\0\0" + CALL[40:], "protocol error: magic number 0x0000"),
    "wrong version": (None, CALL[:4] + b"\0\x30" + CALL[6:], "protocol error: protocol version 48"),
    "too long": (None, LONG, f"protocol error: a message of {MOST + 1} bytes"),
    "huge": (None, HUGE, "protocol error: a message of 8589934590 bytes"),
    "invoke before handshake": (None, CALL, "protocol error: message type 0x4 before the handshake was over"),
    "ping before handshake": (
        None,
        frame(frames.PING, b"ping"),
        "protocol error: message type 0x6 before the handshake",
    ),
    "handshake twice": (
        None,
        frame(frames.CONNECT, encode({"object": "w", "handshake": "hello"})) * 2,
        "protocol error: message type 0x1",
    ),
    "handshake that is no object": (None, frame(frames.CONNECT, encode(5)), "a handshake that names no object"),
    "handshake that cannot be read": (None, frame(frames.CONNECT, b"\xc1"), "DecodeError: "),
    "handshake nested deep": (None, frame(frames.CONNECT, b"\x91" * 100_000), "RecursionError: "),
    "handshake with an unknown serializer": (None, frame(frames.CONNECT, b"", serializer=99), "unknown serializer 99"),
    "handshake in serpent that is code": (
        None,
        frame(frames.CONNECT, b"__import__('os').system('true')", serializer=1),
        "the payload cannot be read",
    ),
    "handshake of another dialect": (
        None,
        frame(frames.CONNECT, encode({"object": "w", "handshake": {"workerlib": 99, "window": 1}})),
        "the peer speaks workerlib dialect 99, this side 1",
    ),
    "dialect in json": (
        None,
        frame(frames.CONNECT, b'{"object": "w", "handshake": {"workerlib": 1, "window": 8}}', serializer=3),
        "workerlib's dialect is spoken in msgpack only",
    ),
    "garbage after the handshake": (True, b"garbage!" * 9, "protocol error: the peer does not speak"),
    "unknown serializer": (True, call("add", 1, serializer=77), "protocol error: unknown serializer 77"),
    "annotations overrun": (
        True,
        annotated(struct.pack("!4sI", b"ABCD", 1 << 30)),
        "annotation ABCD announces 1073741824",
    ),
    "annotation without end": (True, annotated(b"ABCD"), "an annotation is cut off in its header"),
    "compressed bomb": (
        True,
        frame(frames.INVOKE, BOMB, flags=frames.COMPRESSED),
        f"protocol error: compressed payload: it is cut off, or longer than {MOST} bytes",
    ),
    "compressed garbage": (
        True,
        frame(frames.INVOKE, b"garbage", flags=frames.COMPRESSED),
        "compressed payload: Error",
    ),
    "items nobody asked for": (True, frame(frames.ITEM, encode([1])), "1 items on stream 1, where 0 are allowed"),
    "end of no stream": (True, frame(frames.END, b"\xc0"), "the end of stream 1, which is not open"),
    "a result": (True, frame(frames.RESULT, b"\xc0"), "message type 0x5 from the wrong side"),
    "connect again": (True, frame(frames.CONNECT, b"\xc0"), "message type 0x1 from the wrong side"),
    "one number twice": (True, call("wait") * 2, "two calls at a time with sequence number 1"),
    "one number for two streams": (True, call("numbers", 100) * 2, "a second call with sequence number 1"),
    "dialect from a stock peer": (False, frame(frames.ABORT, b"\xc0"), "a peer that did not announce the dialect"),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_what_breaks_the_protocol_ends_the_connection_at_once(host: Host, case: str) -> None:
    """With a reason that names it, and memory is not spent on what it claims; another client works before and after."""
    greeting, data, reason = AT_ONCE[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with host.connect() as good, host.connect() as bad:
        good.greet(dialect=False)
        if greeting is not None:
            bad.greet(dialect=greeting)
        bad.send(data)
        bad.rest()
        wait_until(lambda: host.reasons, what=case)
        assert len(host.reasons) == 1
        assert reason in host.reasons[0]
        good.send(CALL)
        good.expect(Expect(frames.RESULT, value=2))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10, "KiB"


# What makes the peer wait, and how it ends.
BY_DEADLINE = {
    "nothing at all": (None, b"", "no handshake in time: 0.4 s"),
    "three bytes": (None, b"PYR", "a message did not end in time: 40 bytes were announced"),
    "half a header": (None, CALL[:20], "a message did not end in time"),
    "half a payload": (True, CALL[:-1], f"a message did not end in time: {len(CALL)} bytes were announced"),
    "half a payload from a stock peer": (False, CALL[:-1], "a message did not end in time"),
    "half annotations": (True, annotated(struct.pack("!4sI", b"ABCD", 100) + bytes(100))[:-1], "did not end in time"),
    "silence": (True, b"", "no sign of life"),
    "silence while a call runs": (True, call("wait"), "no sign of life"),
}


@pytest.mark.parametrize("case", BY_DEADLINE)
def test_who_stops_is_cut_off_by_deadline(host: Host, case: str) -> None:
    """Nothing, half a header, half a message, no sign of life."""
    greeting, data, reason = BY_DEADLINE[case]
    with host.connect() as bad:
        if greeting is not None:
            bad.greet(dialect=greeting)
        bad.send(data)
        bad.rest()
        wait_until(lambda: host.reasons)
        assert reason in host.reasons[0]


def test_a_payload_that_drips_is_cut_off(host: Host) -> None:
    """Each byte comes in time, the message does not."""
    data = frame(frames.INVOKE, bytes(10_000))
    with host.connect() as bad:
        bad.greet()
        bad.send(data[: frames.HEADER_SIZE])
        sent = frames.HEADER_SIZE
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 2000:
                bad.socket.sendall(data[sent : sent + 1])
                sent += 1
                threading.Event().wait(0.005)
        assert sent < 2000
        wait_until(lambda: host.reasons)
        assert "a message did not end in time: 10040 bytes were announced" in host.reasons[0]


def test_who_sends_pings_and_never_reads_is_cut_off(host: Host) -> None:
    """Reading from it stops when the pongs wait, so it cannot fill the memory."""
    with host.connect() as bad:
        bad.greet(dialect=False)
        bad.socket.setblocking(False)
        pings, sent = frame(frames.PING, b"ping") * 10_000, 0
        give_up_at = time.monotonic() + 10
        while not host.reasons and time.monotonic() < give_up_at:
            try:
                sent += bad.socket.send(pings[sent % len(pings) :])
            except BlockingIOError:
                threading.Event().wait(0.01)
            except (BrokenPipeError, ConnectionResetError):
                break
        wait_until(lambda: host.reasons)
        assert "the peer does not read" in host.reasons[0]
        assert sent < 20 << 20


def test_10000_pings_are_answered_to_who_reads(tmp_path: Path, runner: Any) -> None:
    """Each with a pong. With the deadlines of everyday: on a busy machine this peer is slower than the short ones."""
    with hosting(tmp_path / "w.sock", runner, RpcSettings()) as host, host.connect() as peer:
        peer.greet(dialect=False)
        threading.Thread(target=peer.send, args=(frame(frames.PING, b"ping") * 10_000,)).start()
        pong, got = frame(frames.PING, b"pong"), b""
        while len(got) < len(pong) * 10_000:
            got += peer.socket.recv(1 << 20)
        assert got == pong * 10_000


def test_who_asks_for_much_and_never_reads_is_cut_off(host: Host) -> None:
    """Large results wait in its buffer for the limit's time, no longer."""
    with host.connect() as bad:
        bad.greet(dialect=False)
        for _ in range(20):
            bad.send(call("blob", MOST - 100))
        wait_until(lambda: host.reasons, within_s=40)
        assert "the peer does not read" in host.reasons[0]


def test_credit_that_is_never_granted_holds_the_generator(host: Host) -> None:
    """It is resumed for the window and not once more; it is closed when the peer leaves."""
    with host.connect() as bad:
        bad.greet()
        bad.send(call("numbers", 1_000_000))
        for _ in range(20):
            bad.send(frame(frames.PING, b"ping", seq=9))
            bad.receive()
        assert host.worker.resumed == 8
        bad.send(frame(frames.CREDIT, encode(5)))
        wait_until(lambda: host.worker.resumed == 13)
    wait_until(lambda: host.worker.closed == 1)


REFUSED_CALLS = {
    "bad msgpack": frame(frames.INVOKE, b"\xc1\xc1\xc1"),
    "empty payload": frame(frames.INVOKE, b""),
    "too few parts": frame(frames.INVOKE, encode(["w", "add"])),
    "nested deep": frame(frames.INVOKE, b"\x91" * 100_000),
    "nested deep in the arguments": frame(frames.INVOKE, b"\x94\xa1w\xa3add\x91" + b"\x91" * 100_000),
    "text that is not UTF-8": frame(frames.INVOKE, b"\x94\xa1w\xa3add\x91\xa1\xff\x80"),
    "an array that claims too much": frame(frames.INVOKE, b"\x94\xa1w\xa3add\xdd\xff\xff\xff\xff\x80"),
    "no such object": frame(frames.INVOKE, encode(["x", "add", [1], {}])),
    "no such function": frame(frames.INVOKE, encode(["w", "_add", [1], {}])),
    "object is no text": frame(frames.INVOKE, encode([["w"], "add", [1], {}])),
    "kept serialized": call("add", 1, flags=frames.KEEP_SERIALIZED),
    "batch that is none": call("add", 1, flags=frames.BATCH),
    "serpent that is code": frame(frames.INVOKE, b"__import__('os').getpid()", serializer=1),
    "serpent nested deep": frame(frames.INVOKE, b"[" * 5000, serializer=1),
    "serpent of signs": frame(frames.INVOKE, b"-" * 50_000 + b"1", serializer=1),
    "serpent of many values": frame(frames.INVOKE, b"[" + b"0," * 500_100 + b"]", serializer=1),
    "marshal garbage": frame(frames.INVOKE, b"garbage", serializer=2),
    "json nested deep": frame(frames.INVOKE, b"[" * 100_000, serializer=3),
    "json that is no call": frame(frames.INVOKE, b"5", serializer=3),
    "json with other keys": frame(frames.INVOKE, b'{"object": "w"}', serializer=3),
    "json that names a class": frame(
        frames.INVOKE,
        b'{"object": "w", "method": "add", "params": [{"__class__": "Pyro5.server.Daemon"}], "kwargs": {}}',
        serializer=3,
    ),
    "stream as one-way is dropped": call("numbers", 5, flags=frames.ONE_WAY) + call("add", "x"),
    "abort of nothing, then a wrong call": call("add", "x"),
}


@pytest.mark.parametrize("dialect", [True, False], ids=["dialect", "stock"])
@pytest.mark.parametrize("case", REFUSED_CALLS)
def test_a_call_that_cannot_be_read_is_answered_with_an_error(host: Host, case: str, dialect: bool) -> None:
    """And the connection goes on: the message itself was whole."""
    with host.connect() as peer:
        peer.greet(dialect=dialect)
        peer.send(REFUSED_CALLS[case])
        answer = peer.expect(Expect(frames.RESULT))
        assert answer.flags & frames.EXCEPTION
        peer.send(call("add", 1, seq=2))
        peer.expect(Expect(frames.RESULT, value=2))


class _Latencies(msgspec.Struct):
    """Seconds of each call of a good client."""

    seconds: list[float]

    @property
    def typical(self) -> float:
        return statistics.median(self.seconds)

    @property
    def bad(self) -> float:
        """What one call in twenty exceeds."""
        return statistics.quantiles(self.seconds, n=20)[18]


def _measure(host: Host, count: int = 1500) -> _Latencies:
    async def main() -> list[float]:
        found = []
        async with await open_to(Uri("w", UnixLocation(str(host.path))), settings=RpcSettings()) as conn:
            for n in range(count):
                began = time.perf_counter()
                assert await conn.run(Worker.add, n) == n + 1
                found.append(time.perf_counter() - began)
        return found

    return _Latencies(uvloop.run(main()))


def test_others_do_not_notice_200_stalled_peers(tmp_path: Path, runner: Any) -> None:
    """A good client's calls beside 200 peers that stopped in every way take about what they take alone.

    Stock Pyro5 with one such peer answers nobody (multiplex) or loses a thread to each (80 at most).
    """
    settings = RpcSettings(
        max_message_size=MOST,
        handshake_timeout_s=30,
        frame_timeout_s=30,
        heartbeat_interval_s=1,
        heartbeat_timeout_s=30,
        stream_window=8,
    )
    stalls: list[tuple[bool | None, bytes]] = [
        (None, b""),
        (None, b"PYR"),
        (None, CALL[:20]),
        (True, CALL[:-1]),
        (False, CALL[:-1]),
        (True, call("wait")),
        (True, call("numbers", 1_000_000)),
        (False, call("blob", MOST - 100) * 20),
        (False, frame(frames.PING, b"ping") * 10_000),
        (True, b"".join(call("wait", seq=n) for n in range(1, 100))),
    ]
    fds = open_fds()
    with hosting(tmp_path / "w.sock", runner, settings) as host:
        _measure(host, 200)
        alone = _measure(host)
        with contextlib.ExitStack() as peers:
            for n in range(200):
                greeting, data = stalls[n % len(stalls)]
                peer = peers.enter_context(host.connect())
                if greeting is not None:
                    peer.greet(dialect=greeting)
                peer.within_s = 0.2
                with contextlib.suppress(ScriptError):
                    peer.send(data)
            assert len(host.server.connections) == 200
            # The best of several: what disturbs one measurement may be the machine's other work, not the peers.
            beside = [_measure(host) for _ in range(5)]
        assert min(found.typical for found in beside) < 3 * alone.typical
        assert min(found.bad for found in beside) < 10 * alone.bad
        wait_until(lambda: not host.server.connections, what="the stalled peers to be forgotten")
    assert set(open_fds()) <= set(fds)


def test_hostile_servers_cannot_hurt_a_client(tmp_path: Path) -> None:
    """Garbage, a stock daemon's greeting, wrong items, silence: the client is told, within its deadlines."""
    from workerlib.errors import ConnectionLost, HandshakeError, ProtocolError, ResultError  # noqa: PLC0415

    greeting = encode({"handshake": {"workerlib": 1, "window": 8, "functions": {"add": "rpc"}}})
    ok = frame(frames.CONNECT_OK, greeting, seq=0)
    cases: list[tuple[list[bytes], type[Exception], str]] = [
        ([b"garbage!" * 10], ConnectionLost, "does not speak the Pyro protocol"),
        ([b""], ConnectionLost, "no handshake in time"),
        (
            [frame(frames.CONNECT_OK, encode({"handshake": "hello", "meta": {}}), seq=0)],
            ProtocolError,
            "stock Pyro5 daemon",
        ),
        ([frame(frames.CONNECT_OK, b"\xc1", seq=0)], ProtocolError, "the payload cannot be read"),
        (
            [frame(frames.CONNECT_OK, encode({"handshake": {"workerlib": 1, "window": 8, "functions": 5}}), seq=0)],
            ProtocolError,
            "functions of .* cannot be read",
        ),
        ([frame(frames.CONNECT_FAIL, encode("go away"), seq=0)], HandshakeError, "go away"),
        ([frame(frames.CONNECT_FAIL, b"\xc1", seq=0)], ProtocolError, "cannot be read"),
        ([ok, b"garbage!" * 10], ConnectionLost, "does not speak the Pyro protocol"),
        ([ok, frame(frames.RESULT, b"\xc1", flags=frames.EXCEPTION)], ConnectionLost, "the payload cannot be read"),
        ([ok, frame(frames.RESULT, b"\x91" * 100_000)], ResultError, "something else than it declares"),
        ([ok, frame(frames.RESULT, encode(5), seq=99)], ConnectionLost, "which was not asked for"),
        ([ok, frame(frames.ITEM, encode([5]))], ConnectionLost, "1 items on stream 1, where 0 are allowed"),
        ([ok, frame(frames.ABORT, encode("no more"))], Exception, "no more"),
        ([ok, frame(frames.RESULT, b"\xc0", flags=frames.ITEM_STREAM)], Exception, "is a pipe"),
        ([ok, frame(frames.RESULT, encode("text"))], Exception, "something else than it declares"),
        ([ok, frame(frames.RESULT, encode(5))[:-1]], ConnectionLost, "did not end in time|no sign of life"),
        ([ok, b""], ConnectionLost, "no sign of life"),
        ([ok, frame(frames.RESULT, b"\xc1")], ConnectionLost, "cannot be read|by name"),
    ]

    async def main() -> None:
        for sends, kind, text in cases:
            waiting = list(sends)

            async def serve(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: list[bytes] = waiting
            ) -> None:
                with contextlib.suppress(ConnectionError):
                    while data := await reader.read(1 << 16):
                        if waiting and data[6] in {frames.CONNECT, frames.INVOKE}:
                            writer.write(waiting.pop(0))
                writer.close()

            server = await asyncio.start_unix_server(serve, tmp_path / "bad.sock")
            with pytest.raises(kind, match=text):
                async with await open_to(Uri("w", UnixLocation(str(tmp_path / "bad.sock"))), settings=SETTINGS) as conn:
                    await (conn.call("add", 1) if text.endswith("by name") else conn.run(Worker.add, 1))
            server.close()
            await server.wait_closed()
            (tmp_path / "bad.sock").unlink(missing_ok=True)
            await asyncio.sleep(0)

    async def bounded() -> None:
        await asyncio.wait_for(main(), 30)

    uvloop.run(bounded())
