"""The blocking client against a real server in another process."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blocking_server import Bench, OwnError, Point
from support import wait_until

from workerlib import blocking, rpc
from workerlib.core.session import MAX_SEQ
from workerlib.core.uri import parse_uri
from workerlib.errors import (
    ArgumentError,
    ConnectionLost,
    HandshakeError,
    RemoteError,
    ResultError,
    UnknownFunction,
    UsageError,
)
from workerlib.spec import RpcSettings
from workerlib.testing import Ends, scripted_server

PROGRAMS = Path(__file__).parent / "programs"


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in another process, and its URI."""
    # Not run as a script: its classes must have the same names in both processes, not `__main__` in one.
    command = [sys.executable, "-c", "import blocking_server; blocking_server.run()", *options]
    with subprocess.Popen(command, cwd=PROGRAMS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            assert process.stdin is not None
            process.stdin.close()
            process.wait(10)


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with serving() as (_, found):
        yield found


@pytest.fixture
def connection(uri: str) -> Iterator[blocking.Connection]:
    with blocking.connect(uri, within_s=10, timeout_s=20) as found:
        yield found


def test_a_typed_call_gives_a_typed_result(connection: blocking.Connection) -> None:
    """Arguments and results travel as their types, by position and by name."""
    assert connection.run(Bench.add, 2) == 3
    assert connection.run(Bench.add, 2, b=5) == 7
    assert connection.run(Bench.mirror, Point(1, 2)) == Point(2, 1)


def test_a_call_on_a_closed_connection_takes_nothing(uri: str) -> None:
    """However often it is tried, the reason is told: no number is used up."""
    with blocking.connect(uri, within_s=10) as connection:
        connection.close()
        for _ in range(MAX_SEQ + 1):
            with pytest.raises(ConnectionLost, match="closed here"):
                connection.run(Bench.add, 1)


def test_a_connection_that_was_not_opened_says_so() -> None:
    """Whatever is called on it."""
    connection = blocking.Connection(parse_uri("PYRO:w@./u:/none"), RpcSettings())
    for call in (connection.info, connection.ping, connection.close_server):
        with pytest.raises(UsageError, match=r"use workerlib\.blocking\.connect"):
            call()


def test_a_call_by_name_gives_plain_data(connection: blocking.Connection) -> None:
    """Tools call by name; structured values arrive as dictionaries."""
    assert connection.call("mirror", {"x": 1, "y": 2}) == {"x": 2, "y": 1}
    assert connection.functions["numbers"].value == "pipe"
    assert list(connection.call("numbers", 3)) == [0, 1, 2]


def test_an_unknown_function_is_told_with_the_nearest_one(connection: blocking.Connection) -> None:
    """No byte is sent for a name that the worker does not have."""
    with pytest.raises(UnknownFunction, match="did you mean 'mirror'"):
        connection.call("miror")


def test_another_object_of_the_same_server_can_be_called(connection: blocking.Connection) -> None:
    """`target` names it."""
    assert connection.call("ping", target="Pyro.Daemon") is None


def test_a_one_way_is_written_when_run_returns(uri: str) -> None:
    """It does not wait for anything to come; and the worker gets it although the connection is closed right after."""
    with blocking.connect(uri) as first:
        began = time.monotonic()
        first.run(Bench.note, "hello")
        assert time.monotonic() - began < 5, "it waited for the next heartbeat"
    with blocking.connect(uri) as second:
        wait_until(lambda: "hello" in second.run(Bench.notes))


def test_the_connection_argument_reaches_connected(uri: str) -> None:
    """It becomes the connection state, or the reason to refuse the client."""
    with blocking.connect(uri, "ann") as connection:
        assert connection.run(Bench.who) == "ann"
    with pytest.raises(HandshakeError, match="PermissionError: nobody may connect"):
        blocking.connect(uri, "nobody")


@pytest.mark.parametrize("count", [0, 1, 100, 50_000])
def test_a_pipe_gives_all_items_in_order(connection: blocking.Connection, count: int) -> None:
    """Also more of them than the window has room for, from `async def` and from `def` generators."""
    assert list(connection.run(Bench.numbers, count)) == list(range(count))
    assert list(connection.run(Bench.blocking_numbers, count)) == list(range(count))


def test_calls_can_be_made_while_a_stream_is_read(connection: blocking.Connection) -> None:
    """Streams and calls share the connection."""
    first, second = connection.run(Bench.numbers, 10_000), connection.run(Bench.numbers, 10_000)
    for a, b in zip(first, second, strict=True):
        assert a == b
        if a % 1000 == 0:
            assert connection.run(Bench.add, a) == a + 1


def test_a_pipe_that_is_not_read_is_held_back() -> None:
    """The generator makes no more items than the window lets it, and goes on when they are taken."""
    with serving() as (_, uri), blocking.connect(uri, settings=RpcSettings(stream_window=64)) as connection:
        stream = connection.run(Bench.numbers, 100_000)
        assert next(stream) == 0
        made = 0
        while made != (made := connection.run(Bench.progress)[0]):
            connection.ping()
        assert 0 < made <= 2 * 64
        assert sum(1 for _ in stream) == 99_999


def test_leaving_the_loop_early_closes_the_generator() -> None:
    """`break` is enough; nothing more needs to be called."""
    with serving() as (_, uri), blocking.connect(uri) as connection:
        for n in connection.run(Bench.numbers, 1_000_000):
            if n == 10:
                break
        wait_until(lambda: connection.run(Bench.progress)[1] == 1)
        with connection.run(Bench.numbers, 1_000_000) as stream:
            next(stream)
        wait_until(lambda: connection.run(Bench.progress)[1] == 2)
        assert list(stream) == []


def test_what_a_function_raises_arrives(connection: blocking.Connection) -> None:
    """Builtin and declared errors as themselves, others as RemoteError; all with the worker's traceback."""
    with pytest.raises(ZeroDivisionError) as raised:
        connection.run(Bench.divide, 1, 0)
    assert "return a / b" in raised.value.__notes__[0]
    with pytest.raises(OwnError, match="declared"):
        connection.run(Bench.own)
    with pytest.raises(RemoteError, match="OwnError: not declared"):
        connection.run(Bench.foreign)
    assert connection.run(Bench.add, 1) == 2


def test_a_pipe_raises_after_the_items_before_it(connection: blocking.Connection) -> None:
    """Nothing that was yielded is lost."""
    stream = connection.run(Bench.broken, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="after 3"):
        next(stream)


def test_arguments_and_results_are_checked(connection: blocking.Connection) -> None:
    """A wrong argument is refused by the worker with its path, an item of the wrong type by the client."""
    with pytest.raises(ArgumentError, match=r"Bench.mirror: argument point.x: Expected `int`, got `str`"):
        connection.call("mirror", {"x": "1", "y": 2})
    with pytest.raises(ArgumentError, match="cannot travel"):
        connection.call("echo", object())
    with pytest.raises(ResultError, match="something else than it declares"):
        list(connection.run(Bench.wrong))
    assert connection.run(Bench.add, 1) == 2


def test_payloads_of_a_mebibyte_travel_both_ways(connection: blocking.Connection) -> None:
    """Larger than any socket buffer, in a call and in a stream."""
    data = os.urandom(1 << 20)
    for _ in range(5):
        assert connection.run(Bench.echo, data) == data
    assert [len(block) for block in connection.run(Bench.blocks, 8, 1 << 20)] == [1 << 20] * 8


def test_a_large_request_passes_while_a_stream_pushes(connection: blocking.Connection) -> None:
    """Writing does not wait for reading or the reverse: neither end can block the other."""
    stream = connection.run(Bench.blocks, 40, 1 << 20)
    data = bytes(16 << 20)
    assert connection.run(Bench.echo, data) == data
    assert sum(1 for _ in stream) == 40


def test_a_message_that_is_too_long_is_refused_here(connection: blocking.Connection) -> None:
    """Before any of it is sent: the connection lives on."""
    with pytest.raises(ArgumentError, match="a message may have 67108864"):
        connection.run(Bench.echo, bytes(65 << 20))
    assert connection.run(Bench.add, 1) == 2


def test_a_call_that_takes_too_long_is_cancelled_and_the_connection_lives(connection: blocking.Connection) -> None:
    """TimeoutError here, CancelledError in the worker; the late end of that call is not taken for another's."""
    before = connection.run(Bench.cancellations)
    connection.timeout_s = 0.05
    with pytest.raises(TimeoutError, match=r"Bench.hang: no answer within 0.05 s"):
        connection.run(Bench.hang)
    with pytest.raises(TimeoutError, match=r"Bench.never: no answer within 0.05 s"):
        next(connection.run(Bench.never))
    connection.timeout_s = 20
    assert connection.run(Bench.add, 1) == 2
    wait_until(lambda: connection.run(Bench.cancellations) == before + 1)


def test_the_timeout_holds_while_other_data_comes(connection: blocking.Connection) -> None:
    """A stream that keeps this end busy does not let a call run on for ever."""
    stream = connection.run(Bench.blocks, 10_000, 1 << 16)
    next(stream)
    connection.timeout_s = 0.1
    with pytest.raises(TimeoutError):
        connection.run(Bench.hang)
    assert len(next(stream)) == 1 << 16


def test_a_server_that_dies_ends_calls_and_streams() -> None:
    """ConnectionLost, after the items that had come; and from then on at once."""
    with serving() as (process, uri), blocking.connect(uri) as connection:
        stream = connection.run(Bench.numbers, 1_000_000)
        next(stream)
        process.kill()
        process.wait()
        with pytest.raises(ConnectionLost, match="closed by the peer"):
            connection.run(Bench.add, 1)
        with pytest.raises(ConnectionLost):
            list(stream)
        with pytest.raises(ConnectionLost):
            connection.run(Bench.add, 1)
        with pytest.raises(ConnectionLost):
            connection.ping()
        assert connection.closed is not None


def test_a_server_that_is_stopped_is_lost_after_the_heartbeat_timeout() -> None:
    """A call without a timeout does not wait for ever: the client asks for signs of life while it waits."""
    settings = RpcSettings(heartbeat_interval_s=0.05, heartbeat_timeout_s=0.1)
    with serving() as (process, uri), blocking.connect(uri, settings=settings) as connection:
        assert connection.run(Bench.add, 1) == 2
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(ConnectionLost, match="no sign of life"):
            connection.run(Bench.add, 1)


def test_a_server_that_does_not_read_is_given_up() -> None:
    """By the caller's timeout, and without one by `buffer_age_limit_s`. Half a message may be out: no more calls."""
    settings = RpcSettings(buffer_age_limit_s=0.2)
    with serving() as (process, uri), blocking.connect(uri) as one, blocking.connect(uri, settings=settings) as two:
        process.send_signal(signal.SIGSTOP)
        one.timeout_s = 0.1
        with pytest.raises(TimeoutError):
            one.run(Bench.echo, bytes(16 << 20))
        assert one.closed == "the peer does not read: for 0.1 s"
        with pytest.raises(ConnectionLost, match=r"the peer does not read: for 0\.2 s"):
            two.run(Bench.echo, bytes(16 << 20))


def test_a_client_that_does_nothing_is_not_cut_off() -> None:
    """The server does not judge a blocking client by its silence; another client shows that time has passed."""
    with serving("beat") as (_, uri), blocking.connect(uri) as idle, blocking.connect(uri) as busy:
        busy.timeout_s = 1.0
        with pytest.raises(TimeoutError):
            busy.run(Bench.hang)
        assert idle.run(Bench.add, 1) == 2


def test_ping_measures_the_connection(connection: blocking.Connection) -> None:
    """A positive number of seconds; calls go on afterwards."""
    assert 0 < connection.ping() < 10
    assert connection.run(Bench.add, 1) == 2


def test_the_process_at_the_other_end_is_known() -> None:
    """Its pid on a Unix socket, and nothing after the end."""
    with serving() as (process, uri):
        with blocking.connect(uri) as connection:
            assert connection.peer_pid == process.pid
        assert connection.peer_pid is None


def test_waiting_for_the_end_returns_why() -> None:
    """Within its time, or TimeoutError."""
    with serving() as (process, uri), blocking.connect(uri, timeout_s=0.05) as connection:
        with pytest.raises(TimeoutError, match="was not closed within"):
            connection.wait_closed()
        connection.timeout_s = 10
        process.kill()
        assert connection.wait_closed() == "closed by the peer"


def test_an_interrupted_wait_closes_the_connection(connection: blocking.Connection) -> None:
    """Ctrl-C may cut a message through, so nothing is sent after it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            connection.run(Bench.hang)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert connection.closed == "closed here: interrupted"


def test_tcp_is_spoken_when_it_is_asked_for_by_name() -> None:
    """Without `insecure`, no byte is sent."""
    with serving("tcp") as (_, uri):
        with pytest.raises(UsageError, match="insecure=True"):
            blocking.connect(uri)
        with blocking.connect(uri, insecure=True) as connection:
            assert connection.run(Bench.add, 1) == 2
            assert connection.peer_pid is None


@pytest.mark.parametrize(
    ("prepare", "kind"),
    [
        (lambda path: None, FileNotFoundError),
        (lambda path: path.write_text(""), ConnectionRefusedError),
    ],
    ids=["missing", "no-socket"],
)
def test_nobody_listening_is_an_oserror_with_the_path(
    tmp_path: Path, prepare: Callable[[Path], object], kind: type[OSError]
) -> None:
    """The error names the socket."""
    path = tmp_path / "s"
    prepare(path)
    with pytest.raises(kind, match=str(path)):
        blocking.connect(f"PYRO:x@./u:{path}")


def test_a_listener_that_accepts_nothing_is_given_up(tmp_path: Path) -> None:
    """Both when its queue is full, where connecting itself waits, and when only the handshake is never answered."""
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as others:
        listener.bind(path)
        listener.listen(0)
        with pytest.raises(TimeoutError, match=r"no answer within 0.05 s"):
            blocking.connect(f"PYRO:x@./u:{path}", within_s=0.05)
        other = others.enter_context(socket.socket(socket.AF_UNIX))
        other.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            other.connect(path)
        with pytest.raises(TimeoutError, match=r"no connection within 0.05 s"):
            blocking.connect(f"PYRO:x@./u:{path}", within_s=0.05)


def test_a_peer_that_speaks_something_else_is_told(tmp_path: Path) -> None:
    """A server of another protocol ends the attempt with what it sent, not with a wait."""
    with (
        scripted_server([b"220 smtp ready\r\n", Ends()], tmp_path / "s") as uri,
        pytest.raises(ConnectionLost, match="does not speak the Pyro protocol"),
    ):
        blocking.connect(uri, within_s=10)


PIECEMEAL = """
import socket, sys
import workerlib
from workerlib.core import frames
from workerlib.core.payload import encode
from workerlib.core.session import ServerSession
from workerlib.shell.compression import inflate

listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
peer = listener.accept()[0]
session = ServerSession(workerlib.RpcSettings(), inflate, 0.0)
calls = []

def take():
    while not calls:
        calls.extend(session.receive(peer.recv(65536), 0.0))
    return calls.pop(0)

hello = take()
greeting = {"workerlib": 1, "window": 16, "functions": {"add": "rpc"}, "schema": {}}
peer.sendall(session.accept(hello, encode({"handshake": greeting}), {"workerlib": 1, "window": 16}, 0.0))
answer = lambda call, value: session.result(call.seq, encode(value))
for byte in answer(take(), "in pieces"):
    peer.sendall(bytes([byte]))
given_up = take()
calls[:] = [call for call in (take(), take()) if call.type == frames.INVOKE]  # the abort and the next call
peer.sendall(answer(given_up, "late") + answer(take(), "in one with a late one"))
late = take()
peer.sendall(answer(late, "alone")[:43])
sys.stdin.read(1)
peer.close()
"""


class Told:
    """What the peer that answers piecemeal says it serves."""

    @rpc
    async def add(self) -> str:
        raise NotImplementedError


def test_answers_may_come_in_pieces_together_and_late(tmp_path: Path) -> None:
    """The short way for a sole answer takes nothing for one that is none, and an answer cut short is a lost connection."""
    path = str(tmp_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", PIECEMEAL, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with blocking.connect(f"PYRO:x@./u:{path}", within_s=10) as connection:
            assert connection.run(Told.add) == "in pieces"
            connection.timeout_s = 0.08
            with pytest.raises(TimeoutError):
                connection.run(Told.add)
            connection.timeout_s = None
            assert connection.run(Told.add) == "in one with a late one"
            assert process.stdin is not None
            process.stdin.write("x")
            process.stdin.flush()
            with pytest.raises(ConnectionLost):
                connection.run(Told.add)
        process.communicate()
        assert process.returncode == 0


def test_an_unknown_worker_is_refused(uri: str) -> None:
    """The id in the URI is checked, since the system reuses addresses."""
    with pytest.raises(HandshakeError, match="no object 'gone' is served here"):
        blocking.connect(f"PYRO:gone@{uri.partition('@')[2]}")


def test_importing_it_does_not_import_asyncio() -> None:
    """Scripts and parsupctl do not pay for an event loop, threads, or stock Pyro5."""
    code = "import sys, workerlib.blocking; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "uvloop", "threading", "Pyro5", "structlog", "rich", "ssl", "zlib"} & set(loaded)


# Items into the worker


@pytest.mark.parametrize("count", [0, 1, 100, 50_000])
def test_items_of_a_source_reach_the_worker(connection: blocking.Connection, count: int) -> None:
    """Also more of them than the window has room for; other arguments follow the source."""
    assert connection.run(Bench.total, range(count)) == sum(range(count))
    assert connection.run(Bench.total, iter(range(count)), 5) == sum(range(count)) + 5
    assert connection.call("total", list(range(count)), 5) == sum(range(count)) + 5
    assert connection.run(Bench.add, 1) == 2


def endless(log: list[str]) -> Iterator[int]:
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        log.append("closed")


def test_a_worker_that_wants_no_more_closes_the_source(connection: blocking.Connection) -> None:
    """Whether it answers or raises; the connection goes on."""
    log: list[str] = []
    assert connection.run(Bench.first, endless(log), 3) == [0, 1, 2]
    with pytest.raises(OwnError, match="9000 is too much"):
        connection.run(Bench.refuse_from, endless(log), 9000)
    with pytest.raises(ArgumentError, match="argument start"):
        connection.run(Bench.total, endless(log), "x")  # type: ignore[call-overload]
    assert log == ["closed"] * 3
    assert connection.run(Bench.add, 1) == 2


def test_an_error_of_the_source_is_the_callers(connection: blocking.Connection) -> None:
    """So is an item that cannot travel or does not fit; the connection goes on."""

    def dry() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("the source is dry")

    with pytest.raises(ZeroDivisionError, match="the source is dry"):
        connection.run(Bench.total, dry())
    with pytest.raises(ArgumentError, match=r"an item for Bench.total cannot be encoded"):
        connection.run(Bench.total, [object()])  # type: ignore[list-item]
    with pytest.raises(ArgumentError, match=r"Bench.total: item 1: Expected `int`, got `str`"):
        connection.run(Bench.total, [1, "x"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="must be the source of its items"):
        connection.run(Bench.total, 5)  # type: ignore[call-overload]
    assert connection.run(Bench.add, 1) == 2


def test_a_worker_that_does_not_read_runs_into_the_timeout(uri: str) -> None:
    """While there is no room for more items, and while the answer does not come; the source is closed."""
    log: list[str] = []
    with blocking.connect(uri, within_s=10, timeout_s=0.2) as connection:
        with pytest.raises(TimeoutError, match="no room for its items within"):
            connection.run(Bench.hold, endless(log))
        with pytest.raises(TimeoutError, match="no answer"):
            connection.run(Bench.hold, [1])
        assert log == ["closed"]
        assert connection.run(Bench.add, 1) == 2


def test_the_source_may_make_calls_on_the_same_connection(connection: blocking.Connection) -> None:
    """Nothing of the connection is held while the source runs."""
    items = (connection.run(Bench.add, n) for n in range(100))
    assert connection.run(Bench.total, items) == sum(range(1, 101))
