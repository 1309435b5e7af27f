r"""Records of log files: what a unit has written -> records with time, life and stream, and back. Layer 1.

A plain record is `TIME GENERATION STREAM TEXT`: the text is what the unit wrote, byte by byte. A stream with `+` at its
end says that the line was too long and goes on in the stream's next record, with `-` that the unit ended, or the rest
was lost, before the line did. In JSON these are `"part": "+"` and `"part": "-"`, and bytes that are no UTF-8 become
`\xNN`.

All lines of what was read at once have one time, and are made by few operations on the whole: a loop over lines would
cost ten times as much.
"""

import re
from typing import NamedTuple

from parsupd.core.log_settings import JSON

LONGEST = 32 << 10
"""Bytes of a line in one record; what is longer is split."""

MORE, CUT = "+", "-"

DAEMON = "parsupd"
"""The stream of what is said about the output, not by the unit."""


class Source(NamedTuple):
    """Where output comes from."""

    name: str  # of the instance
    generation: int
    stream: str


class Record(NamedTuple):
    """One record of a plain file."""

    time: str  # ISO 8601, UTC
    generation: int
    stream: str
    part: str  # "", MORE or CUT
    text: bytes


def format_output(data: bytes, form: str, source: Source, time: str, *, final: bool) -> tuple[bytes, int]:
    """Records of all whole lines, and of the rest where it is too long or `final`; and how many bytes these are of."""
    end = data.rfind(b"\n") + 1
    if _has_long_line(data, end):
        parts, taken = _split(data, final=final)
        found = [_heads(form, source, time, part)[0] + _escape(form, text) + _tail(form) for text, part in parts]
        return b"".join(found), taken
    whole = _escape(form, data[:end]) if form == JSON else data[:end]
    head, between = _heads(form, source, time, "")
    if end:
        # Every line but the last one is followed by the head of the next.
        records = head + whole.replace(b"\n", between, whole.count(b"\n") - 1)
        if form == JSON:
            records = records[:-1] + _tail(form)
    else:
        records = b""
    if final and end < len(data):
        records += _heads(form, source, time, CUT)[0] + _escape(form, data[end:]) + _tail(form)
        end = len(data)
    return records, end


def format_dropped(lines: int, reason: str, form: str, source: Source, time: str) -> bytes:
    """The record that stands where lines are missing."""
    text = f"{lines} line{'' if lines == 1 else 's'} dropped: {reason}".encode(errors="backslashreplace")
    head, _ = _heads(form, source._replace(stream=DAEMON), time, "")
    return head + _escape(form, text) + _tail(form)


def _heads(form: str, source: Source, time: str, part: str) -> tuple[bytes, bytes]:
    """What stands before a record's text, and what between two of them."""
    if form == JSON:
        mark = f'"part":"{part}",' if part else ""
        head = (
            f'{{"time":"{time}","name":"{source.name}","generation":{source.generation},"stream":"{source.stream}",'
            f'{mark}"message":"'
        ).encode()
        return head, _tail(form) + head
    head = f"{time} {source.generation} {source.stream}{part} ".encode()
    return head, b"\n" + head


def _tail(form: str) -> bytes:
    return b'"}\n' if form == JSON else b"\n"


_CONTROLS = bytes(number for number in range(32) if number != 10)
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")


def _escape(form: str, text: bytes) -> bytes:
    """The text of a record; newlines stay what they are."""
    if form != JSON:
        return text
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            text = text.decode(errors="backslashreplace").encode()
    text = text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    if len(text.translate(None, _CONTROLS)) != len(text):
        text = _CONTROL.sub(lambda found: b"\\u%04x" % found[0][0], text)
    return text


def _has_long_line(data: bytes, end: int) -> bool:
    """Whether a line is longer than LONGEST, or what comes after the last one; `end` is the end of the whole lines."""
    if len(data) - end > LONGEST:
        return True
    at = 0
    while end - at > LONGEST + 1:
        newline = data.rfind(b"\n", at, at + LONGEST + 1)
        if newline < 0:
            return True
        at = newline + 1
    return False


def _split(data: bytes, *, final: bool) -> tuple[list[tuple[bytes, str]], int]:
    *lines, rest = data.split(b"\n")
    found = []
    for line in lines:
        pieces = _pieces(line)
        found += [(piece, MORE) for piece in pieces[:-1]]
        found.append((pieces[-1], ""))
    *pieces, last = _pieces(rest)
    found += [(piece, MORE) for piece in pieces]
    if final and last:
        found.append((last, CUT))
        last = b""
    return found, len(data) - len(last)


def _pieces(line: bytes) -> list[bytes]:
    """Pieces of at most LONGEST bytes, one at least; no character of UTF-8 is cut."""
    found = []
    at = 0
    while len(line) - at > LONGEST:
        end = at + LONGEST
        while end > at + LONGEST - 4 and line[end] & 0xC0 == 0x80:
            end -= 1
        if line[end] & 0xC0 == 0x80:  # not UTF-8
            end = at + LONGEST
        found.append(line[at:end])
        at = end
    return [*found, line[at:]]


_RECORD = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (\d{1,19}) (stdout|stderr|parsupd)([+-]?) (.*)", re.DOTALL
)


def parse_plain(line: bytes) -> Record | None:
    """A record of a plain file, without its newline; None for what is none."""
    found = _RECORD.fullmatch(line)
    if found is None:
        return None
    time, generation, stream, part, text = found.groups()
    return Record(time.decode(), int(generation), stream.decode(), part.decode(), text)
