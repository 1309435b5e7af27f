"""Pyro5 wire messages (protocol version 502) as values, and a parser that takes bytes as they come.

The header, big-endian, 40 bytes (after Pyro5's own `protocol.py`)::

    0x00  4s   'PYRO'
    0x04  H    protocol version, 502
    0x06  B    message type
    0x07  B    serializer id
    0x08  H    flags
    0x0a  H    sequence number
    0x0c  I    length of the payload
    0x10  I    length of all annotations
    0x14  16s  correlation id
    0x24  H    reserved
    0x26  H    magic number 0x4dc5

Then the annotations, each `4s` name, `I` length and its bytes; then the payload. Types 0x41 and up are workerlib's own
and are used only between peers that have agreed on them in the handshake.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from workerlib.core.compiled import compiled
from workerlib.errors import ProtocolError

VERSION = 502
MAGIC = 0x4DC5

CONNECT, CONNECT_OK, CONNECT_FAIL, INVOKE, RESULT, PING = 1, 2, 3, 4, 5, 6
ITEM, END, CREDIT, ABORT = 0x41, 0x42, 0x43, 0x44
TYPES = frozenset({CONNECT, CONNECT_OK, CONNECT_FAIL, INVOKE, RESULT, PING, ITEM, END, CREDIT, ABORT})

EXCEPTION, COMPRESSED, ONE_WAY, BATCH, ITEM_STREAM, KEEP_SERIALIZED, CORRELATION = (1 << bit for bit in range(7))

HEADER = struct.Struct("!4sHBBHHII16sHH")
HEADER_SIZE = HEADER.size
NO_CORRELATION = bytes(16)
NO_ANNOTATIONS: Mapping[str, bytes] = MappingProxyType({})

# The common message has no annotations and no correlation id: then all after the payload's length is constant, and so
# is all before the sequence number for one (type, serializer, flags). One small pack does instead of one of 11 fields.
_PLAIN = struct.Struct("!10sHI24s")
_PLAIN_TAIL = struct.pack("!I16sHH", 0, NO_CORRELATION, 0, MAGIC)
_pack_plain = _PLAIN.pack
_unpack_plain: Callable[..., tuple[bytes, int, int, bytes]] = _PLAIN.unpack_from
_START = struct.pack("!4sH", b"PYRO", VERSION)


# The heads of plain messages, by their bytes: one look-up instead of taking them apart. Compressed ones are not plain.
_PLAIN_HEADS = {
    head_bytes: (kind, serializer, flags)
    for kind in TYPES
    for serializer in range(1, 5)
    for flags in (0, EXCEPTION, ONE_WAY, ITEM_STREAM)
    if (head_bytes := struct.pack("!4sHBBH", b"PYRO", VERSION, kind, serializer, flags))
}


class Frame(msgspec.Struct, frozen=True):
    """One message. A msgspec Struct because one is made for every message: five times faster than a dataclass."""

    type: int
    serializer: int
    flags: int
    seq: int
    payload: bytes | memoryview
    """When it is large and MessagePack, perhaps a view of memory that nobody else has: arrays stay there."""
    annotations: Mapping[str, bytes] = NO_ANNOTATIONS
    correlation: bytes = NO_CORRELATION


def head(kind: int, serializer: int, flags: int = 0) -> bytes:
    """The constant start of messages of one type, serializer and flags; for `encode_plain`."""
    return struct.pack("!4sHBBH", b"PYRO", VERSION, kind, serializer, flags)


def encode_plain_in_python(start: bytes, seq: int, payload: bytes, /) -> bytes:
    """A message without annotations from its constant `head`; the payload may be Parts.

    Raises OverflowError for a sequence number or length that the header has no room for.
    """
    try:
        return _pack_plain(start, seq, len(payload), _PLAIN_TAIL) + payload
    except struct.error as error:
        raise OverflowError(str(error)) from None


def sole_plain_in_python(data: bytes, start: bytes, prefix: bytes, /) -> int:
    """The sequence number, if `data` is exactly one message without annotations that has this `head`, and a payload
    that begins with `prefix`; else -1.
    """
    size = len(data)
    if size < HEADER_SIZE or not isinstance(data, bytes):  # a transport may have something else: that goes the long way
        return -1
    found, seq, length, tail = _unpack_plain(data)
    if found == start and tail == _PLAIN_TAIL and size == HEADER_SIZE + length and data.startswith(prefix, HEADER_SIZE):
        return seq
    return -1


def unfilled_in_python(size: int, /) -> bytearray:
    """Memory to be written to before anything is read from it: in C its old contents stay, which saves a tenth of the
    time of a stream of large texts.
    """
    return bytearray(size)


# Every call goes through the first two, once at each end.
encode_plain = compiled("encode_plain", encode_plain_in_python)
sole_plain = compiled("sole_plain", sole_plain_in_python)
unfilled = compiled("unfilled", unfilled_in_python)


def encode(
    kind: int, serializer: int, flags: int, seq: int, payload: bytes, annotations: Mapping[str, bytes] = NO_ANNOTATIONS
) -> bytes:
    """A whole message. Annotation names are four ASCII letters."""
    chunks = b"".join(
        struct.pack("!4sI", name.encode("ascii"), len(value)) + value for name, value in annotations.items()
    )
    header = HEADER.pack(
        b"PYRO", VERSION, kind, serializer, flags, seq, len(payload), len(chunks), NO_CORRELATION, 0, MAGIC
    )
    return header + chunks + payload


def _parse_annotations(data: bytes) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    at = 0
    while at < len(data):
        if len(data) - at < 8:
            raise ProtocolError("an annotation is cut off in its header")
        name = data[at : at + 4]
        if not name.isalpha() or not name.isascii():
            raise ProtocolError(f"annotation name {name!r} is not four ASCII letters")
        length = int.from_bytes(data[at + 4 : at + 8], "big")
        at += 8
        if length > len(data) - at:
            raise ProtocolError(f"annotation {name.decode()} announces {length} bytes, {len(data) - at} are left")
        found[name.decode()] = data[at : at + length]
        at += length
    return found


Inflate = Callable[[bytes, int], bytes]
"""Decompresses zlib data to at most so many bytes; raises ValueError for damaged or longer data."""


LARGE = 64 << 10
"""Bytes of a payload that gets its own memory while it arrives."""
FIRST_ROOM = 64 << 10
"""Bytes of that memory to begin with: who announces much and sends nothing shall not cost much."""
GROWTH = 16
"""How many times what has come the memory may be: what has come is copied whenever there must be more."""


class LargePayload:
    """A payload while it arrives, in memory into which a socket can write by itself: each copy of it counts."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._memory = unfilled(min(size, FIRST_ROOM))
        self._filled = 0

    @property
    def missing(self) -> int:
        """Bytes that have yet to come."""
        return self._size - self._filled

    def room(self) -> memoryview:
        """Memory for what comes next; never empty while something is missing. Tell `filled` how much was used."""
        if self._filled == len(self._memory):
            grown = unfilled(min(self._size, GROWTH * self._filled))
            grown[: self._filled] = self._memory
            self._memory = grown
        return memoryview(self._memory)[self._filled :]

    def filled(self, size: int) -> None:
        self._filled += size

    def take(self, data: bytes) -> int:
        """Copies what belongs here; returns how many bytes that was."""
        at, end = 0, min(len(data), self.missing)
        with memoryview(data) as view:
            while at < end:
                with self.room() as room:
                    size = min(len(room), end - at)
                    room[:size] = view[at : at + size]
                self._filled += size
                at += size
        return end

    def whole(self) -> bytearray:
        """All of it, when nothing is missing."""
        return self._memory


