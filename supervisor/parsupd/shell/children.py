"""The processes that parsupd starts and adopts: one reaper for all of them, groups watched until they are empty.

The daemon is child subreaper: whatever its children leave behind becomes its child, and is reaped here too. There is
one place that waits, `waitid(P_ALL)`, so no exit is ever missed or taken twice; a pid belongs to its process until
then, since nobody else reaps it.

What leaves its process group (a daemon does) still counts: it is found among the orphans by the tag in its environment,
and among the descendants of those that are known.

Where a tree of control groups is delegated to parsupd, each run has a group there, which nobody leaves by forking or by
changing session, parent or environment: who is in it belongs to the run.

Processes that an earlier parsupd started are nobody's children here: they are taken over by a pidfd that was opened
while pid and start time were known to be theirs. Whoever reaps them, their exit status is read when the pidfd tells.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from parsupd.core.attributes import Limit
from parsupd.shell.cgroup import Group, Tree
from parsupd.shell.kernel import Kernel
from parsupd.shell.leftovers import Tag
from parsupd.shell.orphans import Orphans
from parsupd.shell.preparing import Preparation, Step, limit_step
from workerlib.core.daemonizing import ChildExited
from workerlib.core.daemonizing import ExitCause as Exit

FIRST_FD = 3
"""Where the descriptors begin that a program is passed."""


MOST_REAPED = 8
"""So many exits are taken in one turn of the loop, of which others want to have a part."""

LOOKS = 3
"""How often a process is looked for that may be a step of a daemon's double fork, and gone when it is seen."""


@dataclass(eq=False, slots=True)
class Child:
    """The main process of one incarnation, and all others of it."""

    pid: int
    group: int
    exited: "asyncio.Future[Exit | None]"
    """Done when it has ended: how, or None when nobody can tell."""
    group_empty: "asyncio.Future[None]"
    popen: "subprocess.Popen[bytes] | None" = None
    adopted: bool = False
    """Whether an earlier daemon has started it: then its orphans are not this one's children."""
    daemonizes: bool = False
    """Whether it is to leave a daemon behind: processes that fork and end at once are looked for more than once."""
    started: int = 0
    """Start time of the main process, in clock ticks since boot."""
    pidfd: int = -1
    """The main process, when it is no child of the daemon."""
    members: dict[int, int] = field(default_factory=dict)
    """Others that are waited for: pid -> pidfd. Those of the group once the main one has ended, those outside it since
    they are known."""
    tag: Tag | None = None
    """By which those that have left the group are known; None: they do not count."""
    groups: set[int] = field(default_factory=set)
    """Its process groups: the one it was started in, and those of later main processes."""
    signalled: int = 0
    """The last signal that was to end all of it: who is found later gets it, too."""
    cgroup: Group | None = None
    """Its control group, where it has one."""


