"""Two transports joined back to back in one event loop: what one end writes the other reads, without a socket."""

import asyncio
from typing import Any, cast

PIECE = 1 << 16
"""Bytes that arrive at a time, so that long messages come in pieces as they do from a socket."""


class MemoryTransport(asyncio.Transport):
    """One of two ends, made by `join`. Pauses writers and ends as a socket's transport does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol, extra: dict[str, Any]) -> None:
        super().__init__(extra)
        self._loop = loop
        self._protocol = protocol
        self._other: MemoryTransport | None = None
        self.inbox = bytearray()
        """What the other end has written and this one has not read yet."""
        self._reading = True
        self._due = False
        self.closing = False
        self.ended = False
        self._high, self._low = 1 << 16, 1 << 14
        self._paused_writer = False

    def begin(self, other: "MemoryTransport") -> None:
        self._other = other
        self._protocol.connection_made(self)

    # Writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        other = self._other
        if self.closing or other is None or other.closing:  # nobody would read it
            return
        other.inbox += data
        other.wake()
        if self.get_write_buffer_size() > self._high and not self._paused_writer:
            self._paused_writer = True
            self._protocol.pause_writing()

    def drained(self) -> None:
        """The other end has read something."""
        if self._paused_writer and self.get_write_buffer_size() <= self._low:
            self._paused_writer = False
            self._protocol.resume_writing()
        if self.closing and not self.get_write_buffer_size():
            self._end(None)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = (1 << 16) if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_size(self) -> int:
        return len(self._other.inbox) if self._other is not None else 0

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def can_write_eof(self) -> bool:
        return False

    # Reading

    def wake(self) -> None:
        if not self._due and self._reading and not self.ended:
            self._due = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._due = False
        if self.ended or not self._reading or self.closing:
            return
        if self.inbox:
            piece = bytes(self.inbox[:PIECE])
            del self.inbox[:PIECE]
            self._protocol.data_received(piece)
            if self._other is not None:
                self._other.drained()
            if self.inbox:
                self.wake()
        if not self.inbox and (self._other is None or self._other.ended):
            self._protocol.eof_received()
            self._end(None)

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self.wake()

    def is_reading(self) -> bool:
        return self._reading and not self.closing

    # The end

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._lose_inbox()
            if not self.get_write_buffer_size():
                self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        self.closing = True
        self._lose_inbox()
        if self._other is not None:
            self._other.inbox.clear()
        self._loop.call_soon(self._end, None)

    def _lose_inbox(self) -> None:
        """Nobody will read it; the other end need not wait for that."""
        if self.inbox:
            self.inbox.clear()
            if self._other is not None:
                self._loop.call_soon(self._other.drained)

    def _end(self, error: Exception | None) -> None:
        if self.ended:
            return
        self.ended = self.closing = True
        self.inbox.clear()
        self._protocol.connection_lost(error)
        if self._other is not None:
            self._other.drained()
            self._other.wake()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast("asyncio.Protocol", protocol)


def join(one: asyncio.Protocol, other: asyncio.Protocol, *, one_sees: object = None, other_sees: object = None) -> None:
    """Connects two protocols of the running loop; `one_sees` is the extra information `peer` of the first one."""
    loop = asyncio.get_running_loop()
    first = MemoryTransport(loop, one, {"peer": one_sees})
    second = MemoryTransport(loop, other, {"peer": other_sees})
    first.begin(second)
    second.begin(first)
