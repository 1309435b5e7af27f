"""One connection as a state machine: handshake, calls, streams with credit, heartbeat, deadlines, close reason.

Theory of operation
-------------------
The shell feeds received bytes to `receive` and passed deadlines to `tick`; both return events. An event is a `Frame`
that the state of the connection allows, or `Closed`, once, at the end. Whatever the session itself has to say (pongs,
pings) collects in `take_output`; other sends are methods that return the bytes to write. Nothing here reads a clock.
While the shell reads nothing because the peer does not (`hold`), the peer's silence proves nothing: only the shell's
own deadline for that counts.

* The client sends CONNECT, the server answers CONNECT_OK or CONNECT_FAIL; nothing else may come first.
* A client that announces `{"workerlib": 1, ...}` in its handshake speaks the *dialect*: types 0x41 and up, calls in any
  number at a time, streams pushed with credit, heartbeats. A stock Pyro5 client gets none of that.
* An end that announces `"heartbeat": false` reads only while it waits for something, as a blocking client does: its
  silence proves nothing, so the other end neither asks it for signs of life nor judges it. It may itself ask.
* Every call that wants an answer gets exactly one last frame: RESULT, or END or ABORT when it had become a stream. The
  client keeps the sequence number until then, also of a call that it has aborted, so that no late answer can be taken
  for that of another call.
* A call may itself be a stream of items, from the client to the server: INVOKE with the flag ITEM_STREAM. It has one
  answer as any call, and besides each end says END once about the items: the client after the last one, the server when
  it wants no more, at the latest when it has got the client's. They may come before or after the answer, in any order;
  ABORT by the client is its END, too. The number is free again when all three have passed, so that no late CREDIT can
  be taken for that of another stream.
* Items may be sent only against credit. The first window is what the receiver announced in the handshake; CREDIT adds
  to it. More items than were granted, or a frame for an unknown stream, end the connection.

Mutable, unlike the other machines: a copy of the state for each call would cost more than the rest of the call.
"""

import enum
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from workerlib.core import frames
from workerlib.core.frames import Frame, FrameParser, Inflate, encode_plain, sole_plain
from workerlib.core.heartbeat import Heartbeat, Verdict
from workerlib.core.payload import MSGPACK, NIL, encode
from workerlib.errors import ConnectionLost, ProtocolError
from workerlib.spec import RpcSettings

DIALECT = 1
MAX_SEQ = 0xFFFF

T = TypeVar("T")

_INVOKE = frames.head(frames.INVOKE, MSGPACK)
_RESULT = frames.head(frames.RESULT, MSGPACK)
_ITEM = frames.head(frames.ITEM, MSGPACK)
_NO_KEYWORDS = 0x80  # MessagePack's empty map, the last byte of a call without keyword arguments
PING, PONG = b"ping", b"pong"


class State(enum.Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSED = "closed"


# Before CPython 3.12, `State.OPEN` costs as much as the rest of a look at the state: members are found by __getattr__.
HANDSHAKE, OPEN, CLOSED = State


class CloseKind(enum.Enum):
    """Why a connection ended."""

    LOCAL = "closed here"
    PEER = "closed by the peer"
    REJECTED = "rejected in the handshake"
    PROTOCOL = "protocol error"
    HANDSHAKE_TIMEOUT = "no handshake in time"
    FRAME_TIMEOUT = "a message did not end in time"
    HEARTBEAT_LOST = "no sign of life"
    NOT_READING = "the peer does not read"
    TRANSPORT = "transport error"


class Closed(msgspec.Struct, frozen=True):
    """The last event of a session."""

    kind: CloseKind
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value}: {self.detail}" if self.detail else self.kind.value

    def as_error(self) -> ConnectionLost:
        return ConnectionLost(str(self))


Event = Frame | Closed


def count_items(payload: bytes | memoryview) -> int:
    """Number of items in a MessagePack array, from its first bytes. Raises ProtocolError."""
    first = payload[0] if payload else 0
    if first & 0xF0 == 0x90:
        return first & 0x0F
    if first == 0xDC and len(payload) >= 3:
        return int.from_bytes(payload[1:3], "big")
    if first == 0xDD and len(payload) >= 5:
        return int.from_bytes(payload[1:5], "big")
    raise ProtocolError("items that are not an array")


def parse_dialect(value: Any) -> Mapping[str, Any] | None:
    """The handshake value of a peer that speaks the dialect, or None for a stock peer. Raises ProtocolError."""
    if not isinstance(value, dict) or "workerlib" not in value:
        return None
    if value["workerlib"] != DIALECT:
        raise ProtocolError(f"the peer speaks workerlib dialect {value['workerlib']!r}, this side {DIALECT}")
    window = value.get("window")
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ProtocolError(f"a stream window of {window!r} items")
    if not isinstance(value.get("heartbeat", True), bool):
        raise ProtocolError(f"heartbeat {value['heartbeat']!r}, which is neither true nor false")
    return value


