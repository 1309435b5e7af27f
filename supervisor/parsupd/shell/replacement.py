"""The door to being another program in the same process: execve with chosen descriptors, and signals held meanwhile."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import NoReturn

from parsupd.shell.notify_socket import FIRST_FD

HELD = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2})
"""What must neither be lost nor end a process that is between two programs."""


def same_command(python: str) -> list[str]:
    """The command line of this process; with another interpreter where one is named, by its path or as in PATH."""
    program = (python and (shutil.which(python) or python)) or sys.executable
    return [program, *sys.orig_argv[1:]]


def hold_signals() -> None:
    """From now on they wait, also for the next program of this process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


def let_signals_come() -> None:
    """Those that have waited come now. Once there is somebody to take them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def duplicate(fds: Mapping[str, int]) -> dict[str, int]:
    """Copies that stay open whatever becomes of the originals until the next program."""
    return {name: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD) for name, fd in fds.items()}


def execute(argv: Iterable[str], env: Mapping[str, str], fds: Mapping[str, int]) -> NoReturn:
    """Becomes another program, which finds the descriptors as a service manager passes them: see sd_listen_fds(3).

    Raises OSError when it cannot be executed; then this process is as it was, but for its descriptors from 3 on.
    """
    argv = list(argv)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    spare = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + len(fds)) for fd in fds.values()]
    for index, fd in enumerate(spare):
        os.dup2(fd, FIRST_FD + index)
    passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(spare)), "LISTEN_FDNAMES": ":".join(fds)}
    os.execve(argv[0], argv, {**env, **passed})  # noqa: S606 - no shell is what is wanted
