"""The main processes of units, as pidfds that the service manager keeps: so their end is known if no parsupd saw it.

A pidfd that was opened while its process lived names that process for ever, and remembers its exit status although
somebody else reaped it, where the kernel can say so (Linux 6.15). All of it is best effort: without a service manager,
or when it has no time, such an end has an unknown cause.
"""

import contextlib
import os
from collections.abc import Mapping

from parsupd.shell.notify_socket import Notifier

PREFIX = "process-"
SEND_S = 0.02
"""So long a start may be held up by a service manager that is busy."""


class KeptProcesses:
    """What is kept for the next parsupd, and what was kept for this one."""

    def __init__(self, notifier: Notifier, inherited: Mapping[str, int]) -> None:
        self._notifier = notifier
        self._inherited = {name: fd for name, fd in inherited.items() if name.startswith(PREFIX)}
        self._kept: set[str] = set()

    def keep(self, pid: int, started: int) -> None:
        """Of a process that is not reaped yet. Not again when it was taken: a second pidfd would be another file."""
        name = _name(pid, started)
        if self._notifier.listens and name not in self._kept:
            with contextlib.suppress(ProcessLookupError):  # one that is nobody's child here has gone just now
                pidfd = os.pidfd_open(pid)
                self._kept.add(name)
                self._notifier.store(name, pidfd, within_s=SEND_S)
                os.close(pidfd)

    def take(self, pid: int, started: int) -> int | None:
        """The pidfd that was kept of this process; it belongs to the caller."""
        name = _name(pid, started)
        if (pidfd := self._inherited.pop(name, None)) is not None:
            self._kept.add(name)
        return pidfd

    def drop(self, pid: int, started: int) -> None:
        """It has ended, and that is known."""
        name = _name(pid, started)
        if name in self._kept:
            self._kept.remove(name)
            self._notifier.unstore(name, within_s=SEND_S)

    def drop_the_rest(self) -> None:
        """What nobody has taken is of processes that were known to have ended."""
        for name, pidfd in self._inherited.items():
            os.close(pidfd)
            self._notifier.unstore(name)
        self._inherited.clear()


def _name(pid: int, started: int) -> str:
    return f"{PREFIX}{pid}-{started}"
