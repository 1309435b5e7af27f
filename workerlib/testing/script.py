"""A peer that plays a script on a real socket: it sends what it is told to, stays silent, and checks what it is sent.

For tests of how a worker or a client takes what no well-behaved peer would do. A script is a list of steps::

    script = [
        Expect(CONNECT),                     # the client's greeting
        welcome(),
        Expect(INVOKE),
        Silence(0.5),
        answer(15)[:20],                     # half an answer, and then the end
    ]
    with scripted_server(script, path) as uri, pytest.raises(ConnectionLost):
        ...

A step is bytes or a `Frame`, which are sent; a function, which is given the frame that was expected last and gives what
is sent; `Silence`; `Expect`, the next frame that has to come; `Ends`, the end of the connection that has to come.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from workerlib.core import frames
from workerlib.core.calling import read
from workerlib.core.frames import Frame, FrameParser
from workerlib.core.payload import MSGPACK, encode
from workerlib.core.session import DIALECT
from workerlib.core.uri import UnixLocation, Uri, parse_uri
from workerlib.errors import ProtocolError
from workerlib.shell.compression import inflate

MOST = 64 << 20
"""Bytes of a message that the peer takes at most."""


class ScriptError(AssertionError):
    """What came is not what the script expects."""


class Silence(msgspec.Struct, frozen=True):
    """Nothing is sent and nothing read for so long."""

    seconds: float


class Expect(msgspec.Struct, frozen=True):
    """The next frame that comes; what is not given may be anything. Heartbeats are answered, and are not counted."""

    type: int
    value: Any = msgspec.UNSET
    """The MessagePack value of its payload."""
    flags: int | None = None
    seq: int | None = None
    check: Callable[[Frame], object] | None = None
    """Called with the frame; raises when it does not like it."""


class Ends(msgspec.Struct, frozen=True):
    """The other end closes, after whatever it has still to say."""


Sent = bytes | Frame
Step = Sent | Callable[[Frame], Sent] | Silence | Expect | Ends


def message(kind: int, value: Any = None, *, seq: int = 1, flags: int = 0) -> bytes:
    """A whole message with a MessagePack value."""
    return frames.encode(kind, MSGPACK, flags, seq, encode(value))


def hello(target: str, value: Any = None, *, window: int = 1024) -> bytes:
    """What a client of workerlib sends first: who it wants to talk to, and the argument for `connected`."""
    announced = {"workerlib": DIALECT, "window": window, "value": value}
    return message(frames.CONNECT, {"handshake": announced, "object": target}, seq=0)


def welcome(*, window: int = 1024, **kinds: str) -> bytes:
    """What a worker answers to that: its functions by name, such as `add="rpc"`."""
    return message(
        frames.CONNECT_OK, {"handshake": {"workerlib": DIALECT, "window": window, "functions": kinds}}, seq=0
    )


def call(target: str, function: str, *args: Any, seq: int = 1, flags: int = 0, **kwargs: Any) -> bytes:
    """A call of a function by name."""
    return message(frames.INVOKE, [target, function, args, kwargs], seq=seq, flags=flags)


def answer(value: Any = None, *, flags: int = 0) -> Callable[[Frame], bytes]:
    """The step that answers the call that was expected last."""
    return lambda expected: message(frames.RESULT, value, seq=expected.seq, flags=flags)


class ScriptedPeer:
    """One end of a connection, in the hands of the test. A context manager: leaving it closes the socket.

    Each wait for the other end is bounded by `within_s`. ScriptError tells what came instead of what was expected.
    """

    def __init__(self, connected: socket.socket, *, within_s: float = 10.0) -> None:
        self.socket = connected
        self.received: list[Frame] = []
        """The frames that were expected and came, oldest first."""
        self.within_s = within_s
        self._parser = FrameParser(MOST, inflate)
        self._waiting: list[Frame] = []
        self._ended = False

    @classmethod
    def connect(cls, uri: str, *, within_s: float = 10.0) -> Self:
        """A client's end: connects to a worker, and sends nothing yet. Raises OSError, UsageError for the URI."""
        location = parse_uri(uri).location
        if isinstance(location, UnixLocation):
            sock = socket.socket(socket.AF_UNIX)
            where: Any = location.path
        else:
            sock = socket.socket()
            where = location.host, location.port
        try:
            sock.settimeout(within_s)
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return cls(sock, within_s=within_s)

    def play(self, script: Sequence[Step]) -> None:
        """Does what the script says, step by step. Raises ScriptError with the number of the step."""
        for number, step in enumerate(script):
            try:
                self._play(step)
            except ScriptError as error:
                raise ScriptError(f"step {number} of the script, {step!r}: {error}") from error.__cause__

    def _play(self, step: Step) -> None:
        match step:
            case Silence():
                time.sleep(step.seconds)
            case Expect():
                self.expect(step)
            case Ends():
                self.rest()
            case bytes() | Frame():
                self.send(step)
            case _:
                if not self.received:
                    raise ScriptError("a function is given the frame that was expected last; there was none")
                self.send(step(self.received[-1]))

    def send(self, what: Sent) -> None:
        """Sends bytes as they are, or a frame. An end that is closed already is for `expect` to find out."""
        if isinstance(what, Frame):
            what = frames.encode(
                what.type, what.serializer, what.flags, what.seq, bytes(what.payload), what.annotations
            )
        self.socket.settimeout(self.within_s)
        try:
            self.socket.sendall(what)
        except TimeoutError:
            raise ScriptError(f"{len(what)} bytes were not taken within {self.within_s:g} s") from None
        except ConnectionError:
            pass

    def expect(self, expected: Expect) -> Frame:
        """Waits for the next frame, and compares it. Raises ScriptError."""
        while True:
            found = self.receive()
            if found.type != frames.PING or expected.type == frames.PING:
                break
            self.send(frames.encode(frames.PING, found.serializer, 0, found.seq, b"pong"))
        _compare(expected, found)
        self.received.append(found)
        return found

    def receive(self) -> Frame:
        """The next frame, whatever it is. Raises ScriptError when none comes."""
        found = self._next(time.monotonic() + self.within_s)
        if found is None:
            raise ScriptError("the connection was closed instead")
        return found

    def rest(self) -> list[Frame]:
        """Waits until the other end closes; the frames that came before. Raises ScriptError."""
        until = time.monotonic() + self.within_s
        found: list[Frame] = []
        while (frame := self._next(until)) is not None:
            found.append(frame)
        return found

    def _next(self, until: float) -> Frame | None:
        """The next frame, or None at the end of the connection."""
        while not self._waiting:
            if self._ended:
                return None
            self.socket.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                raise ScriptError(f"nothing came within {self.within_s:g} s") from None
            except ConnectionError:
                data = b""
            self._ended = not data
            try:
                self._waiting += self._parser.feed(data)
                if self._parser.pending_size and not self._waiting:
                    self._parser.check()
            except ProtocolError as error:
                raise ScriptError(f"what came is no message: {error}") from error
        return self._waiting.pop(0)

    def close(self) -> None:
        """Closes the socket. Idempotent."""
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compare(expected: Expect, found: Frame) -> None:
    for name in ("type", "flags", "seq"):
        wanted = getattr(expected, name)
        if wanted is not None and getattr(found, name) != wanted:
            raise ScriptError(f"its {name} is {getattr(found, name)}, not {wanted}: {found}")
    if expected.value is not msgspec.UNSET and (value := read(found)) != expected.value:
        raise ScriptError(f"it has {value!r}, not {expected.value!r}")
    if expected.check is not None:
        expected.check(found)


