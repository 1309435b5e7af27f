"""The two ends of a connection as pure machines, joined without socket, loop or clock."""

from collections.abc import Callable
from typing import Any

from workerlib.core import frames
from workerlib.core.client_session import ClientSession
from workerlib.core.frames import Frame
from workerlib.core.payload import encode
from workerlib.core.session import DIALECT, CloseKind, Event, ServerSession, parse_dialect
from workerlib.shell.compression import inflate
from workerlib.spec import RpcSettings


def whole(data: bytes) -> list[bytes]:
    """All that is under way arrives at once: the usual way to `deliver`."""
    return [data]


def byte_by_byte(data: bytes) -> list[bytes]:
    """The unkindest way that a network can cut what is under way."""
    return [data[at : at + 1] for at in range(len(data))]


SETTINGS = RpcSettings(
    max_message_size=1 << 16,
    handshake_timeout_s=5,
    frame_timeout_s=3,
    heartbeat_interval_s=10,
    heartbeat_timeout_s=30,
    stream_window=8,
)


class SessionPair:
    """A client's and a server's session without a loop, back to back: what one writes waits until `deliver` moves it.

    For tests that decide what arrives when, in which pieces, and at what time; it begins with the handshake done unless
    `connect` is false. Whoever tests a worker wants `joined`.
    """

    def __init__(self, settings: RpcSettings = SETTINGS, *, connect: bool = True) -> None:
        self.now = 100.0
        self.client = ClientSession(settings, inflate, self.now)
        self.server = ServerSession(settings, inflate, self.now)
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.at_server: list[Event] = []
        """Events that the server's session gave, oldest first."""
        self.at_client: list[Event] = []
        if connect:
            self.connect()

    def connect(self) -> None:
        self.to_server += self.client.connect("w", None)
        self.deliver()
        self.to_client += self.accept(self.take_at_server())
        self.deliver()
        self.greet(self.take_at_client())

    def accept(self, hello: Frame) -> bytes:
        announced = {"workerlib": DIALECT, "window": self.server.settings.stream_window}
        return self.server.accept(hello, encode({"handshake": announced}), announced, self.now)

    def greet(self, answer: Frame) -> None:
        assert answer.type == frames.CONNECT_OK
        dialect = parse_dialect({"workerlib": DIALECT, "window": self.server.settings.stream_window})
        assert dialect is not None
        self.client.opened(dialect, self.now)

    def deliver_to_server(self, most: int | None = None) -> None:
        data = bytes(self.to_server[:most])
        del self.to_server[: len(data)]
        if data:
            self.at_server += self.server.receive(data, self.now)
        self.to_client += self.server.take_output()

    def deliver_to_client(self, most: int | None = None) -> None:
        data = bytes(self.to_client[:most])
        del self.to_client[: len(data)]
        if data:
            self.at_client += self.client.receive(data, self.now)
        self.to_server += self.client.take_output()

    def deliver(self, cut: Callable[[bytes], list[bytes]] = whole) -> None:
        """Moves everything that is under way, and what comes of it, cut into pieces."""
        while self.to_server or self.to_client:
            for pipe, move in ((self.to_server, self.deliver_to_server), (self.to_client, self.deliver_to_client)):
                for piece in cut(bytes(pipe)):
                    move(len(piece))

    def advance(self, seconds: float) -> None:
        """Moves the clock, calling each end's `tick` at its deadlines as the shell does; nothing is delivered."""
        until = self.now + seconds
        while (soonest := min(self.client.deadline_at, self.server.deadline_at)) <= until:
            self.now = max(self.now, soonest)
            for session, events in ((self.client, self.at_client), (self.server, self.at_server)):
                if session.deadline_at <= self.now:
                    events.extend(session.tick(self.now))
            self.to_server += self.client.take_output()
            self.to_client += self.server.take_output()
        self.now = until

    def take_at_server(self) -> Any:
        return self.at_server.pop(0)

    def take_at_client(self) -> Any:
        return self.at_client.pop(0)

    def call(self, payload: bytes = b"\xc0") -> tuple[int, Frame]:
        """A call that has arrived at the server."""
        seq, data = self.client.call(payload)
        self.to_server += data
        self.deliver()
        return seq, self.take_at_server()

    def open_stream(self) -> int:
        """A call that has become a stream, and is known as one at the client."""
        seq, _ = self.call()
        self.to_client += self.server.open_stream(seq)
        self.deliver()
        assert self.take_at_client().flags & frames.ITEM_STREAM
        return seq

    def ends(self) -> tuple[CloseKind | None, CloseKind | None]:
        """Why the client and the server ended."""
        return tuple(end.closed.kind if end.closed else None for end in (self.client, self.server))  # type: ignore[return-value]
