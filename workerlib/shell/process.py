"""The door to the kernel's view of processes: prctl, waitid, /proc. Nothing here blocks or decides."""

import ctypes
import fcntl
import functools
import math
import os
import resource
import signal
import struct
from collections.abc import Iterable
from contextlib import suppress

from workerlib.core.daemonizing import ChildExited, ExitCause, Exited, Killed

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    unsigned = ctypes.c_ulong
    if _libc().prctl(option, unsigned(argument), unsigned(0), unsigned(0), unsigned(0)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl({option}, {argument}): {os.strerror(errno)}")


def set_child_subreaper() -> None:
    """From now on, orphans among this process's descendants become its children. Not inherited by children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def set_parent_death_signal(signum: int, parent_pid: int) -> None:
    """This process gets `signum` when its parent dies; it gets it now when `parent_pid` is not its parent any more.

    The parent's pid must have been taken before the fork: a parent that died before the kernel was asked would never
    be noticed. What the kernel watches is the parent's *thread* that forked, and it keeps the setting for the calling
    thread of this process; it forgets it when the process changes its user or group.
    """
    _prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        signal.raise_signal(signum)


def clear_parent_death_signal() -> None:
    """Undoes `set_parent_death_signal`; must be called in the thread that made the setting."""
    _prctl(PR_SET_PDEATHSIG, 0)


def exit_cause(result: os.waitid_result) -> ExitCause:
    """How the process of a `waitid(..., WEXITED)` result ended."""
    if result.si_code == os.CLD_EXITED:
        return Exited(result.si_status)
    return Killed(result.si_status, result.si_code == os.CLD_DUMPED)


_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, struct pidfd_info of 64 bytes), linux/pidfd.h
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_INFO = struct.Struct("QQ11Ii")


def _from_wait_status(status: int) -> ExitCause:
    code = os.waitstatus_to_exitcode(status)
    return Exited(code) if code >= 0 else Killed(-code, os.WCOREDUMP(status))


def strangers_exit_cause(pid: int, started: int, pidfd: int) -> ExitCause | None:
    """How a process that is no child of ours ended, once its pidfd says that it has; None when nobody can tell.

    A zombie's own status is in /proc (field 52, for the same user or root); when its parent was quicker, the pidfd
    remembers it from Linux 6.15 on.
    """
    with suppress(ProcessLookupError):
        fields = _stat(pid)
        if int(fields[19]) == started and fields[0] in {"Z", "X"}:
            return _from_wait_status(int(fields[49]))
    try:
        info = fcntl.ioctl(pidfd, _PIDFD_GET_INFO, _PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    except OSError:  # an older kernel knows no such request, and one before 6.15 nothing of processes that have gone
        return None
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return _from_wait_status(status) if mask & _PIDFD_INFO_EXIT else None


def _read(path: str) -> str:
    with open(path, errors="replace") as told:
        return told.read()


def everybody() -> list[int]:
    """Pids of all processes, zombies included."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def boot_id() -> str:
    """Names this boot of the machine: pids and start times mean nothing in another one."""
    return _read("/proc/sys/kernel/random/boot_id").strip()


def reap(most: float = math.inf) -> tuple[ChildExited, ...]:
    """Reaps every child that has exited, or so many. Only for a process in which nobody else waits for children."""
    exits: list[ChildExited] = []
    while len(exits) < most:
        try:
            result = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            break
        if result is None:
            break
        exits.append(ChildExited(result.si_pid, exit_cause(result)))
    return tuple(exits)


def own_rss() -> int:
    """Bytes of memory that this process holds."""
    return int(_read("/proc/self/statm").split()[1]) * resource.getpagesize()


def threads_running() -> int:
    """The number of threads of this process, also of those that Python did not start."""
    return len(os.listdir("/proc/self/task"))


def children() -> frozenset[int]:
    """Pids of the children of this process, zombies included. The process must have one thread."""
    return frozenset(map(int, _read(f"/proc/self/task/{os.getpid()}/children").split()))


def with_variable(name: str, value: str) -> frozenset[int]:
    """Pids of the processes that were started with, or forked by one that was, this variable in their environment.

    What cannot be looked into, another user's, is not among them.
    """
    wanted = os.fsencode(f"{name}={value}")
    found: set[int] = set()
    for pid in everybody():
        with suppress(OSError):
            with open(f"/proc/{pid}/environ", "rb") as told:
                variables = told.read().split(b"\0")
            if wanted in variables:
                found.add(pid)
    return frozenset(found)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, so that [0] is the state. Raises ProcessLookupError."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except FileNotFoundError:
        raise ProcessLookupError(f"no process {pid}") from None
    return text.rpartition(")")[2].split()


def parent(pid: int) -> int:
    """Raises ProcessLookupError."""
    return int(_stat(pid)[1])


def is_zombie(pid: int) -> bool:
    """Whether it has ended and only its parent has not looked yet. Raises ProcessLookupError."""
    return _stat(pid)[0] in {"Z", "X"}


def is_running(pid: int) -> bool:
    """Whether there is such a process and it has not ended, as a zombie has."""
    try:
        return _stat(pid)[0] not in {"Z", "X"}
    except ProcessLookupError:
        return False


def start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot: pid and start time name one process of this boot.

    Raises ProcessLookupError.
    """
    return int(_stat(pid)[19])


def group_members(group: int) -> frozenset[int]:
    """Pids of the processes in the process group, without zombies."""
    found: set[int] = set()
    for pid in everybody():
        try:
            fields = _stat(pid)
        except ProcessLookupError:
            continue
        if int(fields[2]) == group and fields[0] not in {"Z", "X"}:
            found.add(pid)
    return frozenset(found)


def descendants(roots: Iterable[int]) -> frozenset[int]:
    """Pids of all children of these processes, of their children, and so on, as far as they are there."""
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        with suppress(OSError):  # it has gone, or one of its threads has
            for task in os.listdir(f"/proc/{pid}/task"):
                new = {int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()} - found
                found |= new
                todo += new
    return frozenset(found)


def close_fds_except(keep: frozenset[int]) -> None:
    """Closes every open file descriptor that is not in `keep`."""
    for fd in _open_fds() - keep:
        with suppress(OSError):  # not every number that is given is that of an open one
            os.close(fd)


def _open_fds() -> frozenset[int]:
    """At least the open file descriptors of this process."""
    try:
        return frozenset(int(name) for name in os.listdir("/proc/self/fd"))
    except PermissionError:  # the kernel hides it from a process that changed its user
        return frozenset(range(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