@contextlib.contextmanager
def scripted_server(script: Sequence[Step], path: Path, *, target: str = "w", within_s: float = 10.0) -> Iterator[str]:
    """Listens at `path` and plays the script to the one client that connects; gives the URI for it.

    At the end, waits until the script is over, and raises ScriptError when it was not followed, or nobody connected;
    when the code inside raises, that is a note of its error.
    """
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(within_s)
        failures: list[BaseException] = []
        thread = threading.Thread(target=_serve, args=(listening, script, within_s, failures), name="scripted-server")
        thread.start()
        try:
            yield str(Uri(target, UnixLocation(str(path))))
        except BaseException as error:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # nobody who has not connected yet will
            thread.join()
            for failure in failures:
                error.add_note(f"The script: {failure}")
            raise
        thread.join()
    if failures:
        raise failures[0]


def _serve(listening: socket.socket, script: Sequence[Step], within_s: float, failures: list[BaseException]) -> None:
    try:
        accepted, _ = listening.accept()
    except OSError:
        failures.append(ScriptError(f"nobody connected within {within_s:g} s"))
        return
    try:
        with ScriptedPeer(accepted, within_s=within_s) as peer:
            peer.play(script)
    except BaseException as error:  # noqa: BLE001 - it is raised to whoever started this
        failures.append(error)
