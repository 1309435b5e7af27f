"""Messages with large buffers in them, put together once: a buffer is copied into its message and nowhere else.

MessagePack has a value's length before its bytes. So what lies around a buffer is encoded without it, and the whole is
joined when the message's header is known. On the wire it is MessagePack like any other.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

LARGE = 1 << 16
"""Bytes from which on it is worth it."""
ALIGNMENT = 16
"""Where in a payload the data of an extension begins: at a multiple of this, so that arrays can be views of it."""

BUFFERS = (bytes, bytearray, memoryview)

_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode

HEADROOM = 40
"""Bytes of a message's header."""


class Extension:
    """A MessagePack extension whose data is in a buffer: a length, that many bytes of `head`, padding, the data."""

    __slots__ = ("code", "data", "head")

    def __init__(self, code: int, head: bytes, data: memoryview) -> None:
        self.code = code
        self.head = head
        self.data = data

    def as_one(self) -> msgspec.msgpack.Ext:
        """The same for a message that is not put together by Parts."""
        return msgspec.msgpack.Ext(self.code, _BEFORE.pack(len(self.head), 0) + self.head + self.data)


_BEFORE = struct.Struct(">HB")


def split_extension(body: memoryview) -> tuple[bytes, memoryview]:
    """Head and data of what was an `Extension`. Raises ValueError."""
    if len(body) < _BEFORE.size:
        raise ValueError("it is cut off in its head")
    length, padding = _BEFORE.unpack_from(body)
    at = _BEFORE.size + length
    if at + padding > len(body):
        raise ValueError("it is cut off in its head")
    return bytes(body[_BEFORE.size : at]), body[at + padding :]


class Parts:
    """A payload in pieces. It has a length, and what is put before it joins them all: so it passes for the bytes that
    it stands for wherever those are only measured and put behind a header.
    """

    __slots__ = ("_pieces", "_size")

    def __init__(self, start: bytes = b"") -> None:
        self._pieces: list[bytes | bytearray | memoryview] = [start]
        self._size = len(start)

    def __len__(self) -> int:
        return self._size

    def __radd__(self, before: bytes) -> bytes:
        return b"".join([before, *self._pieces])

    def __bytes__(self) -> bytes:
        return b"".join(self._pieces)

    def as_payload(self) -> bytes:
        """Itself, as what it passes for."""
        return cast("bytes", self)

    def add(self, piece: bytes | bytearray | memoryview) -> None:
        """More bytes of the payload."""
        self._pieces.append(piece)
        self._size += len(piece)

    def add_value(self, value: Any) -> None:
        """A value, encoded. Raises what encoding does."""
        if isinstance(value, Extension):
            self._add_extension(value)
        elif type(value) in BUFFERS and (size := _size_of(value)) >= LARGE:
            self.add(struct.pack(">BI", 0xC6, size))
            self.add(value if type(value) is not memoryview else _as_bytes(value))
        else:
            self.add(encode(value))

    def _add_extension(self, value: Extension) -> None:
        fixed = 6 + _BEFORE.size + len(value.head)
        padding = -(self._size + fixed) % ALIGNMENT
        size = fixed - 6 + padding + len(value.data)
        self.add(struct.pack(">BIb", 0xC9, size, value.code) + _BEFORE.pack(len(value.head), padding) + value.head)
        self.add(bytes(padding))
        self.add(value.data)

    def add_array(self, values: Sequence[Any]) -> None:
        """An array of values."""
        self.add(_array_of(len(values)))
        for value in values:
            self.add_value(value)

    def add_map(self, values: Mapping[str, Any]) -> None:
        """A map with text for keys."""
        self.add(struct.pack(">BI", 0xDF, len(values)) if values else b"\x80")
        for name, value in values.items():
            self.add(encode(name))
            self.add_value(value)


class Roomy:
    """A payload with room for its header before it, which passes for bytes as Parts do: for values that are large
    without large buffers in them. Encoded by itself, it would be copied behind the header. msgspec reserves up to half
    as much memory again, which is never touched.
    """

    __slots__ = ("_memory",)

    def __init__(self, value: Any) -> None:
        """Raises what encoding does."""
        self._memory = bytearray(HEADROOM)
        _encoder.encode_into(value, self._memory, HEADROOM)

    def __len__(self) -> int:
        return len(self._memory) - HEADROOM

    def __radd__(self, before: bytes) -> bytes:
        """The whole message, once."""
        self._memory[:HEADROOM] = before
        return cast("bytes", self._memory)

    def __bytes__(self) -> bytes:
        return bytes(self._memory[HEADROOM:])

    def as_payload(self) -> bytes:
        """Itself, as what it passes for."""
        return cast("bytes", self)


def _size_of(value: bytes | bytearray | memoryview) -> int:
    return value.nbytes if isinstance(value, memoryview) else len(value)


def _as_bytes(view: memoryview) -> memoryview | bytes:
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _array_of(count: int) -> bytes:
    return bytes([0x90 | count]) if count < 16 else struct.pack(">BI", 0xDD, count)


def is_large(value: Any) -> bool:
    """Whether a value is better put into a message as `Parts` do."""
    return type(value) is Extension or (type(value) in BUFFERS and _size_of(value) >= LARGE)


def encode_value(value: Any) -> bytes:
    """One value as a payload, perhaps as Parts. Raises what encoding does."""
    if not is_large(value):
        return encode(value)
    parts = Parts()
    parts.add_value(value)
    return parts.as_payload()


def encode_list(values: list[Any], *, large: bool = False) -> bytes:
    """An array of values as a payload, perhaps as Parts. Raises what encoding does.

    `large`: what was encoded before was, and this is probably, too.
    """
    if not any(map(is_large, values)):
        return Roomy(values).as_payload() if large else encode(values)
    parts = Parts()
    parts.add_array(values)
    return parts.as_payload()
