"""Log files of units: their names, when a new one is begun, which ones go, and what is done when none can be written.

Layer 1. The files of an instance are numbered and never renamed: `NAME@N.00000007.log`, `.gz` when it is compressed;
`NAME@N.log` is a link to the last one. So whoever follows them finds the next one by its number, and a crash in the
middle of a rotation leaves no question which file is which.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from parsupd.core.log_settings import LogSettings

RETRY_S = 0.5
"""Between two attempts to write what could not be written."""

_FILE = re.compile(r"(.+@\d+)\.(\d{8,12})\.log(\.gz)?", re.ASCII)


class LogFile(NamedTuple):
    """One file of an instance."""

    number: int
    compressed: bool = False

    def name(self, instance: str) -> str:
        return f"{instance}.{self.number:08}.log{'.gz' if self.compressed else ''}"


def parse_name(name: str) -> tuple[str, LogFile] | None:
    """The instance and the file of a file's name; None for other names."""
    found = _FILE.fullmatch(name)
    return None if found is None else (found[1], LogFile(int(found[2]), found[3] is not None))


def link_name(instance: str) -> str:
    """The link to the last file."""
    return f"{instance}.log"


# Rotation


def is_due(length: int, opened_at: float, settings: LogSettings, now: float) -> bool:
    """Whether a new file is begun after one of that length; an empty one is never too old."""
    return length > 0 and (length >= settings.rotate_at or now - opened_at >= settings.rotate_age_s)


def rotation_deadline(length: int, opened_at: float, settings: LogSettings) -> float:
    """When a file will be too old."""
    return opened_at + settings.rotate_age_s if length > 0 else float("inf")


# Retention


def too_many(sizes: Mapping[int, int], settings: LogSettings) -> list[int]:
    """Numbers of an instance's files that go, so that the next one fits in; `sizes` are without that."""
    room = settings.total_size - settings.rotate_at
    left, found = sum(sizes.values()), []
    for number in sorted(sizes):
        if left <= room:
            break
        found.append(number)
        left -= sizes[number]
    return found


def too_much(files: Iterable[tuple[float, str, int, int]], total: int, limit: int) -> list[tuple[str, int]]:
    """Of all instances' files that are not being written, as (age's order, instance, number, size): which go, oldest
    first, until all files together, `total` bytes, are within the limit.

    The order is of the wall clock, which may have been set back: no file is older than its instance's one before.
    """
    ordered: list[tuple[float, str, int, int]] = []
    newest: dict[str, float] = {}
    for at, instance, number, size in sorted(files, key=lambda file: file[1:]):
        newest[instance] = max(at, newest.get(instance, at))
        ordered.append((newest[instance], instance, number, size))
    found = []
    for _, instance, number, size in sorted(ordered):
        if total <= limit:
            break
        found.append((instance, number))
        total -= size
    return found


# When nothing can be written


class Trouble(NamedTuple):
    """Writing fails."""

    since: float
    retry_at: float
    reason: str


def failed(before: Trouble | None, reason: str, now: float) -> Trouble:
    """Another attempt has failed."""
    return Trouble(now if before is None else before.since, now + RETRY_S, reason)


def is_dropping(trouble: Trouble, settings: LogSettings, now: float) -> bool:
    """Whether the unit has waited long enough."""
    return now >= trouble.since + settings.patience_s


def trouble_deadline(trouble: Trouble, settings: LogSettings, now: float) -> float:
    """When something is to be done next."""
    drop_at = trouble.since + settings.patience_s
    return min(trouble.retry_at, drop_at) if now < drop_at else trouble.retry_at


def count_dropped(data: bytes, *, in_line: bool) -> tuple[int, bool]:
    """How many lines begin in what is dropped, and whether the last of them goes on after it.

    With `in_line`, the data begins in the middle of a line that is counted already.
    """
    if not data:
        return 0, in_line
    open_end = not data.endswith(b"\n")
    return data.count(b"\n") + open_end - in_line, open_end


def rest_of_line(data: bytes) -> int:
    """How many bytes at the beginning belong to a line whose beginning was dropped: all, where it does not end."""
    return data.find(b"\n") + 1 or len(data)
