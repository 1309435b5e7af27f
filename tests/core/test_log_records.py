"""Records of log files: every line once, byte by byte, whatever the pieces are in which it comes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parsupd.core.log_records import CUT, LONGEST, MORE, Source, format_dropped, format_output, parse_plain
from parsupd.core.log_settings import JSON, PLAIN

TIME = "2026-01-31T14:00:00.123456Z"
OUT = Source("a@1", 5, "stdout")


def records(data: bytes, form: str = PLAIN, *, final: bool = False) -> tuple[list[tuple[str, bytes]], int]:
    """(part, text) of each record, and how many bytes were used."""
    written, used = format_output(data, form, OUT, TIME, final=final)
    assert not written or written.endswith(b"\n")
    found = []
    for line in written.split(b"\n")[:-1]:
        if form == JSON:
            entry = json.loads(line)
            assert (entry["time"], entry["name"], entry["generation"], entry["stream"]) == (TIME, *OUT)
            found.append((entry.get("part", ""), entry["message"].encode()))
        else:
            record = parse_plain(line)
            assert record is not None
            assert record[:3] == (TIME, 5, "stdout")
            found.append((record.part, record.text))
    return found, used


CASES = {
    "nothing": (b"", False, [], 0),
    "a line": (b"one\n", False, [("", b"one")], 4),
    "lines": (b"one\ntwo\n", False, [("", b"one"), ("", b"two")], 8),
    "an empty line": (b"\n", False, [("", b"")], 1),
    "empty lines": (b"\n\na\n\n", False, [("", b""), ("", b""), ("", b"a"), ("", b"")], 5),
    "a line that goes on": (b"one\ntw", False, [("", b"one")], 4),
    "only one that goes on": (b"tw", False, [], 0),
    "the last one has no end": (b"one\ntw", True, [("", b"one"), (CUT, b"tw")], 6),
    "only one without end": (b"tw", True, [(CUT, b"tw")], 2),
    "nothing at the end": (b"", True, [], 0),
    "quotes": (b'"a\\n" \\\n', False, [("", b'"a\\n" \\')], 8),
    "control characters": (b"\x00\x1b[0m\t\r\x7f\n", False, [("", b"\x00\x1b[0m\t\r\x7f")], 9),
    "what looks like a record": (f"{TIME} 5 stdout x\n".encode(), False, [("", f"{TIME} 5 stdout x".encode())], 39),
    "no ASCII": ("é\u2028\n".encode(), False, [("", "é\u2028".encode())], 6),
    "as long as it may be": (b"x" * LONGEST + b"\n", False, [("", b"x" * LONGEST)], LONGEST + 1),
    "too long": (b"x" * (LONGEST + 1) + b"\n", False, [(MORE, b"x" * LONGEST), ("", b"x")], LONGEST + 2),
    "too long and goes on": (b"a\n" + b"x" * (LONGEST + 1), False, [("", b"a"), (MORE, b"x" * LONGEST)], LONGEST + 2),
}


@pytest.mark.parametrize("form", [PLAIN, JSON])
@pytest.mark.parametrize(("data", "final", "expected", "used"), CASES.values(), ids=CASES)
def test_records(data: bytes, final: bool, expected: list[tuple[str, bytes]], used: int, form: str) -> None:
    """Each line becomes one record with the bytes of the line; what goes on is left, unless it is too long or the end."""
    assert records(data, form, final=final) == (expected, used)


@given(st.lists(st.binary(max_size=40) | st.just(b"\n") | st.just(b"x" * LONGEST), max_size=20))
def test_nothing_is_lost_or_doubled_however_output_is_cut(chunks: list[bytes]) -> None:
    """What is in the records is what was written; all lines but those that are too long are whole."""
    rest, found = b"", []
    for index, chunk in enumerate([*chunks, b""]):
        rest += chunk
        got, used = records(rest, final=index == len(chunks))
        found += got
        rest = rest[used:]
        assert len(rest) <= LONGEST
        assert b"\n" not in rest
    assert rest == b""
    ends = {"": b"\n", MORE: b"", CUT: b""}
    assert b"".join(text + ends[part] for part, text in found) == b"".join(chunks)
    assert all(len(text) <= LONGEST for _, text in found)
    assert [part for part, _ in found[:-1] if part == CUT] == []


@given(st.binary(max_size=200))
def test_json_is_json_whatever_is_written(data: bytes) -> None:
    """Any bytes become valid JSON, a record a line."""
    found, used = records(data + b"\n", JSON)
    assert used == len(data) + 1
    assert [text.decode() for _, text in found] == [
        line.decode(errors="backslashreplace") if not _is_utf8(data) else line.decode() for line in data.split(b"\n")
    ]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.text(min_size=1, max_size=3).filter(lambda text: "\n" not in text))
def test_a_split_cuts_no_character(text: str) -> None:
    """Each piece of a long line of UTF-8 is UTF-8."""
    line = (text * (LONGEST // len(text.encode()) + 2)).encode(errors="replace")
    found, _ = records(line + b"\n")
    assert len(found) > 1
    assert b"".join(piece for _, piece in found) == line
    for _, piece in found:
        piece.decode()


def test_what_is_said_about_lines_that_were_dropped() -> None:
    """It is a record of the daemon's, in both forms."""
    plain = parse_plain(format_dropped(2, "No space left on device", PLAIN, OUT, TIME)[:-1])
    assert plain == (TIME, 5, "parsupd", "", b"2 lines dropped: No space left on device")
    entry = json.loads(format_dropped(1, 'a "b"', JSON, OUT, TIME))
    assert (entry["stream"], entry["message"]) == ("parsupd", '1 line dropped: a "b"')


@pytest.mark.parametrize("line", [b"", b"x", f"{TIME} 5 stdout".encode(), f"{TIME} x stdout a".encode(), b"{}"])
def test_what_is_no_record(line: bytes) -> None:
    """Half a record, or none, is not taken for one."""
    assert parse_plain(line) is None
