"""The door to python-daemon: detach, but hold the caller until the daemon is released.

`workerlib.core.daemonizing` decides; here are the fork, the pipe, the signals and the waiting. From python-daemon come
umask, working directory and the double fork. What its DaemonContext does besides, and how it is disarmed:

* it does not detach when stdin is a socket or the parent is pid 1: `detach_process=True`
* it sets umask 0 and a working directory of its own choice: both are always given
* it handles SIGTERM and ignores SIGTSTP, SIGTTIN and SIGTTOU: `signal_map={}`
* it sets the core limit to 0: `prevent_core=False`
* its parent exits 0 at once: it is run in a forked child, whose orphan the foreground process adopts

and, taken from it while it works (NOT_BY_PYTHON_DAEMON), because no argument turns them off:

* it closes every descriptor that is not listed, up to the hard limit that held when it was imported, which may be too
  few, and may be a thousand million, one by one: the door closes those that are open
* it points stdin, stdout and stderr to /dev/null, leaking a descriptor each, through whatever object `sys.stdout` is,
  and fails when one is None: the door points the descriptors
* it sets the real user and group, by which a process that gave up root for a while gets it back, and a set-user-id one
  loses it: ids are left alone. It also asks for the user's name, which may ask a server.
* it registers an atexit function, which keeps the context for ever
"""

import fcntl
import os
import select
import signal
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import NoReturn

import daemon
import daemon.daemon

from workerlib.core.daemonizing import (
    EXIT_NOT_DETACHED,
    EXIT_NOT_RELEASED,
    Announcement,
    DaemonizeError,
    Event,
    Finish,
    Foreground,
    LauncherDied,
    PassOn,
    PipeClosed,
    PipeRead,
    Released,
    SignalArrived,
    WatchDaemon,
    encode,
    step,
)
from workerlib.errors import UsageError
from workerlib.redirects import Redirect, Target
from workerlib.shell import process

NOT_BY_PYTHON_DAEMON = ("close_all_open_files", "redirect_stream", "change_process_owner", "register_atexit_function")

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LAUNCHER_DIED = signal.SIGUSR2
"""The parent death signal of the foreground process once it can handle one: it has others to end before itself."""
LEFT_ROUNDS, LEFT_PAUSE_S = 200, 0.005
"""How often, and how long apart, the foreground process looks whether what was left to it has ended."""


