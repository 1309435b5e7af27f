"""What the tests of the wire share: bytes fed three ways, and the frames that come of them."""

from collections.abc import Iterable, Iterator

from workerlib.core import frames
from workerlib.core.frames import Frame, FrameParser
from workerlib.core.payload import MSGPACK
from workerlib.core.session import Closed, Event
from workerlib.errors import ProtocolError
from workerlib.shell.compression import inflate
from workerlib.testing.sessions import byte_by_byte, whole

TRAILING = b"PYRO\x01\xf6"
"""The start of another message: what may follow any message in one read."""


def with_trailing_bytes(data: bytes) -> list[bytes]:
    return [data + TRAILING]


WAYS = {way.__name__: way for way in (whole, byte_by_byte, with_trailing_bytes)}


def parse(pieces: Iterable[bytes], *, most: int = 1 << 16) -> tuple[list[Frame], str | None]:
    """The frames in the pieces, and the error after them, as a session would see them."""
    parser = FrameParser(most, inflate)
    found: list[Frame] = []
    try:
        for piece in pieces:
            found += parser.feed(piece)
            if parser.pending_size:
                parser.check()
    except ProtocolError as error:
        return found, str(error)
    return found, None


def frame(kind: int, payload: bytes = b"", *, seq: int = 1, flags: int = 0, serializer: int = MSGPACK) -> bytes:
    return frames.encode(kind, serializer, flags, seq, payload)


def closed_of(events: Iterable[Event]) -> Iterator[Closed]:
    return (event for event in events if isinstance(event, Closed))
