"""Entries of journald's native protocol: fields <-> bytes.

https://systemd.io/JOURNAL_NATIVE_PROTOCOL/: a field is `NAME=value` and a newline. A value with a newline in it is
written as `NAME`, a newline, its length as 64 bits little endian, the value and a newline. An entry is its fields.
"""

import functools
import re
import struct
from collections.abc import Iterable

from workerlib.core.messages import MESSAGE_IDS

MAX_NAME = 64
MAX_FIELDS = 1000
"""journald drops an entry that has more than 1024, some of which it adds itself."""
MAX_VALUE = 16 << 20
"""Bytes of one value; what is more is cut off, and the value then says so."""

RESERVED = frozenset(
    {
        "MESSAGE", "MESSAGE_ID", "PRIORITY", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "ERRNO", "SYSLOG_IDENTIFIER",
        "SYSLOG_FACILITY", "SYSLOG_PID", "SYSLOG_TIMESTAMP", "SYSLOG_RAW", "DOCUMENTATION", "TID", "UNIT", "USER_UNIT",
        "COREDUMP_UNIT", "COREDUMP_USER_UNIT", "OBJECT_PID", "INVOCATION_ID", "USER_INVOCATION_ID",
    }
)  # fmt: skip
"""Fields that journald and journalctl give a meaning."""

_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^A-Z0-9_]", re.ASCII)

Field = tuple[str, str | bytes]


@functools.lru_cache(maxsize=1024)
def field_name(key: str, prefix: str = "") -> str:
    """A name that journald takes for whatever name a program gave: upper case, without what is not allowed in it.

    Where journald has a meaning of its own for the name, or none is left, `prefix` or else `FIELD_` is put before it.
    """
    name = _NOT_IN_NAMES.sub("_", key.upper())
    if not prefix:
        name = name.lstrip("_")  # such names are journald's own
        if name in RESERVED or not name or name[0].isdigit():
            prefix = "FIELD_"
    return (prefix + name)[:MAX_NAME]


@functools.lru_cache(maxsize=1024)
def _checked(name: str) -> bytes:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a journal field: A-Z, 0-9 and _, a letter first, {MAX_NAME} at most")
    return name.encode()


def encode(fields: Iterable[Field]) -> bytes:
    """The entry. A name may occur several times: the field then has several values.

    Fields after the first MAX_FIELDS are left out. Raises ValueError for a name that `field_name` would not give.
    """
    parts: list[bytes] = []
    for count, (name, value) in enumerate(fields):
        if count == MAX_FIELDS:
            break
        data = value.encode(errors="backslashreplace") if isinstance(value, str) else value
        if len(data) > MAX_VALUE:
            data = data[:MAX_VALUE] + b" [%d more bytes]" % (len(data) - MAX_VALUE)
        if b"\n" in data:
            parts += (_checked(name), b"\n", struct.pack("<Q", len(data)), data, b"\n")
        else:
            parts += (_checked(name), b"=", data, b"\n")
    return b"".join(parts)


def lost(count: int, whose: Iterable[Field] = ()) -> bytes:
    """The entry that stands where `count` entries are missing; `whose` are the fields that all entries have."""
    text = f"{count} log record{'s' if count != 1 else ''} of this process lost: journald did not take them"
    return encode(
        [
            *whose,
            ("MESSAGE", text),
            ("PRIORITY", "4"),
            ("MESSAGE_ID", MESSAGE_IDS["records_lost"]),
            ("PARSUP_EVENT", "records_lost"),
            ("PARSUP_COUNT", str(count)),
        ]
    )