class Release:
    """Lets the caller of the daemon go. Made by `daemonize_wait`, called once."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe
        self._daemon = os.getpid()
        self._thread = threading.get_native_id()

    def __call__(self, stdout: Redirect, stderr: Redirect) -> None:
        """Points stdout and stderr to their final places, then lets the foreground process exit 0.

        Raises OSError, which names the path, when a redirect cannot be opened; nothing is changed then, and the call
        may be repeated. Raises DaemonizeError when the caller was released before, and in another process or thread
        than the one that called `daemonize_wait`. Blocks only where opening the files does (a FIFO without a reader).
        Does not return when the foreground process is dead: the daemon kills itself, as it would have been killed.
        """
        if (os.getpid(), threading.get_native_id()) != (self._daemon, self._thread):
            # Another thread cannot take back the parent death signal, which would then hit the released daemon.
            raise DaemonizeError("release must be called in the process and thread that called daemonize_wait")
        if self._pipe < 0:
            raise DaemonizeError("the caller was released before")
        _redirect(stdout, stderr)
        process.clear_parent_death_signal()
        # A foreground process that died before this write is noticed by it: nobody else reads the pipe. When it dies
        # later, but before it exits 0, its caller sees a failure while the daemon lives: no order of steps closes that.
        _tell(self._pipe, encode(Released()))
        os.close(self._pipe)
        self._pipe = -1


def daemonize_wait(
    *, cd: str = "/", umask: int | None = None, preserve_fds: Iterable[int] = (), parent_pid: int | None = None
) -> Release:
    """Makes the rest of the program a daemon, and returns only in the daemon.

    The process that called it stays in the foreground: it exits 0 when the daemon calls the returned Release, and with
    the daemon's own exit status (128+signal) when the daemon ends before it; with 70 when that status is 0, and with
    71, its reason on stderr, when detaching fails. What the daemon has forked ends with it
    when it was not released. The foreground process runs no atexit function and flushes nothing. It passes SIGTERM,
    SIGINT and SIGHUP on to the daemon. When it is killed before the release, the daemon is killed with it.

    The daemon has its own session and process group, leads neither, has no controlling terminal, works in `cd`, with
    `umask` (None: the present one), stdin and stdout on /dev/null, and stderr where it was. Signal handlers, signal
    mask, ids and limits stay. Every descriptor above 2 that is not in `preserve_fds` is closed, whatever object may
    hold it.
    A daemon that changes its user or group before the release loses the protection against an early death of the
    foreground process.

    `parent_pid` is the launcher, which took its own pid before it started this process: when it dies before the
    release, the foreground process is killed, and the daemon with it. With None, nothing watches the launcher.

    Raises DaemonizeError when other threads or a running event loop exist, or when a descriptor of `preserve_fds` is
    not open, and OSError when there is no pipe or process to be had. Blocks the foreground process until it exits.
    """
    preserved = frozenset(preserve_fds)
    _refuse_to_fork_late(preserved)
    if parent_pid is not None:
        process.set_parent_death_signal(signal.SIGKILL, parent_pid)
    _open_missing_streams()
    _flush()
    if umask is None:
        umask = os.umask(0)
        os.umask(umask)
    foreground = os.getpid()
    process.set_child_subreaper()
    bystanders = process.children()
    with _signals_held():
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            first_child = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            raise
        if first_child:
            os.close(writing)
            _stay_in_foreground(Foreground(first_child, bystanders), reading, parent_pid)
        _detach(cd, umask, preserved | {writing})
        _wait_for_adoption()
        process.set_parent_death_signal(signal.SIGKILL, foreground)
        _tell(writing, encode(Announcement(os.getpid(), os.getsid(0))))
    return Release(writing)


def stay_attached(cd: str, umask: int | None, parent_pid: int | None) -> Callable[[Redirect, Redirect], None]:
    """The same without a daemon: this process goes on, as a child of whoever launched it, until whose "release" it dies
    with `parent_pid`. Its stdin becomes the null device; stdout and stderr stay where they are, also at the release.

    Raises UsageError when it cannot work in `cd`.
    """
    if parent_pid is not None:
        process.set_parent_death_signal(signal.SIGKILL, parent_pid)
    try:
        os.chdir(cd)
    except OSError as error:
        raise UsageError(f"a worker cannot work in {cd!r}: {error.strerror}") from None
    if umask is not None:
        os.umask(umask)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    return lambda _stdout, _stderr: process.clear_parent_death_signal()


def _refuse_to_fork_late(preserved: frozenset[int]) -> None:
    threads = process.threads_running()
    if threads > 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise DaemonizeError(f"cannot daemonize: {threads} threads run ({names}), and a fork would lose all but one")
    # asyncio is looked for, not imported: a program that never imported it runs no loop, and should not pay for it.
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and _runs_a_loop(asyncio):
        raise DaemonizeError("cannot daemonize inside a running event loop")
    for fd in preserved:
        try:
            os.fstat(fd)
        except OSError as error:
            raise DaemonizeError(f"cannot preserve descriptor {fd}: {error.strerror}") from error


def _runs_a_loop(asyncio: ModuleType) -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _open_missing_streams() -> None:
    """Opens descriptors 0, 1 and 2 where they are closed: the release pipe must not become one of them."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free descriptor is `fd`


def _flush() -> None:
    """Empties the buffers, so that no text is written twice, nor to the wrong place. A closed stream has lost it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.flush()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Holds the signals that the foreground process handles while it is not known yet who is who.

    The daemon gets them when it is complete; the helpers ignore a Ctrl-C, which the terminal sends to all of them.
    An inherited "ignore" for SIGCHLD would make the kernel throw the exit status away.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    ignored = signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    if ignored:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# The foreground process.


def _stay_in_foreground(state: Foreground, pipe: int, parent_pid: int | None) -> NoReturn:
    status = EXIT_NOT_RELEASED
    try:
        status = _follow(state, pipe, parent_pid)
        if status:
            _end_what_is_left(state.bystanders)
    except BaseException:  # noqa: BLE001 - the caller's code must not go on in this process, whatever happens
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_what_is_left(bystanders: frozenset[int]) -> None:
    """Kills what came of a daemon that was not released, and was left to this process, the subreaper, when it died."""
    for _ in range(LEFT_ROUNDS):
        left = process.children() - bystanders
        if not left:
            return
        for pid in left:
            os.kill(pid, signal.SIGKILL)  # a child that nobody else reaps
        time.sleep(LEFT_PAUSE_S)
        process.reap()


def _follow(state: Foreground, pipe: int, parent_pid: int | None) -> int:
    """Feeds the machine until it says what to end with.

    Rejected: SIGCHLD alone would do for the exits, but a signal should go to a pidfd, not to a stored pid; and pidfds
    alone do not tell of orphans. Every wake-up, whatever its source, reads everything.
    """
    wakeups = _catch_signals()
    if parent_pid is not None:
        process.set_parent_death_signal(LAUNCHER_DIED, parent_pid)
    os.set_blocking(pipe, False)
    poller = select.poll()
    poller.register(wakeups, select.POLLIN)
    poller.register(pipe, select.POLLIN)
    daemon_fd: int | None = None
    while True:
        for event in _news(pipe, wakeups):
            state, effects = step(state, event)
            if isinstance(event, PipeClosed):
                with suppress(KeyError):
                    poller.unregister(pipe)
            for effect in effects:
                match effect:
                    case WatchDaemon(pid):
                        with suppress(ProcessLookupError):  # its exit was reaped together with its announcement
                            daemon_fd = os.pidfd_open(pid)
                            poller.register(daemon_fd, select.POLLIN)
                    case PassOn(_, signum):
                        if daemon_fd is not None:
                            with suppress(ProcessLookupError):
                                signal.pidfd_send_signal(daemon_fd, signum)
                    case Finish(status, message):
                        if message:
                            _complain(message)
                        return status
        for fd, _ in poller.poll():
            if fd == daemon_fd:  # it would stay readable while a tracer keeps the daemon; then comes another SIGCHLD
                poller.unregister(fd)


def _catch_signals() -> int:
    """Turns the signals of the foreground process into bytes on the returned descriptor."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for signum in (*PASSED_ON, LAUNCHER_DIED, signal.SIGCHLD):
        signal.signal(signum, lambda _signum, _frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*PASSED_ON, LAUNCHER_DIED, signal.SIGCHLD})
    return reading


