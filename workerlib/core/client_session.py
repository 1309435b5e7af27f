"""The calling end of a connection as a state machine; how it works is told in `workerlib.core.session`."""

import enum
from collections.abc import Mapping
from typing import Any

from workerlib.core import frames
from workerlib.core.frames import Frame, Inflate, encode_plain, sole_plain
from workerlib.core.payload import MSGPACK, encode
from workerlib.core.session import DIALECT, HANDSHAKE, MAX_SEQ, OPEN, PING, SessionEnd
from workerlib.errors import ProtocolError, UsageError
from workerlib.spec import RpcSettings

_INVOKE = frames.head(frames.INVOKE, MSGPACK)
_INVOKE_WITH_ITEMS = frames.head(frames.INVOKE, MSGPACK, frames.ITEM_STREAM)
_INVOKE_ONE_WAY = frames.head(frames.INVOKE, MSGPACK, frames.ONE_WAY)
_RESULT = frames.head(frames.RESULT, MSGPACK)


class Left(enum.Flag):
    """What has yet to be said about a call that sends items."""

    ANSWER = enum.auto()
    SERVERS_END = enum.auto()
    CLIENTS_END = enum.auto()


class ClientSession(SessionEnd):
    """The end that calls. Events: CONNECT_OK, CONNECT_FAIL, RESULT, ITEM, END, CREDIT, ABORT, PING (a pong), Closed.

    END of a call that sends items is the server's: it wants no more, and its payload is the reason.
    """

    __slots__ = ("_seq",)  # for the C part

    _greeted = False

    def __init__(self, settings: RpcSettings, inflate: Inflate, now: float, *, always_reading: bool = True) -> None:
        """`always_reading`: whether this end answers at any time; if not, it announces that it cannot be judged."""
        super().__init__(settings, inflate, now)
        self._always_reading = always_reading
        self._pending: set[int] = set()
        self._sending: dict[int, Left] = {}  # calls that send items, and what has yet to be said about each
        self._seq = 0

    def sole_result(self, data: bytes, wanted: int = 0) -> int:
        """A shortcut past `receive` for the common case: the sequence number, if `data` is exactly one plain result
        in MessagePack, of a call that waits for it; with `wanted`, of that call. Else -1, and nothing has happened.
        """
        if self.state is not OPEN or self._parser.buffered or len(data) > self._longest:
            return -1
        seq = sole_plain(data, _RESULT, b"")
        if seq not in self._pending or seq in self._granted or seq in self._sending or (wanted and seq != wanted):
            return -1
        self._pending.discard(seq)
        self._heard = True
        return seq

    @property
    def in_c(self) -> tuple[Any, ...]:
        return *super().in_c, self._pending, self._granted, self._sending

    def connect(self, target: str, value: Any) -> bytes:
        """The opening CONNECT; `value` is the connection-state argument, or nothing for none."""
        announced = {"workerlib": DIALECT, "window": self.settings.stream_window, "value": value}
        if not self._always_reading:
            announced["heartbeat"] = False
        payload = encode({"handshake": announced, "object": target})
        return frames.encode(frames.CONNECT, MSGPACK, 0, 0, payload)

    def opened(self, dialect: Mapping[str, Any], now: float) -> None:
        """The shell has read CONNECT_OK and found the dialect in it."""
        self._open(dialect, now)

    def _admit(self, frame: Frame) -> bool:
        if frame.type == frames.RESULT and self.state is OPEN:
            if frame.seq not in self._pending:
                raise ProtocolError(f"a result for sequence number {frame.seq}, which was not asked for")
            if self._sending and frame.seq in self._sending:
                self._admit_answer(frame)
                return True
            if self._granted and frame.seq in self._granted:
                raise ProtocolError(f"a second answer to the call with sequence number {frame.seq}")
            if frame.flags & frames.ITEM_STREAM and not frame.flags & frames.EXCEPTION:
                self._granted[frame.seq] = self.settings.stream_window
            else:
                self._pending.discard(frame.seq)
            return True
        if self.state is HANDSHAKE:
            if self._greeted and frame.type == frames.PING:
                return self._admit_ping(frame)  # the server may beat as soon as it has accepted
            if self._greeted or frame.type not in {frames.CONNECT_OK, frames.CONNECT_FAIL}:
                raise ProtocolError(f"message type {frame.type:#x} before the handshake was over")
            self._greeted = True
            return True
        return self._admit_common(frame)

    def _admit_end(self, seq: int) -> None:
        if seq in self._sending:
            if Left.SERVERS_END not in self._sending[seq]:
                raise ProtocolError(f"a second end of the items of call {seq}")
            self._credit.pop(seq, None)
            self._settle(seq, Left.SERVERS_END)
        else:
            super()._admit_end(seq)
            self._pending.discard(seq)

    def _admit_answer(self, frame: Frame) -> None:
        """The answer to a call that sends items."""
        if Left.ANSWER not in self._sending[frame.seq]:
            raise ProtocolError(f"a second answer to the call with sequence number {frame.seq}")
        if frame.flags & (frames.ITEM_STREAM | frames.EXCEPTION) == frames.ITEM_STREAM:
            raise ProtocolError(f"items in answer to call {frame.seq}, which sends items itself")
        self._settle(frame.seq, Left.ANSWER)

    def _settle(self, seq: int, what: Left) -> None:
        left = self._sending[seq] & ~what
        if left:
            self._sending[seq] = left
        else:
            del self._sending[seq]
            self._pending.discard(seq)

    def _admit_abort(self, frame: Frame) -> bool:
        if frame.seq not in self._pending:
            raise ProtocolError(f"the abort of call {frame.seq}, which is not under way")
        if frame.seq in self._sending:
            self._admit_answer(frame)
            return True
        self._pending.discard(frame.seq)
        self._granted.pop(frame.seq, None)
        return True

    def call(self, payload: bytes) -> tuple[int, bytes]:
        """A call that wants an answer: its sequence number and its bytes.

        Raises UsageError when 65,535 calls are under way.
        """
        seq = self._seq % MAX_SEQ + 1
        if seq in self._pending:
            seq = self._next_seq()
        self._seq = seq
        self._pending.add(seq)
        return seq, encode_plain(_INVOKE, seq, payload)

    def call_with_items(self, payload: bytes) -> tuple[int, bytes]:
        """A call that sends a stream of items; `items`, `end` and `abort` follow. Raises UsageError as `call` does."""
        seq = self._next_seq()
        self._pending.add(seq)
        self._sending[seq] = Left.ANSWER | Left.SERVERS_END | Left.CLIENTS_END
        self._credit[seq] = self._first_credit
        return seq, encode_plain(_INVOKE_WITH_ITEMS, seq, payload)

    def end(self, seq: int, payload: bytes, *, failed: bool = False) -> bytes:
        self._say_end(seq)
        return super().end(seq, payload, failed=failed)

    def abort(self, seq: int, reason: str) -> bytes:
        self._say_end(seq)
        return super().abort(seq, reason)

    def _say_end(self, seq: int) -> None:
        if Left.CLIENTS_END in self._sending.get(seq, Left(0)):
            self._settle(seq, Left.CLIENTS_END)

    def call_one_way(self, payload: bytes) -> bytes:
        return encode_plain(_INVOKE_ONE_WAY, self._next_seq(), payload)

    def ping(self) -> tuple[int, bytes]:
        """Asks for a pong: an event PING with the same sequence number."""
        seq = self._next_seq()
        return seq, frames.encode(frames.PING, MSGPACK, 0, seq, PING)

    def _next_seq(self) -> int:
        pending = self._pending
        seq = self._seq
        for _ in range(MAX_SEQ):
            seq = seq % MAX_SEQ + 1  # 0 is the heartbeat's
            if seq not in pending:
                self._seq = seq
                return seq
        raise UsageError(f"{MAX_SEQ} calls are under way on this connection")
