"""The door to the pipes that units write into, and to what was taken from them: kill -9 neither loses nor doubles.

A unit's stdout is a FIFO. What is in it is moved by one splice(2) to the end of a file, the spool: the kernel takes
from a pipe exactly what it has written to the file, whenever the process is killed. So the spool's length says what
was taken, and its bytes stay until the records that are made of them are in the log file. That they are is said by one
pwrite(2) of a few bytes, the commit: it has the length of the log file and how far each spool is worked off. A logger
that comes after a killed one cuts the log file to the length of the last commit and goes on from there.

What comes before a commit can be done again, what comes after it need not be. An ordinary read of the pipe leaves a
moment in which only a dead process has had the bytes; tee(2) and a read after the write leaves one in which the file
has them and the pipe too, and nobody can tell.

Files of the runtime directory: `NAME@N.GENERATION.STREAM` (the FIFO), `.0` and `.1` added (the spools: one is used
until it is long, then what is left in it begins the other), `NAME@N.state` (the commits).
"""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Iterator
from typing import NamedTuple

from parsupd.core.log_records import Source

CHUNK = 256 << 10
"""Bytes that are taken at once at most. A pipe holds 64 KiB unless somebody has made it larger."""
SPOOL_LIMIT = 64 << 10
"""Bytes in a spool after which the other one is used: this much of the runtime directory each stream may take."""
MAX_STREAMS = 100
"""Streams of one instance that are open at once: those of its last lives, where processes have outlived them."""

_OPEN = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def fifo_name(source: Source) -> str:
    return f"{source.name}.{source.generation}.{source.stream}"


def parse_fifo_name(name: str) -> Source | None:
    """None for a name of something else."""
    instance, _, rest = name.rpartition("@")
    number, _, rest = rest.partition(".")
    generation, _, stream = rest.partition(".")
    if not (instance and number.isdigit() and generation.isdigit() and stream in {"stdout", "stderr"}):
        return None
    return Source(f"{instance}@{number}", int(generation), stream)


def find_fifos(folder: str) -> list[Source]:
    """All that are there, oldest lives first."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            source = parse_fifo_name(entry.name)
            with contextlib.suppress(FileNotFoundError):  # renamed or removed since it was listed
                if source is not None and stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):
                    found.append(source)
    return sorted(found)


class Slot(NamedTuple):
    """How far a stream is worked off."""

    spool: int = 0
    start: int = 0
    gap: bool = False  # something after what the spool holds was dropped
    in_dropped_line: bool = False  # and the last of it was no whole line


class Commit(NamedTuple):
    """What is certain about an instance's log."""

    boot: bytes  # in which it was made: the order of what was written before a crash of the machine is unknown
    number: int  # of the file
    length: int  # of what is whole in it
    opened_at: float  # when the file was begun
    dropped: int  # lines whose record is still to be written
    slots: dict[tuple[int, str], Slot]  # by generation and stream


_HEAD = struct.Struct("<4s36sQQdQH")
_SLOT = struct.Struct("<QBBBQ")
_MAGIC = b"plg1"
_STREAM = {"stdout": 1, "stderr": 2}
_NAMES = {number: name for name, number in _STREAM.items()}


