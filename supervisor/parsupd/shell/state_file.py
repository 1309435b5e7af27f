"""The files in which the daemon's state is kept: one in the runtime directory, and a copy in memory.

Each is a row of parts: a whole state, and changes that were appended to it. A whole state replaces the file by
write-and-rename, so that each reader finds one row or another. What was appended when this process was killed is there
or not: a part is of use only when all of it is, which its head tells. Nothing is synced: it shall survive the process,
not the machine, whose next boot has other processes. The copy is there for a runtime directory that is full, or was
removed under a running daemon. It is written in place.
"""

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("!QI")  # length and CRC-32 of what follows
MAX_SIZE = 1 << 30


class StateFile:
    """Keeps the last state that was saved."""

    def __init__(self, path: Path, memfd: int = -1) -> None:
        self._path = path
        self.memfd = memfd
        self._copied = 0  # bytes in the memfd

    def candidates(self) -> Iterator[list[bytes]]:
        """The parts of what is there; the caller takes the newest."""
        with contextlib.suppress(OSError):
            yield split(self._path.read_bytes())
        if self.memfd >= 0:
            yield split(os.pread(self.memfd, min(os.fstat(self.memfd).st_size, MAX_SIZE), 0))

    def save(self, data: bytes) -> None:
        """Keeps a whole state. Raises OSError when it could not be kept in the file; the copy has it then all the same.

        Blocks for as long as the data takes to be copied.
        """
        part = joined(data)
        if self.memfd >= 0:
            os.pwrite(self.memfd, part, 0)
            os.ftruncate(self.memfd, len(part))
            self._copied = len(part)
        new = self._path.with_name(self._path.name + ".new")
        _write(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), part)
        new.rename(self._path)

    def append(self, data: bytes) -> None:
        """Adds a change to the state that was saved here before. Raises OSError as `save`: then save a whole one."""
        part = joined(data)
        if self.memfd >= 0:
            os.pwrite(self.memfd, part, self._copied)
            self._copied += len(part)
        # Opened each time: so it is noticed when somebody has removed it.
        _write(os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC), part)

    def remove(self) -> None:
        """Everything is down: the next start begins from nothing."""
        self._path.unlink(missing_ok=True)
        self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)
        if self.memfd >= 0:
            os.ftruncate(self.memfd, 0)


def joined(*parts: bytes) -> bytes:
    """The parts, each with its head, as a file has them."""
    return b"".join(_HEAD.pack(len(part), zlib.crc32(part)) + part for part in parts)


def split(data: bytes) -> list[bytes]:
    """The parts of a file, up to the first that is not whole."""
    parts, at = [], 0
    while at + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        part = data[at : at + length]
        if len(part) != length or zlib.crc32(part) != checksum:
            break
        parts.append(part)
        at += length
    return parts


def _write(fd: int, data: bytes) -> None:
    """All of it, into a descriptor that is closed then."""
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    finally:
        os.close(fd)
