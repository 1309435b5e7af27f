"""The door to the system calls about processes that the daemon's reaper relies on. Nothing here blocks or decides.

It is an object, so that `tests/contract` can put another kernel in its place, which does what a real one cannot be made
to do: hand a pid to somebody else in the worst moment.
"""

import contextlib
import errno
import os
import select
import signal
from collections.abc import Callable

from parsupd.shell.leftovers import Tag, tag_of, tagged
from workerlib.core.daemonizing import ChildExited, ExitCause
from workerlib.shell import process


class Kernel:
    """The one that this process runs on."""

    @property
    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    @property
    def group(self) -> int:
        """Of this process."""
        return os.getpgrp()

    # The reaper

    def follow_children(self, ended: Callable[[], object]) -> None:
        """Makes this process child subreaper, and has `ended` called, between two byte codes, whenever a child ends."""
        process.set_child_subreaper()
        # uvloop refuses add_signal_handler for SIGCHLD; Python's own handler runs between two callbacks of the loop.
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: ended())

    def forget_children(self) -> None:
        """Has nothing called any more."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def reap(self, most: int) -> tuple[ChildExited, ...]:
        """Takes the exits of children that have ended, of so many at most."""
        return process.reap(most)

    def children(self) -> frozenset[int]:
        """Pids of the children of this process, zombies included."""
        return process.children()

    # Descriptors: the only names of processes that nobody else gets

    def open(self, pid: int) -> int:
        """A pidfd, readable when the process has ended. Raises ProcessLookupError."""
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            if error.errno in {errno.EINVAL, errno.ENOENT}:  # by now it is the number of somebody's thread
                raise ProcessLookupError(errno.ESRCH, f"{pid} is no process") from None
            raise

    def has_ended(self, pidfd: int) -> bool:
        """Whether its process is a zombie, or gone."""
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def send(self, pidfd: int, signum: int) -> None:
        """Sends a signal, 0 to none. Raises ProcessLookupError when the process has been reaped."""
        signal.pidfd_send_signal(pidfd, signum)

    def exit_cause(self, pid: int, started: int, pidfd: int) -> ExitCause | None:
        """How somebody else's child ended; None when nobody can tell."""
        return process.strangers_exit_cause(pid, started, pidfd)

    # Numbers: whoever has them now

    def kill(self, pid: int, signum: int) -> None:
        """Sends a signal. Raises ProcessLookupError."""
        os.kill(pid, signum)

    def kill_group(self, group: int, signum: int) -> None:
        """Sends a signal to all members. Raises ProcessLookupError when there is none."""
        os.killpg(group, signum)

    def group_exists(self, group: int) -> bool:
        """Whether it has a member, be it a zombie."""
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def group_members(self, group: int) -> frozenset[int]:
        """Living ones. Looks at all processes of the machine."""
        return process.group_members(group)

    def group_of(self, pid: int) -> int:
        """0 when there is no such process."""
        try:
            return os.getpgid(pid)
        except ProcessLookupError:
            return 0

    def parent_of(self, pid: int) -> int:
        """0 when there is no such process, or it has none."""
        with contextlib.suppress(ProcessLookupError):
            return process.parent(pid)
        return 0

    def start_time(self, pid: int) -> int:
        """In clock ticks since boot. Raises ProcessLookupError."""
        return process.start_time(pid)

    def is_running(self, pid: int) -> bool:
        """Whether there is such a process, and it is no zombie."""
        return process.is_running(pid)

    def descendants(self, roots: frozenset[int]) -> frozenset[int]:
        """Their children, the children of those, and so on."""
        return process.descendants(roots)

    def tag_of(self, pid: int) -> Tag | None:
        """What it says of itself in its environment."""
        return tag_of(pid)

    def tagged(self, tag: Tag) -> frozenset[int]:
        """All processes that say so. Looks at all processes of the machine."""
        return tagged(tag)