class SessionEnd:
    """What both ends share: parsing, deadlines, heartbeat, pings, streams, the end."""

    __slots__ = ("__dict__", "_heard", "closed")  # these two as slots for the C part

    def __init__(self, settings: RpcSettings, inflate: Inflate, now: float) -> None:
        self.settings = settings
        self.state = HANDSHAKE
        self.dialect = False
        self.closed: Closed | None = None
        self.deadline_at = now + settings.handshake_timeout_s
        """The next instant at which `tick` wants to be called; infinity for never."""
        self._handshake_by = self.deadline_at
        self._parser = FrameParser(settings.max_message_size, inflate)
        self._longest = frames.HEADER_SIZE + settings.max_message_size
        self._frame_since: float | None = None
        self._frame_by = math.inf
        self._heartbeat: Heartbeat | None = None
        self._heard = False
        self._held_since: float | None = None
        self._output: list[bytes] = []
        self._first_credit = 0
        self._credit: dict[int, int] = {}  # streams sent from here: items that may still be sent
        self._granted: dict[int, int] = {}  # streams received here: items that the peer may still send

    @property
    def in_c(self) -> tuple[Any, ...]:
        """What the shortcuts in C look at and change; none of these objects is ever replaced by another."""
        longest = int(
            min(self._longest, frames.HEADER_SIZE + 0xFFFF_FFFF)
        )  # settings may say inf, a header knows 32 bits
        return self, self._parser.buffered, longest, _INVOKE, _RESULT

    # Input

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Takes bytes from the peer; returns the events that they complete."""
        return self._receive(self._parser.feed, data, now)

    @property
    def missing(self) -> int:
        """Bytes of a large message that have yet to come, for which there is `room`; 0 while none is arriving."""
        return self._parser.missing

    def room(self) -> memoryview:
        """Memory into which the shell may have bytes written instead of giving them to `receive`, while some are
        `missing`.
        """
        return self._parser.room()

    def receive_filled(self, size: int, now: float) -> list[Event]:
        """Takes `size` bytes that were written to `room`."""
        return self._receive(self._parser.filled, size, now)

    def _receive(self, feed: Callable[[T], list[Frame]], given: T, now: float) -> list[Event]:
        if self.closed is not None:
            return []
        self._heard = True
        events: list[Event] = []
        admit = self._admit
        try:
            complete = feed(given)
            for frame in complete:
                if admit(frame):
                    events.append(frame)  # noqa: PERF401 - the frames before one that is refused are to be delivered
            if self._parser.buffered or self._frame_since is not None:
                self._parser.check()
                self._watch_frame(now, begun=bool(complete))
        except ProtocolError as error:
            events.append(self.close(CloseKind.PROTOCOL, str(error)))
        return events

    def _admit(self, frame: Frame) -> bool:
        raise NotImplementedError

    def _admit_common(self, frame: Frame) -> bool:
        """Frames that both ends may get; whether the shell needs to see it."""
        kind = frame.type
        if kind == frames.PING:
            return self._admit_ping(frame)
        if not self.dialect:
            raise ProtocolError(f"message type {kind:#x} from a peer that did not announce the dialect")
        seq = frame.seq
        if kind == frames.CREDIT:
            if seq in self._credit:
                self._credit[seq] += self._credit_amount(frame)
                return True
            return False  # the stream has ended meanwhile
        if kind == frames.ITEM:
            count = count_items(frame.payload)
            left = self._granted.get(seq)
            if left is None or count > left:
                raise ProtocolError(f"{count} items on stream {seq}, where {left or 0} are allowed")
            self._granted[seq] = left - count
            return True
        if kind == frames.END:
            self._admit_end(seq)
            return True
        if kind == frames.ABORT:
            return self._admit_abort(frame)
        raise ProtocolError(f"message type {kind:#x} from the wrong side or at the wrong time")

    def _admit_end(self, seq: int) -> None:
        if self._granted.pop(seq, None) is None:
            raise ProtocolError(f"the end of stream {seq}, which is not open")

    def _admit_abort(self, frame: Frame) -> bool:
        raise NotImplementedError

    def _admit_ping(self, frame: Frame) -> bool:
        if frame.payload == PONG:
            return True
        self._output.append(frames.encode(frames.PING, frame.serializer, 0, frame.seq, PONG))
        return False

    @staticmethod
    def _credit_amount(frame: Frame) -> int:
        # A positive MessagePack integer of at most 32 bits: fixint, uint8, uint16 or uint32.
        payload = frame.payload
        if len(payload) == 1 and payload[0] <= 0x7F:
            return payload[0]
        if len(payload) in {2, 3, 5} and payload[0] == {2: 0xCC, 3: 0xCD, 5: 0xCE}[len(payload)]:
            return int.from_bytes(payload[1:], "big")
        raise ProtocolError("credit that is not a number of items")

    # Time

    @property
    def beats(self) -> bool:
        """Whether both ends send each other signs of life."""
        return self._heartbeat is not None and self.closed is None

    def tick(self, now: float) -> list[Event]:
        """Judges deadlines at `now`; call it at `deadline_at`, after all input that is there has been fed."""
        if self.closed is not None:
            return []
        if self.state is HANDSHAKE and now >= self._handshake_by:
            return [self.close(CloseKind.HANDSHAKE_TIMEOUT, f"{self.settings.handshake_timeout_s:g} s")]
        if self._held_since is not None:
            self._set_deadline()
            return []
        if now >= self._frame_by:
            return [self.close(CloseKind.FRAME_TIMEOUT, f"{self._parser.pending_size} bytes were announced")]
        if self._heartbeat is not None:
            self._heartbeat, verdict = self._heartbeat.step(now, heard=self._heard)
            if verdict is Verdict.LOST:
                return [self.close(CloseKind.HEARTBEAT_LOST, f"for {now - self._heartbeat.heard_at:.0f} s")]
            if verdict is Verdict.ASK:
                self._heard = False
                self._output.append(frames.encode(frames.PING, MSGPACK, 0, 0, PING))
        self._set_deadline()
        return []

    def hold(self, now: float) -> None:
        """The shell stops reading; deadlines that wait for the peer stand still. Idempotent."""
        if self._held_since is None:
            self._held_since = now
            self._set_deadline()

    def unhold(self, now: float) -> None:
        """The shell reads again: the message that was arriving gets the time back, and the peer counts as alive."""
        if self._held_since is None:
            return
        if self._frame_since is not None:
            held = now - self._held_since
            self._frame_since += held
            self._frame_by += held
        self._heard = True
        self._held_since = None
        self._set_deadline()

    def _watch_frame(self, now: float, *, begun: bool) -> None:
        """Gives the message that is arriving its deadline: fixed when it has `begun`, whatever drips in later."""
        size = self._parser.pending_size
        if not size:
            self._frame_since, self._frame_by = None, math.inf
        else:
            if begun or self._frame_since is None:
                self._frame_since = now
            self._frame_by = self._frame_since + self.settings.frame_timeout_s + size / (1 << 20)
        self._set_deadline()

    def _set_deadline(self) -> None:
        if self.closed is not None:
            return
        handshake_by = self._handshake_by if self.state is HANDSHAKE else math.inf
        if self._held_since is not None:
            self.deadline_at = handshake_by
            return
        beat_at = self._heartbeat.due_at if self._heartbeat is not None else math.inf
        self.deadline_at = min(handshake_by, beat_at, self._frame_by)

    # Output

    def take_output(self) -> bytes:
        """What the session itself has to send, removed from it."""
        if not self._output:
            return b""
        output = b"".join(self._output)
        self._output.clear()
        return output

    def _open(self, dialect: Mapping[str, Any] | None, now: float) -> None:
        self.state = OPEN
        if dialect is not None:
            self.dialect = True
            self._first_credit = dialect["window"]
            if dialect.get("heartbeat", True):
                interval, timeout = self.settings.heartbeat_interval_s, self.settings.heartbeat_timeout_s
                self._heartbeat = Heartbeat.start(interval, timeout, now)
                self._heard = False  # the handshake was before the heartbeat's first interval
        self._set_deadline()

    def close(self, kind: CloseKind, detail: str = "") -> Closed:
        """Ends the session; the first reason given stays."""
        if self.closed is None:
            self.closed = Closed(kind, detail)
            self.state = CLOSED
            self.deadline_at = math.inf
        return self.closed

    # Streams sent from here

    def credit(self, seq: int) -> int:
        """Items that may be sent now on a stream sent from here; 0 when it is not open."""
        return self._credit.get(seq, 0)

    def items(self, seq: int, payload: bytes, count: int) -> bytes:
        """`count` items, encoded as an array. There must be credit for them."""
        left = self._credit[seq] - count
        assert left >= 0, "items were sent without credit"
        self._credit[seq] = left
        return encode_plain(_ITEM, seq, payload)

    def end(self, seq: int, payload: bytes, *, failed: bool = False) -> bytes:
        """The end of a stream sent from here; `payload` is nil, or the error when it `failed`."""
        self._credit.pop(seq, None)
        return frames.encode(frames.END, MSGPACK, frames.EXCEPTION if failed else 0, seq, payload)

    def abort(self, seq: int, reason: str) -> bytes:
        """Gives up a call or a stream, from either end."""
        self._credit.pop(seq, None)
        return frames.encode(frames.ABORT, MSGPACK, 0, seq, encode(reason))

    # Streams received here

    def grant(self, seq: int, count: int) -> bytes:
        """Allows the peer `count` more items; nothing when the stream has ended."""
        if seq not in self._granted:
            return b""
        self._granted[seq] += count
        return frames.encode(frames.CREDIT, MSGPACK, 0, seq, encode(count))

    def allowed(self, seq: int) -> int:
        """Items that the peer may still send on a stream received here."""
        return self._granted.get(seq, 0)


class ServerSession(SessionEnd):
    """The end that serves. Events: CONNECT, INVOKE, ITEM, END, CREDIT, ABORT, PING (a pong), and Closed."""

    _connecting = False

    def __init__(self, settings: RpcSettings, inflate: Inflate, now: float) -> None:
        super().__init__(settings, inflate, now)
        self._wanted: set[int] = set()  # streams received here whose sender was not told that it may stop

    def _admit(self, frame: Frame) -> bool:
        if frame.type == frames.INVOKE and self.state is OPEN:
            if frame.flags & frames.ITEM_STREAM and self.dialect:
                self._expect_items(frame.seq)
            return True
        if self.state is HANDSHAKE:
            if frame.type != frames.CONNECT or self._connecting:
                raise ProtocolError(f"message type {frame.type:#x} before the handshake was over")
            self._connecting = True
            return True
        return self._admit_common(frame)

    def _expect_items(self, seq: int) -> None:
        if seq in self._granted:
            raise ProtocolError(f"a second call with sequence number {seq} while the items of the first have not ended")
        self._granted[seq] = self.settings.stream_window
        self._wanted.add(seq)

    def _admit_end(self, seq: int) -> None:
        super()._admit_end(seq)
        self._output.append(self.stop(seq, "its end was seen"))

    def _admit_abort(self, frame: Frame) -> bool:
        self._credit.pop(frame.seq, None)
        if frame.seq in self._granted:
            self._admit_end(frame.seq)
        return True

    def sole_call(self, data: bytes, prefix: bytes) -> int:
        """A shortcut past `receive` for the common case: the sequence number, if `data` is exactly one call in
        MessagePack, whose payload begins with `prefix` and has no keyword arguments. Else -1, and nothing happened.
        """
        if self.state is not OPEN or self._parser.buffered or len(data) > self._longest:
            return -1
        seq = sole_plain(data, _INVOKE, prefix)
        if seq < 0 or data[-1] != _NO_KEYWORDS:
            return -1
        self._heard = True
        return seq

    def accept(
        self,
        frame: Frame,
        payload: bytes,
        dialect: Mapping[str, Any] | None,
        now: float,
        annotations: Any = frames.NO_ANNOTATIONS,
    ) -> bytes:
        """Answers CONNECT; `payload` is encoded with the client's serializer."""
        self._open(dialect, now)
        return frames.encode(frames.CONNECT_OK, frame.serializer, 0, frame.seq, payload, annotations)

    def reject(self, frame: Frame, payload: bytes, why: str) -> bytes:
        """Refuses CONNECT and closes; write the bytes, then end the connection."""
        self.close(CloseKind.REJECTED, why)
        return frames.encode(frames.CONNECT_FAIL, frame.serializer, 0, frame.seq, payload)

    @staticmethod
    def result(seq: int, payload: bytes) -> bytes:
        """The common answer: MessagePack, no flags."""
        return encode_plain(_RESULT, seq, payload)

    @staticmethod
    def answer(
        call: Frame, payload: bytes, flags: int = 0, annotations: Mapping[str, bytes] = frames.NO_ANNOTATIONS
    ) -> bytes:
        """Any answer, in the serializer of the call."""
        return frames.encode(frames.RESULT, call.serializer, flags, call.seq, payload, annotations)

    def open_stream(self, seq: int, payload: bytes = NIL) -> bytes:
        """Answers a call of a dialect peer with a stream; `payload` is the snapshot that precedes it, if any.

        Raises ProtocolError when that number has a stream already.
        """
        if seq in self._credit:
            raise ProtocolError(f"a second call with sequence number {seq} while the first is a stream")
        self._credit[seq] = self._first_credit
        return frames.encode(frames.RESULT, MSGPACK, frames.ITEM_STREAM, seq, payload)

    def stop(self, seq: int, reason: str) -> bytes:
        """Tells the client that no more items of its call are wanted. Nothing when it knows; some may be under way."""
        if seq not in self._wanted:
            return b""
        self._wanted.discard(seq)
        return frames.encode(frames.END, MSGPACK, 0, seq, encode(reason))