def _news(pipe: int, wakeups: int) -> Iterator[Event]:
    """All that has happened.

    The wake-ups are taken first: the one of an exit that comes after the reaping must stay, to wake up again. The pipe
    is read last, so that no release that was written before an exit is missed.
    """
    wakes = b""
    with suppress(BlockingIOError):
        wakes = os.read(wakeups, 4096)
    exits = process.reap()
    try:
        while data := os.read(pipe, 4096):
            yield PipeRead(data)
        yield PipeClosed()
    except BlockingIOError:
        pass
    for signum in wakes:
        if signum == LAUNCHER_DIED:
            yield LauncherDied()
        elif signum != signal.SIGCHLD:
            yield SignalArrived(signum)
    yield from exits


def _complain(message: str) -> None:
    with suppress(OSError):
        os.write(2, f"daemonize_wait: {message}\n".encode(errors="replace"))


# The first child, the session leader, and the daemon.


def _detach(cd: str, umask: int, keep: frozenset[int]) -> None:
    """Runs python-daemon. Returns in the daemon; a helper that cannot go on says why and exits."""
    try:
        process.close_fds_except(keep | {0, 1, 2})
        context = daemon.DaemonContext(
            working_directory=cd, umask=umask, prevent_core=False, detach_process=True, signal_map={}
        )
        with _disarmed():
            context.open()
        _point_streams_at_null()
    except BaseException as error:  # noqa: BLE001 - the caller's code must not go on in a helper, whatever happens
        _complain(f"cannot detach: {type(error).__name__}: {error}")
        os._exit(EXIT_NOT_DETACHED)


@contextmanager
def _disarmed() -> Iterator[None]:
    """Takes from python-daemon, while it works, the steps that no argument turns off. An error ends the process."""
    taken = {name: getattr(daemon.daemon, name) for name in NOT_BY_PYTHON_DAEMON}
    for name in taken:
        setattr(daemon.daemon, name, lambda *_, **__: None)
    yield
    for name, function in taken.items():
        setattr(daemon.daemon, name, function)


def _point_streams_at_null() -> None:
    """Makes stdin and stdout the null device; a stream object that was missing at the start is made."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - same
    if sys.stderr is None:
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115 - same


def _wait_for_adoption() -> None:
    """Blocks until the session leader is not this process's parent any more.

    The parent death signal fires for each parent that dies, so that it must not be set while the session leader, whose
    pid is the session's, is still the parent. A session keeps its leader's pid from being used again.
    """
    leader = os.getsid(0)
    with suppress(ProcessLookupError, OSError):
        pidfd = os.pidfd_open(leader)
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        while os.getppid() == leader:
            poller.poll(100)
        os.close(pidfd)


def _tell(pipe: int, message: bytes) -> None:
    """Writes to the foreground process; dies with it when it is dead."""
    try:
        os.write(pipe, message)
    except BrokenPipeError:
        signal.raise_signal(signal.SIGKILL)


# Redirects.


def _redirect(stdout: Redirect, stderr: Redirect) -> None:
    """Opens both files before it changes anything."""
    opened: dict[Redirect, int] = {}
    try:
        for redirect in (stdout, stderr):
            if redirect not in opened:
                opened[redirect] = _open(redirect)
        for redirect, fd in opened.items():
            if redirect.target is Target.TRUNCATE and stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
        _flush()
        os.dup2(opened[stdout], 1)
        os.dup2(opened[stderr], 2)
    finally:
        for fd in opened.values():
            os.close(fd)


def _open(redirect: Redirect) -> int:
    """A descriptor above 2, even when the daemon has closed one of its streams."""
    # A truncated file is appended to as well: two streams that name it differently, or a log rotator that truncates it
    # again, would otherwise leave holes and overwrite lines.
    if redirect.target is Target.DESCRIPTOR:
        return fcntl.fcntl(redirect.fd, fcntl.F_DUPFD_CLOEXEC, 3)
    path = os.devnull if redirect.target is Target.DEV_NULL else redirect.path
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)