class FrameParser:
    """Turns bytes, cut anywhere, into frames. After an error it is unusable: the stream has no way to resynchronise.

    Wrong bytes are refused as soon as they are seen: a wrong tag with the first byte, a too long message with its
    header, before any of it is stored. Messages that were complete before the wrong bytes are still delivered: what a
    peer said does not depend on how the network cut it.
    """

    def __init__(self, max_size: int, inflate: Inflate) -> None:
        self._max_size = max_size
        self._inflate = inflate
        self.buffered = bytearray()
        """What has come of a message that is not complete; empty between messages."""
        self._needed = HEADER_SIZE
        self._large: LargePayload | None = None
        """What has come of the payload of a large plain message, whose header alone is in `buffered` meanwhile."""
        self._error: ProtocolError | None = None

    @property
    def pending_size(self) -> int:
        """Bytes that the message which has begun to arrive will have, as far as known; 0 between messages."""
        return self._needed if self.buffered else 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with `data`.

        Raises ProtocolError for wrong bytes; after frames that came before them, `check` raises it.
        """
        frames: list[Frame] = []
        at, size = 0, len(data)
        if self._large is not None:
            at = self._large.take(data)
            if self._large.missing:
                return frames
            frames.append(self._end_large(self._large))
        elif self.buffered:
            return self._feed_buffered(data)
        # Plain messages that are whole, one or many: the case of every small call. No buffer is touched.
        while size - at >= HEADER_SIZE:
            start, seq, length, tail = _unpack_plain(data, at)
            end = at + HEADER_SIZE + length
            plain = _PLAIN_HEADS.get(start)
            if plain is None or tail != _PLAIN_TAIL or length > self._max_size:
                break
            if end > size:
                if length >= LARGE:
                    self._begin_large(data, at, length)
                    return frames
                break
            kind, serializer, flags = plain
            frames.append(Frame(kind, serializer, flags, seq, data[at + HEADER_SIZE : end]))
            at = end
        if at == size:
            return frames
        try:
            frames += self._feed_buffered(data[at:])
        except ProtocolError as error:
            if not frames:
                raise
            self._error = error
        return frames

    def _begin_large(self, data: bytes, at: int, length: int) -> None:
        body = at + HEADER_SIZE
        self.buffered += data[at:body]
        self._needed = HEADER_SIZE + length
        self._large = LargePayload(length)
        self._large.take(data[body:])

    def _end_large(self, large: LargePayload) -> Frame:
        start, seq, _, _ = _unpack_plain(self.buffered, 0)
        kind, serializer, flags = _PLAIN_HEADS[start]
        payload = memoryview(large.whole()) if serializer == 4 else bytes(large.whole())
        self._large = None
        self.buffered.clear()
        self._needed = HEADER_SIZE
        return Frame(kind, serializer, flags, seq, payload)

    @property
    def missing(self) -> int:
        """Bytes of a large message that have yet to come, for which there is `room`; 0 while none is arriving."""
        return self._large.missing if self._large is not None else 0

    def room(self) -> memoryview:
        """Memory for what comes next of the message of which something is `missing`; see LargePayload."""
        assert self._large is not None, "no large message is arriving"
        return self._large.room()

    def filled(self, size: int) -> list[Frame]:
        """The frame that is complete with `size` bytes written to `room`, if it is."""
        assert self._large is not None, "no large message is arriving"
        self._large.filled(size)
        return [] if self._large.missing else [self._end_large(self._large)]

    def check(self) -> None:
        """To be called when `pending_size` is not 0. Raises ProtocolError for wrong bytes behind the last frame."""
        if self._error is not None:
            raise self._error

    def _feed_buffered(self, data: bytes) -> list[Frame]:
        buffer = self.buffered
        buffer += data
        frames: list[Frame] = []
        at = 0
        while True:
            try:
                frame, used = self._parse(buffer, at)
            except ProtocolError as error:
                if not frames:
                    raise
                self._error = error
                return frames
            if frame is None:
                break
            frames.append(frame)
            at += used
        del buffer[:at]
        return frames

    def _parse(self, buffer: bytearray, at: int) -> tuple[Frame | None, int]:
        available = len(buffer) - at
        if available < HEADER_SIZE:
            seen = bytes(buffer[at : at + len(_START)])
            if not _START.startswith(seen) and (len(seen) == len(_START) or not seen.startswith(b"PYRO")):
                self._refuse_start(seen)
            self._needed = HEADER_SIZE
            return None, 0
        tag, version, kind, serializer, flags, seq, length, extra, correlation, _, magic = HEADER.unpack_from(
            buffer, at
        )
        if tag != b"PYRO" or version != VERSION:
            self._refuse_start(bytes(buffer[at : at + len(_START)]))
        if magic != MAGIC:
            raise ProtocolError(f"magic number {magic:#06x} instead of {MAGIC:#06x}")
        if kind not in TYPES:
            raise ProtocolError(f"unknown message type {kind:#x}")
        if length + extra > self._max_size:
            raise ProtocolError(f"a message of {length + extra} bytes; at most {self._max_size} are accepted")
        size = HEADER_SIZE + extra + length
        if available < size:
            self._needed = size
            return None, 0
        self._needed = HEADER_SIZE
        body = at + HEADER_SIZE + extra
        annotations = _parse_annotations(bytes(buffer[at + HEADER_SIZE : body])) if extra else NO_ANNOTATIONS
        with memoryview(buffer) as view:
            payload = bytes(view[body : body + length])
        if flags & COMPRESSED:
            try:
                payload = self._inflate(payload, self._max_size)
            except ValueError as error:
                raise ProtocolError(f"compressed payload: {error}") from None
            flags &= ~COMPRESSED
        return Frame(kind, serializer, flags, seq, payload, annotations, correlation), size

    @staticmethod
    def _refuse_start(seen: bytes) -> None:
        if seen[:4] == b"PYRO":
            raise ProtocolError(f"protocol version {int.from_bytes(seen[4:], 'big')}; this side speaks {VERSION}")
        wrong = next(n for n in range(1, len(seen) + 1) if not b"PYRO".startswith(seen[:n]))
        raise ProtocolError(f"the peer does not speak the Pyro protocol: it began with {seen[:wrong]!r}")
