"""The door to where the daemon's state is kept: a file in its runtime directory, and a memfd that the manager keeps.

The file is replaced by write-and-rename, so that each reader finds one whole state or another. It is not synced: it
shall survive the process, not the machine, whose next boot has other processes. The memfd is there for a runtime
directory that is full, or was removed under a running daemon. It is written in place, so it is checked when it is read.
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

    def candidates(self) -> Iterator[bytes]:
        """What is there, each whole; the caller takes the newest."""
        with contextlib.suppress(OSError):
            yield self._path.read_bytes()
        if self.memfd >= 0:
            length, checksum = _HEAD.unpack(os.pread(self.memfd, _HEAD.size, 0).ljust(_HEAD.size, b"\0"))
            data = os.pread(self.memfd, min(length, MAX_SIZE), _HEAD.size)
            if len(data) == length and zlib.crc32(data) == checksum:
                yield data

    def save(self, data: bytes) -> None:
        """Keeps the state. Raises OSError when it could not be kept in the file; the memfd has it then all the same."""
        if self.memfd >= 0:
            os.pwrite(self.memfd, _HEAD.pack(len(data), zlib.crc32(data)) + data, 0)
        new = self._path.with_name(self._path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(fd, left) :]
        finally:
            os.close(fd)
        new.rename(self._path)

    def remove(self) -> None:
        """Everything is down: the next start begins from nothing."""
        self._path.unlink(missing_ok=True)
        self._path.with_name(self._path.name + ".new").unlink(missing_ok=True)
        if self.memfd >= 0:
            os.ftruncate(self.memfd, 0)