class Children:
    """All child processes of the daemon. Made once, in the main thread, inside the running loop."""

    def __init__(self, kernel: Kernel | None = None, tree: Tree | None = None) -> None:
        """`tree`: where processes with a tag get control groups."""
        self._kernel = kernel or Kernel()
        self._loop = asyncio.get_running_loop()
        self._tree = tree
        self._children: dict[int, Child] = {}
        self._former: dict[int, Child] = {}  # main processes that others have succeeded, until they are reaped
        self._waited_for: dict[int, Child] = {}  # members that are reaped here: those that wait for them
        self._orphans = Orphans(self._kernel, self._children.keys(), self._loop.call_soon)
        self._strangers: set[Child] = set()
        self._inherited = set(self._kernel.children())  # of an earlier program of this process, whatever that was
        self._files = Limit(*resource.getrlimit(resource.RLIMIT_NOFILE))
        # A thousand units take more descriptors than the usual soft limit of 1024; units get the old limit back.
        resource.setrlimit(resource.RLIMIT_NOFILE, (self._files.hard, self._files.hard))
        self._kernel.follow_children(lambda: self._loop.call_soon_threadsafe(self._reap))

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
        tag: Tag | None = None,
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
        return self._add(popen.pid, popen.pid, popen, tag)

    def adopt(self, pid: int, tag: Tag | None = None) -> Child:
        """Takes over a process that is, or will be, re-parented to the daemon; it must not have been reaped yet."""
        self._orphans.drop(pid)
        return self._add(pid, self._kernel.group_of(pid), None, tag)

    def take_over(self, pid: int, started: int, group: int, pidfd: int | None = None, tag: Tag | None = None) -> Child:
        """Takes over a process of an earlier daemon, or what is left of its group when it has ended meanwhile.

        `pidfd`, if there is one of it, becomes this object's.
        """
        child = Child(pid, group, self._loop.create_future(), self._loop.create_future(), started=started, tag=tag)
        child.cgroup = self._group_of_run(tag)
        child.groups.add(group)
        child.adopted = True
        if self._is_own_child(pid, started):  # an earlier program of this same process has started it
            if pidfd is not None:
                os.close(pidfd)
            self._children[pid] = child
            self._loop.call_soon(self._reap)  # it may have ended before there was anybody to be told
            return child
        cause: Exit | None = None
        try:
            child.pidfd = self._kernel.open(pid) if pidfd is None else pidfd
            if pidfd is None and self._kernel.start_time(pid) != started:
                raise ProcessLookupError  # somebody else has got its pid
            if pidfd is not None and self._kernel.has_ended(pidfd):
                cause = self._kernel.exit_cause(pid, started, pidfd)
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
        if not child.exited.done():  # else it had become an orphan, and was reaped here
            child.exited.set_result(self._kernel.exit_cause(child.pid, child.started, child.pidfd))
        self._check_group(child)

    def _drop_pidfd(self, child: Child) -> None:
        self._strangers.discard(child)
        if child.pidfd >= 0:
            self._loop.remove_reader(child.pidfd)
            os.close(child.pidfd)
            child.pidfd = -1

    def _add(self, pid: int, group: int, popen: "subprocess.Popen[bytes] | None", tag: Tag | None = None) -> Child:
        child = Child(pid, group, self._loop.create_future(), self._loop.create_future(), popen, tag=tag)
        child.cgroup = self._group_of_run(tag)
        child.groups.add(group)
        child.started = self._kernel.start_time(pid)
        self._children[pid] = child
        return child

    def _group_of_run(self, tag: Tag | None) -> Group | None:
        return None if self._tree is None or tag is None else self._tree.find(tag.group)

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
        """Takes exits that are there; then looks at the groups that somebody may have left."""
        taken = self._kernel.reap(MOST_REAPED)
        if len(taken) == MOST_REAPED:
            self._loop.call_soon(self._reap)
        concerned: dict[Child, None] = {}  # ordered set
        for gone in taken:
            self._orphans.drop(gone.pid)
            self._inherited.discard(gone.pid)
            child = self._children.pop(gone.pid, None)
            if child is None:  # an orphan that was re-parented to the daemon
                self._orphan_gone(gone)
                if (child := self._waited_for.get(gone.pid)) is not None:
                    self._drop_member(child, gone.pid)
            else:
                if child.popen is not None:
                    child.popen.returncode = gone.cause.status  # Popen's destructor shall not wait for this pid
                if not child.exited.done():
                    child.exited.set_result(gone.cause)
            if child is not None:
                concerned[child] = None
        self._orphans.outdate()  # one list is enough for all that they have left behind
        for child in concerned:
            self._judge_group(child)

    def _orphan_gone(self, gone: ChildExited) -> None:
        former = self._former.pop(gone.pid, None)
        if former is not None and former.popen is not None:
            former.popen.returncode = gone.cause.status
        for stranger in self._strangers:
            if stranger.pid == gone.pid and not stranger.exited.done():
                stranger.exited.set_result(gone.cause)

    def _check_group(self, child: Child) -> None:
        """Completes `group_empty`, or waits for those that are left, without polling."""
        if child.exited.done():
            self._orphans.outdate()
            self._judge_group(child)

    def _judge_group(self, child: Child) -> None:
        """The same by a list of the orphans that was made after the last end that is known."""
        if child.group_empty.done() or not child.exited.done():
            return
        inside = frozenset[int]().union(*(self._inside(child, group) for group in child.groups))
        left = inside | self._outside(child, inside)
        for pid in child.members.keys() - left:
            self._drop_member(child, pid)
        for pid in left - child.members.keys():
            self._add_member(child, pid, signum=0 if pid in inside else child.signalled)
        if not child.members:
            self._drop_pidfd(child)
            if self._tree is not None and child.cgroup is not None:
                self._tree.drop(child.cgroup)
            child.group_empty.set_result(None)

    def _add_member(self, child: Child, pid: int, *, signum: int) -> None:
        try:
            pidfd = self._kernel.open(pid)
        except ProcessLookupError:
            return
        child.members[pid] = pidfd
        if pid in self._orphans:
            self._waited_for[pid] = child  # it is reaped here: its pidfd would tell of it before
        else:
            self._loop.add_reader(pidfd, self._member_gone, child, pid)
        if signum:
            with contextlib.suppress(ProcessLookupError):
                self._kernel.send(pidfd, signum)

    def _member_gone(self, child: Child, pid: int) -> None:
        self._drop_member(child, pid)
        self._check_group(child)

    def _drop_member(self, child: Child, pid: int) -> None:
        self._waited_for.pop(pid, None)
        pidfd = child.members.pop(pid)
        self._loop.remove_reader(pidfd)
        os.close(pidfd)

    def _inside(self, child: Child, group: int) -> frozenset[int]:
        """The members of one of its groups: those that live, and those that are not reaped here yet.

        Nobody is told when the last one leaves a group for one of its own, nor what happens while no parsupd is there;
        from then on its number is anybody's. So where none is in it that is certainly the unit's, only those count
        that say they are, or that were left to this process and lead no group.
        """
        if not self._kernel.group_exists(group):
            return frozenset()
        # To look at all processes takes 20 ms where there are a thousand; what we have started came to us, or is below.
        near: frozenset[int] = frozenset() if child.adopted else self._orphans.within(group)
        found = near or self._kernel.group_members(group)
        if self._is_known(child, group):  # after the look: so it was its own then
            return found
        return frozenset(pid for pid in found if self._is_ours(child, pid))

    def _is_ours(self, child: Child, pid: int) -> bool:
        """Whether a process with the number of one of the child's groups is of the child's unit."""
        if pid in self._former:
            return True
        tag = self._kernel.tag_of(pid)
        if tag is not None:
            return tag == child.tag
        ancestor = 0 if pid in child.groups else pid  # who led one of them has been reaped
        while ancestor not in {0, self._kernel.pid}:
            ancestor = self._kernel.parent_of(ancestor)
        return ancestor > 0

    # Those that have left their group

    def _outside(self, child: Child, inside: frozenset[int] = frozenset()) -> frozenset[int]:
        """Living processes of the child's unit that are in none of its groups.

        A process that forks and ends while it is looked for hands its child to us before it is seen to have ended: so
        where there was any, who has come to us meanwhile is looked at, too. Of a main process that lives, such a child
        is found when that has ended.
        """
        if child.tag is None:
            return frozenset()
        if child.adopted or child.daemonizes:
            tagged = self._kernel.tagged
            looks = (self._look_outside(child, inside, tagged(child.tag) | _grouped(child)) for _ in range(LOOKS))
            return next((found for found in looks if found), frozenset())
        found = self._look_outside(child, inside, _grouped(child))
        seen: frozenset[int] = frozenset()
        while new := self._orphans.all() - seen:
            seen |= new
            if not self._orphans.may_lead_to(child.tag):
                break
            found |= self._look_outside(child, inside, self._orphans.of(child.tag))
            self._orphans.outdate()
        return found

    def _look_outside(self, child: Child, inside: frozenset[int], roots: frozenset[int]) -> frozenset[int]:
        if not child.exited.done():
            roots |= {child.pid}
        found = roots | self._kernel.descendants(roots | inside)
        known = inside | {child.pid} | self._children.keys()
        return frozenset(
            pid
            for pid in found - known
            if self._kernel.is_running(pid) and self._kernel.group_of(pid) not in child.groups
        )

    def owns(self, child: Child, pid: int) -> bool:
        """Whether a living process is one of the child's unit."""
        if (pid == child.pid and not child.exited.done()) or pid in child.members:
            return True
        if child.tag is not None and self._kernel.tag_of(pid) == child.tag:
            return True
        group = self._kernel.group_of(pid)
        return group in child.groups and (self._is_known(child, group) or self._is_ours(child, pid))

    def roots(self, child: Child) -> list[int]:
        """Of those that the main process has left behind, the ones that have no living parent among them."""
        alive = filter(self._kernel.is_running, sorted(child.members))
        return [pid for pid in alive if self._kernel.parent_of(pid) not in child.members]

    def succeed(self, child: Child, pid: int) -> bool:
        """Makes another process of the unit its main one: `child.exited` is a new future from then on.

        Returns False when it is none of the unit's, or has gone.
        """
        if not self.owns(child, pid):
            return False
        try:
            pidfd = self._kernel.open(pid)
            started, group = self._kernel.start_time(pid), self._kernel.group_of(pid)
        except ProcessLookupError:
            return False
        if pid in child.members:
            self._drop_member(child, pid)
        if self._children.get(child.pid) is child:
            del self._children[child.pid]
            self._former[child.pid] = Child(child.pid, child.group, child.exited, child.group_empty, child.popen)
        self._drop_pidfd(child)
        child.pid, child.started, child.popen = pid, started, None
        if group != self._kernel.group:
            child.group = group
            child.groups.add(group)
        child.exited = self._loop.create_future()
        if pid in self._kernel.children():
            os.close(pidfd)
            self._orphans.drop(pid)
            self._children[pid] = child
        else:
            child.pidfd = pidfd
            self._strangers.add(child)
            self._loop.add_reader(pidfd, self._stranger_gone, child)
        return True

    # Signals

    def signal_all(self, child: Child, signum: int, *, resume: bool = False) -> None:
        """Sends a signal to all processes of the child's unit; nothing when there is none.

        With `resume`, as at a stop, SIGCONT follows: a process that is stopped would not see the other one.
        """
        if child.group_empty.done():
            return
        if resume or signum == signal.SIGKILL:
            child.signalled = signum
        if signum == signal.SIGKILL and child.cgroup is not None:
            child.cgroup.kill()
        signals = _resuming(signum) if resume else (signum,)
        for group in child.groups:
            if self._is_known(child, group):
                with contextlib.suppress(ProcessLookupError):
                    for one in signals:
                        self._kernel.kill_group(group, one)
        for pid in self._outside(child) - child.members.keys():
            self._add_member(child, pid, signum=0)
        for pid, pidfd in child.members.items():
            if child.tag is not None and self._kernel.group_of(pid) not in child.groups:
                with contextlib.suppress(ProcessLookupError):
                    for one in signals:
                        self._kernel.send(pidfd, one)
        # Nobody is told when a process leaves its group for one of its own: those that are watched may have.
        self._check_group(child)

    def signal_main(self, child: Child, signum: int, *, resume: bool = False) -> bool:
        """Sends a signal to the main process alone; whether it is there."""
        if child.exited.done():
            return False
        with contextlib.suppress(ProcessLookupError):
            for one in _resuming(signum) if resume else (signum,):
                if child.pidfd >= 0:
                    self._kernel.send(child.pidfd, one)
                else:
                    self._kernel.kill(child.pid, one)  # our own child, not reaped: the pid is its own
        return True

    def _is_known(self, child: Child, group: int) -> bool:
        """Whether the number of the group is certainly its own: a process of it is not reaped yet.

        Of our own children that is so until we reap them, and then those that are left are watched.
        """
        if child.pidfd < 0 and not child.exited.done() and self._kernel.group_of(child.pid) == group:
            return True
        for pid, pidfd in ((child.pid, child.pidfd), *child.members.items()):
            if pidfd >= 0 and self._kernel.group_of(pid) == group:
                with contextlib.suppress(OSError):
                    self._kernel.send(pidfd, 0)  # after the look: the pid was its own then
                    return True
        return False

    def _is_own_child(self, pid: int, started: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            return self._kernel.start_time(pid) == started and self._kernel.parent_of(pid) == self._kernel.pid
        return False

    # The end

    async def end_strays(self, is_ours: Callable[[int], bool], within_s: float) -> list[int]:
        """Ends children that nobody knows (orphans that left their group); returns the pids that got a signal.

        Those that came to us are of units, whatever they did to their environment. Of those that were there before
        that is so where `is_ours` says it.
        """
        signalled: list[int] = []
        for signum, wait_s in ((signal.SIGTERM, within_s), (signal.SIGKILL, 1.0)):
            unknown = self._kernel.children() - self._children.keys()
            strays = [pid for pid in unknown if pid not in self._inherited or is_ours(pid)]
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    self._kernel.kill(pid, signum)  # our own child, not reaped: the pid is its own
            signalled += strays
            give_up_at = self._loop.time() + wait_s
            while set(strays) & self._kernel.children() and self._loop.time() < give_up_at:
                await asyncio.sleep(0.01)
                self._reap()
        return signalled

    def close(self) -> None:
        """Gives the signal and the limit back."""
        self._kernel.forget_children()
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        for child in list(self._strangers):
            self._drop_pidfd(child)
        for child in self._children.values():
            for pidfd in child.members.values():
                self._loop.remove_reader(pidfd)
                os.close(pidfd)


def _resuming(signum: int) -> tuple[int, ...]:
    """With what lets a process that is stopped see it; SIGKILL needs nothing."""
    return (signum,) if signum == signal.SIGKILL else (signum, signal.SIGCONT)


def _grouped(child: Child) -> frozenset[int]:
    return frozenset() if child.cgroup is None else child.cgroup.pids()


def _placed(listen_fds: Sequence[int]) -> tuple[list[int], Callable[[], None]]:
    """Copies of the descriptors, and what puts them at their numbers in the child."""
    first_free = FIRST_FD + len(listen_fds)
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first_free) for fd in listen_fds]

    def place() -> None:
        for index, fd in enumerate(spare):
            os.dup2(fd, FIRST_FD + index)

    return spare, place
