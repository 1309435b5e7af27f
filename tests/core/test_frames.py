"""Frames: each case whole, byte by byte, and with the start of another message behind it."""

import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import TRAILING, WAYS, parse, with_trailing_bytes

from workerlib.core import frames
from workerlib.core.frames import HEADER, HEADER_SIZE, Frame, FrameParser
from workerlib.core.parts import LARGE
from workerlib.errors import ProtocolError
from workerlib.shell.compression import inflate
from workerlib.testing.sessions import byte_by_byte, whole

MOST = 1 << 16
CORRELATION = bytes(range(16))


def raw(
    kind: int = frames.INVOKE,
    payload: bytes = b"",
    *,
    tag: bytes = b"PYRO",
    version: int = 502,
    serializer: int = 4,
    flags: int = 0,
    seq: int = 7,
    length: int | None = None,
    annotations: bytes = b"",
    extra: int | None = None,
    correlation: bytes = bytes(16),
    magic: int = frames.MAGIC,
) -> bytes:
    """A message with any header, valid or not."""
    length = len(payload) if length is None else length
    extra = len(annotations) if extra is None else extra
    head = HEADER.pack(tag, version, kind, serializer, flags, seq, length, extra, correlation, 0, magic)
    return head + annotations + payload


def note(name: bytes, value: bytes) -> bytes:
    return struct.pack("!4sI", name, len(value)) + value


VALID = {
    "empty": (raw(), Frame(frames.INVOKE, 4, 0, 7, b"")),
    "payload": (raw(payload=b"abc"), Frame(frames.INVOKE, 4, 0, 7, b"abc")),
    "flags and serializer": (
        raw(frames.RESULT, b"x", flags=frames.EXCEPTION, serializer=1),
        Frame(frames.RESULT, 1, frames.EXCEPTION, 7, b"x"),
    ),
    "annotations": (
        raw(payload=b"p", annotations=note(b"ABCD", b"12") + note(b"efgh", b"")),
        Frame(frames.INVOKE, 4, 0, 7, b"p", {"ABCD": b"12", "efgh": b""}),
    ),
    "correlation id": (
        raw(payload=b"p", flags=frames.CORRELATION, correlation=CORRELATION),
        Frame(frames.INVOKE, 4, frames.CORRELATION, 7, b"p", correlation=CORRELATION),
    ),
    "compressed": (
        raw(payload=zlib.compress(b"a" * 1000), flags=frames.COMPRESSED),
        Frame(frames.INVOKE, 4, 0, 7, b"a" * 1000),
    ),
    "as long as may be": (raw(payload=b"x" * MOST), Frame(frames.INVOKE, 4, 0, 7, b"x" * MOST)),
    "annotations and payload as long as may be": (
        raw(payload=b"x" * (MOST - 10), annotations=note(b"ABCD", b"12")),
        Frame(frames.INVOKE, 4, 0, 7, b"x" * (MOST - 10), {"ABCD": b"12"}),
    ),
    "highest sequence number": (raw(seq=0xFFFF), Frame(frames.INVOKE, 4, 0, 0xFFFF, b"")),
    **{f"type {kind:#x}": (raw(kind), Frame(kind, 4, 0, 7, b"")) for kind in sorted(frames.TYPES)},
}