class StateFile:
    """Where the commits of one instance are. One block of one page: a write of it is not left half done by a kill."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = -1

    def load(self) -> Commit | None:
        """The last commit; None where there is none that makes sense."""
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        data = os.pread(self._fd, 4096, 0)
        if len(data) < _HEAD.size or data[:4] != _MAGIC:
            return None
        _, boot, number, length, opened_at, dropped, count = _HEAD.unpack_from(data)
        if len(data) < _HEAD.size + count * _SLOT.size:
            return None
        slots = {}
        for index in range(count):
            generation, stream, spool, flags, start = _SLOT.unpack_from(data, _HEAD.size + index * _SLOT.size)
            slots[generation, _NAMES[stream]] = Slot(spool, start, bool(flags & 1), bool(flags & 2))
        return Commit(boot, number, length, opened_at, dropped, slots)

    def save(self, commit: Commit) -> None:
        """Raises OSError, where there is no room for the first one."""
        if self._fd < 0:
            self._fd = os.open(self._path, _OPEN, 0o600)
        boot, number, length, opened_at, dropped, slots = commit
        parts = [_HEAD.pack(_MAGIC, boot, number, length, opened_at, dropped, len(slots))]
        for (generation, stream), (spool, start, gap, in_line) in slots.items():
            parts.append(_SLOT.pack(generation, _STREAM[stream], spool, gap | in_line << 1, start))
        os.pwrite(self._fd, b"".join(parts), 0)

    def remove(self) -> None:
        self.close()
        _unlink(self._path)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Pipe:
    """The FIFO of one stream of one life, and its spools."""

    def __init__(self, folder: str, source: Source, slot: Slot | None) -> None:
        """Opens them. Raises OSError; FileNotFoundError where there is no such FIFO."""
        self.source = source
        self._path = f"{folder}/{fifo_name(source)}"
        # Only for reading, and nobody of the logger for writing: the end of the last writer is the end of the output.
        self.fd = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        # To a reader who came after the last writer had gone, poll(2) never says that nobody writes; now there was one.
        os.close(os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW))
        self._spools = [-1, -1]
        self.spool, self.start, self.gap, self.in_dropped_line = slot or Slot()
        self.end = 0
        self.ended = False
        """Whether all has been taken, and nothing can come any more."""
        try:
            if not stat.S_ISFIFO(os.fstat(self.fd).st_mode):
                raise OSError(errno.EINVAL, "is no FIFO", self._path)
            self._find_end()
        except BaseException:
            self.close()
            raise

    def _find_end(self) -> None:
        """The kernel has counted what was taken: that is the spool's length."""
        with contextlib.suppress(FileNotFoundError):
            self.end = os.stat(f"{self._path}.{self.spool}").st_size
        if self.end < self.start:  # it was worked off, and removed
            self.start = self.end = 0
        with contextlib.suppress(FileNotFoundError):
            os.truncate(f"{self._path}.{1 - self.spool}", 0)  # what a switch began that was not committed

    def _spool_fd(self, which: int) -> int:
        if self._spools[which] < 0:
            self._spools[which] = os.open(f"{self._path}.{which}", _OPEN, 0o600)
        return self._spools[which]

    @property
    def slot(self) -> Slot:
        return Slot(self.spool, self.start, self.gap, self.in_dropped_line)

    def take(self) -> int:
        """Moves what is in the pipe to the spool; how many bytes. 0 at the end, where `ended` is set, and before it.

        Raises OSError when the spool has no room: then what did not fit is still in the pipe.
        """
        try:
            count = os.splice(self.fd, self._spool_fd(self.spool), CHUNK, offset_dst=self.end)
        except BlockingIOError:
            return 0
        if count == 0:
            self.ended = True
        self.end += count
        return count

    def discard(self) -> bytes:
        """Takes what is in the pipe without keeping it; empty at the end, where `ended` is set, and before it."""
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return b""
        if not data:
            self.ended = True
        return data

    def pending(self) -> bytes:
        """What was taken and is not worked off."""
        if self.start == self.end:
            return b""
        return os.pread(self._spool_fd(self.spool), self.end - self.start, self.start)

    def switch(self, rest: bytes) -> bool:
        """To be called before the commit when the spool is long: `rest`, what is left of it, begins the other one.

        False, and nothing has changed, when there is no room.
        """
        other = self._spool_fd(1 - self.spool)
        if os.pwrite(other, rest, 0) < len(rest):
            os.ftruncate(other, 0)
            return False
        self.spool, self.start, self.end = 1 - self.spool, 0, len(rest)
        return True

    def switched(self) -> None:
        """To be called after that commit."""
        os.ftruncate(self._spool_fd(1 - self.spool), 0)

    def remove(self) -> None:
        """The stream has ended, and its last commit says so. The spools go first: their absence is nothing left."""
        self.close()
        for name in (f"{self._path}.0", f"{self._path}.1", self._path):
            _unlink(name)

    def close(self) -> None:
        for fd in (self.fd, *self._spools):
            if fd >= 0:
                os.close(fd)
        self.fd, self._spools = -1, [-1, -1]


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def sweep(folder: str, known: set[str]) -> Iterator[str]:
    """Removes spools whose FIFO has gone; gives the instances that have a state and are not known."""
    with os.scandir(folder) as entries:
        names = {entry.name for entry in entries}
    for name in names:
        stem, _, end = name.rpartition(".")
        if end in {"0", "1"} and parse_fifo_name(stem) is not None and stem not in names:
            _unlink(f"{folder}/{name}")
        elif end == "state" and stem not in known:
            yield stem
