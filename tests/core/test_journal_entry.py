"""Entries of journald's native protocol, read back by a parser that follows the specification."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerlib.core.journal_entry import MAX_FIELDS, MAX_NAME, MAX_VALUE, RESERVED, encode, field_name, lost


def parse(entry: bytes) -> list[tuple[str, bytes]]:
    """What journald reads."""
    fields = []
    while entry:
        line, _, rest = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if equals:
            entry = rest
        else:
            (length,) = struct.unpack_from("<Q", rest)
            value, end, entry = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert end == b"\n"
        fields.append((name.decode("ascii"), value))
    return fields


names = st.from_regex(r"[A-Z][A-Z0-9_]{0,63}", fullmatch=True)


@given(st.lists(st.tuples(names, st.binary(max_size=200)), max_size=20))
def test_what_is_written_is_read(fields: list[tuple[str, bytes]]) -> None:
    """Any bytes come back as they were, in order, with repeated names."""
    assert parse(encode(fields)) == fields


@given(st.text(max_size=50))
def test_text_is_utf_8(text: str) -> None:
    """Text travels as UTF-8; what is no character, as an escape."""
    assert parse(encode([("MESSAGE", text)])) == [("MESSAGE", text.encode(errors="backslashreplace"))]


@given(st.text(max_size=100), st.sampled_from(["", "PARSUP_"]))
def test_every_key_becomes_a_name(key: str, prefix: str) -> None:
    """Whatever a program calls a field, journald takes the name, and it is none that journald gives a meaning."""
    name = field_name(key, prefix)
    assert parse(encode([(name, "x")])) == [(name, b"x")]
    assert name not in RESERVED
    assert name.startswith(prefix)
    assert len(name) <= MAX_NAME


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("order", "ORDER"),
        ("orderId", "ORDERID"),
        ("a-b.c", "A_B_C"),
        ("_PID", "PID"),
        ("message", "FIELD_MESSAGE"),
        ("__MESSAGE", "FIELD_MESSAGE"),
        ("3rd", "FIELD_3RD"),
        ("é", "FIELD_"),
        ("", "FIELD_"),
        ("a\nMESSAGE=forged", "A_MESSAGE_FORGED"),
    ],
)
def test_a_name_stays_recognisable(key: str, name: str) -> None:
    """Names are in upper case; trusted ones cannot be forged, nor can a name end its line."""
    assert field_name(key) == name


@pytest.mark.parametrize("name", ["", "a", "A=B", "A\n", "_A", "1A", "É", "A" * 65])
def test_a_wrong_name_is_refused(name: str) -> None:
    """The encoder writes nothing that journald would not take, and names what is wrong."""
    with pytest.raises(ValueError, match="no name of a journal field"):
        encode([(name, "x")])


def test_lengths_are_bounded() -> None:
    """An endless value is cut and says so; more fields than journald takes are left out, not the entry."""
    ((_, value),) = parse(encode([("MESSAGE", b"x" * (MAX_VALUE + 5))]))
    assert value.endswith(b"x [5 more bytes]")
    assert len(value) < MAX_VALUE + 40
    assert len(parse(encode([("A", "x")] * 5000))) == MAX_FIELDS


def test_a_gap_says_how_much_is_missing() -> None:
    """What stands for lost entries can be found by its event and its number."""
    fields = dict(parse(lost(3)))
    assert fields["MESSAGE"].startswith(b"3 log records of this process lost")
    assert (fields["PARSUP_EVENT"], fields["PARSUP_COUNT"], fields["PRIORITY"]) == (b"records_lost", b"3", b"4")
