"""The door to the directory of log files: which ones are there, how large they are, and which ones have to go.

It is one logger's alone. Sizes are kept in memory, so that a bound on all of them costs no look at the disk.
"""

import contextlib
import fcntl
import os
import time
from collections import deque

from parsupd.core import log_files
from parsupd.core.log_files import LogFile
from parsupd.core.log_settings import ALL_FILES, LogSettings

TEMPORARY = ".tmp"


class LogFolder:
    """All files of all instances."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.limit = ALL_FILES
        self._waiting: deque[tuple[str, int]] = deque()
        self._files: dict[str, dict[int, tuple[int, bool]]] = {}
        """By instance and number: size, and whether compressed. The one being written is among them, growing."""
        self._current: dict[str, int] = {}
        self._order: dict[tuple[str, int], float] = {}
        self._newest = 0.0
        self._total = 0
        self._lock = -1

    def open(self) -> None:
        """Makes the directory, and takes it for this process alone. Raises OSError; may be called again then."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        if self._lock < 0:
            lock = os.open(f"{self.path}/.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                raise OSError(0, "another parsupd's logger writes there", self.path) from None
            self._lock = lock
            self._scan()

    @property
    def is_open(self) -> bool:
        return self._lock >= 0

    def _scan(self) -> None:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.endswith(TEMPORARY):
                    self._unlink(entry.name)  # what was being compressed when a logger was killed
                elif (found := log_files.parse_name(entry.name)) is not None:
                    instance, file = found
                    status = entry.stat(follow_symlinks=False)
                    files = self._files.setdefault(instance, {})
                    if file.number in files:  # it was compressed, and not yet removed
                        self._unlink(LogFile(file.number).name(instance))
                        if not file.compressed:
                            continue
                        self._total -= files[file.number][0]
                    files[file.number] = (status.st_size, file.compressed)
                    self._order[instance, file.number] = status.st_mtime
                    self._newest = max(self._newest, min(status.st_mtime, time.time()))
                    self._total += status.st_size

    def _unlink(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(f"{self.path}/{name}")

    # One instance

    def last(self, instance: str) -> int | None:
        """The number of its last file; None when it has none."""
        return max(self._files.get(instance, ()), default=None)

    def is_compressed(self, instance: str, number: int) -> bool:
        known = self._files.get(instance, {}).get(number)
        return known is not None and known[1]

    def path_of(self, instance: str, number: int) -> str:
        return f"{self.path}/{LogFile(number).name(instance)}"

    def begin(self, instance: str, number: int, size: int) -> None:
        """A file is being written, from now on or again."""
        files = self._files.setdefault(instance, {})
        self._total += size - files.get(number, (0, False))[0]
        files[number] = (size, False)
        self._current[instance] = number
        link, new = log_files.link_name(instance), f".{instance}{TEMPORARY}"
        with contextlib.suppress(OSError):  # it is for people
            self._unlink(new)
            os.symlink(LogFile(number).name(instance), f"{self.path}/{new}")
            os.rename(f"{self.path}/{new}", f"{self.path}/{link}")

    def grown(self, instance: str, number: int, size: int) -> None:
        """The file that is being written has that size now."""
        files = self._files[instance]
        self._total += size - files[number][0]
        files[number] = (size, False)

    def is_over(self) -> bool:
        """Whether all files together take more than they may."""
        return self._total > self.limit

    def leave(self, instance: str) -> None:
        """The file that is being written is closed, to be gone on with later."""
        current = self._current.pop(instance, None)
        if current is not None:
            self._order[instance, current] = self._now()

    def _now(self) -> float:
        """The time, which does not go back when the clock is set back: what is written next is newer."""
        self._newest = max(self._newest, time.time())
        return self._newest

    def finish(self, instance: str, number: int, settings: LogSettings) -> None:
        """The file is written no more. What is too much now goes, the rest is to be compressed."""
        self._current.pop(instance, None)
        if number in self._files.get(instance, {}):
            self._order[instance, number] = self._now()
        self.keep_within(instance, settings)
        if settings.compress:
            known = {*self._waiting}
            for each, (size, compressed) in sorted(self._files.get(instance, {}).items()):
                if size and not compressed and (instance, each) not in known:
                    self._waiting.append((instance, each))

    def next_to_compress(self) -> tuple[str, int] | None:
        """A file to be compressed, by instance and number; each is given once."""
        while self._waiting:
            instance, number = self._waiting.popleft()
            size, compressed = self._files.get(instance, {}).get(number, (0, True))
            if size and not compressed:
                return instance, number
        return None

    def keep_within(self, instance: str, settings: LogSettings) -> None:
        """Removes an instance's oldest files, so that it keeps to its total."""
        current = self._current.get(instance)
        files = self._files.get(instance, {})
        sizes = {number: size for number, (size, _) in files.items() if number != current}
        for number in log_files.too_many(sizes, settings):
            self._remove(instance, number)

    def compressed(self, instance: str, number: int) -> None:
        """A compression has ended."""
        with contextlib.suppress(OSError):
            size = os.stat(f"{self.path}/{LogFile(number, True).name(instance)}").st_size
            before = self._files.get(instance, {}).get(number)
            if before is None:  # it had to go meanwhile
                self._unlink(LogFile(number, True).name(instance))
                return
            self._total += size - before[0]
            self._files[instance][number] = (size, True)

    def _remove(self, instance: str, number: int) -> None:
        size, compressed = self._files[instance].pop(number)
        self._order.pop((instance, number), None)
        self._total -= size
        self._unlink(LogFile(number, compressed).name(instance))

    # All instances

    def make_room(self) -> str | None:
        """Removes the oldest files of all until there is room; the instance whose file is the largest of those that are
        being written, when that does not do: it must be given up, too.
        """
        finished = (
            (self._order.get((instance, number), 0.0), instance, number, size)
            for instance, files in self._files.items()
            for number, (size, _) in files.items()
            if number != self._current.get(instance)
        )
        for instance, number in log_files.too_much(finished, self._total, self.limit):
            self._remove(instance, number)
        if not self.is_over():
            return None
        return max(self._current, key=lambda instance: self._files[instance][self._current[instance]][0], default=None)
