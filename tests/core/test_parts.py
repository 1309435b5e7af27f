"""Payloads in pieces are the bytes that MessagePack makes of the same values, and arrays come back as they were."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerlib.core import frames
from workerlib.core.parts import (
    ALIGNMENT,
    LARGE,
    Extension,
    Parts,
    Roomy,
    encode_list,
    encode_value,
    is_large,
    split_extension,
)

BIG = bytes(range(256)) * (LARGE // 256)
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


@given(
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=5), st.just(BIG), st.just(bytearray(BIG))), max_size=20),
    st.dictionaries(st.text(max_size=3), st.one_of(st.none(), st.just(BIG)), max_size=20),
)
def test_parts_are_what_messagepack_makes_of_the_values(values: list[Any], named: dict[str, Any]) -> None:
    """For any mixture of small and large values, in arrays and maps; the length is known before they are joined."""
    parts = Parts(b"\x92")
    parts.add_array(values)
    parts.add_map(named)
    joined = b"head" + parts
    assert joined == b"head" + bytes(parts)
    assert len(joined) == 4 + len(parts)
    assert decode(joined[4:]) == [[bytes(v) if isinstance(v, bytearray) else v for v in values], named]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_only_large_buffers_are_put_into_parts(kind: Any) -> None:
    """A byte less than LARGE is encoded as ever."""
    assert type(encode_value(kind(BIG[:-1]))) is bytes
    assert type(encode_value(kind(BIG))) is Parts
    assert decode(bytes(encode_value(kind(BIG)))) == BIG
    assert type(encode_list([1, kind(BIG)])) is Parts
    assert type(encode_list([1, kind(BIG[:-1])])) is bytes


@given(st.lists(st.text() | st.integers(-(1 << 63), 1 << 63) | st.lists(st.text())))
def test_a_roomy_payload_is_what_messagepack_makes_of_the_values(values: list[Any]) -> None:
    """Behind any header that is put before it; a header has the size that it leaves room for."""
    header = frames.HEADER.pack(b"PYRO", 502, frames.ITEM, 4, 0, 7, 1, 0, bytes(16), 0, frames.MAGIC)
    payload = encode_list(values, large=True)
    assert type(payload) is Roomy
    assert bytes(payload) == encode(values)
    assert len(payload) == len(encode(values))
    assert header + payload == header + encode(values)


def test_large_buffers_are_put_into_parts_also_where_other_things_are_roomy() -> None:
    """A buffer is not copied twice because something else was large before it."""
    assert type(encode_list([BIG], large=True)) is Parts


def test_memoryviews_of_other_shapes_are_sent_as_their_bytes() -> None:
    """Of wider elements, of several dimensions, with a step, and read-only ones."""
    for view in (
        memoryview(bytearray(BIG)).cast("d"),
        memoryview(BIG).cast("B", shape=[256, LARGE // 256]),
        memoryview(BIG * 2)[::2],
    ):
        assert is_large(view)
        assert decode(bytes(encode_value(view))) == view.tobytes()


@given(st.binary(max_size=40), st.binary(max_size=40), st.binary(max_size=70))
def test_the_data_of_an_extension_is_aligned_in_its_payload(before: bytes, head: bytes, data: bytes) -> None:
    """Whatever precedes it; head and data come back."""
    parts = Parts(before)
    parts.add_value(Extension(5, head, memoryview(data)))
    payload = bytes(parts)
    found = decode(payload[len(before) :])
    assert found.code == 5
    assert split_extension(memoryview(found.data)) == (head, data)
    assert (len(payload) - len(data)) % ALIGNMENT == 0


@pytest.mark.parametrize("body", [b"", b"\0", b"\0\0", b"\0\x05\0abc", b"\0\0\x09abc", b"\xff\xff\xff" + bytes(100)])
def test_an_extension_that_is_cut_off_is_refused(body: bytes) -> None:
    """Lengths that lead beyond its end."""
    with pytest.raises(ValueError, match="cut off"):
        split_extension(memoryview(body))
