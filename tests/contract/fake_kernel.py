"""A kernel that is a table of processes: it does at once what it is told, also what a real one cannot be made to do."""

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from parsupd.shell.kernel import Kernel
from parsupd.shell.leftovers import Tag
from workerlib.core.daemonizing import ChildExited, ExitCause, Killed

INIT, DAEMON, SOMEBODY = 1, 2, 3
"""The processes that there are: the daemon is the one whose kernel this is, and nobody's unit is a child of the last."""

HARMLESS = {0, signal.SIGCONT, signal.SIGCHLD}


@dataclass(eq=False)
class Process:
    """One process, from its start to the time when it is reaped."""

    pid: int
    parent: int
    group: int
    started: int
    tag: Tag | None
    ignored: set[int] = field(default_factory=set)
    ended: ExitCause | None = None
    reaped: bool = False
    pidfds: list[int] = field(default_factory=list)


class FakeKernel(Kernel):
    """With the same promises as the real one; `tests/contract` holds both to them."""

    def __init__(self) -> None:
        self._ticks = itertools.count(1)
        self._table: dict[int, Process] = {}
        self._opened: dict[int, Process] = {}
        self._threads: set[int] = set()
        self._ended: Callable[[], object] = int
        for pid in (INIT, DAEMON, SOMEBODY):
            self.start(pid, parent=INIT)

    # What a test does with it

    def start(self, pid: int, *, parent: int, group: int | None = None, tag: Tag | None = None) -> None:
        """A new process, with a pid that is free."""
        assert pid not in self._table, "it is taken"
        assert pid not in {each.group for each in self._table.values()}, "it is that of a group"
        self._table[pid] = Process(pid, parent, group or pid, next(self._ticks), tag)

    def fork(self, pid: int) -> int:
        child, parent = max(self._table) + 1, self._table[pid]
        self.start(child, parent=pid, group=parent.group, tag=parent.tag)
        self._table[child].ignored |= parent.ignored
        return child

    def setsid(self, pid: int) -> None:
        assert self._table[pid].group != pid, "it leads a group"
        self._table[pid].group = pid

    def ignore(self, pid: int, signum: int) -> None:
        self._table[pid].ignored.add(signum)

    def thread(self) -> int:
        number = max(self._table) + 1
        self._threads.add(number)
        return number

    def end(self, pid: int, cause: ExitCause) -> None:
        """It ends. Its children become those of the subreaper above it, or of init, which reaps."""
        process = self._table[pid]
        if process.ended is not None:
            return
        process.ended = cause
        heir = DAEMON if DAEMON in self._ancestors(pid) else INIT
        for pidfd in process.pidfds:
            if self._opened.get(pidfd) is process:
                os.eventfd_write(pidfd, 1)
        for child in [each for each in self._table.values() if each.parent == pid]:
            child.parent = heir
            if child.ended is not None:
                self._tell_parent(child)
        self._tell_parent(process)

    def reap_of(self, pid: int) -> None:
        """Its parent takes its exit: the pid is free."""
        self._table.pop(pid).reaped = True

    def _tell_parent(self, process: Process) -> None:
        if process.parent == DAEMON:
            self._ended()
        elif process.parent == INIT:
            self.reap_of(process.pid)

    def _ancestors(self, pid: int) -> Iterator[int]:
        while pid != INIT:
            pid = self._table[pid].parent
            yield pid

    def _the(self, pid: int) -> Process:
        try:
            return self._table[pid]
        except KeyError:
            raise ProcessLookupError from None

    # What the daemon does with it

    @property
    def pid(self) -> int:
        return DAEMON

    @property
    def group(self) -> int:
        return DAEMON

    def follow_children(self, ended: Callable[[], object]) -> None:
        self._ended = ended

    def forget_children(self) -> None:
        self._ended = int

    def reap(self, most: int) -> tuple[ChildExited, ...]:
        gone = [each for each in self._table.values() if each.parent == DAEMON and each.ended is not None][:most]
        for each in gone:
            self.reap_of(each.pid)
        return tuple(ChildExited(each.pid, each.ended) for each in gone if each.ended is not None)

    def children(self) -> frozenset[int]:
        return frozenset(each.pid for each in self._table.values() if each.parent == DAEMON)

    def open(self, pid: int) -> int:
        process = self._the(pid)
        pidfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        process.pidfds.append(pidfd)
        self._opened[pidfd] = process
        if process.ended is not None:
            os.eventfd_write(pidfd, 1)
        return pidfd

    def has_ended(self, pidfd: int) -> bool:
        return self._opened[pidfd].ended is not None

    def send(self, pidfd: int, signum: int) -> None:
        process = self._opened[pidfd]
        if process.reaped:
            raise ProcessLookupError
        self.kill(process.pid, signum)

    def exit_cause(self, pid: int, started: int, pidfd: int) -> ExitCause | None:
        return self._opened[pidfd].ended

    def kill(self, pid: int, signum: int) -> None:
        if signum not in HARMLESS | self._the(pid).ignored:
            self.end(pid, Killed(signum))

    def kill_group(self, group: int, signum: int) -> None:
        members = [each.pid for each in self._table.values() if each.group == group]
        if not members:
            raise ProcessLookupError
        for pid in members:
            self.kill(pid, signum)

    def group_exists(self, group: int) -> bool:
        return any(each.group == group for each in self._table.values())

    def group_members(self, group: int) -> frozenset[int]:
        return frozenset(each.pid for each in self._table.values() if each.group == group and each.ended is None)

    def group_of(self, pid: int) -> int:
        return self._table[pid].group if pid in self._table else 0

    def parent_of(self, pid: int) -> int:
        return self._table[pid].parent if pid in self._table and pid != INIT else 0

    def start_time(self, pid: int) -> int:
        return 1 if pid in self._threads else self._the(pid).started

    def is_running(self, pid: int) -> bool:
        return pid in self._table and self._table[pid].ended is None

    def descendants(self, roots: frozenset[int]) -> frozenset[int]:
        return frozenset(pid for pid in self._table if roots & {*self._ancestors(pid)})

    def tag_of(self, pid: int) -> Tag | None:
        process = self._table.get(pid)
        return None if process is None or process.ended is not None else process.tag

    def tagged(self, tag: Tag) -> frozenset[int]:
        return frozenset(pid for pid in self._table if self.tag_of(pid) == tag)
