"""Fixtures of all tests: every test must leave no file descriptor, thread, child process or zombie behind."""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import uvloop
from support import children, command_line, open_fds, process_state

PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(scope="session", autouse=True)
def subreaper() -> None:
    """Orphans that a test leaves are re-parented to the test process, where the leak check sees them."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(scope="session", autouse=True)
def uvloop_is_set_up() -> None:
    """libuv opens a pipe for signals once a process, at its first loop, and keeps it."""
    uvloop.new_event_loop().close()


def _reap_orphans(known: set[int]) -> None:
    """Reaps the zombies of processes that were re-parented to the tests, as pid 1 would."""
    for pid in children() - known:
        if process_state(pid) == "Z":
            os.waitpid(pid, os.WNOHANG)


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest, subreaper: None) -> Iterator[None]:
    """Compares file descriptors, threads and children before and after each test.

    Give things that end by themselves two seconds; orphans that ended are reaped, orphans that live are a leak. A test
    that checks zombies of its own children does so itself, before this.
    """
    fds, threads, kids = open_fds(), set(threading.enumerate()), children()
    yield
    give_up_at = time.monotonic() + 2
    while True:
        _reap_orphans(kids)
        new_fds = {fd: to for fd, to in open_fds().items() if fd not in fds}
        new_threads = set(threading.enumerate()) - threads
        new_kids = {pid: " ".join(command_line(pid)) for pid in children() - kids}
        if not (new_fds or new_threads or new_kids):
            return
        if time.monotonic() > give_up_at:
            break
        time.sleep(0.01)
    for pid in new_kids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    pytest.fail(f"left behind: fds {new_fds}, threads {new_threads}, processes {new_kids}", pytrace=False)
