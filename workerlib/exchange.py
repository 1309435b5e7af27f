"""What `workerlib.blocking` stands on: a socket and a session, and whoever waits for something on them.

Nothing is read or written but while somebody waits, or to send what can be sent at once. All of it belongs to one
thread at a time.
"""

import _thread
import math
from collections import deque
from collections.abc import Callable, Iterable

from workerlib.core import frames
from workerlib.core.calling import is_last
from workerlib.core.client_session import ClientSession
from workerlib.core.frames import Frame
from workerlib.core.payload import Outgoing
from workerlib.core.session import Closed, CloseKind, Event
from workerlib.core.uri import Uri
from workerlib.errors import ProtocolError, UsageError
from workerlib.shell.blocking_socket import SOON_S, BlockingSocket, now, open_socket
from workerlib.shell.compression import inflate
from workerlib.spec import RpcSettings


class Call:
    """What has come for one call and was not taken yet."""

    __slots__ = ("frames", "name", "outgoing", "seq", "stopped")

    def __init__(self, seq: int, name: str, outgoing: Outgoing | None) -> None:
        self.seq = seq
        self.name = name
        self.outgoing = outgoing
        self.frames: deque[Frame] = deque()
        self.stopped = False
        """The worker wants no more of the items that the call sends."""


class Exchange:
    """Messages out and in. Also the port of calls that send items."""

    paused = False

    def __init__(self, settings: RpcSettings, timeout_s: float | None) -> None:
        self.settings = settings
        self.timeout_s = timeout_s
        self.session = ClientSession(settings, inflate, now(), always_reading=False)
        self.calls: dict[int, Call] = {}
        """Under way, by sequence number; an end puts the last frame into its call and takes it out of here."""
        self.feeds: dict[int, Call] = {}
        """Those that send items."""
        self._socket: BlockingSocket | None = None
        self._out: deque[memoryview] = deque()  # to be sent, in order; complete messages except perhaps the first
        self._sendable = True  # until the peer refuses more; what it had sent before is still read then
        self._moved_at = 0.0  # when the peer last took something that was sent
        self._greeting: Frame | None = None
        self._pongs: set[int] = set()
        self._user = _thread.get_ident()  # the thread that waits now, or else waited last
        self._waiting = False

    def open(self, uri: Uri, hello: bytes, within_s: float | None) -> Frame:
        """Connects and says `hello`; returns the answer. Raises OSError, TimeoutError, ConnectionLost."""
        until = _until(within_s)
        limit = min(self.settings.handshake_timeout_s, math.inf if within_s is None else within_s)
        self._socket = open_socket(uri.location, limit)
        try:
            self.write(hello)
            self.flush()
            while self._greeting is None:
                self.check_open()
                if now() >= until:
                    raise TimeoutError(f"{uri}: no answer within {within_s:g} s")
                self._turn(until)
        except BaseException:  # also what interrupts it: a socket that was not greeted is of no use
            self.drop(CloseKind.LOCAL)
            raise
        return self._greeting

    def check_open(self) -> None:
        """Raises ConnectionLost with the reason, and UsageError before `open`."""
        if self.session.closed is not None:
            raise self.session.closed.as_error()
        if self._socket is None:
            raise UsageError("this connection was not opened; use workerlib.blocking.connect")

    @property
    def peer_pid(self) -> int | None:
        """The process at the other end of a Unix socket; None for TCP and after the end."""
        return self._socket.peer_pid() if self._socket is not None else None

    @property
    def peer_uid(self) -> int | None:
        """Its user when it listened."""
        return self._socket.peer_uid() if self._socket is not None else None

    # Out

    def write(self, data: bytes) -> None:
        """To be sent with the next `flush` or wait."""
        self._out.append(memoryview(data))

    @property
    def unsent(self) -> bool:
        """Whether something is waiting for room at the peer."""
        return bool(self._out)

    def flush(self) -> None:
        """Sends what can be sent at once; the rest goes with the next wait."""
        out, sock = self._out, self._socket
        while out and sock is not None and self._sendable:
            data = out[0]
            try:
                sent = sock.send(data)
            except OSError:
                self._sendable = False  # reading tells why: what the peer said before it closed comes first
                break
            if not sent:
                return
            self._moved_at = now()
            if sent == len(data):
                out.popleft()
            else:
                out[0] = data[sent:]
        if not self._sendable:
            out.clear()

    def push(self, what: str) -> None:
        """Waits until everything is sent. Raises TimeoutError, ConnectionLost."""
        self.wait(lambda: not self._out and self._sendable, f"{what} could not be written")
        if self._out or not self._sendable:
            self.check_open()

    def grant(self, seq: int, count: int) -> None:
        """Lets the worker send more items of a stream."""
        if self.session.closed is None and (credit := self.session.grant(seq, count)):
            self.write(credit)
            self.flush()

    def give_up(self, call: Call, reason: str) -> None:
        """Cancels a call in the worker. What still comes for it is dropped."""
        if self.calls.pop(call.seq, None) is not None and self.session.closed is None:
            self.write(self.session.abort(call.seq, reason))
            # A stream may be forgotten, and collected, in the middle of a wait or in another thread: the next wait
            # sends it then.
            if not self._waiting and self._user == _thread.get_ident():
                self.flush()

    # Out and in

    def swap(self, data: bytes) -> bytes | None:
        """Sends, and waits for the next thing to come, for SOON_S at most: no deadline is late by more than that.

        What has come is for `ClientSession.sole_result`, or for `arrived`.
        """
        sock = self._socket
        if sock is None or self._out or (self.timeout_s is not None and self.timeout_s <= SOON_S):
            self.write(data)
            return None
        self._user, self._waiting = _thread.get_ident(), True
        sent = -1
        try:
            sent = sock.send(data)
            if sent == len(data):
                return sock.receive_soon()
            self._out.append(memoryview(data)[sent:])
        except OSError as error:
            if sent < 0:
                self._sendable = False  # reading tells why: what the peer said before it closed comes first
            else:
                self._lost(error)
        except BaseException:  # what interrupts from outside, as Ctrl-C: a message may have been cut through
            self.drop(CloseKind.LOCAL, "interrupted")
            raise
        finally:
            self._waiting = False
        return None

    def arrived(self, data: bytes) -> None:
        """Takes what `swap` has brought."""
        self.session.unhold(now())
        self._handle(self.session.receive(data, now()))
        self.session.hold(now())

    def next_frame(self, call: Call) -> Frame:
        """The next frame of a call. Raises ConnectionLost, and TimeoutError when the call was given up."""
        came = call.frames
        if not came:
            try:
                self.wait(lambda: bool(came), f"{call.name}: no answer")
            except TimeoutError:
                self.give_up(call, "the caller's time is over")
                raise
            if not came:
                self.check_open()
        return came.popleft()

    def ping(self) -> float:
        """Seconds to the peer and back. Raises TimeoutError, ConnectionLost."""
        self.check_open()
        began = now()
        seq, data = self.session.ping()
        self.write(data)
        self._pongs.add(seq)
        try:
            self.wait(lambda: seq not in self._pongs, "no answer to a ping")
            if seq in self._pongs:
                self.check_open()
        finally:
            self._pongs.discard(seq)
        return now() - began

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Exchanges bytes with the peer until `done()`, or the end of the connection. Raises TimeoutError."""
        until = _until(self.timeout_s)
        self._user, self._waiting = _thread.get_ident(), True
        session = self.session
        started = self._moved_at = now()
        session.unhold(started)
        try:
            self.flush()
            while not done() and session.closed is None:
                if now() >= until:
                    raise TimeoutError(f"{what} within {self.timeout_s:g} s")
                self._turn(until)
        except TimeoutError:
            if self._out:
                self.drop(CloseKind.NOT_READING, f"for {self.timeout_s:g} s")
            raise
        except BaseException:  # as in `swap`
            self.drop(CloseKind.LOCAL, "interrupted")
            raise
        finally:
            self._waiting = False
            session.hold(now())

    def _turn(self, until: float) -> None:
        """Waits for something to happen or for `until`, takes what has come, sends what can be sent."""
        session, sock = self.session, self._socket
        assert sock is not None, "a connection that is open has a socket"
        stuck_at = self._moved_at + self.settings.buffer_age_limit_s if self._out else math.inf
        sock.wait(min(until, session.deadline_at, stuck_at) - now(), writing=bool(self._out))
        try:
            ended = self._receive(sock)
        except OSError as error:
            self._lost(error)
            return
        if ended:
            self.drop(CloseKind.PEER)
        elif self._out and now() >= stuck_at:
            self.drop(CloseKind.NOT_READING, f"for {self.settings.buffer_age_limit_s:g} s")
        elif now() >= session.deadline_at:  # last: signs of life that were there have been taken
            self._handle(session.tick(now()))
        self.flush()

    # In

    def _receive(self, sock: BlockingSocket) -> bool:
        """Takes what has come; whether that is the end of the stream. A large message is read to its place."""
        session = self.session
        if session.missing:
            size = sock.receive_into(session.room())
            if size:
                self._handle(session.receive_filled(size, now()))
            return size == 0
        data = sock.receive()
        if data:
            self._handle(session.receive(data, now()))
        return data == b""

    def _handle(self, events: Iterable[Event]) -> None:
        for event in events:
            self._take(event)
        if output := self.session.take_output():
            self.write(output)

    def _take(self, event: Event) -> None:
        if isinstance(event, Closed):
            self.drop(event.kind, event.detail)
        elif event.type in {frames.CONNECT_OK, frames.CONNECT_FAIL}:
            self._greeting = event
        elif event.type == frames.PING:
            self._pongs.discard(event.seq)
        elif event.type == frames.END and (call := self.feeds.get(event.seq)) is not None:
            call.stopped = True
        elif event.type == frames.CREDIT:
            pass  # the session counts it, and who waits for it looks there
        elif (call := self.calls.get(event.seq)) is not None:  # else it was given up
            call.frames.append(event)
            if is_last(event):
                del self.calls[event.seq]

    # The end

    def fail(self, error: ProtocolError) -> None:
        """The peer sent something that cannot be read: ends the connection."""
        self.drop(CloseKind.PROTOCOL, str(error))

    def _lost(self, error: OSError) -> None:
        kind = CloseKind.PEER if isinstance(error, ConnectionError) else CloseKind.TRANSPORT
        self.drop(kind, error.strerror or "")

    def drop(self, kind: CloseKind, detail: str = "") -> None:
        """Closes; the first reason given stays. Idempotent, does not block."""
        self.session.close(kind, detail)
        self._out.clear()
        self.calls.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _until(within_s: float | None) -> float:
    return math.inf if within_s is None else now() + within_s
