"""The processes that parsupd starts and adopts: one reaper for all of them, groups watched until they are empty.

The daemon is child subreaper: whatever its children leave behind becomes its child, and is reaped here too. There is
one place that waits, `waitid(P_ALL)`, so no exit is ever missed or taken twice; a pid belongs to its process until
then, since nobody else reaps it.

Processes that an earlier parsupd started are nobody's children here: they are taken over by a pidfd that was opened
while pid and start time were known to be theirs. Whoever reaps them, their exit status is read when the pidfd tells.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from parsupd.core.attributes import Limit
from parsupd.shell.preparing import Preparation, Step, limit_step
from workerlib.core.daemonizing import ExitCause as Exit
from workerlib.shell import process

FIRST_FD = 3
"""Where the descriptors begin that a program is passed."""


@dataclass(eq=False, slots=True)
class Child:
    """The main process of one incarnation, and its process group."""

    pid: int
    group: int
    exited: "asyncio.Future[Exit | None]"
    """Done when it has ended: how, or None when nobody can tell."""
    group_empty: "asyncio.Future[None]"
    popen: "subprocess.Popen[bytes] | None" = None
    started: int = 0
    """Start time of the main process, in clock ticks since boot."""
    pidfd: int = -1
    """The main process, when it is no child of the daemon."""
    members: dict[int, int] = field(default_factory=dict)
    """Processes of the group that outlived the main one: pid -> pidfd, while they are waited for."""


class Children:
    """All child processes of the daemon. Made once, in the main thread, inside the running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, Child] = {}
        self._strangers: set[Child] = set()
        self._files = Limit(*resource.getrlimit(resource.RLIMIT_NOFILE))
        # A thousand units take more descriptors than the usual soft limit of 1024; units get the old limit back.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files.hard, self._files.hard))
        process.set_child_subreaper()
        # uvloop refuses add_signal_handler for SIGCHLD; Python's own handler runs between two callbacks of the loop.
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: self._loop.call_soon_threadsafe(self._reap))

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        umask: int | None,
        stdout: int,
        stderr: int,
        listen_fds: Sequence[int] = (),
        steps: Sequence[Step] = (),
    ) -> Child:
        """Starts a program in its own session and process group. Blocks for a vfork and exec, about 0.5 ms.

        `listen_fds` are passed on as a service manager does, see sd_listen_fds(3), and `steps` are done in the new
        process before its program; with either, starting takes some ms, since it cannot be done by a vfork.

        Raises OSError when it cannot be executed, or when a step fails.
        """
        spare, place = _placed(listen_fds)
        if spare:
            if shutil.which(argv[0], path=env.get("PATH")) is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
            # The pid, which the program will look for, is not known before the fork: a shell knows its own.
            argv = ["/bin/sh", "-c", 'LISTEN_PID=$$ exec "$@"', "sh", *argv]
            env = {**env, "LISTEN_FDS": str(len(spare))}
            steps = [*steps, Step("sockets", place)]
        prepared = bool(steps)
        if prepared:  # first, as the unit may say something else
            steps = [limit_step("limit_nofile", self._files), *steps]
        with contextlib.ExitStack() as cleanup:
            for fd in spare:
                cleanup.callback(os.close, fd)
            preparation = cleanup.enter_context(Preparation(steps))
            cleanup.enter_context(preparation.named())
            popen = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd or None,
                umask=-1 if umask is None else umask,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
                restore_signals=True,
                close_fds=not spare,  # else it would close what was placed; all others are closed by the exec itself
                preexec_fn=preparation.run if prepared else None,  # noqa: PLW1509 - see `preparing`
            )
        if not prepared:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(popen.pid, resource.RLIMIT_NOFILE, self._files)
        return self._add(popen.pid, popen.pid, popen)

    def adopt(self, pid: int) -> Child:
        """Takes over a process that is, or will be, re-parented to the daemon; it must not have been reaped yet."""
        return self._add(pid, os.getpgid(pid), None)

    def take_over(self, pid: int, started: int, group: int, pidfd: int | None = None) -> Child:
        """Takes over a process of an earlier daemon, or what is left of its group when it has ended meanwhile.

        `pidfd`, if there is one of it, becomes this object's.
        """
        child = Child(pid, group, self._loop.create_future(), self._loop.create_future(), started=started)
        cause: Exit | None = None
        try:
            child.pidfd = os.pidfd_open(pid) if pidfd is None else pidfd
            if pidfd is None and process.start_time(pid) != started:
                raise ProcessLookupError  # somebody else has got its pid
            if pidfd is not None and _has_ended(pidfd):
                cause = process.strangers_exit_cause(pid, started, pidfd)
                raise ProcessLookupError
        except ProcessLookupError:
            self._drop_pidfd(child)
            child.exited.set_result(cause)
            self._loop.call_soon(self._check_group, child)
        else:
            self._strangers.add(child)
            self._loop.add_reader(child.pidfd, self._stranger_gone, child)
        return child

    def _stranger_gone(self, child: Child) -> None:
        self._loop.remove_reader(child.pidfd)
        child.exited.set_result(process.strangers_exit_cause(child.pid, child.started, child.pidfd))
        self._check_group(child)

    def _drop_pidfd(self, child: Child) -> None:
        self._strangers.discard(child)
        if child.pidfd >= 0:
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def _add(self, pid: int, group: int, popen: "subprocess.Popen[bytes] | None") -> Child:
        child = Child(pid, group, self._loop.create_future(), self._loop.create_future(), popen)
        child.started = process.start_time(pid)
        self._children[pid] = child
        return child

    async def watch(self, popen: "subprocess.Popen[bytes]") -> Exit:
        """Waits for a process that somebody else started with Popen, through the one reaper."""
        child = self._add(popen.pid, popen.pid, popen)
        cause = await child.exited
        assert cause is not None, "a child of our own has an exit status"
        return cause

    def disown(self, child: Child) -> None:
        """Forgets an adopted process that was reaped by its own parent."""
        if self._children.get(child.pid) is child:
            del self._children[child.pid]

    # Reaping

    def _reap(self) -> None:
        """Takes every exit that is there; then looks at the groups that somebody may have left."""
        for gone in process.reap():
            child = self._children.pop(gone.pid, None)
            if child is None:
                continue  # an orphan that was re-parented to the daemon
            if child.popen is not None:
                child.popen.returncode = gone.cause.status  # Popen's destructor shall not wait for this pid
            if not child.exited.done():
                child.exited.set_result(gone.cause)
            self._check_group(child)

    def _check_group(self, child: Child) -> None:
        """Completes `group_empty`, or waits for those that are left, each by its pidfd, without polling."""
        if child.group_empty.done():
            return
        left = process.group_members(child.group) if _group_exists(child.group) else frozenset()
        for pid in child.members.keys() - left:
            self._drop_member(child, pid)
        for pid in left - child.members.keys():
            try:
                pidfd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            child.members[pid] = pidfd
            self._loop.add_reader(pidfd, self._member_gone, child, pid)
        if not child.members:
            self._drop_pidfd(child)
            child.group_empty.set_result(None)

    def _member_gone(self, child: Child, pid: int) -> None:
        self._drop_member(child, pid)
        self._check_group(child)

    def _drop_member(self, child: Child, pid: int) -> None:
        pidfd = child.members.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)

    def signal_group(self, child: Child, signum: int) -> None:
        """Sends a signal to the process group; nothing when it is empty."""
        if child.group_empty.done() or not self._is_known(child):
            return
        try:
            os.killpg(child.group, signum)
        except ProcessLookupError:
            # Nobody is told when a process leaves its group for one of its own: those that are watched may have.
            if child.exited.done():
                self._check_group(child)

    def signal_main(self, child: Child, signum: int) -> bool:
        """Sends a signal to the main process alone; whether it is there."""
        if child.exited.done():
            return False
        with contextlib.suppress(ProcessLookupError):
            if child.pidfd >= 0:
                signal.pidfd_send_signal(child.pidfd, signum)
            else:
                os.kill(child.pid, signum)  # our own child, not reaped: the pid is its own
        return True

    @staticmethod
    def _is_known(child: Child) -> bool:
        """Whether the number of the group is certainly its own: a process of it is not reaped yet.

        Of our own children that is so until we reap them, and then those that are left are watched.
        """
        if child.pidfd < 0 and not child.exited.done():
            return True
        for pidfd in (child.pidfd, *child.members.values()):
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, 0)
                return True
        return False

    # The end

    async def end_strays(self, is_ours: Callable[[int], bool], within_s: float) -> list[int]:
        """Ends children that nobody knows (orphans that left their group); returns the pids that got a signal."""
        signalled: list[int] = []
        for signum, wait_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, 1.0)):
            strays = [pid for pid in process.children() - self._children.keys() if is_ours(pid)]
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signum)  # our own child, not reaped: the pid is its own
            signalled += strays
            give_up_at = self._loop.time() + wait_s
            while set(strays) & process.children() and self._loop.time() < give_up_at:
                await asyncio.sleep(0.01)
                self._reap()
        return signalled

    def close(self) -> None:
        """Gives the signal back."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for child in list(self._strangers):
            self._drop_pidfd(child)
        for child in self._children.values():
            for pidfd in child.members.values():
                self._loop.remove_reader(pidfd)
                os.close(pidfd)


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def _placed(listen_fds: Sequence[int]) -> tuple[list[int], Callable[[], None]]:
    """Copies of the descriptors, and what puts them at their numbers in the child."""
    first_free = FIRST_FD + len(listen_fds)
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first_free) for fd in listen_fds]

    def place() -> None:
        for index, fd in enumerate(spare):
            os.dup2(fd, FIRST_FD + index)

    return spare, place


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
