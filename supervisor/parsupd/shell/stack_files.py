"""The door to the files in which workers leave the stacks of their threads when their watchdog expires."""

import contextlib
import os
from pathlib import Path

from parsupd.core.units import InstanceName
from workerlib.shell.private_dir import make_private

MAX_SIZE = 16384
"""What is kept of a dump: the stack of the main thread comes last, so it is the end."""


class StackFiles:
    """One file a generation; most are never written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, instance: InstanceName, generation: int) -> str:
        """Where a worker may write. Raises UsageError when there is no place for it."""
        return str(make_private(self._folder) / f"{instance}.{generation}")

    def take(self, instance: InstanceName, generation: int) -> tuple[str, ...]:
        """The lines that were left there; the file is removed."""
        path = self._folder / f"{instance}.{generation}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nothing was left: the usual case
            return ()
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, MAX_SIZE, max(0, size - MAX_SIZE))
        finally:
            os.close(fd)
            with contextlib.suppress(OSError):
                path.unlink()
        return tuple(data.decode(errors="replace").splitlines())