REFUSED = {
    "garbage": (b"\x00" * 64, "does not speak the Pyro protocol"),
    "http": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n", "does not speak the Pyro protocol"),
    "wrong tag": (raw(tag=b"PYRX"), "does not speak the Pyro protocol"),
    "wrong version": (raw(version=48), "protocol version 48; this side speaks 502"),
    "wrong magic": (raw(magic=0x4DC6), "magic number 0x4dc6 instead of 0x4dc5"),
    "unknown type": (raw(0x55), "unknown message type 0x55"),
    "type 0": (raw(0), "unknown message type 0x0"),
    "too long": (raw(length=MOST + 1), f"a message of {MOST + 1} bytes"),
    "far too long": (raw(length=0xFFFFFFFF), "a message of 4294967295 bytes"),
    "too long annotations": (raw(extra=0xFFFFFFFF), "a message of 4294967295 bytes"),
    "too long together": (raw(length=MOST, extra=1), f"a message of {MOST + 1} bytes"),
    "annotation overruns": (raw(annotations=struct.pack("!4sI", b"ABCD", 100) + b"12"), "announces 100 bytes, 2 are"),
    "annotation overruns into the payload": (
        raw(payload=b"12345678", annotations=struct.pack("!4sI", b"ABCD", 4)),
        "announces 4 bytes, 0 are left",
    ),
    "annotation cut off": (raw(annotations=b"ABCD\0\0"), "cut off in its header"),
    "annotation name": (raw(annotations=note(b"A\0CD", b"")), "is not four ASCII letters"),
    "annotation name not ascii": (raw(annotations=note(b"\xc4BCD", b"")), "is not four ASCII letters"),
    "compressed bomb": (
        raw(payload=zlib.compress(bytes(MOST + 1)), flags=frames.COMPRESSED),
        "longer than 65536 bytes",
    ),
    "compressed garbage": (raw(payload=b"not zlib", flags=frames.COMPRESSED), "compressed payload: Error -3"),
    "compressed and cut off": (
        raw(payload=zlib.compress(b"a" * 1000)[:-3], flags=frames.COMPRESSED),
        "compressed payload: it is cut off",
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", VALID)
def test_a_valid_message_becomes_one_frame(case: str, way: str) -> None:
    """Every valid message is read the same, however it is cut and whatever follows."""
    data, expected = VALID[case]
    assert parse(WAYS[way](data), most=MOST) == ([expected], None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", REFUSED)
def test_wrong_bytes_are_refused_with_what_is_wrong(case: str, way: str) -> None:
    """Every wrong message is refused with the same text, however it is cut."""
    data, text = REFUSED[case]
    found, error = parse(WAYS[way](data), most=MOST)
    assert found == []
    assert error is not None
    assert text in error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", REFUSED)
def test_messages_before_wrong_bytes_are_delivered(case: str, way: str) -> None:
    """What was said before the wrong bytes counts, in one read as in many."""
    data, text = REFUSED[case]
    found, error = parse(WAYS[way](raw(payload=b"first") + raw(payload=b"second") + data), most=MOST)
    assert [frame.payload for frame in found] == [b"first", b"second"]
    assert error is not None
    assert text in error


@pytest.mark.parametrize(
    ("data", "at"), [(b"XYRO", 1), (b"PYXO", 3), (b"PYRO\x00\x00", 6), (b"PYRO\x01\x00", 6)], ids=repr
)
def test_a_wrong_start_is_refused_with_its_first_wrong_byte(data: bytes, at: int) -> None:
    """A peer of another protocol is not asked for 40 bytes first: it may wait for us to speak."""
    parser = FrameParser(MOST, inflate)
    for byte in byte_by_byte(data[: at - 1]):
        assert parser.feed(byte) == []
    with pytest.raises(ProtocolError):
        parser.feed(data[at - 1 : at])


@pytest.mark.parametrize("case", ["far too long", "too long annotations", "too long"])
def test_a_too_long_message_is_refused_with_its_header(case: str) -> None:
    """Nothing of a message that is too long is waited for or stored."""
    with pytest.raises(ProtocolError, match="at most 65536 are accepted"):
        FrameParser(MOST, inflate).feed(REFUSED[case][0][:HEADER_SIZE])


def test_pending_size_tells_what_a_begun_message_will_have() -> None:
    """0 between messages, the header's size while only that is known to come, then the whole."""
    parser = FrameParser(MOST, inflate)
    data = raw(payload=b"x" * 100, annotations=note(b"ABCD", b"12"))
    sizes = []
    for byte in byte_by_byte(data):
        parser.feed(byte)
        sizes.append(parser.pending_size)
    assert sizes == [HEADER_SIZE] * (HEADER_SIZE - 1) + [len(data)] * (len(data) - HEADER_SIZE) + [0]


def test_many_messages_in_one_read() -> None:
    """One read may hold any number of messages and the start of one more."""
    messages = [raw(payload=bytes([n]) * n, seq=n) for n in range(200)]
    parser = FrameParser(MOST, inflate)
    data = b"".join(messages)
    found = parser.feed(data[:-1])
    assert len(found) == 199
    assert [frame.seq for frame in found + parser.feed(data[-1:])] == list(range(200))
    assert parser.pending_size == 0


@pytest.mark.parametrize("piece", [1, 1000, 4096, 50_000, 250_000, 10_000_000])
def test_large_messages_are_joined_from_any_pieces(piece: int) -> None:
    """Alone and between small ones; what is announced is known meanwhile, and nothing stays of it afterwards."""
    large = bytes(range(256)) * (frames.LARGE // 256)
    sizes = [frames.LARGE] if piece == 1 else [frames.LARGE, 3 * frames.LARGE + 7, frames.LARGE - 1, frames.LARGE]
    payloads = [b"before", *((large * 4)[:size] for size in sizes), b"between", large, b"behind"]
    stream = b"".join(raw(payload=payload, seq=n) for n, payload in enumerate(payloads))
    parser = FrameParser(8 * frames.LARGE, inflate)
    found: list[Frame] = []
    for at in range(0, len(stream), piece):
        found += parser.feed(stream[at : at + piece])
    assert [(frame.seq, frame.payload) for frame in found] == list(enumerate(payloads))
    assert (parser.pending_size, parser.buffered) == (0, b"")


@pytest.mark.parametrize("piece", [1000, frames.FIRST_ROOM, frames.FIRST_ROOM + 1, 10_000_000])
def test_a_large_message_can_be_written_to_its_place(piece: int) -> None:
    """After its header has come, and never further than its end; what follows is fed as always."""
    payload = bytes(range(256)) * (5 * frames.FIRST_ROOM // 256)
    stream = raw(payload=payload)
    parser = FrameParser(8 * frames.FIRST_ROOM, inflate)
    assert parser.feed(stream[:100]) == []
    assert parser.missing == len(stream) - 100
    at, found = 100, []
    while parser.missing:
        with parser.room() as room:
            size = min(len(room), piece)
            room[:size] = stream[at : at + size]
        found = parser.filled(size)
        at += size
    assert (at, [frame.payload for frame in found]) == (len(stream), [payload])
    assert [frame.payload for frame in parser.feed(raw(payload=b"behind"))] == [b"behind"]


def test_who_announces_much_and_sends_little_costs_little() -> None:
    """Memory comes as the bytes do."""
    parser = FrameParser(64 << 20, inflate)
    header = raw(payload=bytes(64 << 20))[:HEADER_SIZE]
    tracemalloc.start()
    try:
        parser.feed(header)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * frames.FIRST_ROOM
    assert parser.missing == 64 << 20


def test_a_large_message_that_drips_costs_no_more_than_its_size() -> None:
    """An object for each byte would cost forty times that."""
    parser = FrameParser(2 * frames.LARGE, inflate)
    data = raw(payload=bytes(2 * frames.LARGE))
    parser.feed(data[:100])  # the header is whole, so the message is known to be large
    assert parser.pending_size == len(data)
    tracemalloc.start()
    try:
        for at in range(100, len(data) - 1):
            assert parser.feed(data[at : at + 1]) == []
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3 * len(data)
    (frame,) = parser.feed(data[-1:])
    assert frame.payload == bytes(2 * frames.LARGE)


def test_wrong_bytes_behind_a_large_message_are_refused_after_it() -> None:
    """As behind any other."""
    parser = FrameParser(8 * frames.LARGE, inflate)
    data = raw(payload=bytes(frames.LARGE))
    parser.feed(data[:1000])
    assert [frame.payload for frame in parser.feed(data[1000:] + b"GARBAGE")] == [bytes(frames.LARGE)]
    with pytest.raises(ProtocolError, match="does not speak the Pyro protocol"):
        parser.check()


def test_encoded_annotations_are_read_back() -> None:
    """What `encode` writes, the parser reads."""
    data = frames.encode(frames.RESULT, 2, frames.ITEM_STREAM, 5, b"p", {"STRM": b"some-id", "ABCD": b""})
    expected = Frame(frames.RESULT, 2, frames.ITEM_STREAM, 5, b"p", {"STRM": b"some-id", "ABCD": b""})
    assert parse(whole(data)) == ([expected], None)


_FRAMES = st.builds(
    lambda kind, serializer, flags, seq, payload, notes: (
        kind,
        serializer,
        flags & ~frames.COMPRESSED,
        seq,
        payload,
        notes,
    ),
    st.sampled_from(sorted(frames.TYPES)),
    st.integers(0, 255),
    st.integers(0, 0x7F),
    st.integers(0, 0xFFFF),
    st.binary(max_size=50),
    st.dictionaries(st.text("ABCxyz", min_size=4, max_size=4), st.binary(max_size=9), max_size=3),
)


@given(st.lists(_FRAMES, max_size=8), st.data())
def test_any_cutting_gives_the_same_frames(messages: list[tuple], data: st.DataObject) -> None:
    """Any sequence of messages, cut anywhere, is read back exactly."""
    stream = b"".join(frames.encode(*message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(pieces) == ([Frame(*message) for message in messages], None)


@given(st.binary(max_size=200), st.data())
def test_no_bytes_do_more_than_be_refused(junk: bytes, data: st.DataObject) -> None:
    """Whatever comes, byte by byte or whole, the answer is frames or ProtocolError, and both ways the same."""
    stream = data.draw(st.sampled_from([junk, b"PYRO" + junk, raw(payload=junk)[:-1], raw(annotations=junk)]))
    assert parse(whole(stream)) == parse(byte_by_byte(stream))
    assert len(parse(with_trailing_bytes(stream))[0]) >= len(parse(whole(stream))[0])


@pytest.mark.parametrize("piece", [100, 65_536, 100_003, 1 << 20])
def test_large_payloads_are_views_that_nothing_overwrites(piece: int) -> None:
    """Cut anywhere, between other messages, and with many more after them; small ones stay bytes of their own."""
    sent = [bytes([n]) * (LARGE + n if n % 3 else n) for n in range(20)]
    data = b"".join(frames.encode(frames.RESULT, 4, 0, n, payload) for n, payload in enumerate(sent)) + TRAILING
    parser = FrameParser(1 << 20, inflate)
    found = [frame for at in range(0, len(data), piece) for frame in parser.feed(data[at : at + piece])]
    assert [frame.payload for frame in found] == sent
    assert bytes(parser.buffered) == TRAILING
    for frame in found:
        if isinstance(frame.payload, memoryview):
            assert not frame.payload.readonly
            frame.payload[:] = bytes(len(frame.payload))
    assert [set(frame.payload) <= {0, frame.seq} for frame in found] == [True] * 20
    assert parser.feed(frames.encode(frames.RESULT, 4, 0, 7, b"x")[len(TRAILING) :])[0].payload == b"x"


def test_large_payloads_of_other_serializers_are_bytes() -> None:
    """Their libraries know nothing else."""
    for serializer, flags in ((1, 0), (4, frames.COMPRESSED)):
        payload = zlib.compress(bytes(range(256)) * 1000, 0)
        data = frames.encode(frames.INVOKE, serializer, flags, 1, payload)
        parser = FrameParser(1 << 20, inflate)
        assert parser.feed(data[:50]) == []
        (found,) = parser.feed(data[50:])
        assert type(found.payload) is bytes
        assert found.payload == (payload if serializer == 1 else bytes(range(256)) * 1000)
