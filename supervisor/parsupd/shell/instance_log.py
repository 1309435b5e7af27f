"""The log of one instance, as the logger keeps it: pipes and spools on one side, files on the other. See log_spool."""

import errno
import os
import time
from collections.abc import Callable

from parsupd.core import log_files
from parsupd.core.log_files import Trouble
from parsupd.core.log_records import Source, format_dropped, format_output
from parsupd.core.log_settings import LogSettings
from parsupd.shell.log_folder import LogFolder
from parsupd.shell.log_spool import MAX_STREAMS, SPOOL_LIMIT, Commit, Pipe, Slot, StateFile


def boot_id() -> bytes:
    with open("/proc/sys/kernel/random/boot_id", "rb") as file:
        return file.read().strip()


def time_text() -> str:
    """Now, as records have it."""
    moment = time.time_ns()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment // 10**9))}.{moment // 1000 % 10**6:06}Z"


class InstanceLog:
    """One instance. Opens its files when there is something to write.

    `trouble` says why nothing can be written at the moment. Then pipes are left alone, so that the unit waits, until
    its settings say that what it writes is to be dropped.
    """

    def __init__(
        self,
        name: str,
        runtime: str,
        folder: LogFolder,
        settings: LogSettings,
        boot: bytes,
        finished: Callable[[Pipe], object],
    ) -> None:
        self.name = name
        self.settings = settings
        self.pipes: dict[Source, Pipe] = {}
        self.trouble: Trouble | None = None
        self.dropped = 0
        """Lines that were dropped, and whose record is still to be written."""
        self._runtime = runtime
        self._folder = folder
        self._boot = boot
        self._finished = finished
        self._state = StateFile(f"{runtime}/{name}.state")
        self._slots: dict[tuple[int, str], Slot] = {}  # of pipes that are not open yet
        self._fd = -1
        self._number = 0
        self._length = 0
        self._opened_at = 0.0
        self._reason = "its output could not be written"
        self._generation = 0
        """The last life that something was taken from."""
        self._certain = False
        """Whether what is beyond `_length` in the file was not committed."""
        if (committed := self._state.load()) is not None:
            boot, self._number, self._length, self._opened_at, self.dropped, self._slots = committed
            self._opened_at = min(self._opened_at, time.monotonic())
            self._certain = boot == self._boot

    # Pipes

    def open(self, source: Source) -> Pipe | None:
        """Opens a pipe; None where there is none. Raises OSError."""
        if len(self.pipes) >= MAX_STREAMS:
            raise OSError(errno.EMFILE, "too many earlier lives still have their output open", self.name)
        slot = self._slots.pop((source.generation, source.stream), None)
        try:
            pipe = self.pipes[source] = Pipe(self._runtime, source, slot)
        except FileNotFoundError:
            return None
        except OSError:
            if slot is not None:
                self._slots[source.generation, source.stream] = slot
            raise
        if slot is not None and pipe.slot != slot:
            self._commit()
        return pipe

    def forget_ended(self, there: set[Source]) -> None:
        """Of the pipes that are not open, only these are there."""
        known = {(source.generation, source.stream) for source in there}
        self._slots = {key: slot for key, slot in self._slots.items() if key in known}

    def wants(self, pipe: Pipe, now: float) -> bool:
        """Whether the pipe is to be read."""
        return not pipe.ended and (self.trouble is None or self.is_dropping(now))

    def is_dropping(self, now: float) -> bool:
        return self.trouble is not None and log_files.is_dropping(self.trouble, self.settings, now)

    def next_deadline(self, now: float) -> float:
        """When `judge` is to be called, at the latest."""
        if self.trouble is not None:
            return log_files.trouble_deadline(self.trouble, self.settings, now)
        return log_files.rotation_deadline(self._length, self._opened_at, self.settings)

    def judge(self, now: float) -> None:
        """Does what is due: writes again what could not be written, begins a new file."""
        if self.dropped if self.trouble is None else now >= self.trouble.retry_at:
            self._retry(now)
        if self.trouble is None and log_files.is_due(self._length, self._opened_at, self.settings, now):
            self.rotate(now)

    @property
    def is_done(self) -> bool:
        """Whether there is nothing more to do, and never will be."""
        return not self.pipes and not self._slots and not self.dropped

    def close(self) -> None:
        """Leaves what is not done to the next logger."""
        if self.is_done:
            self._state.remove()
        else:
            self._state.close()
        for pipe in self.pipes.values():
            pipe.close()
        self.pipes.clear()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._folder.leave(self.name)

    # Output

    def take(self, pipe: Pipe, now: float) -> bool:
        """Takes what is in a pipe, and writes it; whether there was anything. Afterwards `trouble` may be set.

        At its end, the pipe is removed as soon as everything is written.
        """
        if self.trouble is not None:
            return self._drop(pipe) if self.is_dropping(now) else False
        try:
            if pipe.gap or self.dropped:
                self._catch_up(now)
            taken = 0 if pipe.ended else pipe.take()
            if taken:
                self._generation = pipe.source.generation
            self._write(pipe, now)
            if pipe.ended:
                self._finish(pipe)
        except OSError as error:
            self._fail(error, now)
            return False
        return taken > 0

    def _drop(self, pipe: Pipe) -> bool:
        data = pipe.discard()
        if not data:
            return False
        lines, pipe.in_dropped_line = log_files.count_dropped(data, in_line=pipe.in_dropped_line)
        pipe.gap = True
        self.dropped += lines
        self._generation = pipe.source.generation
        assert self.trouble is not None
        self._reason = self.trouble.reason
        self._commit()
        return True

    def _write(self, pipe: Pipe, now: float) -> None:
        """Writes what can be written of what was taken. Raises OSError, and then nothing has changed."""
        if pipe.start == pipe.end:
            return
        data = pipe.pending()
        before = pipe.spool, pipe.start, pipe.end, pipe.in_dropped_line
        skipped = 0
        if pipe.in_dropped_line and not pipe.gap:
            skipped = log_files.rest_of_line(data)
            pipe.in_dropped_line = skipped == len(data) and not data.endswith(b"\n")
            data = data[skipped:]
        records, used = format_output(data, self.settings.form, pipe.source, time_text(), final=pipe.ended or pipe.gap)
        if not used and not skipped:
            return
        length = self._append(records, now) if used else self._length
        pipe.start += skipped + used
        switched = pipe.end > SPOOL_LIMIT and pipe.switch(data[used:])
        try:
            self._commit()
        except OSError:
            pipe.spool, pipe.start, pipe.end, pipe.in_dropped_line = before
            self._cut(length)
            raise
        if switched:
            pipe.switched()
        if log_files.is_due(self._length, self._opened_at, self.settings, now):
            self.rotate(now)

    def _finish(self, pipe: Pipe) -> None:
        """Everything that came is in the file, and the last commit says so."""
        self._finished(pipe)
        pipe.remove()
        del self.pipes[pipe.source]

    def _fail(self, error: OSError, now: float) -> None:
        reason = error.strerror or str(error)
        self.trouble = log_files.failed(self.trouble, f"{reason}: {error.filename or self._folder.path}", now)

    def _retry(self, now: float) -> None:
        try:
            self._catch_up(now)
        except OSError as error:
            self._fail(error, now)
        else:
            self.trouble = None
            for pipe in [pipe for pipe in self.pipes.values() if pipe.ended]:
                self._finish(pipe)

    def _catch_up(self, now: float) -> None:
        """First what was taken before anything was dropped, then what is to be said about that."""
        for pipe in self.pipes.values():
            self._write(pipe, now)
            pipe.gap = False
        if self.dropped:
            self._tell_dropped(now)

    def _tell_dropped(self, now: float) -> None:
        source = Source(self.name, self._generation, "")
        length = self._append(format_dropped(self.dropped, self._reason, self.settings.form, source, time_text()), now)
        count, self.dropped = self.dropped, 0
        try:
            self._commit()
        except OSError:
            self.dropped = count
            self._cut(length)
            raise

    # The file

    def _commit(self) -> None:
        slots = {(source.generation, source.stream): pipe.slot for source, pipe in self.pipes.items()}
        self._state.save(
            Commit(self._boot, self._number, self._length, self._opened_at, self.dropped, {**self._slots, **slots})
        )

    def _append(self, data: bytes, now: float) -> int:
        """Adds to the file; returns its length before. Raises OSError, and then it has that length."""
        if self._fd >= 0:
            status = os.fstat(self._fd)
            self._length = status.st_size  # somebody may have emptied it
            if status.st_nlink == 0:  # or removed it
                self.rotate(now)
        if self._fd < 0:
            self._open_file(now)
        before = self._length
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            self._cut(before)
            error.filename = self._folder.path_of(self.name, self._number)
            raise
        self._length += len(data)
        self._folder.grown(self.name, self._number, self._length)
        return before

    def _cut(self, length: int) -> None:
        if self._fd >= 0:
            os.ftruncate(self._fd, length)
            self._length = length
            self._folder.grown(self.name, self._number, length)

    def _open_file(self, now: float) -> None:
        """Goes on with the last file, as far as it is certain, or begins one."""
        self._folder.open()
        last = self._folder.last(self.name)
        if not self._certain:
            self._number, self._opened_at = (last or 1), now
        if self._folder.is_compressed(self.name, self._number):
            self._number, self._length = self._number + 1, 0
        path = self._folder.path_of(self.name, self._number)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            size = os.fstat(fd).st_size
            if self._certain and size > self._length:
                os.ftruncate(fd, self._length)  # what the last logger wrote, and could not say that it had
            elif not self._certain and size and os.pread(fd, 1, size - 1) != b"\n":
                size += os.write(fd, b"\n")  # the machine went down in the middle of a line
            before = self._length
            self._length = min(size, self._length) if self._certain else size
            if not self._length or not self._certain:
                self._opened_at = now
            self._certain, certain = True, self._certain
            try:
                self._commit()
            except OSError:
                self._certain, self._length = certain, before
                raise
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self._folder.begin(self.name, self._number, self._length)

    def rotate(self, now: float) -> None:
        """Begins a new file with the next record. Raises OSError."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        old = self._number
        self._number, self._length, self._opened_at = old + 1, 0, now
        self._folder.finish(self.name, old, self.settings)
        self._commit()
